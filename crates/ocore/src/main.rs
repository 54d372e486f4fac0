//! The one binary: `ocore serve` and `ocore edge` run the system, the other commands talk to it or look after the machine.

#![warn(clippy::print_stderr)]
#![allow(unreachable_pub, reason = "a binary exports nothing")]

#[macro_use]
mod terminal;

mod client;
mod companion;
mod config;
mod doctor;
mod edge;
mod lock;
mod logging;
mod mail_catcher;
mod odoo;
mod port_keeper;
mod serve;
mod shutdown;
mod stop;
mod succession;

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use config::Config;

#[derive(Debug, Parser)]
#[command(name = "ocore", version, about = "A self-hosted control plane for Odoo")]
struct CommandLine {
    #[command(flatten)]
    client: client::ClientOptions,
    /// The server's settings, instead of /etc/ocore/ocore.toml
    #[arg(long, env = "OCORE_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Client(client::ClientCommand),
    /// Run the control plane and its API on this machine
    Serve,
    /// Run the reverse proxy; `serve` starts it by itself
    Edge {
        /// Take the sockets of the one that runs
        #[arg(long, hide = true)]
        take_over: bool,
        #[command(subcommand)]
        command: Option<EdgeCommand>,
    },
    /// Run the mail catcher; `serve` starts it by itself
    MailCatcher,
    /// Hold the ports of the instances; `serve` starts it by itself
    PortKeeper,
    /// End everything that runs on this machine; data stays
    Stop,
    /// Remove everything from this machine: environments, data, users, the installed Odoo
    Purge {
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Leave the installed Odoo distributions
        #[arg(long)]
        keep_odoo: bool,
    },
    /// Look at this machine and say what to do
    Doctor,
    /// Odoo distributions on this machine
    #[command(subcommand)]
    Odoo(odoo::OdooCommand),
    /// Print the settings in force, without the secrets among them
    Config {
        /// Print every setting with its default and meaning
        #[arg(long)]
        default: bool,
        /// Print the address of the control plane's database, with its password
        #[arg(long, conflicts_with = "default")]
        database_url: bool,
    },
    /// Print the OpenAPI document of the API
    Openapi,
    /// Print a shell's completions
    Completions { shell: Shell },
}

#[derive(Debug, clap::Subcommand)]
enum EdgeCommand {
    /// Put this program's reverse proxy, with the settings as they are now, in the place of the one that runs; no request is lost
    Upgrade,
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    match run(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note!("ocore: {error:#}");
            ExitCode::from(client::exit_code(&error))
        }
    }
}

fn run(command_line: CommandLine) -> Result<()> {
    // A second provider is refused, and there is none before this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = command_line.config;
    let load = || Config::load(file.as_deref());
    match command_line.command {
        Command::Client(command) => small_runtime()?.block_on(client::run(command, command_line.client)),
        Command::Serve => {
            let config = load()?;
            logging::start(&config.log);
            // Only in builds for tests: reads FAILPOINTS.
            let _failpoints = fail::has_failpoints().then(fail::FailScenario::setup);
            server_runtime()?.block_on(serve::run(config, file))
        }
        Command::Edge { command: Some(EdgeCommand::Upgrade), .. } => {
            let pid = small_runtime()?.block_on(succession::EdgeProcess::new(&load()?, file).upgrade())?;
            terminal::write(&format!("the edge is process {pid} now; the one before ends when its requests have\n"));
            Ok(())
        }
        Command::Edge { take_over, command: None } => {
            let config = load()?;
            logging::start(&config.log);
            edge::run(&config, take_over)
        }
        Command::MailCatcher => {
            let config = load()?;
            logging::start(&config.log);
            mail_catcher::run(&config)
        }
        Command::PortKeeper => {
            let config = load()?;
            logging::start(&config.log);
            port_keeper::run(&config)
        }
        Command::Stop => small_runtime()?.block_on(stop::stop(&load()?)),
        Command::Purge { yes, keep_odoo } => {
            let config = load()?;
            if !yes && !confirmed(&config)? {
                bail!("nothing was removed");
            }
            small_runtime()?.block_on(stop::purge(&config, keep_odoo))
        }
        Command::Doctor => doctor::run(&Config::load_and_tell(file.as_deref())?, command_line.client.json),
        Command::Odoo(command) => small_runtime()?.block_on(odoo::run(command, &load()?, command_line.client.json)),
        Command::Config { default, database_url } => {
            match (default, database_url) {
                (true, _) => terminal::write(config::DEFAULTS),
                (false, true) => out!("{}", small_runtime()?.block_on(serve::database_url(&load()?))?),
                (false, false) => out!("{:#?}", load()?),
            }
            Ok(())
        }
        Command::Openapi => {
            out!("{:#}", ocore_api::openapi());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut CommandLine::command(), "ocore", &mut script);
            terminal::write(&String::from_utf8(script).context("the completions cannot be written")?);
            Ok(())
        }
    }
}

fn confirmed(config: &Config) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("this removes {} with every database and file in it; give --yes when there is no terminal to ask at", config.home.display());
    }
    let question = format!("Remove {} with every database and file in it, and {}?", config.home.display(), config.odoo.directory.display());
    dialoguer::Confirm::new().with_prompt(question).default(false).interact().context("cannot ask")
}

fn small_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")
}

/// Of a thread that carries operations, in bytes. A deployment is many calls deep; only what is used of it takes memory.
const STACK: usize = 8 << 20;

fn server_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK).enable_all().build().context("cannot start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_options_of_a_command_clash() {
        CommandLine::command().debug_assert();
    }
}
