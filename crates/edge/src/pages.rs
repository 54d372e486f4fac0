//! What the edge itself answers when there is no Odoo to do it: a page for people, problem details or a line of text for programs.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use ocore_model::route::{Route, RouteState};
use serde::Serialize;

use crate::wakes::TooMany;

const STYLE: &str = include_str!("pages/page.css");
/// Seconds until a page that waits for something looks again.
const RELOAD_AFTER: u32 = 5;

/// One answer of the edge's own, before anybody knows in which form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    /// Stable, for programs.
    code: &'static str,
    tone: Tone,
    /// Two or three words.
    state: &'static str,
    title: String,
    detail: String,
    hint: &'static str,
    /// Worth another try by itself, after so many seconds.
    reload: Option<u32>,
    /// The connection is of no use after this.
    close: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Working,
    Resting,
    Broken,
    Plain,
}

impl Page {
    fn new(status: StatusCode, code: &'static str, tone: Tone, state: &'static str, title: impl Into<String>) -> Self {
        Self { status, code, tone, state, title: title.into(), detail: String::new(), hint: "", reload: None, close: false }
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    fn reloading(mut self) -> Self {
        self.reload = Some(RELOAD_AFTER);
        self
    }

    fn reloading_after(mut self, wait: Duration) -> Self {
        self.reload = Some((wait.as_secs_f64().ceil() as u32).max(RELOAD_AFTER));
        self
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(crate) fn unknown_host(host: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_host", Tone::Plain, "Unknown address", "There is nothing at this address")
            .detail(format!("No environment answers at {host}."))
            .hint("Look for a typing mistake. If the environment is new, its address appears with its first deployment.")
    }

    pub(crate) fn database_manager_closed() -> Self {
        Self::new(StatusCode::NOT_FOUND, "database_manager_closed", Tone::Plain, "Not found", "This page is closed")
            .detail("Odoo's database manager cannot be reached from here.")
            .hint("Databases are created, copied and removed with oCore.")
    }

    /// The page for a route that leads to no Odoo now; `None` for one that serves. One that holds has its page, too.
    pub(crate) fn for_route(route: &Route) -> Option<Self> {
        let title = &route.title;
        Some(match &route.state {
            RouteState::Serving { .. } => return None,
            RouteState::Building { message } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "building", Tone::Working, "Building", format!("{title} is being built"))
                    .detail(message)
                    .hint("This page reloads by itself and shows Odoo as soon as it is there.")
                    .reloading()
            }
            // Of one that holds: for who finds no place, or has waited long enough.
            RouteState::Updating { message } | RouteState::Holding { message, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "updating", Tone::Working, "Updating", format!("{title} is being updated"))
                    .detail(message)
                    .hint("Your data is safe. This page reloads by itself and shows Odoo as soon as it is back.")
                    .reloading()
            }
            RouteState::Asleep { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "waking", Tone::Working, "Waking up", format!("{title} is waking up"))
                    .detail("Nobody used it for a while, so it slept. It is being started.")
                    .hint("This page reloads by itself and shows Odoo as soon as it is there.")
                    .reloading()
            }
            RouteState::Stopped => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", Tone::Resting, "Stopped", format!("{title} is stopped"))
                    .detail("Somebody stopped it. Its data is kept.")
                    .hint("A member of the project can start it again in oCore.")
            }
            // Why is for members: whoever comes along reads this.
            RouteState::Failed { message: _ } => {
                Self::new(StatusCode::BAD_GATEWAY, "failed", Tone::Broken, "Not running", format!("{title} could not be started"))
                    .hint("A member of the project finds the reason with the last deployment.")
            }
        })
    }

    pub(crate) fn unreachable(route: &Route) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "unreachable", Tone::Broken, "No answer", format!("{} does not answer", route.title))
            .detail("Odoo could not be reached, or broke off before it answered.")
            .hint("It may be starting again: this page looks for it by itself.")
            .reloading()
    }

    /// It serves again, and so many wait that this one's turn did not come in time.
    pub(crate) fn crowded(route: &Route) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "updating", Tone::Working, "Updating", format!("{} is coming back", route.title))
            .detail("It has just been updated and answers the requests that came before this one.")
            .hint("Your data is safe. This page reloads by itself and shows Odoo as soon as it is back.")
            .reloading()
    }

    /// It sleeps, and may not be woken now.
    pub(crate) fn not_woken(route: &Route, too_many: TooMany) -> Self {
        let title = format!("{} is asleep", route.title);
        let (status, code, wait, detail) = match too_many {
            TooMany::OfClient(wait) => {
                let detail = "Your network address has just woken as many environments as it may in a minute.";
                (StatusCode::TOO_MANY_REQUESTS, "too_many_wakes", wait, detail)
            }
            TooMany::InAll(wait) => {
                let detail = "As many environments as may wake at once are being started on this server.";
                (StatusCode::SERVICE_UNAVAILABLE, "too_many_wakes", wait, detail)
            }
        };
        Self::new(status, code, Tone::Resting, "Asleep", title)
            .detail(detail)
            .hint("This page tries again by itself and shows Odoo as soon as it is there.")
            .reloading_after(wait)
    }

    /// The client closed its side while its request waited; nobody reads this, but the log says it.
    pub(crate) fn abandoned() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "abandoned", Tone::Plain, "Gone", "The client went away")
            .detail("It closed the connection before its request was passed on.")
            .closing()
    }

    pub(crate) fn timed_out(route: &Route) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", Tone::Broken, "No answer", format!("{} took too long", route.title))
            .detail("Odoo did not answer this request in time.")
            .hint("What it was asked to do may still be going on; look before you ask again.")
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", Tone::Plain, "Bad request", "This request cannot be understood")
            .detail(sentence(&detail.into()))
            .closing()
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", Tone::Plain, "Not allowed", "This method is not served here")
            .detail("CONNECT and TRACE are not passed on.")
            .closing()
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", Tone::Plain, "Too large", "This upload is too large")
            .detail(format!("A request may carry {} at most.", size(limit)))
            .closing()
    }

    pub(crate) fn headers_too_large(size_limit: usize, count_limit: usize) -> Self {
        let title = "This request's headers are too large";
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", Tone::Plain, "Too large", title)
            .detail(format!("Address and headers may have {} together at most, and be {count_limit} headers.", size(size_limit as u64)))
            .hint("In a browser, removing this site's cookies helps.")
            .closing()
    }

    pub(crate) fn other_version() -> Self {
        let title = "This version of HTTP is not spoken here";
        Self::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "version_not_supported", Tone::Plain, "Not spoken", title)
            .detail("Version 1.1 is. A proxy in front of this server can speak the newer ones.")
            .closing()
    }

    /// Before any request of the connection could be read.
    pub(crate) fn too_many_connections(limit: usize) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_connections", Tone::Plain, "Too many", "Too many connections")
            .detail(format!("Your network address has {limit} connections to this server, and may not have more at once."))
            .closing()
    }

    /// Of a request whose headers did not come to an end.
    pub(crate) fn headers_stalled() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "headers_stalled", Tone::Plain, "Timed out", "The request did not come to an end")
            .detail("Its headers did not arrive in time.")
            .closing()
    }

    pub(crate) fn stalled() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "stalled", Tone::Plain, "Timed out", "The upload stopped")
            .detail("The rest of the request did not arrive in time.")
            .closing()
    }

    pub(crate) fn respond(&self, form: Form, request_id: &str) -> Response<Bytes> {
        let (content_type, body) = match form {
            Form::Html => ("text/html; charset=utf-8", self.html(request_id)),
            Form::Json => ("application/problem+json", self.json(request_id)),
            Form::Text => ("text/plain; charset=utf-8", self.text(request_id)),
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert("x-robots-tag", HeaderValue::from_static("noindex"));
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
            ),
        );
        let comes_again = matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        if let Some(seconds) = self.reload.filter(|_| comes_again) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The whole answer as bytes, for a connection that nobody speaks HTTP on.
    pub(crate) fn bytes(&self, form: Form, request_id: &str, is_head: bool) -> Vec<u8> {
        let (head, body) = self.respond(form, request_id).into_parts();
        let reason = head.status.canonical_reason().unwrap_or_default();
        let mut bytes = format!("HTTP/1.1 {} {reason}\r\nx-request-id: {request_id}\r\n", head.status.as_u16()).into_bytes();
        for (name, value) in &head.headers {
            bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend(format!("content-length: {}\r\n\r\n", body.len()).into_bytes());
        if !is_head {
            bytes.extend(body);
        }
        bytes
    }

    fn html(&self, request_id: &str) -> String {
        let tone = match self.tone {
            Tone::Working => "working",
            Tone::Resting => "resting",
            Tone::Broken => "broken",
            Tone::Plain => "plain",
        };
        let title = escape(&self.title);
        let reload = self.reload.map(|seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">")).unwrap_or_default();
        let paragraph = |class: &str, text: &str| if text.is_empty() { String::new() } else { format!("<p{class}>{}</p>", escape(text)) };
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"robots\" content=\"noindex\">\n{reload}\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body class=\"{tone}\">\n<main>\n\
             <div class=\"state\" role=\"status\"><i aria-hidden=\"true\"></i>{state}</div>\n<h1>{title}</h1>\n{detail}\n{hint}\n</main>\n\
             <footer>oCore · {status} · request <code>{id}</code></footer>\n</body>\n</html>\n",
            state = self.state,
            detail = paragraph("", &self.detail),
            hint = paragraph(" class=\"hint\"", self.hint),
            status = self.status.as_u16(),
            id = escape(request_id),
        )
    }

    /// RFC 9457, with the members that oCore's own API has.
    fn json(&self, request_id: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Problem<'a> {
            r#type: &'a str,
            title: &'a str,
            status: u16,
            #[serde(skip_serializing_if = "str::is_empty")]
            detail: &'a str,
            code: &'a str,
            request_id: &'a str,
        }
        let problem = Problem {
            r#type: "about:blank",
            title: &self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            request_id,
        };
        // A struct of texts and a number always serializes.
        serde_json::to_string(&problem).unwrap_or_default()
    }

    fn text(&self, request_id: &str) -> String {
        let mut text = format!("{}\n", sentence(&self.title));
        // The hint of a page that reloads speaks of the page.
        let hint = self.reload.map_or_else(|| self.hint.to_owned(), |seconds| format!("Try again in {seconds} seconds."));
        for line in [self.detail.as_str(), &hint] {
            if !line.is_empty() {
                text.push_str(line);
                text.push('\n');
            }
        }
        text.push_str("request ");
        text.push_str(request_id);
        text.push('\n');
        text
    }
}

