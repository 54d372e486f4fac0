//! The benches of oCore's promises, each beside its alternative in the same run: `cargo run --release -p ocore-bench -- <name>`.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(unreachable_pub, reason = "a binary exports nothing")]

mod api;
mod by_hand;
mod idle;
mod push_to_live;
mod report;

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Measures what oCore promises, beside the alternative")]
struct CommandLine {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// From a push to the first answer of the new version, beside the same update by hand
    PushToLive {
        /// Pushes a database
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Leave out the 72-module database
        #[arg(long)]
        small_only: bool,
    },
    /// List, get and pipeline with 1,000 environments, beside their SQL
    Api {
        /// Seconds a measurement
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// The memory of control plane and edge when nobody asks anything
    Idle,
}

#[tokio::main]
async fn main() -> Result<()> {
    let command_line = CommandLine::parse();
    let binary = release_binary()?;
    match command_line.bench {
        Bench::PushToLive { rounds, small_only } => push_to_live::run(binary, rounds, small_only).await,
        Bench::Api { seconds } => api::run(binary, seconds).await,
        Bench::Idle => idle::run(binary).await,
    }
}

/// Builds the release binary, so that what is measured is what the sources say.
fn release_binary() -> Result<PathBuf> {
    let status = Command::new("cargo").args(["build", "--release", "--locked", "-p", "ocore"]).status().context("cannot run cargo")?;
    ensure!(status.success(), "the release build failed");
    let executable = std::env::current_exe()?;
    Ok(executable.parent().context("no directory")?.join("ocore"))
}
