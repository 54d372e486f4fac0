//! Addresses of repositories that are not ours: which forms count, which hosts may be reached, and how a relative one is read.
//!
//! An address comes from a person who connects a repository or from a `.gitmodules` file, so from anybody. Only four transports exist here;
//! `ext::`, remote helpers and options in disguise do not parse. A host is resolved once, judged, and Git is told to use exactly the
//! addresses that were judged, so that a name cannot change its mind in between.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use url::Url;

use crate::{
    Settings,
    networks::{self, Special},
};

/// A name server that has not answered by then does not; where a proxy can look for itself, it is not waited for as long.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(20);
const LOOKUP_PATIENCE_WITH_PROXY: Duration = Duration::from_secs(5);
/// Addresses of one name that are looked at and used.
const ADDRESSES: usize = 16;
/// Nobody listens there, and no connection to it leaves this machine: where a name must not lead when only a proxy may find it.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
/// Ends of names that no public name server knows (RFC 6761, RFC 6762, RFC 8375, and what ICANN keeps for private use).
const INNER_NAMES: [&str; 9] = ["localhost", "local", "internal", "lan", "home.arpa", "intranet", "corp", "private", "onion"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Https,
    /// Only where `allow_local_repositories` says so: nothing protects what comes over it.
    Http,
    Ssh,
    /// Only where `allow_file_repositories` says so.
    File,
}

impl Transport {
    pub(crate) fn protocol(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::File => "file",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Http => 80,
            Self::Ssh | Self::File => 22,
        }
    }
}

/// An address that was checked for its form: `https://`, `http://`, `ssh://`, `user@host:path` or `file://`. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) transport: Transport,
    /// Lower case; an IPv6 address without brackets. Empty for `file`.
    pub(crate) host: String,
    pub(crate) port: u16,
    text: String,
}

/// Where Git may connect to for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// A path of this machine.
    Local,
    /// These, and no others. A proxy looks the name up for itself; then these count where it is not used.
    Pinned(Vec<IpAddr>),
    /// Whatever the name means: the installation allows every address.
    Any,
}

