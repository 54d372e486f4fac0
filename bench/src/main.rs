//! The benches of oCore's promises, each beside its alternative in the same run: `cargo run --release -p ocore-bench -- <name>`.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(unreachable_pub, reason = "a binary exports nothing")]

mod api;
mod by_hand;
mod clients;
mod copy;
mod deploy;
mod edge;
mod idle;
mod mail;
mod push_to_live;
mod report;
mod rollback;
mod source;
mod template;
mod wake;

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Measures what oCore promises, beside the alternative")]
struct CommandLine {
    /// An `ocore` that is built already, in the place of a release of the sources as they are
    #[arg(long, global = true)]
    binary: Option<PathBuf>,
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
    /// A clone of a live production under load, beside dump and restore
    Copy {
        /// Copies of each size
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Of the smaller database; the file store has half as much
        #[arg(long, default_value_t = 2.0)]
        gigabytes: f64,
        /// Leave out the four times larger one
        #[arg(long)]
        quick: bool,
    },
    /// Deployments of a production under load, beside stop, update, start
    Deploy {
        /// Of each kind
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        /// By hand
        #[arg(long, default_value_t = 3)]
        by_hand: usize,
        /// These kinds only
        #[arg(long, value_enum)]
        only: Vec<deploy::Change>,
    },
    /// From the call to the first answer of the old state, beside a bare start
    Rollback {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// A new development environment, beside one whose database is installed from nothing
    Template {
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Odoo's modules; with what they depend on, the default ones are 72
        #[arg(long, value_delimiter = ',', default_value = "base,web,crm,sale_management,account,stock")]
        modules: Vec<String>,
    },
    /// Throughput and latency of the edge, beside nginx and HAProxy
    Edge {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds a measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// From a request to a sleeping environment to its answer, beside a bare start; what sleeping and awake ones cost
    Wake {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// The memory of control plane and edge when nobody asks anything
    Idle,
    /// What the mail catcher takes, lists and costs, beside another catcher
    Mail {
        /// Of 10,000 messages; at least 3
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Leave out the other catcher, which npm installs
        #[arg(long)]
        no_npm: bool,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let command_line = CommandLine::parse();
    let binary = command_line.binary.map_or_else(release_binary, Ok)?;
    match command_line.bench {
        Bench::PushToLive { rounds, small_only } => push_to_live::run(binary, rounds, small_only).await,
        Bench::Api { seconds } => api::run(binary, seconds).await,
        Bench::Copy { rounds, gigabytes, quick } => copy::run(binary, rounds, gigabytes, quick).await,
        Bench::Deploy { rounds, by_hand, only } => deploy::run(binary, rounds, by_hand, &only).await,
        Bench::Rollback { rounds } => rollback::run(binary, rounds).await,
        Bench::Template { rounds, modules } => template::run(binary, rounds, &modules).await,
        Bench::Edge { rounds, seconds } => edge::run(binary, rounds, seconds),
        Bench::Wake { rounds } => wake::run(binary, rounds).await,
        Bench::Idle => idle::run(binary).await,
        Bench::Mail { rounds, no_npm } => mail::run(binary, rounds, no_npm).await,
    }
}

/// Builds the release binary, so that what is measured is what the sources say.
fn release_binary() -> Result<PathBuf> {
    let status = Command::new("cargo").args(["build", "--release", "--locked", "-p", "ocore"]).status().context("cannot run cargo")?;
    ensure!(status.success(), "the release build failed");
    let executable = std::env::current_exe()?;
    Ok(executable.parent().context("no directory")?.join("ocore"))
}
