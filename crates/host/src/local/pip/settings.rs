//! What an operator has set for pip: in its environment, and in its configuration files for the whole machine.
//!
//! Names and passwords of indexes and proxies are among it. So it goes to the [gateway](super::super::releases) alone, which runs nobody's code; a build is told
//! only what decides about versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use url::Url;

use super::redact;
use crate::local::{
    config::BuildsConfig,
    networks::{NEVER, PRIVATE, Place, PlaceHost},
};

/// pip's own.
const DEFAULT_INDEX: &str = "https://pypi.org/simple";
/// Configuration files for the whole machine, in pip's order: a later one goes before an earlier one.
const FILES: [&str; 2] = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf"];
/// Sections that an installation reads, in the same order.
const SECTIONS: [&str; 2] = ["global", "install"];
/// What decides about versions, and how packages are built; nothing of it can hold a secret.
const FOR_BUILDS: [&str; 8] =
    ["no-index", "no-binary", "only-binary", "prefer-binary", "pre", "constraint", "build-constraint", "no-build-isolation"];
/// Where the programs of a build find the certificates that they trust.
const CERTIFICATES: [&str; 4] = ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE"];
const LOOKUP_TIME: Duration = Duration::from_secs(10);

/// Shows nothing of what it holds.
#[derive(Clone, Default)]
pub(in crate::local) struct Settings {
    /// By pip's long names of options, without dashes in front.
    options: BTreeMap<String, String>,
    /// Everything else of the environment: proxies, certificates.
    environment: BTreeMap<String, String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Settings").field("options", &self.options.keys()).finish_non_exhaustive()
    }
}

impl Settings {
    /// The machine's files, and what goes before them.
    pub(in crate::local) fn read(environment: &[(OsString, OsString)]) -> Self {
        let environment: BTreeMap<String, String> =
            environment.iter().filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()))).collect();
        let files: Vec<PathBuf> = match environment.get("PIP_CONFIG_FILE") {
            // How pip is told to read none.
            Some(file) if file == "/dev/null" => Vec::new(),
            Some(file) => FILES.iter().map(PathBuf::from).chain([PathBuf::from(file)]).collect(),
            None => FILES.iter().map(PathBuf::from).collect(),
        };
        let texts: Vec<String> = files.iter().filter_map(|file| read_file(file)).collect();
        Self::of(&texts, environment)
    }

    fn of(files: &[String], environment: BTreeMap<String, String>) -> Self {
        let mut found = Self::default();
        for section in SECTIONS {
            for file in files {
                found.options.extend(values(file, section));
            }
        }
        for (name, value) in environment {
            match name.strip_prefix("PIP_") {
                Some(option) => drop(found.options.insert(option.to_ascii_lowercase().replace('_', "-"), value)),
                None => drop(found.environment.insert(name, value)),
            }
        }
        found
    }

    fn words(&self, option: &str) -> impl Iterator<Item = &str> {
        self.options.get(option).map_or("", String::as_str).split_whitespace()
    }

    fn is_on(&self, option: &str) -> bool {
        self.options
            .get(option)
            .is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "no" | "off" | "false" | "n" | "f"))
    }

    /// With names and passwords.
    pub(in crate::local) fn indexes(&self) -> Vec<String> {
        if self.is_on("no-index") {
            return Vec::new();
        }
        let first = self.words("index-url").next().unwrap_or(DEFAULT_INDEX);
        std::iter::once(first).chain(self.words("extra-index-url")).map(str::to_owned).collect()
    }

    /// Pages with links to packages, with names and passwords.
    pub(in crate::local) fn pages(&self) -> Vec<String> {
        self.words("find-links").filter(|place| place.contains("://") && !place.starts_with("file:")).map(str::to_owned).collect()
    }

    /// Directories of this machine with packages.
    pub(in crate::local) fn directories(&self) -> Vec<&str> {
        self.words("find-links").filter(|place| !place.contains("://") || place.starts_with("file:")).collect()
    }

    pub(in crate::local) fn certificate(&self) -> Option<&str> {
        let bundles = ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"];
        let of_environment = || bundles.iter().find_map(|name| self.environment.get(*name));
        self.options.get("cert").or_else(of_environment).map(String::as_str).filter(|path| !path.is_empty())
    }

    pub(in crate::local) fn client_certificate(&self) -> Option<&str> {
        self.options.get("client-cert").map(String::as_str)
    }

    /// Hosts whose certificates are not looked at.
    pub(in crate::local) fn trusted(&self) -> Vec<&str> {
        self.words("trusted-host").collect()
    }

    /// By scheme, with names and passwords.
    pub(in crate::local) fn proxies(&self) -> BTreeMap<&'static str, &str> {
        let of_environment = |scheme: &str| {
            let names =
                [format!("{scheme}_proxy"), format!("{}_PROXY", scheme.to_ascii_uppercase()), "all_proxy".into(), "ALL_PROXY".into()];
            names.iter().find_map(|name| self.environment.get(name)).map(String::as_str)
        };
        let ours = self.options.get("proxy").map(String::as_str);
        ["http", "https"]
            .into_iter()
            .filter_map(|scheme| Some((scheme, ours.or_else(|| of_environment(scheme)).filter(|url| !url.is_empty())?)))
            .collect()
    }

    /// Hosts that are reached without a proxy.
    pub(in crate::local) fn without_proxy(&self) -> &str {
        ["no_proxy", "NO_PROXY"].iter().find_map(|name| self.environment.get(*name)).map_or("", String::as_str)
    }

    /// What a build is told, as its environment.
    pub(in crate::local) fn for_builds(&self) -> Vec<(String, &str)> {
        let variable = |option: &str| format!("PIP_{}", option.to_ascii_uppercase().replace('-', "_"));
        let options = FOR_BUILDS.iter().filter_map(|option| Some((variable(option), self.options.get(*option)?.as_str())));
        let certificates = CERTIFICATES.iter().filter_map(|name| Some(((*name).to_owned(), self.environment.get(*name)?.as_str())));
        let certificate = self.options.get("cert").map(|path| ("PIP_CERT".to_owned(), path.as_str()));
        options.chain(certificates).chain(certificate).collect()
    }

    /// Everything that is asked for packages, or on the way to them.
    fn urls(&self) -> Vec<String> {
        let proxies = self.proxies().into_values().map(str::to_owned);
        self.indexes().into_iter().chain(self.pages()).chain(proxies).collect()
    }
}

