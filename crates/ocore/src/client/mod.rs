//! The client commands: they talk to the API like anybody else and know nothing of the server's inside.

mod account;
mod api_key;
mod deployment;
mod egress;
mod environment;
mod export;
mod failure;
mod http;
mod import;
mod instance;
mod mail;
mod organization;
mod output;
mod plan;
mod profile;
mod project;
mod quarantine;
mod rollback;
mod select;
mod snapshot;
mod space;
mod sse;

use anyhow::Result;
use clap::{Args, Subcommand};

pub use failure::exit_code;
use output::Output;

/// Options of every client command.
#[derive(Debug, Clone, Args)]
pub struct ClientOptions {
    /// Where the API is; remembered by `ocore login`
    #[arg(long, env = "OCORE_URL", global = true)]
    url: Option<String>,
    /// An API key instead of a login
    #[arg(long, env = "OCORE_API_KEY", global = true, hide_env_values = true)]
    api_key: Option<String>,
    /// The organization's slug, when you belong to several
    #[arg(long, env = "OCORE_ORG", global = true)]
    org: Option<String>,
    /// JSON for programs instead of tables for people
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Make an account (and, with --organization, your organization)
    Signup(account::Signup),
    /// Log in and remember it
    Login(account::Login),
    /// Forget the login and end its session
    Logout,
    /// Show who you are and where
    Whoami,
    /// Your own account
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// Organizations
    #[command(subcommand)]
    Org(organization::OrganizationCommand),
    /// Projects
    #[command(subcommand)]
    Project(project::ProjectCommand),
    /// Environments: branches of a project, each with a running Odoo
    #[command(subcommand)]
    Env(environment::EnvironmentCommand),
    /// Snapshots: what is kept of an environment's data
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// A copy that could not be made harmless: why, a look at it, its end
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// The space that environments and snapshots need, alone and shared
    Space,
    /// Build a branch or commit and bring it live
    Deploy(deployment::Deploy),
    /// Show what a deployment would do, without deploying
    Plan(plan::Plan),
    /// List deployments
    Deployments(deployment::List),
    /// One deployment: show it, follow it, cancel it
    #[command(subcommand)]
    Deployment(deployment::DeploymentCommand),
    /// Put an environment back to a snapshot: database, files and release together
    Rollback(rollback::Rollback),
    /// List an environment's rollbacks
    Rollbacks(rollback::Rollbacks),
    /// The log of an environment's Odoo
    Logs(instance::Logs),
    /// Start, stop or restart an environment's Odoo
    #[command(subcommand)]
    Instance(instance::InstanceCommand),
    /// Open an environment in the browser
    Open(environment::Open),
    /// Who changed what keeps the organization safe
    Audit(egress::Audit),
    /// Mail that an environment's Odoo has sent and that was caught
    #[command(subcommand)]
    Mail(mail::MailCommand),
    /// API keys
    #[command(subcommand)]
    ApiKey(api_key::ApiKeyCommand),
}

/// Runs one client command.
pub async fn run(command: ClientCommand, options: ClientOptions) -> Result<()> {
    let output = Output::new(options.json);
    match command {
        ClientCommand::Signup(command) => command.run(&options, output).await,
        ClientCommand::Login(command) => command.run(&options, output).await,
        ClientCommand::Logout => account::logout(&options, output).await,
        ClientCommand::Account(command) => command.run(&options, output).await,
        ClientCommand::Whoami => account::whoami(&options, output).await,
        ClientCommand::Org(command) => command.run(&options, output).await,
        ClientCommand::Project(command) => command.run(&options, output).await,
        ClientCommand::Env(command) => command.run(&options, output).await,
        ClientCommand::Snapshot(command) => command.run(&options, output).await,
        ClientCommand::Quarantine(command) => command.run(&options, output).await,
        ClientCommand::Space => space::show(&options, output).await,
        ClientCommand::Deploy(command) => command.run(&options, output).await,
        ClientCommand::Plan(command) => command.run(&options, output).await,
        ClientCommand::Deployments(command) => command.run(&options, output).await,
        ClientCommand::Deployment(command) => command.run(&options, output).await,
        ClientCommand::Rollback(command) => command.run(&options, output).await,
        ClientCommand::Rollbacks(command) => command.run(&options, output).await,
        ClientCommand::Logs(command) => command.run(&options, output).await,
        ClientCommand::Instance(command) => command.run(&options, output).await,
        ClientCommand::Open(command) => command.run(&options, output).await,
        ClientCommand::Audit(command) => command.run(&options, output).await,
        ClientCommand::Mail(command) => command.run(&options, output).await,
        ClientCommand::ApiKey(command) => command.run(&options, output).await,
    }
}
