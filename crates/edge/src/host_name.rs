//! Host names as clients write them, and the one form in which routes are looked up.

use std::{fmt, net::Ipv6Addr};

use http::{HeaderMap, Uri, header};
use thiserror::Error;

/// A host name or address in its one form: lower case, without port and trailing dot; IPv6 in brackets and canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HostName(String);

/// A host as a client asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestedHost {
    pub(crate) name: HostName,
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum HostError {
    #[error("the request names no host")]
    Missing,
    #[error("the request names more than one host")]
    Several,
    #[error("the request's host is not a host name")]
    Malformed,
}

impl HostName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a name without a port, as a route has it. An IPv6 address may come without brackets.
    pub(crate) fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[') {
            let address: Ipv6Addr = inner.strip_suffix(']').ok_or(HostError::Malformed)?.parse().map_err(|_| HostError::Malformed)?;
            return Ok(Self(format!("[{address}]")));
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self(format!("[{address}]")));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        // RFC 1035, 2.3.4: at most 253 characters. The underscore is none of a host name's, but names with it are in use.
        let well_formed = !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| !label.is_empty() && label.len() <= 63)
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        if well_formed { Ok(Self(name.to_ascii_lowercase())) } else { Err(HostError::Malformed) }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl RequestedHost {
    /// Reads `host[:port]`.
    pub(crate) fn parse(text: &str) -> Result<Self, HostError> {
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.find(']')) {
            // The index is one short: the bracket was stripped.
            Some(end) => {
                let (name, rest) = text.split_at(end + 2);
                match rest.strip_prefix(':') {
                    Some(port) => (name, port),
                    None if rest.is_empty() => (name, ""),
                    None => return Err(HostError::Malformed),
                }
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        // RFC 3986, 3.2.3: the port may be empty.
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().map_err(|_| HostError::Malformed)?),
            _ => return Err(HostError::Malformed),
        };
        if !text.starts_with('[') && name.contains(':') {
            return Err(HostError::Malformed);
        }
        Ok(Self { name: HostName::parse(name)?, port })
    }

    /// What the request asks for: the target's authority when it has one (RFC 9112, 3.2.2), else the one `Host` header.
    /// A second `Host` header is refused even then.
    pub(crate) fn of_request(uri: &Uri, headers: &HeaderMap) -> Result<Self, HostError> {
        let mut values = headers.get_all(header::HOST).iter();
        let host = values.next();
        if values.next().is_some() {
            return Err(HostError::Several);
        }
        if let Some(authority) = uri.authority() {
            return Self::parse(authority.as_str());
        }
        Self::parse(host.ok_or(HostError::Missing)?.to_str().map_err(|_| HostError::Malformed)?)
    }
}

/// As it is written in a `Host` header.
impl fmt::Display for RequestedHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(formatter, "{}:{port}", self.name),
            None => self.name.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_host_become_one_name() {
        for (text, name, port) in [
            ("shop.example.com", "shop.example.com", None),
            ("SHOP.Example.COM", "shop.example.com", None),
            ("shop.example.com.", "shop.example.com", None),
            ("shop.example.com:8080", "shop.example.com", Some(8080)),
            ("shop.example.com.:8080", "shop.example.com", Some(8080)),
            ("shop.example.com:", "shop.example.com", None),
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("[::1]", "[::1]", None),
            ("[::1]:8069", "[::1]", Some(8069)),
            ("[0:0:0:0:0:0:0:1]:8069", "[::1]", Some(8069)),
            ("[2001:DB8::7]", "[2001:db8::7]", None),
            ("a_b.example", "a_b.example", None),
        ] {
            let host = RequestedHost::parse(text).unwrap();
            assert_eq!((host.name.as_str(), host.port), (name, port), "{text}");
        }
        assert_eq!(HostName::parse("::1").unwrap().as_str(), "[::1]");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            ".",
            ":80",
            "a b",
            "a..b",
            ".a",
            "user@shop.example",
            "shop.example/x",
            "shop.example:http",
            "shop.example:+80",
            "shop.example:65536",
            "shop.example:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[::1%eth0]",
            "[shop.example]",
            "schön.example",
            "shop.example?x",
            "shop.example#x",
            "shop.example\\x",
        ] {
            assert_eq!(RequestedHost::parse(text), Err(HostError::Malformed), "{text:?}");
        }
        assert!(RequestedHost::parse(&"a".repeat(64)).is_err());
        assert!(RequestedHost::parse(&"a.".repeat(127)).is_ok());
        assert!(RequestedHost::parse(&"ab.".repeat(127)).is_err());
    }

    #[test]
    fn the_target_wins_over_the_header_and_two_headers_are_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(RequestedHost::of_request(&Uri::from_static("/"), &headers), Err(HostError::Missing));
        headers.append(header::HOST, "header.example".parse().unwrap());
        assert_eq!(RequestedHost::of_request(&Uri::from_static("/"), &headers).unwrap().to_string(), "header.example");
        let absolute = Uri::from_static("http://target.example:81/x");
        assert_eq!(RequestedHost::of_request(&absolute, &headers).unwrap().to_string(), "target.example:81");
        assert_eq!(RequestedHost::of_request(&Uri::from_static("http://a@target.example/x"), &headers), Err(HostError::Malformed));
        headers.append(header::HOST, "header.example".parse().unwrap());
        assert_eq!(RequestedHost::of_request(&absolute, &headers), Err(HostError::Several));
    }
}
