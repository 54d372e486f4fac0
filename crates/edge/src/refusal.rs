//! What a client gets whose head could not be read, and what the log gets about it.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::{
    access::{self, Unread},
    client::Client,
    headers,
    pages::{Form, Page},
    server::Shared,
};

/// The first bytes of a TLS connection.
const TLS: [u8; 2] = [0x16, 0x03];

/// The end of a connection that hyper has given up: says why, with an id and words, to a client that waits for an answer.
pub(crate) async fn part(shared: &Shared, client: &Client, peer: IpAddr, error: &hyper::Error) {
    let head = Fragment::read(&client.head());
    let request_id = headers::request_id(&head.headers);
    let request_id = request_id.to_str().unwrap_or_default();
    let word = |page: &Page| page.bytes(Form::wanted_by(&head.headers), request_id, head.method == "HEAD");
    let refused = |status| {
        let (host, path, trouble) = (head.host.as_deref(), head.path.as_deref(), &*error.to_string());
        access::refused(&shared.metrics, peer, request_id, status, &Unread { method: &head.method, host, path, trouble });
    };
    if client.was_refused() {
        let page = head.page(error, shared);
        refused(page.status);
        client.part_with(&word(&page)).await;
    } else if error.is_timeout() {
        // An idle connection ends so, too; nobody asked anything on that.
        if client.say_at_last(|| word(&Page::headers_stalled())) {
            refused(StatusCode::REQUEST_TIMEOUT);
        }
    } else if error.is_parse() {
        // hyper has answered itself, behind an answer that was not with the kernel yet: without words, and only the log has an id.
        refused(if error.is_parse_too_large() { StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE } else { StatusCode::BAD_REQUEST });
    }
    tracing::debug!(%peer, %error, request_id, "a client connection ended");
}

/// A head as far as it can be made out. Nothing is decided by it but words.
struct Fragment {
    method: String,
    host: Option<String>,
    /// Without its query.
    path: Option<String>,
    /// What follows the target.
    version: String,
    is_tls: bool,
    headers: HeaderMap,
}

impl Fragment {
    fn read(head: &[u8]) -> Self {
        let is_tls = head.starts_with(&TLS);
        let text = if is_tls { "".into() } else { String::from_utf8_lossy(head) };
        let mut lines = text.trim_start_matches(['\r', '\n']).split('\n').map(|line| line.trim_end_matches('\r'));
        let line = lines.next().unwrap_or_default();
        let (method, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (target, version) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.trim().parse::<HeaderValue>()) {
                headers.append(name, value);
            }
        }
        Self {
            method: method.to_owned(),
            host: headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned),
            path: target.split('?').next().filter(|path| !path.is_empty()).map(str::to_owned),
            version: version.to_owned(),
            is_tls,
            headers,
        }
    }

    fn page(&self, error: &hyper::Error, shared: &Shared) -> Page {
        if error.is_parse_too_large() {
            Page::headers_too_large(shared.config.header_size_limit, shared.config.header_count_limit)
        } else if self.is_tls {
            Page::bad_request("it comes encrypted, and plain HTTP is spoken here")
        } else if self.version.starts_with("HTTP/") && !self.version.starts_with("HTTP/1.") {
            Page::other_version()
        } else if self.version.contains(' ') {
            Page::bad_request("the request line has a space too many; in an address it is written as %20")
        } else {
            Page::bad_request(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_made_out_of_a_head_is() {
        let head = Fragment::read(
            b"\r\nGET /a b?token=secret HTTP/1.1\r\nHost: shop.example\r\nBad Name: x\r\nAccept: application/json\r\nX-Requ",
        );
        assert_eq!((head.method.as_str(), head.path.as_deref(), head.host.as_deref()), ("GET", Some("/a"), Some("shop.example")));
        assert!(head.version.contains(' ') && Form::wanted_by(&head.headers) == Form::Json);
        let head = Fragment::read(b"GET /reset?token=secret HTTP/1.1");
        assert_eq!((head.path.as_deref(), head.host, head.version.as_str()), (Some("/reset"), None, "HTTP/1.1"));
        for nothing in [&b""[..], b"\r\n", b"\x16\x03\x01\x02\x00 /secret "] {
            let head = Fragment::read(nothing);
            assert_eq!((head.method.as_str(), head.path), ("", None));
        }
    }
}
