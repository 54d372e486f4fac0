//! Caught mail: a way through to the mail catcher's page, API, events and files, with the rights of the rest of the API; and what a person may do
//! with messages beyond looking at them.
//!
//! Nothing that proves who the caller is goes to the catcher, and nothing of a path but what was looked at here.

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper_util::rt::TokioIo;
use ocore_control::{
    Control, Error,
    authorization::{Grant, ManageEnvironments, Scope, ViewEnvironments},
    mail::{self, InboundMail},
};
use ocore_model::ids::InstanceId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::{Authorized, InOrganization, upgrade_from_our_own_page},
    extract::{FromPath, Input},
};

const TAG: &str = "Mail";
/// A caught message is no larger.
const MESSAGE_LIMIT: usize = 100 << 20;
/// A message of 50 MB in base64.
pub(crate) const INJECT_LIMIT: usize = 70 << 20;
const CONFIGURATION_LIMIT: usize = 1 << 20;
/// Messages that are listed at once for who may not read them, and how large the catcher's list of so many may be.
const ENVELOPES: usize = 200;
const LIST_LIMIT: usize = 8 << 20;
/// Headers that the catcher may see, besides those of a websocket.
const FORWARDED: &[&str] = &["accept", "content-type", "content-length", "sec-fetch-dest", "user-agent"];
const OF_A_WEBSOCKET: &[&str] =
    &["connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", "sec-websocket-extensions"];

/// Mail catcher web UI
///
/// The page of the environment's mail catcher. Below this path lies all that it has: `api/v1/…` as Mailpit's REST API, `api/events` as its
/// websocket, `view/{id}.html`, attachments. What is written in messages, and what changes something, needs manage:environments: without it there are the page
/// and the list (`api/v1/messages`) with senders, receivers, times and sizes. 409 `production_sends` in production. It works while the environment sleeps, and
/// wakes nothing.
#[utoipa::path(get, path = "/environments/{id}/mail", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "Proxied response")))]
pub(crate) async fn page(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    request: Request,
) -> Result<Response, Problem> {
    let mailbox = mail::mailbox(&state.control, &grant, id.into()).await?;
    forward(&state.control, mailbox, "", request).await
}

/// Everything below the page.
pub(crate) async fn below(
    InOrganization(scope): InOrganization,
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Problem> {
    let (id, tail) = place(request.uri().path())?;
    upgrade_from_our_own_page(request.headers(), &state)?;
    let grant: Grant<ViewEnvironments> = scope.grant()?;
    let tail = tail.to_owned();
    let shown = shown_to(&scope, &tail, &request)?;
    let mailbox = mail::mailbox(&state.control, &grant, id.into()).await?;
    match shown {
        Shown::Everything => forward(&state.control, mailbox, &tail, request).await,
        Shown::Envelopes => envelopes(&state.control, mailbox, request.uri().query().unwrap_or_default()).await,
    }
}

/// What of the catcher's answer its caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Everything,
    Envelopes,
}

/// Whoever reads a mailbox is whoever its Odoo lets in by a link: what is written in messages, in whatever way it is shown or found, is for those who
/// manage the environment. Others see the page itself and who wrote to whom when; every path that is not known to say no more than that is refused.
fn shown_to(scope: &Scope, tail: &str, request: &Request) -> Result<Shown, Problem> {
    if scope.allows::<ManageEnvironments>() {
        return Ok(Shown::Everything);
    }
    let looks = request.method() == Method::GET && !request.headers().contains_key(header::UPGRADE);
    match tail {
        "" if looks => Ok(Shown::Everything),
        "api/v1/messages" if looks => Ok(Shown::Envelopes),
        _ => Err(scope.grant::<ManageEnvironments>().err().map_or_else(no_such_path, Into::into)),
    }
}

/// A list of messages without what is written in them: no subject, preview, tags, names or ids of theirs.
async fn envelopes(control: &Control, mailbox: InstanceId, query: &str) -> Result<Response, Problem> {
    let number = |wanted: &str| {
        let found = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| value.parse::<usize>().ok())
    };
    let (start, limit) = (number("start").unwrap_or_default(), number("limit").unwrap_or(ENVELOPES).min(ENVELOPES));
    let request = Request::builder().uri(format!("/?start={start}&limit={limit}")).body(Body::empty()).map_err(away)?;
    let response = forward(control, mailbox, "api/v1/messages", request).await?;
    if response.status() != StatusCode::OK {
        return Ok(response);
    }
    let body = axum::body::to_bytes(response.into_body(), LIST_LIMIT).await.map_err(away)?;
    let mut list: Value = serde_json::from_slice(&body).map_err(away)?;
    list["tags"] = json!([]);
    if let Some(messages) = list["messages"].as_array_mut() {
        for message in messages {
            *message = envelope(message);
        }
    }
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(list)).into_response())
}