/// How a page is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Html,
    Json,
    Text,
}

impl Form {
    /// What the client understands best. Browsers name `text/html` when they open a page. A program that sends JSON reads JSON, whatever it forgot to say.
    pub(crate) fn wanted_by(headers: &HeaderMap) -> Self {
        let mentions = |name: header::HeaderName, word: &str| {
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(|value| value.to_ascii_lowercase().contains(word))
        };
        if mentions(header::ACCEPT, "text/html") {
            Self::Html
        } else if mentions(header::ACCEPT, "json") || mentions(header::CONTENT_TYPE, "json") {
            Self::Json
        } else {
            Self::Text
        }
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}

/// First letter large, a full stop at the end.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let mut sentence: String = characters.next().map(|first| first.to_uppercase().collect()).unwrap_or_default();
    sentence.push_str(characters.as_str());
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1024 * 1024 * 1024, "GiB"), (1024 * 1024, "MiB"), (1024, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use ocore_model::ids::InstanceId;

    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        headers
    }

    fn route(title: &str, state: RouteState) -> Route {
        Route { instance_id: InstanceId::new(), hosts: Vec::new(), title: title.to_owned(), state }
    }

    #[test]
    fn a_browser_gets_a_page_and_programs_get_what_they_read() {
        let page = Page::unknown_host("shop.example");
        let content_type = |accept: &str| {
            let response = page.respond(Form::wanted_by(&headers(accept)), "some-request");
            response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        assert_eq!(content_type("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), "text/html; charset=utf-8");
        assert_eq!(content_type("application/json"), "application/problem+json");
        assert_eq!(content_type("*/*"), "text/plain; charset=utf-8");
        let mut rpc = headers("*/*");
        rpc.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        assert_eq!(page.respond(Form::wanted_by(&rpc), "r").headers()[header::CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn what_is_shown_cannot_become_markup() {
        let state = RouteState::Building { message: "<script>alert(\"1\")</script>".to_owned() };
        let page = Page::for_route(&route("A & B's <shop>", state)).unwrap();
        let html = page.html("id");
        assert!(!html.contains("<script>") && !html.contains("<shop>"));
        assert!(html.contains("A &amp; B&#39;s &lt;shop&gt; is being built"));
    }

    #[test]
    fn problem_details_tell_a_program_what_is_wrong() {
        let state = RouteState::Updating { message: "Installing 2 modules".to_owned() };
        let page = Page::for_route(&route("Shop", state)).unwrap();
        let response = page.respond(Form::Json, "request-1");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "5");
        let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(
            problem,
            serde_json::json!({
                "type": "about:blank",
                "title": "Shop is being updated",
                "status": 503,
                "detail": "Installing 2 modules",
                "code": "updating",
                "requestId": "request-1",
            })
        );
    }

    #[test]
    fn a_limit_is_named_in_round_units() {
        assert_eq!(size(1024 * 1024 * 1024), "1 GiB");
        assert_eq!(size(1536 * 1024), "1536 KiB");
        assert_eq!(size(1000), "1000 bytes");
    }
}
