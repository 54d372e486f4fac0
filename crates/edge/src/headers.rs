//! What changes in a request's and an answer's headers on the way through.
//!
//! Hop-by-hop headers end here. Who the client is and how it came is said by this edge alone: what came from outside about it is dropped,
//! unless the peer is a trusted proxy. Odoo's `proxy_mode` reads the last `X-Forwarded-For`, `-Proto` and `-Host` (Werkzeug's `ProxyFix` with
//! one proxy), so each is sent with exactly one value.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ocore_model::network::{self, Network};

use crate::{
    cookies,
    host_name::{HostError, HostName, RequestedHost},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// RFC 9110, 7.6.1, and what older agents treat so.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers by which some proxy or other says who the client is, besides `x-forwarded-*`. `Proxy` becomes `HTTP_PROXY` in a CGI environment.
const CLAIMS: [&str; 10] = [
    "forwarded",
    "proxy",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-original-url",
    "x-rewrite-url",
    "x-scheme",
];

/// Headers of an answer that speak to a proxy in front of this edge, and not to the browser: an Odoo that somebody else writes the code of could have
/// that proxy hand out the operator's files (`X-Accel-Redirect`, `X-Sendfile`), fetch addresses of its choice, or keep what it should not. `Alt-Svc` says
/// where the edge may be reached, which is not an Odoo's to say; no browser reads `Set-Cookie2` any more.
const ORDERS: [&str; 9] = [
    "x-sendfile",
    "x-lighttpd-send-file",
    "x-lighttpd-send-tempfile",
    "x-reproxy-url",
    "x-reproxy-file",
    "surrogate-control",
    "cdn-cache-control",
    "alt-svc",
    "set-cookie2",
];
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
/// What a page may have cleared: what belongs to its own origin. Cookies are those of the whole registrable domain, so of its neighbours as well
/// (Clear Site Data, 3.1); `"*"` and client hints go with them.
const CLEARED: [&str; 3] = ["\"cache\"", "\"storage\"", "\"executionContexts\""];

/// Who asks, for what, how: decided once for each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) client: IpAddr,
    pub(crate) host: RequestedHost,
    pub(crate) scheme: Scheme,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Origin {
    /// `scheme` is what the client's connection to this edge speaks.
    pub(crate) fn of_request<B>(request: &http::Request<B>, peer: IpAddr, scheme: Scheme, trusted: &[Network]) -> Result<Self, HostError> {
        let host = RequestedHost::of_request(request.uri(), request.headers())?;
        let peer = peer.to_canonical();
        if !trusted.iter().any(|network| network.contains(peer)) {
            let port = host.port.unwrap_or(scheme.default_port());
            return Ok(Self { client: peer, host, scheme, port });
        }
        let headers = request.headers();
        let host = match last_value(headers, &X_FORWARDED_HOST) {
            Some(text) => RequestedHost::parse(text)?,
            None => host,
        };
        let scheme = match last_value(headers, &X_FORWARDED_PROTO) {
            Some(text) if text.eq_ignore_ascii_case("https") => Scheme::Https,
            Some(text) if text.eq_ignore_ascii_case("http") => Scheme::Http,
            _ => scheme,
        };
        let port = last_value(headers, &X_FORWARDED_PORT).and_then(|text| text.parse().ok()).or(host.port).unwrap_or(scheme.default_port());
        Ok(Self { client: client_behind(headers, peer, trusted), host, scheme, port })
    }
}

/// The address nearest to this edge that is no trusted proxy.
fn client_behind(headers: &HeaderMap, peer: IpAddr, trusted: &[Network]) -> IpAddr {
    // A line that is no text is kept as one that cannot be read: without it, what stands before it would be believed in its place.
    network::client_behind(peer, headers.get_all(X_FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or_default()), trusted)
}

fn last_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    line.rsplit(',').next().map(str::trim).filter(|value| !value.is_empty())
}

/// The request's target and headers as they came, in bytes, about.
pub(crate) fn size<B>(request: &http::Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    // A colon, a space and the line's end.
    request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() + target
}

/// Turns a client's headers into those that Odoo gets. Framing (`Content-Length`, `Transfer-Encoding`) is left to the caller, who knows the body.
pub(crate) fn prepare_request(headers: &mut HeaderMap, origin: &Origin, request_id: &HeaderValue) {
    remove_hop_by_hop(headers);
    // WSGI turns `-` into `_`, so that `X_Forwarded_For` would arrive as `X-Forwarded-For`.
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.contains('_') || name.starts_with("x-forwarded-") || CLAIMS.contains(&name)
        })
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
    // This edge has said `100 Continue` itself once the body is read.
    headers.remove(header::EXPECT);
    join_cookies(headers);

    let host = value(&origin.host.to_string());
    let client = value(&origin.client.to_string());
    let node = match origin.client {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let scheme = origin.scheme.as_str();
    headers.insert(header::FORWARDED, value(&format!("for={node};host=\"{}\";proto={scheme}", origin.host)));
    headers.insert(header::HOST, host.clone());
    headers.insert(X_FORWARDED_HOST, host);
    headers.insert(X_FORWARDED_FOR, client.clone());
    headers.insert(X_REAL_IP, client);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    headers.insert(X_FORWARDED_PORT, value(&origin.port.to_string()));
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// HTTP/2 lets a client send its cookies in several lines, which a proxy in front may pass on; WSGI would join them with a comma (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    if let (Some(first), Some(second)) = (lines.next(), lines.next()) {
        let cookies: Vec<&[u8]> =
            [first, second].into_iter().chain(lines).map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()).collect();
        // Bytes of header lines are those of one as well.
        if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