fn envelope(message: &Value) -> Value {
    let address = |address: &Value| json!({ "Name": "", "Address": address["Address"] });
    let addresses = |field: &str| -> Value { message[field].as_array().into_iter().flatten().map(address).collect() };
    let from = if message["From"].is_object() { address(&message["From"]) } else { Value::Null };
    json!({
        "ID": message["ID"], "Read": message["Read"], "Created": message["Created"], "Size": message["Size"],
        "Attachments": message["Attachments"], "From": from, "To": addresses("To"), "Cc": addresses("Cc"), "Bcc": addresses("Bcc"),
        "ReplyTo": [], "MessageID": "", "Subject": "", "Snippet": "", "Tags": [], "Username": "",
    })
}

fn no_such_path() -> Problem {
    Problem::http(StatusCode::NOT_FOUND, "no_such_path", "the mail catcher has nothing at this path")
}

/// The environment and the rest of a path, when the rest is one that leads nowhere but down.
fn place(path: &str) -> Result<(Uuid, &str), Problem> {
    let (_, rest) = path.split_once("/environments/").ok_or_else(no_such_path)?;
    let (id, rest) = rest.split_once('/').ok_or_else(no_such_path)?;
    let tail = rest.strip_prefix("mail/").ok_or_else(no_such_path)?;
    let id = id.parse().map_err(|_| no_such_path())?;
    if tail.is_empty() || tail.split('/').all(leads_down) { Ok((id, tail)) } else { Err(no_such_path()) }
}

/// A plain name, also when it is written in another way: not `..`, `%2e%2e`, `a%2fb`, `a\\b` or nothing.
fn leads_down(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            plain.push(*first);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let [high, low, after @ ..] = rest else { return false };
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return false };
        plain.push((high * 16 + low) as u8);
        rest = after;
    }
    !plain.is_empty()
        && plain != b"."
        && plain != b".."
        && !plain.iter().any(|byte| matches!(byte, b'/' | b'\\' | b'%') || byte.is_ascii_control())
}

fn away(error: impl std::fmt::Display) -> Problem {
    tracing::warn!(%error, "the mail catcher did not answer");
    Error::Unavailable { code: "mail_unavailable", message: "the mail catcher did not answer; try again in a moment".to_owned() }.into()
}

/// Passes a request on to a mailbox, and its answer back. A websocket becomes a tunnel.
async fn forward(control: &Control, mailbox: InstanceId, tail: &str, mut request: Request) -> Result<Response, Problem> {
    let stream = mail::connect(control).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(away)?;
    tokio::spawn(connection.with_upgrades());
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let websocket = request.headers().contains_key(header::UPGRADE);
    let mut onward = http::Request::builder().method(request.method().clone()).uri(format!("/box/{mailbox}/{tail}{query}"));
    if let Some(headers) = onward.headers_mut() {
        headers.insert(header::HOST, HeaderValue::from_static("mail"));
        let names = FORWARDED.iter().chain(if websocket { OF_A_WEBSOCKET } else { &[] });
        for name in names {
            for value in request.headers().get_all(*name) {
                headers.append(HeaderName::from_static(name), value.clone());
            }
        }
    }
    let client = websocket.then(|| hyper::upgrade::on(&mut request));
    let onward = onward.body(request.into_body()).map_err(away)?;
    let mut response = sender.send_request(onward).await.map_err(away)?;
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(client)) = (response.status(), client) {
        let catcher = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(client), Ok(catcher)) = tokio::join!(client, catcher) {
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(catcher)).await;
            }
        });
    }
    let (mut parts, body) = response.into_parts();
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "set-cookie"] {
            parts.headers.remove(name);
        }
    }
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// What Mailpit's clients ask to know what they may do. Whether, and to whom, messages can be released is not the catcher's to know: that part of its
/// answer is replaced.
pub(crate) async fn configuration(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    request: Request,
) -> Result<Response, Problem> {
    let mailbox = mail::mailbox(&state.control, &grant, id.into()).await?;
    let response = forward(&state.control, mailbox, "api/v1/webui", request).await?;
    if response.status() != StatusCode::OK {
        return Ok(response);
    }
    let body = axum::body::to_bytes(response.into_body(), CONFIGURATION_LIMIT).await.map_err(away)?;
    let mut configuration: Value = serde_json::from_slice(&body).map_err(away)?;
    let relay = mail::relay(&state.control, &grant, id.into()).await?;
    configuration["MessageRelay"] = json!({
        "Enabled": relay.server.is_some(), "SMTPServer": relay.server.unwrap_or_default(), "ReturnPath": relay.sender,
        "AllowedRecipients": relay.allowed, "BlockedRecipients": "", "OverrideFrom": "", "PreserveMessageIDs": true,
    });
    Ok(Json(configuration).into_response())
}

/// A caught message as it came.
async fn raw(control: &Control, mailbox: InstanceId, message: &str) -> Result<Bytes, Problem> {
    let request = Request::builder().uri("/").body(Body::empty()).map_err(away)?;
    let response = forward(control, mailbox, &format!("api/v1/message/{message}/raw"), request).await?;
    if response.status() != StatusCode::OK {
        return Err(Error::NotFound { what: "message" }.into());
    }
    axum::body::to_bytes(response.into_body(), MESSAGE_LIMIT).await.map_err(away)
}

