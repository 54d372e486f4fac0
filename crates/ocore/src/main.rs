//! The one binary: `ocore serve` and `ocore edge` run the system, the other commands talk to it.

#![expect(clippy::print_stdout, reason = "a command-line program prints")]
#![allow(unreachable_pub, reason = "a binary exports nothing")]

mod client;
mod config;

use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "ocore", version, about = "A self-hosted control plane for Odoo", propagate_version = true)]
struct CommandLine {
    #[command(flatten)]
    client: client::ClientOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Client(client::ClientCommand),
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let outcome = match command_line.command {
        Command::Client(command) => client_runtime().and_then(|runtime| runtime.block_on(client::run(command, command_line.client))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ocore: {error:#}");
            ExitCode::from(client::exit_code(&error))
        }
    }
}

fn client_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