fn read_file(path: &Path) -> Option<String> {
    match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "a configuration file of pip cannot be read");
            None
        }
    }
}

/// Python's `configparser`: sections, `name = value` or `name: value`, lines that begin with space go on with the value.
fn values(text: &str, wanted: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let (mut section, mut last) = (String::new(), None::<String>);
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with(char::is_whitespace)
            && let Some(value) = last.as_ref().and_then(|name| found.get_mut(name))
        {
            value.push('\n');
            value.push_str(trimmed);
            continue;
        }
        last = None;
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if section == wanted
            && let Some((name, value)) = trimmed.split_once(['=', ':'])
        {
            let name = name.trim().to_ascii_lowercase().replace('_', "-");
            found.insert(name.clone(), value.trim().to_owned());
            last = Some(name);
        }
    }
    found
}

/// Where packages come from that the rules for the public would not let through, as it was found last.
#[derive(Debug, Default)]
pub(in crate::local) struct FetchPlaces(Mutex<BTreeSet<(IpNet, Option<u16>)>>);

impl FetchPlaces {
    /// With the networks that the operator allows.
    pub(in crate::local) fn known(&self, config: &BuildsConfig) -> BTreeSet<(IpNet, Option<u16>)> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        places.extend(config.allow.iter().filter_map(|place| match place.host {
            PlaceHost::Network(network) => Some((network, place.port)),
            PlaceHost::Name(_) | PlaceHost::AnyPublic => None,
        }));
        places
    }

    /// Looks the operator's hosts up. What cannot be found now is said by whoever asks for it.
    pub(in crate::local) async fn look_up(&self, settings: &Settings, config: &BuildsConfig) {
        let mut hosts: BTreeSet<(String, Option<u16>)> = BTreeSet::new();
        for url in settings.urls() {
            let Ok(url) = Url::parse(&url) else {
                tracing::warn!(url = redact(&url), "pip's configuration names an address that is none");
                continue;
            };
            hosts.extend(url.host_str().map(|host| (host.trim_matches(['[', ']']).to_owned(), url.port_or_known_default())));
        }
        hosts.extend(config.allow.iter().filter_map(|place| match place {
            Place { host: PlaceHost::Name(name), port } => Some((name.clone(), *port)),
            _ => None,
        }));
        let mut places = BTreeSet::new();
        for (host, port) in hosts {
            match tokio::time::timeout(LOOKUP_TIME, tokio::net::lookup_host((host.as_str(), port.unwrap_or(443)))).await {
                Ok(Ok(addresses)) => {
                    places.extend(
                        addresses.map(|address| (address.ip(), port)).filter(needs_a_rule).map(|(address, port)| (address.into(), port)),
                    );
                }
                Ok(Err(error)) => tracing::info!(%error, host, "a host that builds need cannot be looked up"),
                Err(_) => tracing::info!(host, "a host that builds need cannot be looked up in time"),
            }
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = places;
    }
}

