//! What every use case needs: the store, the server, the clock, the settings.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;
use ocore_host::Host;
use ocore_model::{clock::Clock, ids::ServerId, network::Network};
use sqlx::PgPool;

use crate::{secrets::Secret, signals::Signals, sleep::SleepSettings};

/// The control plane as one value; cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub pool: PgPool,
    /// The data plane of this machine.
    pub host: Arc<dyn Host>,
    /// This machine's row.
    pub server_id: ServerId,
    pub clock: Arc<dyn Clock>,
    pub settings: Arc<Settings>,
    /// Wakes whoever follows a deployment or an organization. `Signals::default()`.
    pub signals: Signals,
}

/// What an installation can set. Times are durations, sizes bytes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least 32 bytes; signs access tokens (HS256) and derives the key that seals secrets in the store.
    pub secret: Secret,
    pub access_token_lifetime: Duration,
    pub refresh_token_lifetime: Duration,
    /// Anybody may sign up. When false, only people with an invitation may. The first user needs the installation's token either way.
    pub open_signup: bool,
    pub limits: TenantLimits,
    /// Holds the token of the first account as long as there is none.
    pub first_account_file: PathBuf,
    /// Proxies before the API whose word for a client's address is believed.
    pub trusted_proxies: Vec<Network>,
    /// Opens the metrics and the details of readiness.
    pub metrics_token: Secret,
    /// Instances answer at `<slug>.<base domain>`.
    pub base_domain: String,
    /// How a browser reaches the edge: scheme and, when it is not the scheme's own, port. `http`, 8080 gives `http://<slug>.localhost:8080`.
    pub edge_scheme: String,
    pub edge_port: u16,
    /// How a client reaches the API, without a slash at the end: `http://127.0.0.1:8700`.
    pub public_url: String,
    /// The mirrors: `<repositories>/<project id>.git`.
    pub repositories: PathBuf,
    /// A push that brings more is refused.
    pub push_limit: u64,
    /// When environments without a rule of their own sleep.
    pub sleep: SleepSettings,
    /// What builds need of Odoo's own modules is installed once for all projects. When false, each project begins with its own templates alone.
    pub shared_templates: bool,
    /// `file://` repositories may be connected: whoever manages a project then reads every repository that this process can read. Off by default.
    pub allow_file_repositories: bool,
    /// External repositories, and submodules, may lie at any address and port, this machine's own among them, and use plain `http://`. Off by
    /// default: they are how a tenant would reach the cloud's metadata service, the operator's network or oCore's own ports.
    pub allow_local_repositories: bool,
    /// Networks that are none of the public Internet's and on which repositories may lie all the same.
    pub repository_networks: Vec<IpNet>,
    /// Ports at which repositories may be reached beside those of https and ssh.
    pub repository_ports: Vec<u16>,
    /// What one fetch may bring, in bytes.
    pub fetch_limit: u64,
    /// Deployments that run side by side on this machine.
    pub parallel_operations: usize,
    /// The edge's administration socket.
    pub edge_socket: PathBuf,
    /// Through which server caught messages are released; `None`: none are.
    pub mail_relay: Option<MailRelay>,
}

/// How much one person, organization or address may make. 0: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantLimits {
    /// `auth.signups_per_hour`, from one client address; those with an invitation do not count.
    pub signups_per_hour: u32,
    /// `limits.organizations_per_user`
    pub organizations_per_user: u32,
    /// `limits.projects_per_organization`
    pub projects_per_organization: u32,
}

/// The server for released messages.
#[derive(Clone)]
pub struct MailRelay {
    /// `smtp://user:password@host:587?tls=required`, as lettre reads it.
    pub url: String,
    /// The envelope's sender; empty: the message's own.
    pub sender: String,
}

impl std::fmt::Debug for MailRelay {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may hold a password.
        formatter.debug_struct("MailRelay").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Settings {
    /// Where a browser finds an instance.
    pub fn instance_url(&self, slug: &str) -> String {
        let default_port = if self.edge_scheme == "https" { 443 } else { 80 };
        if self.edge_port == default_port {
            format!("{}://{slug}.{}", self.edge_scheme, self.base_domain)
        } else {
            format!("{}://{slug}.{}:{}", self.edge_scheme, self.base_domain, self.edge_port)
        }
    }

    /// Where Git pushes to a built-in repository.
    pub fn git_remote(&self, organization_slug: &str, project_slug: &str) -> String {
        format!("{}/git/{organization_slug}/{project_slug}.git", self.public_url)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn settings() -> Settings {
        Settings {
            secret: Secret::new(vec![7; 32]),
            access_token_lifetime: Duration::from_secs(3600),
            refresh_token_lifetime: Duration::from_secs(30 * 24 * 3600),
            open_signup: true,
            limits: TenantLimits { signups_per_hour: 0, organizations_per_user: 0, projects_per_organization: 0 },
            first_account_file: PathBuf::from("/nonexistent/first-account-token"),
            trusted_proxies: Vec::new(),
            metrics_token: Secret::new("a token of tests"),
            base_domain: "localhost".to_owned(),
            edge_scheme: "http".to_owned(),
            edge_port: 8080,
            public_url: "http://127.0.0.1:8700".to_owned(),
            repositories: PathBuf::from("/nonexistent"),
            push_limit: 1 << 20,
            sleep: SleepSettings::default(),
            shared_templates: true,
            allow_file_repositories: false,
            allow_local_repositories: false,
            repository_networks: Vec::new(),
            repository_ports: Vec::new(),
            fetch_limit: 1 << 30,
            parallel_operations: 2,
            edge_socket: PathBuf::from("/nonexistent/edge.sock"),
            mail_relay: None,
        }
    }
}