impl Address {
    /// Reads an address. The error is a sentence without the address in it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > 2000 || text.starts_with('-') || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("that is not an address of a Git repository".to_owned());
        }
        if !text.contains("://") {
            return Self::parse_scp(text);
        }
        let url = Url::parse(text).map_err(|error| format!("the address cannot be read: {error}"))?;
        let transport = match url.scheme() {
            "https" => Transport::Https,
            "http" => Transport::Http,
            "ssh" | "git+ssh" | "ssh+git" => Transport::Ssh,
            "file" => Transport::File,
            other => return Err(format!("`{other}` is not a way to reach a repository; use https://, ssh:// or user@host:path")),
        };
        if url.password().is_some() || (!url.username().is_empty() && transport != Transport::Ssh) {
            return Err(
                "the address holds a user or password; give the address without them, and the access token in its own field".to_owned()
            );
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the address has a `?` or `#` in it; give the address that `git clone` takes".to_owned());
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_lowercase();
        match transport {
            Transport::File if !host.is_empty() => return Err("write a path of this machine as file:///path".to_owned()),
            Transport::File => {}
            _ if host.is_empty() => return Err("the address names no host".to_owned()),
            _ => check_host(&host, url.username())?,
        }
        if url.path().trim_matches('/').is_empty() {
            return Err("the address names no repository".to_owned());
        }
        let port = url.port().unwrap_or(transport.default_port());
        // As the parser understood it, so that curl cannot understand another host than the one that is judged.
        let text = if matches!(transport, Transport::Https | Transport::Http) { url.to_string() } else { text.to_owned() };
        Ok(Self { transport, host, port, text })
    }

    /// `user@host:path`, as every forge shows it. A bare path or a remote helper (`ext::…`) is none.
    fn parse_scp(text: &str) -> Result<Self, String> {
        let unreadable = || "write the address as https://host/path, ssh://user@host/path or user@host:path".to_owned();
        let (login, path) = text.split_once(':').ok_or_else(unreadable)?;
        let (user, host) = login.split_once('@').unwrap_or(("", login));
        if login.contains('/') || path.is_empty() || path.starts_with(['-', ':']) {
            return Err(unreadable());
        }
        check_host(host, user)?;
        Ok(Self { transport: Transport::Ssh, host: host.to_lowercase(), port: Transport::Ssh.default_port(), text: text.to_owned() })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// An address as `.gitmodules` writes it: absolute, or relative (`./`, `../`) to this one. (gitmodules(5), `submodule.<name>.url`.)
    pub(crate) fn join(&self, address: &str) -> Result<Self, String> {
        if !is_relative(address) {
            return Self::parse(address);
        }
        let (root, path) = self.split();
        let joined = join_path(path, address)?;
        Self::parse(&format!("{root}{joined}"))
    }

    /// What stays when a relative address is read (scheme and host), and the path.
    fn split(&self) -> (&str, &str) {
        let start = match self.text.find("://") {
            Some(scheme) => {
                let after = scheme + 3;
                self.text[after..].find('/').map_or(self.text.len(), |slash| after + slash + 1)
            }
            None => self.text.find(':').map_or(0, |colon| colon + 1),
        };
        self.text.split_at(start)
    }

    /// Whether the settings allow this address, and where Git may connect to. The error is a sentence.
    pub(crate) async fn reach(&self, settings: &Settings) -> Result<Reach, String> {
        match self.transport {
            Transport::File if settings.allow_file_repositories => return Ok(Reach::Local),
            Transport::File => {
                return Err("file:// repositories are switched off on this installation (setting allow_file_repositories)".to_owned());
            }
            Transport::Http if !settings.allow_local_repositories => {
                return Err("http:// protects neither the code nor the token; use https:// or ssh".to_owned());
            }
            _ => {}
        }
        if settings.allow_local_repositories {
            return Ok(Reach::Any);
        }
        self.check_port(settings)?;
        let closed =
            |address: &IpAddr| networks::special(*address).filter(|_| !networks::is_among(*address, &settings.repository_networks));
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return match closed(&address) {
                Some(special) => Err(self.refused(special, "is")),
                None => Ok(Reach::Pinned(vec![address])),
            };
        }
        let patience = if self.goes_through_proxy() { LOOKUP_PATIENCE_WITH_PROXY } else { LOOKUP_PATIENCE };
        let lookup = tokio::time::timeout(patience, tokio::net::lookup_host((self.host.as_str(), self.port))).await;
        let found: Vec<IpAddr> = match lookup {
            Ok(Ok(found)) => found.map(|socket| socket.ip()).take(ADDRESSES).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        if let Some(special) = found.iter().find_map(closed) {
            return Err(self.refused(special, "leads to"));
        }
        match found.as_slice() {
            [] if self.goes_through_proxy() && !self.has_inner_name() => Ok(Reach::Pinned(vec![NOWHERE])),
            [] => Err(format!("the host {} cannot be found", self.host)),
            _ => Ok(Reach::Pinned(found)),
        }
    }

    fn refused(&self, special: Special, how: &str) -> String {
        format!(
            "{} {how} {}, where repositories may not lie; an operator can allow a network (setting git.allow_networks)",
            self.host,
            special.describe()
        )
    }

    /// The transport's own ports: anything else that listens somewhere is not for Git to knock at.
    fn check_port(&self, settings: &Settings) -> Result<(), String> {
        let usual: &[u16] = match self.transport {
            Transport::Https => &[443],
            // Forges let ssh in at 443 as well, for networks that let nothing else out.
            Transport::Ssh => &[22, 443],
            Transport::Http => &[80],
            Transport::File => return Ok(()),
        };
        if usual.contains(&self.port) || settings.repository_ports.contains(&self.port) {
            return Ok(());
        }
        let usual: Vec<String> = usual.iter().map(ToString::to_string).collect();
        Err(format!(
            "repositories are reached over {} at port {}, not at {}; an operator can allow a port (setting git.allow_ports)",
            self.transport.protocol(),
            usual.join(" or "),
            self.port
        ))
    }

    /// A name that means something else, or something at all, only inside of a network.
    fn has_inner_name(&self) -> bool {
        let name = self.host.trim_end_matches('.');
        !name.contains('.') || INNER_NAMES.iter().any(|end| name.strip_suffix(end).is_some_and(|rest| rest.ends_with('.')))
    }

    /// The directory in which the repository lies, as its address says it: `acme/` of `https://github.com/acme/shop`. `None` when the path could be
    /// read in two ways.
    pub(crate) fn namespace(&self) -> Option<&str> {
        let path = self.plain_path()?;
        Some(&path[..path.rfind('/').map_or(0, |slash| slash + 1)])
    }

    /// Whether the repository lies at or below a directory of the same host that another address names, reached in the same way.
    pub(crate) fn is_below(&self, host: &Self, directory: &str) -> bool {
        let same_host = self.transport == host.transport && self.host == host.host && self.port == host.port;
        same_host && !directory.is_empty() && self.plain_path().is_some_and(|path| path.starts_with(directory))
    }

    /// The path without slashes around it. `None` when a server could make another one of it: by dots, empty parts or an encoding.
    pub(crate) fn plain_path(&self) -> Option<&str> {
        let path = self.split().1.trim_matches('/');
        let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['%', '\\', '~', '?', '#']);
        path.split('/').all(is_plain).then_some(path)
    }

    fn goes_through_proxy(&self) -> bool {
        let variables: &[&str] = match self.transport {
            Transport::Https => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            Transport::Http => &["http_proxy", "all_proxy", "ALL_PROXY"],
            Transport::Ssh | Transport::File => &[],
        };
        variables.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Whether `.gitmodules` means this as relative to its own repository.
pub(crate) fn is_relative(address: &str) -> bool {
    address.starts_with("./") || address.starts_with("../")
}

/// Joins a relative address to a path with `/`; more `..` than there are parts is an error.
pub(crate) fn join_path(path: &str, relative: &str) -> Result<String, String> {
    let mut parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    for part in relative.split('/') {
        match part {
            "." | "" => {}
            ".." if parts.pop().is_some_and(|part| !part.is_empty()) => {}
            ".." => return Err("the relative address leaves its host".to_owned()),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn check_host(host: &str, user: &str) -> Result<(), String> {
    let plain = |text: &str, more: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.as_bytes().contains(&byte));
    if host.is_empty() || host.starts_with('-') || !plain(host, ".-_:") {
        return Err("the address names no usable host".to_owned());
    }
    if user.starts_with('-') || !plain(user, "._-+") {
        return Err("the address names no usable user".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_made_to_hurt_do_not_parse() {
        for bad in [
            "ext::sh -c touch% /tmp/x",
            "ext::sh",
            "fd::17",
            "-uroot@host:path",
            "--upload-pack=touch x",
            "ssh://-oProxyCommand=x/path",
            "ssh://git@-oProxyCommand=x/path",
            "-oProxyCommand=x@host:path",
            "git@-host:path",
            "git@host:-path",
            "git://host/path",
            "ftp://host/path",
            "https://user:password@host/path",
            "https://token@host/path",
            "https://host",
            "https://host/p?x",
            "file://host/path",
            "/etc",
            "../x",
            "",
            "https://host/a b",
            "https://host/a\nb",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_usual_forms_parse() {
        for (text, transport, host, port) in [
            ("https://github.com/OCA/web.git", Transport::Https, "github.com", 443),
            ("https://Git.Example.com:8443/a/b", Transport::Https, "git.example.com", 8443),
            ("git@github.com:OCA/web.git", Transport::Ssh, "github.com", 22),
            ("ssh://git@example.com:2222/a/b.git", Transport::Ssh, "example.com", 2222),
            ("file:///srv/git/a.git", Transport::File, "", 22),
            ("https://[2001:db8::1]/x", Transport::Https, "2001:db8::1", 443),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.transport, address.host.as_str(), address.port), (transport, host, port), "{text}");
        }
    }

    #[test]
    fn relative_addresses_are_read_as_git_reads_them() {
        let join = |base: &str, relative: &str| Address::parse(base).unwrap().join(relative).map(|address| address.text);
        assert_eq!(join("https://h/a/b.git", "../c.git").unwrap(), "https://h/a/c.git");
        assert_eq!(join("https://h/a/b", "../../x/c").unwrap(), "https://h/x/c");
        assert_eq!(join("git@h:a/b.git", "../c.git").unwrap(), "git@h:a/c.git");
        assert_eq!(join("https://h/a/b", "./c").unwrap(), "https://h/a/b/c");
        assert_eq!(join("https://h/a/b", "ssh://git@o/x").unwrap(), "ssh://git@o/x");
        assert!(join("https://h/a/b", "../../../../etc").is_err());
        assert!(join("https://h/a/b", "ext::sh").is_err());
    }

    async fn reached(address: &str, change: impl FnOnce(&mut Settings)) -> Result<Reach, String> {
        let mut settings = crate::context::tests::settings();
        change(&mut settings);
        Address::parse(address).unwrap().reach(&settings).await
    }

    #[tokio::test]
    async fn no_repository_lies_on_this_machine_or_in_the_operators_network() {
        for address in [
            "https://127.0.0.1/x",
            "https://0x7f.1/x",
            "https://2130706433/x",
            "https://017700000001/x",
            "https://10.0.0.5/x",
            "https://192.168.1.1/x",
            "https://172.20.0.1/x",
            "https://100.64.0.1/x",
            "https://169.254.169.254/x",
            "https://[fd00::1]/x",
            "https://[fe80::1]/x",
            "https://[::ffff:10.0.0.5]/x",
            "https://[64:ff9b::10.0.0.5]/x",
            "https://[2002:a00:5::1]/x",
            "https://192.0.2.1/x",
            "git@10.0.0.5:a/b",
            "ssh://git@[::ffff:127.0.0.1]/a/b",
            "https://localhost/x",
        ] {
            let refused = reached(address, |_| {}).await.unwrap_err();
            assert!(refused.contains("where repositories may not lie"), "{address}: {refused}");
        }
        for name in ["ssh://git@2130706433/a/b", "ssh://git@0x7f.0.0.1/a/b", "git@127.1:a/b"] {
            assert!(reached(name, |_| {}).await.is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn other_ports_are_not_for_git_to_knock_at() {
        for address in ["https://1.1.1.1:8443/x", "https://1.1.1.1:22/x", "ssh://git@1.1.1.1:25/x", "ssh://git@1.1.1.1:6379/x"] {
            let refused = reached(address, |_| {}).await.unwrap_err();
            assert!(refused.contains("git.allow_ports"), "{address}: {refused}");
            let port = Address::parse(address).unwrap().port;
            assert!(reached(address, |settings| settings.repository_ports = vec![port]).await.is_ok(), "{address}");
        }
        for address in ["https://1.1.1.1/x", "git@1.1.1.1:x", "ssh://git@1.1.1.1:443/x", "https://[64:ff9b::1.1.1.1]/x"] {
            assert!(reached(address, |_| {}).await.is_ok(), "{address}");
        }
    }

    #[tokio::test]
    async fn an_operator_opens_networks_one_by_one_or_all_at_once() {
        let open = |settings: &mut Settings| settings.repository_networks = vec!["10.1.0.0/16".parse().unwrap()];
        assert_eq!(reached("https://10.1.2.3/x", open).await, Ok(Reach::Pinned(vec!["10.1.2.3".parse().unwrap()])));
        assert!(reached("https://10.2.0.1/x", open).await.is_err());
        assert!(reached("http://10.1.2.3/x", open).await.is_err(), "a network that is open is no reason to show the token");
        assert_eq!(reached("http://127.0.0.1:3000/x", |settings| settings.allow_local_repositories = true).await, Ok(Reach::Any));
    }

    #[test]
    fn a_namespace_is_the_directory_and_nothing_that_a_server_could_read_otherwise() {
        let home = Address::parse("https://github.com/acme/shop.git").unwrap();
        assert_eq!(home.namespace(), Some("acme/"));
        let below = |text: &str| Address::parse(text).unwrap().is_below(&home, home.namespace().unwrap());
        for own in ["https://github.com/acme/lib", "https://GitHub.com/acme/sub/lib.git", "https://github.com:443/acme/lib/"] {
            assert!(below(own), "{own}");
        }
        for other in [
            "https://github.com/other/lib",
            "https://github.com/acme-evil/lib",
            "https://github.com/acme/../other/lib",
            "https://github.com/acme/%2e%2e/other/lib",
            "https://github.com/acme%2flib",
            "https://github.com//other/lib",
            "https://gitlab.com/acme/lib",
            "https://github.com:8443/acme/lib",
            "http://github.com/acme/lib",
            "git@github.com:acme/lib",
        ] {
            assert!(!below(other), "{other}");
        }
        let ssh = Address::parse("git@github.com:acme/shop.git").unwrap();
        let below = |text: &str| Address::parse(text).unwrap().is_below(&ssh, ssh.namespace().unwrap());
        assert!(below("ssh://git@github.com/acme/lib") && below("git@github.com:/acme/lib"));
        for other in
            ["git@github.com:other/lib", "ssh://git@github.com/acme/../other/lib", "git@github.com:~acme/lib", "git@github.com:acme/./lib"]
        {
            assert!(!below(other), "{other}");
        }
        assert_eq!(Address::parse("https://git.example.com/shop").unwrap().namespace(), Some(""), "at the top there is no namespace");
    }
}