/// To whom a message goes.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Release {
    /// Addresses on the environment's list. Mailpit writes it `To`.
    #[serde(alias = "To")]
    to: Vec<String>,
}

/// Release a caught message
///
/// Sends it, marked as a test, through the installation's server for released mail to addresses on the environment's list. 403
/// `address_not_allowed` for others; 409 `no_relay` when no server is set.
#[utoipa::path(post, path = "/environments/{id}/mail/api/v1/message/{messageId}/release", tag = TAG, request_body = Release,
    params(("id" = Uuid, Path, description = "The environment"), ("messageId" = String, Path, description = "The message, or `latest`")),
    responses((status = 200, description = "It was taken by the server for released mail", body = String, content_type = "text/plain")))]
pub(crate) async fn release(
    Authorized(grant): Authorized<ManageEnvironments>,
    Authorized(view): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath((id, message)): FromPath<(Uuid, String)>,
    Input(body): Input<Release>,
) -> Result<&'static str, Problem> {
    let mailbox = mail::mailbox(&state.control, &view, id.into()).await?;
    if !leads_down(&message) {
        return Err(Error::NotFound { what: "message" }.into());
    }
    let raw = raw(&state.control, mailbox, &message).await?;
    mail::release(&state.control, &grant, id.into(), &message, &raw, &body.to).await?;
    Ok("ok")
}

/// A mail that Odoo is given as if it had come: whole, or in parts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Inject {
    /// A whole message (RFC 5322), base64. The other fields do not count then.
    raw: Option<String>,
    #[serde(default)]
    from: String,
    /// An alias of Odoo, or the address that one of its mails asks to answer to. Several are separated by commas.
    #[serde(default)]
    to: String,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    text: String,
    html: Option<String>,
    /// The Message-ID that it answers.
    in_reply_to: Option<String>,
}

#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Injected {
    /// The record that took the mail, if Odoo says which.
    thread_id: Option<i64>,
}

/// Hand Odoo a mail
///
/// As if it had come: the way that Odoo's own mail gateway is fed. 409 when Odoo does not run or does not take it, with what Odoo said.
#[utoipa::path(post, path = "/environments/{id}/mail/inject", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = Inject, responses((status = 200, description = "Odoo has it", body = Injected)))]
pub(crate) async fn inject(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<Inject>,
) -> Result<Json<Injected>, Problem> {
    let raw = body.raw.map(|raw| STANDARD.decode(raw).map_err(|_| Error::invalid("raw", "is not base64"))).transpose()?;
    let mail = InboundMail {
        raw,
        from: body.from,
        to: body.to.split(',').map(str::trim).filter(|to| !to.is_empty()).map(str::to_owned).collect(),
        subject: body.subject,
        text: body.text,
        html: body.html,
        in_reply_to: body.in_reply_to,
    };
    let thread_id = mail::inject(&state.control, &grant, id.into(), mail).await?;
    Ok(Json(Injected { thread_id }))
}

/// To whom caught messages may be released.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MailSettings {
    release_addresses: Vec<String>,
}

/// Get mail settings
#[utoipa::path(get, path = "/environments/{id}/mail-settings", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    responses((status = 200, description = "As they are", body = MailSettings)))]
pub(crate) async fn settings(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
) -> Result<Json<MailSettings>, Problem> {
    Ok(Json(MailSettings { release_addresses: mail::release_list(&state.control, &grant, id.into()).await? }))
}

/// Update mail settings
#[utoipa::path(put, path = "/environments/{id}/mail-settings", tag = TAG, params(("id" = Uuid, Path, description = "The environment")),
    request_body = MailSettings, responses((status = 200, description = "As they are now", body = MailSettings)))]
pub(crate) async fn update_settings(
    Authorized(grant): Authorized<ManageEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    Input(body): Input<MailSettings>,
) -> Result<Json<MailSettings>, Problem> {
    let release_addresses = mail::set_release_list(&state.control, &grant, id.into(), body.release_addresses).await?;
    Ok(Json(MailSettings { release_addresses }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_lead_down_are_passed_on() {
        let id = Uuid::nil();
        for tail in ["", "api/v1/messages", "api/v1/message/0199/part/2", "view/latest.html", "api/v1/tags/a%20b"] {
            assert_eq!(place(&format!("/environments/{id}/mail/{tail}")).ok(), Some((id, tail)), "{tail}");
        }
        let tricks = [
            "../../mailboxes",
            "%2e%2e/mailboxes",
            "%2E%2e/%2e./x",
            "a/./b",
            "/etc",
            "api//v1",
            "a%2fb",
            "a%2Fb",
            "a\\b",
            "a%5cb",
            "http://evil/",
            "a%00",
            "%",
            "%2",
            "%zz",
            "%252e%252e/x",
            "a%0d%0ab",
            "view/..",
        ];
        for tail in tricks {
            assert!(place(&format!("/environments/{id}/mail/{tail}")).is_err(), "{tail}");
        }
        assert!(place("/environments/x/mail/").is_err());
    }
}
