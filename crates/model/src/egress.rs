//! What an environment's processes may reach: whether it is closed, and the places that a closed one may reach all the same.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::state::words;

words! {
    /// Whether an environment that is not production may reach the network.
    EgressMode, "egress" {
        /// Only its database, its mail catcher and what is allowed.
        Closed = "closed",
        /// Everything but the ports of other instances, as production may.
        Open = "open",
    }
}

/// A place that a closed environment may reach: a host, by address or by name, and a port. Its text is `<host>:<port>`, an IPv6 address in
/// brackets, a name in small letters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    host: Place,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place {
    Address(IpAddr),
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no place: write a host name or an address, a colon and a port, as in `api.example.com:443`")]
pub struct InvalidDestination(String);

impl Destination {
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, when it was given by one.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.host {
            Place::Address(address) => Some(SocketAddr::new(*address, self.port)),
            Place::Name(_) => None,
        }
    }

    /// Its name, when it was given by one.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Place::Name(name) => Some(name),
            Place::Address(_) => None,
        }
    }
}

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (host, port) = text.trim().rsplit_once(':')?;
            let port = port.parse().ok().filter(|port| *port != 0)?;
            let host = match host.strip_prefix('[') {
                Some(rest) => Place::Address(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into()),
                None => match host.parse::<IpAddr>() {
                    Ok(address) => Some(Place::Address(address)).filter(|_| address.is_ipv4())?,
                    Err(_) => Place::Name(Some(host.trim_end_matches('.').to_ascii_lowercase()).filter(|name| is_name(name))?),
                },
            };
            Some(Self { host, port })
        };
        parse().ok_or_else(|| InvalidDestination(text.chars().filter(|c| !c.is_control()).take(300).collect()))
    }
}

/// RFC 1123, section 2.1. A name whose last label is a number could be read as an address.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Place::Address(address) => SocketAddr::new(*address, self.port).fmt(formatter),
            Place::Name(name) => write!(formatter, "{name}:{}", self.port),
        }
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl TryFrom<String> for Destination {
    type Error = InvalidDestination;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written_in_one_way() {
        for (text, written) in [
            ("api.example.com:443", "api.example.com:443"),
            (" API.Example.com.:443 ", "api.example.com:443"),
            ("192.0.2.1:25", "192.0.2.1:25"),
            ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
            ("printer:9100", "printer:9100"),
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), written);
        }
        let place: Destination = "[::1]:80".parse().unwrap();
        assert_eq!((place.address(), place.name()), (Some("[::1]:80".parse().unwrap()), None));
        let place: Destination = "example.com:80".parse().unwrap();
        assert_eq!((place.address(), place.name(), place.port()), (None, Some("example.com"), 80));
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            ":",
            ":80",
            "example.com",
            "example.com:",
            "example.com:0",
            "example.com:65536",
            "2001:db8::1:443",
            "[192.0.2.1]:80",
            "https://example.com:443",
            "a b:80",
            "-a.example:80",
            "a..b:80",
            "0x7f.1:80",
            "300.1.2.3:80",
            "a_b:80",
            "*:80",
            "a\n.b:80",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text:?}");
        }
        assert!(format!("{}.com:80", "a".repeat(64)).parse::<Destination>().is_err());
    }
}
