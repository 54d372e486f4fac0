//! The one configuration of the installation: defaults (a commented file in the binary), then a file, then the environment.

mod file;
mod hidden;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use ocore_control::{MailRelay, SleepSettings, TenantLimits};
use ocore_host::local::{
    BuildLimits, BuildsConfig, EgressConfig, EnforceEgress, InstanceLimits, LocalHostConfig, Patience, PoolConfig,
    distribution::ExternalDistribution, networks::Place,
};
use ocore_model::{names::OdooVersion, network::Network};
use serde::{Deserialize, Deserializer};
use url::Url;

use file::GuardedFile;
use hidden::{Hidden, SecretUrl};

/// The commented defaults; `ocore config --default` prints them.
pub const DEFAULTS: &str = include_str!("../config.default.toml");
/// A deployment needs two Odoos and two clusters for a while.
const LEAST_INSTANCE_MEMORY: u64 = 512 << 20;
const SYSTEM_FILE: &str = "/etc/ocore/ocore.toml";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub home: PathBuf,
    pub listen: SocketAddr,
    pub public_url: String,
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<Network>,
    pub base_domain: String,
    pub edge: Edge,
    pub database: Database,
    pub auth: Auth,
    pub pool: Pool,
    pub odoo: Odoo,
    pub git: Git,
    pub egress: Egress,
    pub builds: Builds,
    pub sleep: Sleep,
    pub templates: Templates,
    pub limits: Limits,
    pub mail: Mail,
    pub metrics: Metrics,
    pub log: Log,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    pub listen: SocketAddr,
    pub scheme: String,
    pub port: u16,
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<Network>,
    pub max_body_bytes: u64,
    /// By host name.
    #[serde(default)]
    pub max_body_bytes_of: HashMap<String, u64>,
    pub max_header_bytes: usize,
    pub header_seconds: u64,
    pub body_pause_seconds: u64,
    pub body_bytes_per_second: u64,
    pub answer_pause_seconds: u64,
    pub connections: usize,
    pub connections_per_client: usize,
    pub held_requests: usize,
    pub held_websockets: usize,
    pub held_in_all: usize,
    pub held_body_bytes: u64,
    pub wakes_per_minute: u32,
    pub wakes_per_minute_and_client: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sleep {
    pub development_minutes: u64,
    pub staging_minutes: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Templates {
    pub shared: bool,
}

impl Sleep {
    /// 0 minutes: never.
    pub fn settings(&self) -> SleepSettings {
        let after = |minutes: u64| (minutes > 0).then(|| Duration::from_mins(minutes));
        SleepSettings { development: after(self.development_minutes), staging: after(self.staging_minutes) }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    pub url: SecretUrl,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    pub secret: Hidden,
    pub open_signup: bool,
    pub signups_per_hour: u32,
    pub access_token_seconds: u64,
    pub refresh_token_seconds: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub path: PathBuf,
    pub image_bytes: u64,
    pub image_limit_bytes: u64,
    pub reserve_bytes: u64,
    pub copies: Copies,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Copies {
    Auto,
    Plain,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Odoo {
    pub directory: PathBuf,
    pub warm_starts: bool,
    pub start_seconds: u64,
    pub answer_seconds: u64,
    pub update_seconds: u64,
    #[serde(default)]
    pub distributions: BTreeMap<OdooVersion, ExternalDistribution>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Git {
    pub push_limit_bytes: u64,
    pub fetch_limit_bytes: u64,
    pub allow_networks: Vec<String>,
    pub allow_ports: Vec<u16>,
    pub allow_local_repositories: bool,
    pub allow_file_repositories: bool,
}

impl Git {
    /// A bare address is the network of that one address.
    pub fn networks(&self) -> Result<Vec<IpNet>> {
        let read = |text: &String| text.parse().or_else(|error| text.parse().map(|address: IpAddr| address.into()).map_err(|_| error));
        let named = |text: &String| {
            let written = "write it as 10.1.0.0/16, fd00:1::/32 or 10.1.2.3";
            read(text).with_context(|| format!("git.allow_networks: `{text}` is not a network; {written}"))
        };
        self.allow_networks.iter().map(named).collect()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    pub enforce: EnforceEgress,
    pub nft: PathBuf,
    pub except: Vec<Place>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builds {
    pub allow: Vec<Place>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub parallel_operations: usize,
    pub instance_memory_bytes: u64,
    pub instance_processes: u32,
    pub build_memory_bytes: u64,
    pub build_processes: u32,
    pub organizations_per_user: u32,
    pub projects_per_organization: u32,
    pub first_uid: u32,
    pub last_uid: u32,
    pub first_port: u16,
    pub last_port: u16,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub token: Hidden,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub filter: String,
    pub json: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    pub message_bytes: usize,
    pub messages: usize,
    pub mailbox_bytes: u64,
    pub days: u64,
    pub free_bytes: u64,
    pub relay_url: SecretUrl,
    pub relay_sender: String,
}

impl Mail {
    pub fn relay(&self) -> Option<MailRelay> {
        (!self.relay_url.is_empty()).then(|| MailRelay { url: self.relay_url.expose().to_owned(), sender: self.relay_sender.clone() })
    }
}

/// A list, or from the environment words with commas between them.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Network>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        List(Vec<String>),
        Words(String),
    }
    let words = match Written::deserialize(deserializer)? {
        Written::List(words) => words,
        Written::Words(words) => words.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect(),
    };
    words.iter().map(|word| word.parse().map_err(serde::de::Error::custom)).collect()
}

/// A configuration with what is wrong with the file that it comes from.
pub struct Loaded {
    pub config: Config,
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// Who else could have written it, or can read the secrets in it, with the command that ends that.
    pub trouble: Option<String>,
}

impl Config {
    /// Reads the configuration. `file` must be there when it is named; the system's file may be absent. A file that others can write is
    /// refused, since it says what root runs; and one that has secrets and that others can read.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let Loaded { config, trouble, .. } = Self::load_and_tell(file)?;
        match trouble {
            Some(trouble) => bail!("{trouble}"),
            None => Ok(config),
        }
    }

    /// [`Config::load`] for whoever tells what is wrong instead of working with it.
    pub fn load_and_tell(file: Option<&Path>) -> Result<Loaded> {
        use config::{Environment, File, FileFormat};
        let read = GuardedFile::read(file.unwrap_or(Path::new(SYSTEM_FILE)))?;
        if let (Some(named), None) = (file, &read) {
            bail!("there is no configuration at {}", named.display());
        }
        let unreadable = "the configuration cannot be read; `ocore config --default` prints every setting";
        let mut builder = config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        let mut trouble = None;
        if let Some(read) = &read {
            let text = read.text()?;
            trouble = read.trouble(&hidden::secrets_in(text).with_context(|| read.path.display().to_string()).context(unreadable)?);
            builder = builder.add_source(File::from_str(text, FileFormat::Toml));
        }
        builder = builder.add_source(Environment::with_prefix("OCORE").prefix_separator("__").separator("__").try_parsing(true));
        if let Ok(url) = std::env::var("DATABASE_URL") {
            builder = builder.set_override("database.url", url)?;
        }
        let mut config: Self = builder.build().and_then(config::Config::try_deserialize).context(unreadable)?;
        if config.pool.path.as_os_str().is_empty() {
            config.pool.path = config.home.join("pool");
        }
        if config.public_url.is_empty() {
            config.public_url = format!("http://{}", config.listen);
        }
        config.public_url.truncate(config.public_url.trim_end_matches('/').len());
        config.check()?;
        Ok(Loaded { config, file: read.map(|file| file.path), trouble })
    }

    fn check(&self) -> Result<()> {
        ensure!(self.home.is_absolute(), "home must be an absolute path, not {}", self.home.display());
        ensure!(self.limits.first_uid < self.limits.last_uid, "limits.first_uid must be less than limits.last_uid");
        ensure!(self.limits.first_uid >= 1000, "limits.first_uid must be at least 1000: lower ids belong to the system");
        ensure!(self.limits.last_uid - self.limits.first_uid >= 499, "limits.first_uid to limits.last_uid must hold at least 500 numbers");
        if let Some(place) = self.egress.except.iter().find(|place| place.network().is_none()) {
            bail!("egress.except holds `{place}`: write addresses and networks there, without ports");
        }
        ensure!(self.limits.first_port < self.limits.last_port, "limits.first_port must be less than limits.last_port");
        ensure!(
            self.limits.instance_memory_bytes == 0 || self.limits.instance_memory_bytes >= LEAST_INSTANCE_MEMORY,
            "limits.instance_memory_bytes must be at least {LEAST_INSTANCE_MEMORY}, with which an Odoo and its PostgreSQL just run, or 0 for three quarters of \
             the machine's"
        );
        ensure!(
            self.limits.instance_processes >= 256,
            "limits.instance_processes must be at least 256, with which an Odoo and its PostgreSQL just run"
        );
        ensure!(self.limits.build_processes >= 64, "limits.build_processes must be at least 64, with which pip and a compiler just run");
        ensure!(
            self.limits.build_memory_bytes == 0 || self.limits.build_memory_bytes >= LEAST_INSTANCE_MEMORY,
            "limits.build_memory_bytes must be at least {LEAST_INSTANCE_MEMORY}, with which pip just runs, or 0 for half of the machine's memory"
        );
        let waits = [("start", self.odoo.start_seconds), ("answer", self.odoo.answer_seconds), ("update", self.odoo.update_seconds)];
        for (what, seconds) in waits {
            ensure!(seconds > 0, "odoo.{what}_seconds must be at least 1");
        }
        ensure!(matches!(self.edge.scheme.as_str(), "http" | "https"), "edge.scheme is http or https, not {}", self.edge.scheme);
        ensure!(self.auth.secret.is_empty() || self.auth.secret.expose().len() >= 32, "auth.secret needs at least 32 bytes");
        ensure!(self.metrics.token.is_empty() || self.metrics.token.expose().len() >= 16, "metrics.token needs at least 16 bytes");
        self.git.networks()?;
        if self.listen.port() == self.edge.listen.port() && self.listen.port() != 0 {
            bail!("listen and edge.listen have the same port {}", self.listen.port());
        }
        Ok(())
    }

    /// Whether the API has a name to which instances could set cookies: the base domain itself, or one below it. Of a base domain of one word
    /// (`localhost`) browsers take none.
    pub fn api_lies_among_instances(&self) -> bool {
        let plain = |name: &str| name.trim_matches('.').to_lowercase();
        let base = plain(&self.base_domain);
        let host = Url::parse(&self.public_url).ok().and_then(|url| url.host_str().map(plain)).unwrap_or_default();
        base.contains('.') && (host == base || host.strip_suffix(&base).is_some_and(|rest| rest.ends_with('.')))
    }

    /// Refuses an API without TLS at such a name: whoever writes the code of an instance could choose the session of those who log in to the API. With TLS
    /// its cookies are bound to its host, and what is left (too many bytes of cookies) locks out and does not let in.
    pub fn check_names(&self) -> Result<()> {
        ensure!(
            !self.api_lies_among_instances() || self.public_url.starts_with("https://"),
            "public_url {} lies below base_domain {}, so that the code of any environment may set cookies for it; give the API a name outside of base_domain",
            self.public_url,
            self.base_domain
        );
        Ok(())
    }

    /// The key that signs tokens and seals secrets; made once, readable by root alone.
    pub fn secret(&self) -> Result<Vec<u8>> {
        if !self.auth.secret.is_empty() {
            return Ok(self.auth.secret.expose().as_bytes().to_vec());
        }
        let path = self.home.join("secret");
        if let Some(secret) = file::read_secret(&path)? {
            ensure!(
                secret.len() >= 32,
                "{} is too short to be a secret; restore it from a backup: without it stored secrets cannot be read",
                path.display()
            );
            return Ok(secret);
        }
        let secret = new_secret(4);
        file::write_secret(&path, &secret)?;
        Ok(secret.into_bytes())
    }

    /// What opens the metrics and the details of readiness; made once, readable by root alone.
    pub fn metrics_token(&self) -> Result<String> {
        if !self.metrics.token.is_empty() {
            return Ok(self.metrics.token.expose().to_owned());
        }
        let path = self.home.join("metrics-token");
        if let Some(token) = file::read_secret(&path)? {
            let token = String::from_utf8(token).with_context(|| format!("{} is not text; remove it and start again", path.display()))?;
            ensure!(token.trim().len() >= 16, "{} is too short to be a secret; remove it and start again", path.display());
            return Ok(token.trim().to_owned());
        }
        let token = new_secret(2);
        file::write_secret(&path, &token)?;
        Ok(token)
    }

    /// What the data plane of this machine needs. The numbers are shared out: half for users of instances, the last 64 for builds, the rest for
    /// the groups of releases.
    pub fn host(&self) -> LocalHostConfig {
        let Limits { first_uid, last_uid, first_port, last_port, .. } = self.limits;
        let end = last_uid + 1;
        let builds = end - 64;
        let gids = first_uid + (end - first_uid) / 2;
        let mut limits = InstanceLimits { processes: Some(self.limits.instance_processes), ..InstanceLimits::of_this_machine() };
        if self.limits.instance_memory_bytes > 0 {
            limits.memory_bytes = Some(self.limits.instance_memory_bytes);
        }
        let mut build_limits = BuildLimits { processes: Some(self.limits.build_processes), ..BuildLimits::of_this_machine() };
        if self.limits.build_memory_bytes > 0 {
            build_limits.memory_bytes = Some(self.limits.build_memory_bytes);
        }
        LocalHostConfig {
            pool: PoolConfig {
                path: self.pool.path.clone(),
                image: (self.pool.copies == Copies::Auto).then(|| self.home.join("pool.xfs")),
                image_size: self.pool.image_bytes,
                image_size_limit: self.pool.image_limit_bytes,
                reserve: self.pool.reserve_bytes,
            },
            uids: first_uid..gids,
            release_gids: gids..builds,
            build_uids: builds..end,
            ports: first_port..last_port,
            port_keeper: Some(self.port_socket()),
            distributions: self.odoo.directory.clone(),
            external_distributions: self.odoo.distributions.clone(),
            warm_starts: self.odoo.warm_starts,
            limits,
            build_limits,
            patience: Patience {
                start: Duration::from_secs(self.odoo.start_seconds),
                answer: Duration::from_secs(self.odoo.answer_seconds),
                update: Duration::from_secs(self.odoo.update_seconds),
            },
            egress: EgressConfig {
                enforce: self.egress.enforce,
                nft: self.egress.nft.clone(),
                except: self.egress.except.iter().filter_map(Place::network).collect(),
            },
            builds: BuildsConfig { allow: self.builds.allow.clone(), ..BuildsConfig::default() },
            ..LocalHostConfig::new(&self.home)
        }
    }

    pub fn edge_port(&self) -> u16 {
        if self.edge.port == 0 { self.edge.listen.port() } else { self.edge.port }
    }

    pub fn edge_directory(&self) -> PathBuf {
        self.home.join("edge")
    }

    pub fn edge_socket(&self) -> PathBuf {
        self.edge_directory().join("admin.sock")
    }

    pub fn port_directory(&self) -> PathBuf {
        self.home.join("ports")
    }

    pub fn port_socket(&self) -> PathBuf {
        self.port_directory().join("keeper.sock")
    }

    pub fn mail_directory(&self) -> PathBuf {
        self.home.join("mail")
    }

    /// Where the token of the first account lies until that is made.
    pub fn first_account_file(&self) -> PathBuf {
        self.home.join("first-account-token")
    }

    /// What is of no tenant's concern lies in directories that only root enters: names of all projects, addresses of all instances, all mail, what runs
    /// with which variables.
    pub fn close_directories(&self) -> Result<()> {
        let directories = [self.repositories(), self.edge_directory(), self.mail_directory(), self.home.join("state")];
        directories.iter().try_for_each(|path| file::private_directory(path))
    }

    pub fn tenant_limits(&self) -> TenantLimits {
        TenantLimits {
            signups_per_hour: self.auth.signups_per_hour,
            organizations_per_user: self.limits.organizations_per_user,
            projects_per_organization: self.limits.projects_per_organization,
        }
    }

    pub fn repositories(&self) -> PathBuf {
        self.home.join("repositories")
    }

    pub fn parallel_operations(&self) -> usize {
        if self.limits.parallel_operations > 0 {
            return self.limits.parallel_operations;
        }
        std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
    }

    pub fn access_token_lifetime(&self) -> Duration {
        Duration::from_secs(self.auth.access_token_seconds)
    }

    pub fn refresh_token_lifetime(&self) -> Duration {
        Duration::from_secs(self.auth.refresh_token_seconds)
    }
}

/// Random text of so many times 122 bits.
fn new_secret(parts: usize) -> String {
    (0..parts).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn the_defaults_are_complete_and_valid() {
        let config = Config::load(None).unwrap();
        assert_eq!(config.edge_port(), 8080);
        assert_eq!(config.pool.path, Path::new("/var/lib/ocore/pool"));
        assert_eq!(config.public_url, "http://127.0.0.1:8700");
    }

    #[test]
    fn a_misspelled_setting_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ocore.toml");
        fs::write(&file, "hoem = '/srv'").unwrap();
        let error = format!("{:#}", Config::load(Some(&file)).unwrap_err());
        assert!(error.contains("hoem"), "{error}");
    }

    #[test]
    fn the_api_does_not_lie_among_the_instances() {
        let mut config = Config::load(None).unwrap();
        let mut judge = |base: &str, url: &str| {
            (config.base_domain, config.public_url) = (base.to_owned(), url.to_owned());
            (config.api_lies_among_instances(), config.check_names().is_ok())
        };
        assert_eq!(judge("apps.example.com", "https://ocore.example.com"), (false, true));
        assert_eq!(judge("apps.example.com", "https://myapps.example.com"), (false, true));
        assert_eq!(judge("localhost", "http://localhost:8700"), (false, true));
        for url in
            ["http://apps.example.com", "http://api.apps.example.com:8700", "http://API.Apps.Example.com.", "http://a.b.apps.example.com/x"]
        {
            assert_eq!(judge("apps.example.com", url), (true, false), "{url}");
        }
        assert_eq!(judge(".Apps.example.com.", "https://api.apps.example.com"), (true, true), "with TLS it is a warning");
    }

    #[test]
    fn networks_and_addresses_can_be_opened_for_git() {
        let mut config = Config::load(None).unwrap();
        config.git.allow_networks = vec!["10.1.0.0/16".to_owned(), "fd00:1::7".to_owned()];
        let networks: Vec<String> = config.git.networks().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.1.0.0/16", "fd00:1::7/128"]);
        config.git.allow_networks = vec!["git.example.com".to_owned()];
        assert!(config.check().unwrap_err().to_string().contains("git.allow_networks"));
    }

    #[test]
    fn the_secret_is_made_once_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::load(None).unwrap();
        config.home = directory.path().join("home");
        let secret = config.secret().unwrap();
        assert_eq!(secret, config.secret().unwrap());
        assert!(secret.len() >= 32);
        assert_eq!(fs::metadata(config.home.join("secret")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