/// The public web is open to whoever fetches.
fn needs_a_rule((address, port): &(IpAddr, Option<u16>)) -> bool {
    let is_public =
        !NEVER.iter().chain(&PRIVATE).filter_map(|network| network.parse::<IpNet>().ok()).any(|network| network.contains(address));
    // Own addresses are reached by the loopback device, whatever they are.
    let is_own = || std::net::UdpSocket::bind((*address, 0)).is_ok();
    !(is_public && matches!(port, Some(80 | 443))) || is_own()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(file: &str, environment: &[(&str, &str)]) -> Settings {
        Settings::of(&[file.to_owned()], environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_environment_goes_before_the_files_and_a_build_sees_no_secret() {
        let file = "[global]\nindex-url = https://file.example/simple\nextra_index_url =\n  https://one.example/s\n  https://u:secret@two.example/s\n# no\n\
                    [install]\nonly-binary: lxml\n[download]\npre = yes\n";
        let found =
            settings(file, &[("PIP_INDEX_URL", "https://me:secret@env.example/simple"), ("HTTPS_PROXY", "http://p:secret@proxy:3128")]);
        assert_eq!(found.indexes(), ["https://me:secret@env.example/simple", "https://one.example/s", "https://u:secret@two.example/s"]);
        assert_eq!(found.proxies().into_iter().collect::<Vec<_>>(), [("https", "http://p:secret@proxy:3128")]);
        assert_eq!(found.for_builds(), [("PIP_ONLY_BINARY".to_owned(), "lxml")]);
        assert!(!format!("{found:?}").contains("secret"));
        assert_eq!(settings("", &[]).indexes(), [DEFAULT_INDEX]);
        assert!(settings("", &[("PIP_NO_INDEX", "1")]).indexes().is_empty());
    }

    #[test]
    fn directories_and_pages_with_links_are_told_apart() {
        let found = settings("", &[("PIP_FIND_LINKS", "/srv/wheels https://u:p@host/links file:///srv/more")]);
        assert_eq!(found.directories(), ["/srv/wheels", "file:///srv/more"]);
        assert_eq!(found.pages(), ["https://u:p@host/links"]);
    }

    #[tokio::test]
    async fn an_index_of_this_machine_gets_a_rule_of_its_own_and_a_public_one_needs_none() {
        let places = FetchPlaces::default();
        let config = BuildsConfig { allow: vec!["10.0.0.0/8".parse().unwrap()], ..BuildsConfig::default() };
        places
            .look_up(
                &settings("", &[("PIP_INDEX_URL", "http://u:p@127.0.0.1:8081/simple"), ("PIP_EXTRA_INDEX_URL", "https://203.0.113.7/s")]),
                &config,
            )
            .await;
        let known: Vec<String> = places.known(&config).into_iter().map(|(network, port)| format!("{network} {port:?}")).collect();
        assert_eq!(known, ["10.0.0.0/8 None", "127.0.0.1/32 Some(8081)"]);
    }
}