/// Turns Odoo's headers into those that the client gets: what is meant for this edge or a proxy before it ends here, and what would reach another
/// instance through the browser is narrowed to this one (`host`, and its `own` other names).
pub(crate) fn prepare_response(headers: &mut HeaderMap, request_id: &HeaderValue, host: &HostName, own: &[String]) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // RFC 9112, 6.3: the length is void then.
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    for name in ORDERS {
        headers.remove(name);
    }
    // Whether the proxy gathers an answer before it passes it on is the answer's to say.
    let is_order = |name: &&HeaderName| name.as_str().starts_with("x-accel-") && name.as_str() != "x-accel-buffering";
    let accel: Vec<HeaderName> = headers.keys().filter(is_order).cloned().collect();
    for name in accel {
        headers.remove(name);
    }
    narrow_clearing(headers);
    cookies::narrow(headers, host, own);
    headers.insert(X_REQUEST_ID, request_id.clone());
}

fn narrow_clearing(headers: &mut HeaderMap) {
    if !headers.contains_key(CLEAR_SITE_DATA) {
        return;
    }
    let lines: Vec<&str> = headers.get_all(CLEAR_SITE_DATA).iter().filter_map(|value| value.to_str().ok()).collect();
    let kept: Vec<&str> = lines.iter().flat_map(|line| line.split(',')).map(str::trim).filter(|kind| CLEARED.contains(kind)).collect();
    let kept = kept.join(", ");
    headers.remove(CLEAR_SITE_DATA);
    if !kept.is_empty() {
        headers.insert(CLEAR_SITE_DATA, value(&kept));
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The client's request id when it is a plain word, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let mut values = headers.get_all(X_REQUEST_ID).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if is_plain_word(value.as_bytes()) => value.clone(),
        _ => value(&new_request_id()),
    }
}

/// A UUID of version 7. It need not be hard to guess, so the kernel is not asked for random bytes each time.
pub(crate) fn new_request_id() -> String {
    static KEYS: LazyLock<(RandomState, RandomState)> = LazyLock::new(Default::default);
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let [first, second] = [KEYS.0.hash_one(number).to_be_bytes(), KEYS.1.hash_one(number).to_be_bytes()];
    let mut bytes = [0; 10];
    for (byte, random) in bytes.iter_mut().zip(first.into_iter().chain(second)) {
        *byte = random;
    }
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(since_1970.as_millis() as u64, &bytes).into_uuid().to_string()
}

