//! Networks that have a meaning of their own, and places that an operator names.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::Deserialize;

/// What nobody who runs strangers' code may reach: link-local addresses, where clouds answer a machine's own questions (its roles, its passwords, the script
/// that set it up), the other places where they do (AWS, Alibaba Cloud, Azure, Google Cloud, Oracle Cloud, Scaleway, and the ways to write a link-local address of
/// version 4 in one of version 6), and multicast, which reaches whoever listens beside us.
pub(super) const NEVER: [&str; 16] = [
    "0.0.0.0/8",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "64:ff9b::6464:64c8/128",
    "64:ff9b::a83f:8110/128",
    "64:ff9b::a9fe:0/112",
    "2002:a9fe::/32",
    "fd00:42::/32",
    "fd00:ec2::/32",
    "fd20:ce::/32",
    "fe80::/10",
    "ff00::/8",
];

/// Where a company's own machines are. A build has nothing to do there unless the operator says so.
pub(super) const PRIVATE: [&str; 9] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "64:ff9b::a00:0/104",
    "::1/128",
    "fc00::/7",
];

/// Those of one family, as `nft` lists them.
pub(super) fn of_family<'a>(networks: impl IntoIterator<Item = &'a str>, four: bool) -> Vec<&'a str> {
    networks.into_iter().filter(|network| network.contains(':') != four).collect()
}

/// Whether [`NEVER`] says so.
pub(super) fn is_never(address: IpAddr) -> bool {
    let address = address.to_canonical();
    NEVER.iter().filter_map(|network| network.parse::<IpNet>().ok()).any(|network| network.contains(&address))
}

/// What an operator allows: a network, an address or a host's name, and a port or all of them. `*` is every public host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Place {
    pub host: PlaceHost,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceHost {
    Network(IpNet),
    Name(String),
    AnyPublic,
}

impl Place {
    /// The network, when that is all of it.
    pub fn network(&self) -> Option<IpNet> {
        match (&self.host, self.port) {
            (PlaceHost::Network(network), None) => Some(*network),
            _ => None,
        }
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self { host: PlaceHost::AnyPublic, port: None });
        }
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self { host: PlaceHost::Network(network.trunc()), port: None });
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Self { host: PlaceHost::Network(address.into()), port: None });
        }
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { host: PlaceHost::Network(socket.ip().into()), port: Some(socket.port()) });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse::<u16>().map_err(|_| unusable(text))?)),
            None => (text, None),
        };
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        if !is_name {
            return Err(unusable(text));
        }
        Ok(Self { host: PlaceHost::Name(name.to_ascii_lowercase()), port })
    }
}

fn unusable(text: &str) -> String {
    format!(
        "`{}` is no place in a network: write an address (10.0.0.5), a network (10.1.0.0/16), a host (git.example.com), each with `:port` if only one is meant, \
         or * for every public host",
        text.escape_debug()
    )
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (PlaceHost::AnyPublic, _) => formatter.write_str("*"),
            (PlaceHost::Name(name), None) => formatter.write_str(name),
            (PlaceHost::Name(name), Some(port)) => write!(formatter, "{name}:{port}"),
            (PlaceHost::Network(network), None) => write!(formatter, "{network}"),
            (PlaceHost::Network(network), Some(port)) => write!(formatter, "{}", SocketAddr::new(network.addr(), port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_that_is_listed_is_one() {
        assert!(NEVER.iter().chain(&PRIVATE).all(|network| network.parse::<IpNet>().is_ok_and(|found| found == found.trunc())));
    }

    #[test]
    fn every_metadata_service_that_is_published_is_never_reached() {
        let published = [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.42.42",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fe80::a9fe:a9fe",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:42::42",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
        ];
        for address in published {
            assert!(is_never(address.parse().unwrap()), "{address}");
        }
        for address in ["192.0.2.1", "10.0.0.1", "fd00::1", "8.8.8.8", "2606:4700::1111"] {
            assert!(!is_never(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_place_is_a_network_an_address_or_a_host() {
        for (text, shown) in [
            ("10.1.2.3/16", "10.1.0.0/16"),
            ("10.0.0.5", "10.0.0.5/32"),
            ("10.0.0.5:8080", "10.0.0.5:8080"),
            ("[fd00::1]:443", "[fd00::1]:443"),
            ("Git.Example.com:8443", "git.example.com:8443"),
            ("*", "*"),
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), shown);
        }
        for text in ["", "https://example.com", "a b", "host:port", "10.0.0.0/40"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
