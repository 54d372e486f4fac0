//! Cookies that an instance sets: for its own names, and for no wider part of the world.
//!
//! All instances of an installation have sibling names. A cookie whose `Domain` is what they have in common would be sent to all of them, and
//! would stand in for their own cookies of the same name: a session that somebody else has chosen, or so many bytes that nobody gets in.
//! What is read here as an attribute is what a browser reads as one (RFC 6265, 5.2: split at each `;`, quotes mean nothing, case does not
//! count, one leading dot goes), and wherever browsers differ, the wider reading counts.

use http::{HeaderMap, HeaderValue, header};

use crate::host_name::HostName;

/// A browser takes a cookie with this prefix for its host alone, and refuses one that names a domain (RFC 6265bis, 4.1.3; case does not count).
const HOST_PREFIX: &[u8] = b"__host-";

/// What a browser makes of a cookie's domain.
enum Reach {
    /// It names none, or one of the instance's own.
    Own,
    /// All that begins above the host: the cookie stays, for its host alone.
    Wider,
    /// Elsewhere, or a prefix is broken: a browser refuses the cookie.
    Refused,
}

/// Narrows what the answer's `Set-Cookie` headers reach to the host and to the instance's other names (`own`).
pub(crate) fn narrow(headers: &mut HeaderMap, host: &HostName, own: &[String]) {
    if !headers.get_all(header::SET_COOKIE).iter().any(|cookie| names_domain(cookie.as_bytes())) {
        return;
    }
    let cookies: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        let kept = match reach(cookie.as_bytes(), host, own) {
            Reach::Own => Some(cookie),
            Reach::Wider => HeaderValue::from_bytes(&without_domain(cookie.as_bytes())).ok(),
            Reach::Refused => None,
        };
        if let Some(cookie) = kept {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
}

/// The parts after the first are attributes.
fn attributes(cookie: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookie.split(|byte| *byte == b';').skip(1)
}

/// The attribute's value, when it is a `Domain`.
fn domain(attribute: &[u8]) -> Option<&[u8]> {
    let (name, value) = match attribute.iter().position(|byte| *byte == b'=') {
        Some(equals) => (&attribute[..equals], &attribute[equals + 1..]),
        None => (attribute, [].as_slice()),
    };
    trim(name).eq_ignore_ascii_case(b"domain").then(|| trim(value))
}

/// Without what no domain begins or ends with: spaces of every kind, and quotes.
fn trim(text: &[u8]) -> &[u8] {
    let is_outside = |byte: &u8| matches!(byte, 0..=b' ' | 0x7f | b'"' | b'\'');
    let start = text.iter().position(|byte| !is_outside(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_outside(byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

fn names_domain(cookie: &[u8]) -> bool {
    attributes(cookie).any(|attribute| domain(attribute).is_some())
}

/// Every `Domain` counts: browsers take the last one, and which one that is must not depend on how they read the others.
fn reach(cookie: &[u8], host: &HostName, own: &[String]) -> Reach {
    let mut reach = Reach::Own;
    for value in attributes(cookie).filter_map(domain) {
        if trim(cookie.split(|byte| *byte == b';').next().unwrap_or_default()).to_ascii_lowercase().starts_with(HOST_PREFIX) {
            return Reach::Refused;
        }
        match judge(value, host, own) {
            Reach::Own => {}
            Reach::Wider => reach = Reach::Wider,
            Reach::Refused => return Reach::Refused,
        }
    }
    reach
}

fn judge(value: &[u8], host: &HostName, own: &[String]) -> Reach {
    let named = value.strip_prefix(b".").unwrap_or(value);
    let Some(named) = std::str::from_utf8(named).ok().and_then(|text| HostName::parse(text).ok()) else { return Reach::Wider };
    let is_above = host.as_str().strip_suffix(named.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let is_own = || named == *host || own.iter().any(|name| HostName::parse(name).is_ok_and(|name| name == named));
    match (is_above, is_above && is_own()) {
        (true, true) => Reach::Own,
        (true, false) => Reach::Wider,
        (false, _) => Reach::Refused,
    }
}

fn without_domain(cookie: &[u8]) -> Vec<u8> {
    let first = cookie.split(|byte| *byte == b';').take(1);
    let kept: Vec<&[u8]> = first.chain(attributes(cookie).filter(|attribute| domain(attribute).is_none())).collect();
    kept.join(b";".as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrowed(cookies: &[&[u8]]) -> Vec<String> {
        let host = HostName::parse("a.apps.example").unwrap();
        let own = ["a.apps.example".to_owned()];
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(header::SET_COOKIE, HeaderValue::from_bytes(cookie).unwrap());
        }
        narrow(&mut headers, &host, &own);
        headers.get_all(header::SET_COOKIE).iter().map(|cookie| String::from_utf8_lossy(cookie.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn every_spelling_of_a_wider_domain_goes_and_the_cookie_stays() {
        for domain in [
            "Domain=apps.example",
            "domain=.apps.example",
            "DOMAIN = apps.example",
            " Domain\t=\tapps.example ",
            "Domain=APPS.Example",
            "Domain=apps.example.",
            "Domain=\"apps.example\"",
            "Domain=' .apps.example '",
            "Domain=example",
            "Domain=",
            "Domain",
            "Domain=..apps.example",
            "Domain=apps.example; Domain=a.apps.example",
            "Domain=a.apps.example; domain=apps.example",
            "Domain=apps.example:8080",
            "Domain=*.apps.example",
        ] {
            let cookie = format!("session_id=planted; {domain}; Path=/; HttpOnly");
            let kept = narrowed(&[cookie.as_bytes()]);
            assert_eq!(kept, ["session_id=planted; Path=/; HttpOnly"], "{domain}");
        }
        assert_eq!(narrowed(&[b"a=\"x; Domain=apps.example\""]), ["a=\"x"], "a quote does not hide an attribute from a browser");
        assert_eq!(narrowed(&[b"a=1; Domain=apps.ex\xc3\xa4mple; Path=/"]), ["a=1; Path=/"]);
        let long = format!("a={}; Domain=apps.example", "x".repeat(200_000));
        assert_eq!(narrowed(&[long.as_bytes()])[0].len(), 200_002);
    }

    #[test]
    fn a_host_s_own_cookies_stay_as_they_are() {
        for cookie in [
            "session_id=1; Path=/; HttpOnly; SameSite=Lax",
            "a=1; Domain=a.apps.example",
            "a=1; domain=.A.apps.example",
            "Domain=apps.example",
            "a=Domain=apps.example; Path=/domain",
            "__Host-a=1; Secure; Path=/",
            "a=1; XDomain=apps.example",
        ] {
            assert_eq!(narrowed(&[cookie.as_bytes()]), [cookie]);
        }
    }

    #[test]
    fn what_a_browser_refuses_is_not_made_into_what_it_takes() {
        for cookie in [
            "a=1; Domain=b.apps.example",
            "a=1; Domain=xa.apps.example",
            "a=1; Domain=x.a.apps.example",
            "__Host-a=1; Secure; Path=/; Domain=apps.example",
            " __hOST-a=1; Secure; Path=/; Domain=a.apps.example",
            "__Host-Http-a=1; Secure; Domain=",
        ] {
            assert_eq!(narrowed(&[b"kept=1", cookie.as_bytes(), b"too=1"]), ["kept=1", "too=1"], "{cookie}");
        }
    }

    #[test]
    fn the_names_of_one_instance_may_share_a_cookie_and_its_neighbours_stay_out() {
        let host = HostName::parse("www.shop.example").unwrap();
        let own = ["shop.example".to_owned(), "www.shop.example".to_owned()];
        let mut headers = HeaderMap::new();
        headers.append(header::SET_COOKIE, HeaderValue::from_static("a=1; Domain=shop.example"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("b=1; Domain=example"));
        narrow(&mut headers, &host, &own);
        let kept: Vec<_> = headers.get_all(header::SET_COOKIE).iter().collect();
        assert_eq!(kept, ["a=1; Domain=shop.example", "b=1"]);
    }
}