fn is_plain_word(bytes: &[u8]) -> bool {
    (8..=64).contains(&bytes.len()) && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// For texts that are ASCII by construction: host names, addresses, numbers, ids.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("/web").header("host", "shop.example:8080");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn prepared(headers: &[(&str, &str)], peer: &str, trusted: &[&str]) -> HeaderMap {
        let trusted: Vec<Network> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        let request = request(headers);
        let origin = Origin::of_request(&request, peer.parse().unwrap(), Scheme::Http, &trusted).unwrap();
        let mut headers = request.headers().clone();
        let id = request_id(&headers);
        prepare_request(&mut headers, &origin, &id);
        headers
    }

    fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn nothing_from_outside_is_believed() {
        let headers = prepared(
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-host", "evil.example"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "443"),
                ("x-forwarded-prefix", "/evil"),
                ("x-real-ip", "1.2.3.4"),
                ("forwarded", "for=1.2.3.4"),
                ("x_forwarded_for", "1.2.3.4"),
                ("x-forwarded_host", "evil.example"),
                ("true-client-ip", "1.2.3.4"),
                ("proxy", "http://evil.example"),
            ],
            "198.51.100.7",
            &["10.0.0.0/8"],
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["198.51.100.7"]);
        assert_eq!(all(&headers, "x-forwarded-host"), ["shop.example:8080"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&headers, "x-forwarded-port"), ["8080"]);
        assert_eq!(all(&headers, "x-real-ip"), ["198.51.100.7"]);
        assert_eq!(all(&headers, "forwarded"), ["for=198.51.100.7;host=\"shop.example:8080\";proto=http"]);
        for gone in ["x-forwarded-prefix", "x_forwarded_for", "x-forwarded_host", "true-client-ip", "proxy"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn a_trusted_proxy_is_believed_up_to_the_first_stranger() {
        let headers = prepared(
            &[
                ("x-forwarded-for", "6.6.6.6, 203.0.113.9"),
                ("x-forwarded-for", "10.0.0.9"),
                ("x-forwarded-host", "www.shop.example"),
                ("x-forwarded-proto", "https"),
            ],
            "10.0.0.1",
            &["10.0.0.0/8"],
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["203.0.113.9"]);
        assert_eq!(all(&headers, "x-forwarded-host"), ["www.shop.example"]);
        assert_eq!(all(&headers, "host"), ["www.shop.example"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&headers, "x-forwarded-port"), ["443"]);
    }

    #[test]
    fn a_trusted_proxy_that_says_nothing_is_the_client() {
        let headers = prepared(&[("x-forwarded-for", "unknown")], "10.0.0.1", &["10.0.0.0/8"]);
        assert_eq!(all(&headers, "x-forwarded-for"), ["10.0.0.1"]);
        let headers = prepared(&[("x-forwarded-for", "[2001:db8::1]:5000")], "10.0.0.1", &["10.0.0.0/8"]);
        assert_eq!(all(&headers, "x-forwarded-for"), ["2001:db8::1"]);
        assert_eq!(all(&headers, "forwarded"), ["for=\"[2001:db8::1]\";host=\"shop.example:8080\";proto=http"]);
    }

    #[test]
    fn a_line_that_is_no_text_does_not_open_the_way_to_the_claim_before_it() {
        let mut headers = HeaderMap::new();
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("6.6.6.6"));
        headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(b"\xff, 203.0.113.9").unwrap());
        let client = client_behind(&headers, "10.0.0.1".parse().unwrap(), &["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(client.to_string(), "10.0.0.1");
    }

    #[test]
    fn hop_by_hop_headers_end_here_the_named_ones_too() {
        let headers = prepared(
            &[
                ("connection", "close, X-Secret-Hop"),
                ("connection", "X-Forwarded-For, host"),
                ("x-secret-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("upgrade", "h2c"),
                ("proxy-authorization", "Basic x"),
                ("expect", "100-continue"),
                ("cookie", "session_id=abc"),
            ],
            "198.51.100.7",
            &[],
        );
        for gone in ["connection", "x-secret-hop", "keep-alive", "te", "upgrade", "proxy-authorization", "expect"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(all(&headers, "x-forwarded-for"), ["198.51.100.7"]);
        assert_eq!(all(&headers, "host"), ["shop.example:8080"]);
        assert_eq!(all(&headers, "cookie"), ["session_id=abc"]);
    }

    #[test]
    fn cookies_in_several_lines_become_one_line_in_their_order() {
        for (lines, joined) in [
            (&["session_id=abc"][..], "session_id=abc"),
            (&["session_id=abc; a=b", "frontend_lang=en_US"], "session_id=abc; a=b; frontend_lang=en_US"),
            (&["", "a=1", " ", "a=2;"], "a=1; a=2;"),
        ] {
            let lines: Vec<(&str, &str)> = lines.iter().map(|line| ("cookie", *line)).collect();
            assert_eq!(all(&prepared(&lines, "198.51.100.7", &[]), "cookie"), [joined]);
        }
    }

    #[test]
    fn an_answer_gives_no_orders_to_a_proxy_and_clears_what_is_its_own() {
        let mut headers = HeaderMap::new();
        for (name, text) in [
            ("x-accel-redirect", "/etc/passwd"),
            ("x-accel-expires", "86400"),
            ("x-accel-buffering", "no"),
            ("x-sendfile", "/etc/passwd"),
            ("x-reproxy-url", "http://169.254.169.254/"),
            ("alt-svc", "h2=\"evil.example:443\""),
            ("set-cookie2", "a=1; Domain=apps.example"),
            ("clear-site-data", "\"cookies\", \"cache\""),
            ("clear-site-data", "\"*\""),
            ("strict-transport-security", "max-age=1; includeSubDomains"),
            ("service-worker-allowed", "/"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(text));
        }
        prepare_response(&mut headers, &HeaderValue::from_static("request"), &HostName::parse("a.apps.example").unwrap(), &[]);
        let mut left: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "clear-site-data: \"cache\"",
                "service-worker-allowed: /",
                "strict-transport-security: max-age=1; includeSubDomains",
                "x-accel-buffering: no",
                "x-request-id: request",
            ]
        );
    }

    #[test]
    fn new_request_ids_are_uuids_of_version_7_and_differ() {
        let ids: std::collections::HashSet<uuid::Uuid> = (0..1000).map(|_| new_request_id().parse().unwrap()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
    }

    #[test]
    fn only_a_well_formed_request_id_is_kept() {
        let kept = |text: &str| all(&prepared(&[("x-request-id", text)], "198.51.100.7", &[]), "x-request-id") == [text];
        assert!(kept("0192f0c1-7e3a-7000-8000-000000000001"));
        assert!(!kept("short"));
        assert!(!kept("with space in it"));
        assert!(!kept(&"x".repeat(65)));
        let twice = prepared(&[("x-request-id", "aaaaaaaa"), ("x-request-id", "bbbbbbbb")], "198.51.100.7", &[]);
        assert_eq!(all(&twice, "x-request-id").len(), 1);
        assert_ne!(all(&twice, "x-request-id"), ["bbbbbbbb"]);
    }
}
