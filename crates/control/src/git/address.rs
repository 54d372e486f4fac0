//! Addresses of repositories that are not ours: which forms count, which hosts may be reached, and how a relative one is read.
//!
//! An address comes from a person who connects a repository or from a `.gitmodules` file, so from anybody. Only four transports exist here;
//! `ext::`, remote helpers and options in disguise do not parse. A host is resolved once, judged, and Git is told to use exactly the
//! addresses that were judged, so that a name cannot change its mind in between.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use url::Url;

use crate::Settings;

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
    /// These, and no others.
    Pinned(Vec<IpAddr>),
    /// Whatever the name means: a proxy resolves it, or the installation allows every address.
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
        let refused = |what: &str| {
            Err(format!(
                "{} is {what}, which repositories may not lie on; an operator can allow it (setting allow_local_repositories)",
                self.host
            ))
        };
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return if is_local(address) { refused("an address of this machine or its link") } else { Ok(Reach::Pinned(vec![address])) };
        }
        if self.host == "localhost" || self.host.ends_with(".localhost") || self.host == "metadata.google.internal" {
            return refused("a name of this machine or its link");
        }
        if self.goes_through_proxy() {
            return Ok(Reach::Any);
        }
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found: Vec<IpAddr> = found.map_err(|_| format!("the host {} cannot be found", self.host))?.map(|socket| socket.ip()).collect();
        if found.iter().copied().any(is_local) {
            return refused("a name for an address of this machine or its link");
        }
        Ok(Reach::Pinned(found))
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

/// Addresses that mean this machine, its link, or a cloud's metadata service.
pub(crate) fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_local_v4(address),
        IpAddr::V6(address) => {
            let translated = [[0, 0, 0, 0, 0, 0xffff], [0x64, 0xff9b, 0, 0, 0, 0], [0; 6]];
            let segments = address.segments();
            if address != Ipv6Addr::LOCALHOST && translated.iter().any(|prefix| segments[..6] == *prefix) {
                let [.., a, b, c, d] = address.octets();
                return is_local_v4(Ipv4Addr::new(a, b, c, d));
            }
            let aws_metadata = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address == aws_metadata
        }
    }
}

fn is_local_v4(address: Ipv4Addr) -> bool {
    let alibaba_metadata = Ipv4Addr::new(100, 100, 100, 200);
    address.is_loopback()
        || address.octets()[0] == 0
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address == alibaba_metadata
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

    #[test]
    fn local_addresses_are_known_in_every_dress() {
        for local in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "::1",
            "::",
            "fe80::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "::127.0.0.1",
            "fd00:ec2::254",
            "224.0.0.1",
        ] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        for far in ["10.0.0.5", "192.168.1.1", "1.1.1.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_local(far.parse().unwrap()), "{far}");
        }
    }
}
