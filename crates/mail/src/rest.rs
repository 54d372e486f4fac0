//! Mailpit's REST API (https://mailpit.axllent.org/docs/api-v1/), so that its clients work here unchanged, and the page. What Mailpit does not have:
//! `GET api/v1/wait`, which answers when a message fits. Whoever reaches this socket may see everything; who may reach it is the API's business.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{FromRequestParts, Path, Query as UrlQuery, WebSocketUpgrade},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use ocore_model::ids::InstanceId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use crate::{
    compose::{Draft, compose},
    error::MailError,
    events::{self, Event},
    html,
    index::Mark,
    mailbox::{Mailbox, take_apart},
    mailboxes::Mailboxes,
    message::{self, Body, Detail, Summary},
    page,
    search::Query,
};

const PAGE: usize = 50;
/// The longest that a wait lasts.
const WAIT: Duration = Duration::from_mins(10);
const JSON_LIMIT: usize = 80 << 20;

pub(crate) fn router() -> Router<Arc<Mailboxes>> {
    Router::new()
        .route("/box/{mailbox}", get(page::show))
        .route("/box/{mailbox}/", get(page::show))
        .route("/box/{mailbox}/view/{view}", get(view))
        .route("/box/{mailbox}/api/events", get(follow))
        .route("/box/{mailbox}/api/v1/messages", get(list).put(set_read).delete(delete))
        .route("/box/{mailbox}/api/v1/search", get(search).delete(delete_found))
        .route("/box/{mailbox}/api/v1/wait", get(wait))
        .route("/box/{mailbox}/api/v1/send", post(send))
        .route("/box/{mailbox}/api/v1/message/{id}", get(show))
        .route("/box/{mailbox}/api/v1/message/{id}/headers", get(headers))
        .route("/box/{mailbox}/api/v1/message/{id}/raw", get(raw))
        .route("/box/{mailbox}/api/v1/message/{id}/part/{part}", get(part))
        .route("/box/{mailbox}/api/v1/message/{id}/part/{part}/thumb", get(no_thumbnail))
        .route("/box/{mailbox}/api/v1/message/{id}/html-check", get(html_check))
        .route("/box/{mailbox}/api/v1/message/{id}/link-check", get(link_check))
        .route("/box/{mailbox}/api/v1/message/{id}/sa-check", get(no_spam_check))
        .route("/box/{mailbox}/api/v1/tags", get(tags).put(set_tags))
        .route("/box/{mailbox}/api/v1/tags/{tag}", put(rename_tag).delete(delete_tag))
        .route("/box/{mailbox}/api/v1/info", get(info))
        .route("/box/{mailbox}/api/v1/webui", get(webui))
        .route("/box/{mailbox}/api/v1/chaos", get(no_chaos).put(no_chaos))
        .layer(axum::extract::DefaultBodyLimit::max(JSON_LIMIT))
}

/// A refusal as Mailpit words it.
pub(crate) struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "Error": self.1 }))).into_response()
    }
}

impl From<MailError> for Refusal {
    fn from(error: MailError) -> Self {
        let status = match error {
            MailError::Full => StatusCode::INSUFFICIENT_STORAGE,
            MailError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

fn not_found() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "there is no such message".to_owned())
}

fn unfit(error: impl std::fmt::Display) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, error.to_string())
}

type Answer<T = Response> = Result<T, Refusal>;

/// The mailbox that the path names, ready for use.
pub(crate) struct Used(pub(crate) Arc<Mailbox>);

impl FromRequestParts<Arc<Mailboxes>> for Used {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, mailboxes: &Arc<Mailboxes>) -> Answer<Self> {
        let absent = || Refusal(StatusCode::NOT_FOUND, "there is no such mailbox".to_owned());
        let Path(named) = Path::<BTreeMap<String, String>>::from_request_parts(parts, mailboxes).await.map_err(unfit)?;
        let instance: InstanceId = named.get("mailbox").and_then(|id| id.parse().ok()).ok_or_else(absent)?;
        let slot = mailboxes.get(instance).ok_or_else(absent)?;
        Ok(Self(slot.mailbox(&mailboxes.config).await?))
    }
}

/// The message that the path names; `latest` is the newest.
struct Named {
    mailbox: Arc<Mailbox>,
    id: Uuid,
}

impl FromRequestParts<Arc<Mailboxes>> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, mailboxes: &Arc<Mailboxes>) -> Answer<Self> {
        let Used(mailbox) = Used::from_request_parts(parts, mailboxes).await?;
        let Path(named) = Path::<BTreeMap<String, String>>::from_request_parts(parts, mailboxes).await.map_err(unfit)?;
        let id = named.get("id").map(String::as_str).unwrap_or_default();
        let id = find(&mailbox, id, parts.uri.query())?;
        Ok(Self { mailbox, id })
    }
}

/// `latest` may be narrowed by a query.
fn find(mailbox: &Mailbox, id: &str, query: Option<&str>) -> Answer<Uuid> {
    if id != "latest" {
        return id.parse().map_err(|_| not_found());
    }
    let pairs: BTreeMap<_, _> = query.into_iter().flat_map(|query| url::form_urlencoded::parse(query.as_bytes())).collect();
    let of = |name: &str| pairs.get(name).map(AsRef::as_ref).unwrap_or_default();
    let query = Query::parse(of("query"), of("tz")).map_err(unfit)?;
    let index = mailbox.index();
    index.newest_first().find(|(_, entry)| query.fits(entry)).map(|(id, _)| id).ok_or_else(not_found)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listing {
    query: String,
    /// Of times in the query that name no zone.
    tz: String,
    start: usize,
    limit: Option<usize>,
    timeout: Option<f64>,
    after: Option<String>,
    remote: Option<String>,
}

/// The answer to a list and to a search.
#[derive(Serialize)]
struct Listed<'a> {
    total: usize,
    unread: usize,
    count: usize,
    messages_count: usize,
    messages_unread: usize,
    start: usize,
    tags: Vec<String>,
    messages: Vec<&'a Summary>,
}

/// Written while the index is held: a copy of 10,000 messages would cost more than their text does.
fn listing(mailbox: &Mailbox, listing: &Listing) -> Answer {
    let query = Query::parse(&listing.query, &listing.tz).map_err(unfit)?;
    let limit = listing.limit.filter(|limit| *limit > 0).unwrap_or(PAGE).min(mailbox.limits().messages.max(PAGE));
    let index = mailbox.index();
    let (mut fitting, mut unread, mut messages): (usize, usize, Vec<&Summary>) = (0, 0, Vec::new());
    for (_, entry) in index.newest_first() {
        if !query.fits(entry) {
            continue;
        }
        if fitting >= listing.start && messages.len() < limit {
            messages.push(&entry.kept.summary);
        }
        fitting += 1;
        unread += usize::from(!entry.kept.summary.read);
    }
    let listed = Listed {
        total: index.len(),
        unread: index.unread(),
        count: messages.len(),
        messages_count: fitting,
        messages_unread: unread,
        start: listing.start,
        tags: index.tags().into_keys().collect(),
        messages,
    };
    Ok(Json(listed).into_response())
}

async fn list(Used(mailbox): Used, UrlQuery(mut query): UrlQuery<Listing>) -> Answer {
    query.query.clear();
    listing(&mailbox, &query)
}

async fn search(Used(mailbox): Used, UrlQuery(query): UrlQuery<Listing>) -> Answer {
    if query.query.trim().is_empty() {
        return Err(unfit("Error: no search query"));
    }
    listing(&mailbox, &query)
}

/// Answers with the newest message that fits as soon as there is one: one that is there already, unless `after` names a message that it must be
/// newer than. 408 when there was none for `timeout` seconds.
async fn wait(Used(mailbox): Used, UrlQuery(listing): UrlQuery<Listing>) -> Answer {
    let query = Query::parse(&listing.query, &listing.tz).map_err(unfit)?;
    let after: Option<Uuid> = listing.after.as_deref().filter(|id| !id.is_empty()).map(str::parse).transpose().map_err(unfit)?;
    let seconds = listing.timeout.unwrap_or(30.0);
    let patience = Duration::try_from_secs_f64(seconds).map_err(unfit)?.min(WAIT);
    // Before the first look, so that nothing comes between.
    let mut events = mailbox.events();
    let look = || {
        let index = mailbox.index();
        let newer = index.newest_first().take_while(|(id, _)| after.is_none_or(|after| *id > after));
        newer.into_iter().find(|(_, entry)| query.fits(entry)).map(|(_, entry)| entry.kept.summary.clone())
    };
    let found = async {
        loop {
            if let Some(summary) = look() {
                return Some(summary);
            }
            loop {
                match events.recv().await {
                    Ok(Event::New(_)) | Err(RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        }
    };
    match tokio::time::timeout(patience, found).await {
        Ok(Some(summary)) => Ok(Json(summary).into_response()),
        Ok(None) => Err(MailError::Stopping.into()),
        Err(_) => Err(Refusal(StatusCode::REQUEST_TIMEOUT, format!("no message like that came within {seconds} seconds"))),
    }
}

/// The body of `PUT /messages`, `DELETE /messages` and `PUT /tags`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Change {
    #[serde(rename = "IDs")]
    ids: Vec<String>,
    read: bool,
    search: String,
    tags: Vec<String>,
    name: String,
}

impl Change {
    fn parse(body: &Bytes) -> Answer<Self> {
        if body.is_empty() { Ok(Self::default()) } else { serde_json::from_slice(body).map_err(unfit) }
    }

    /// The messages that it names; all, or those that fit a search, when it names none.
    fn ids(&self, mailbox: &Mailbox, zone: &Zone) -> Answer<Vec<Uuid>> {
        if !self.ids.is_empty() {
            let index = mailbox.index();
            return Ok(self.ids.iter().filter_map(|id| id.parse().ok()).filter(|id| index.get(*id).is_some()).collect());
        }
        fitting(mailbox, &self.search, &zone.tz)
    }
}

/// Of times in the body's search that name no zone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Zone {
    tz: String,
}

fn fitting(mailbox: &Mailbox, query: &str, zone: &str) -> Answer<Vec<Uuid>> {
    let query = Query::parse(query, zone).map_err(unfit)?;
    let index = mailbox.index();
    Ok(index.newest_first().filter(|(_, entry)| query.fits(entry)).map(|(id, _)| id).collect())
}

async fn set_read(Used(mailbox): Used, UrlQuery(zone): UrlQuery<Zone>, body: Bytes) -> Answer<&'static str> {
    let change = Change::parse(&body)?;
    mailbox.mark(Mark::Read { ids: change.ids(&mailbox, &zone)?, read: change.read }).await?;
    Ok("ok")
}

async fn delete(Used(mailbox): Used, UrlQuery(zone): UrlQuery<Zone>, body: Bytes) -> Answer<&'static str> {
    let change = Change::parse(&body)?;
    mailbox.mark(Mark::Removed { ids: change.ids(&mailbox, &zone)? }).await?;
    Ok("ok")
}

async fn delete_found(Used(mailbox): Used, UrlQuery(query): UrlQuery<Listing>) -> Answer<&'static str> {
    if query.query.trim().is_empty() {
        return Err(unfit("Error: no search query"));
    }
    mailbox.mark(Mark::Removed { ids: fitting(&mailbox, &query.query, &query.tz)? }).await?;
    Ok("ok")
}

async fn tags(Used(mailbox): Used) -> Json<Vec<String>> {
    Json(mailbox.index().tags().into_keys().collect())
}

fn clean_tags(tags: &[String]) -> Answer<Vec<String>> {
    let mut clean: Vec<String> = tags.iter().map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect();
    clean.sort();
    clean.dedup();
    let fits = |tag: &String| tag.chars().count() <= message::TAG_LENGTH && tag.chars().all(message::is_tag);
    match clean.iter().find(|tag| !fits(tag)) {
        Some(tag) => Err(unfit(format!("invalid tag: {tag}: use letters, digits, spaces and -_.@"))),
        None if clean.len() > 50 => Err(unfit("too many tags")),
        None => Ok(clean),
    }
}

async fn set_tags(Used(mailbox): Used, body: Bytes) -> Answer<&'static str> {
    let change = Change::parse(&body)?;
    let tags = clean_tags(&change.tags)?;
    if change.ids.is_empty() {
        return Err(unfit("give IDs"));
    }
    mailbox.mark(Mark::Tags { ids: change.ids(&mailbox, &Zone::default())?, tags }).await?;
    Ok("ok")
}

/// Replaces a tag wherever it is, or takes it away.
async fn replace_tag(mailbox: &Mailbox, tag: &str, by: Option<String>) -> Answer<&'static str> {
    let changes: Vec<(Uuid, Vec<String>)> = {
        let index = mailbox.index();
        let tagged = index.newest_first().filter(|(_, entry)| entry.kept.summary.tags.iter().any(|other| other == tag));
        let replaced = |tags: &[String]| tags.iter().filter(|other| *other != tag).cloned().chain(by.clone()).collect();
        tagged.map(|(id, entry)| (id, replaced(&entry.kept.summary.tags))).collect()
    };
    for (id, tags) in changes {
        mailbox.mark(Mark::Tags { ids: vec![id], tags: clean_tags(&tags)? }).await?;
    }
    Ok("ok")
}

async fn rename_tag(Used(mailbox): Used, Path((_, tag)): Path<(String, String)>, body: Bytes) -> Answer<&'static str> {
    let change = Change::parse(&body)?;
    if change.name.trim().is_empty() {
        return Err(unfit("give a Name"));
    }
    replace_tag(&mailbox, &tag, Some(change.name)).await
}

async fn delete_tag(Used(mailbox): Used, Path((_, tag)): Path<(String, String)>) -> Answer<&'static str> {
    replace_tag(&mailbox, &tag, None).await
}

async fn send(Used(mailbox): Used, body: Bytes) -> Answer {
    let draft: Draft = serde_json::from_slice(&body).map_err(unfit)?;
    let tags = clean_tags(&draft.tags)?;
    let (envelope, raw) = compose(&draft).map_err(unfit)?;
    if raw.len() > mailbox.limits().message_bytes {
        return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, "the message is too large".to_owned()));
    }
    let id = mailbox.append(envelope, raw.into()).await?;
    if !tags.is_empty() {
        // Beside those that its headers and addresses bring.
        let brought = mailbox.index().get(id).map(|entry| entry.kept.summary.tags.clone()).unwrap_or_default();
        mailbox.mark(Mark::Tags { ids: vec![id], tags: clean_tags(&[tags, brought].concat())? }).await?;
    }
    Ok(Json(json!({ "ID": id.simple().to_string() })).into_response())
}

/// The message in full. Looking at it marks it as read.
async fn show(named: Named) -> Answer {
    let (kept, raw) = named.mailbox.read(named.id).await?.ok_or_else(not_found)?;
    if !kept.summary.read {
        named.mailbox.mark(Mark::Read { ids: vec![named.id], read: true }).await?;
    }
    let detail = take_apart(raw.len(), move || Detail::new(&kept, &raw)).await?;
    Ok(Json(detail).into_response())
}

async fn read(named: &Named) -> Answer<Bytes> {
    Ok(named.mailbox.read(named.id).await?.ok_or_else(not_found)?.1)
}

async fn headers(named: Named) -> Answer {
    let raw = read(&named).await?;
    let headers = take_apart(raw.len(), move || message::headers(&raw)).await?;
    let headers: serde_json::Map<String, Value> = headers.into_iter().map(|(name, values)| (name, json!(values))).collect();
    Ok(Json(headers).into_response())
}

/// What a stranger wrote is text or a file to a browser, never a page of ours.
fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("default-src 'none'; sandbox"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    response
}

async fn raw(named: Named, headers: HeaderMap) -> Answer {
    let raw = read(&named).await?;
    let mut response = ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], raw).into_response();
    // As a file, when a person asks for one.
    if headers.get("sec-fetch-dest").is_some_and(|to| to == "document") {
        let name = format!("attachment; filename=\"{}.eml\"", named.id.simple());
        response.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_str(&name).map_err(unfit)?);
    }
    Ok(guarded(response))
}

async fn part(named: Named, Path((_, _, part)): Path<(String, String, String)>) -> Answer {
    let raw = read(&named).await?;
    let found = take_apart(raw.len(), move || message::part(&raw, &part)).await?;
    let (part, content) = found.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "the message has no such part".to_owned()))?;
    let active = ["html", "svg", "xml", "script"].iter().any(|sign| part.content_type.contains(sign));
    let kind = if active { "application/octet-stream" } else { part.content_type.as_str() };
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).map_err(unfit)?);
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_str(&disposition(&part.file_name)).map_err(unfit)?);
    Ok(guarded(response))
}

/// RFC 6266: a plain name for old programs, and the name as it is, percent-encoded.
fn disposition(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || " ._-()".contains(c) { c } else { '_' }).collect();
    let encoded: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20");
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

async fn no_thumbnail(_: Named) -> Refusal {
    Refusal(StatusCode::NOT_IMPLEMENTED, "oCore's mail catcher makes no thumbnails; get the part itself".to_owned())
}

async fn no_spam_check(_: Named) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, "SpamAssassin is not enabled".to_owned())
}

async fn no_chaos(_: Used) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, "Chaos is not enabled".to_owned())
}

async fn html_check(named: Named) -> Answer {
    let raw = read(&named).await?;
    let checked = take_apart(raw.len(), move || {
        let body = Body::new(&raw);
        body.html.is_some().then(|| html::html_check(&body))
    });
    let checked = checked.await?;
    checked.map(|checked| Json(checked).into_response()).ok_or_else(|| unfit("message does not contain HTML"))
}

async fn link_check(named: Named) -> Answer {
    let raw = read(&named).await?;
    let checked = take_apart(raw.len(), move || html::link_check(&Body::new(&raw))).await?;
    Ok(Json(checked).into_response())
}

/// `view/<id>.html` and `view/<id>.txt`: the message as a page of its own, in a sandbox.
async fn view(Used(mailbox): Used, Path((_, view)): Path<(String, String)>, UrlQuery(query): UrlQuery<Listing>) -> Answer {
    let (id, ending) = view.rsplit_once('.').ok_or_else(not_found)?;
    let id = find(&mailbox, id, None)?;
    let (_, raw) = mailbox.read(id).await?.ok_or_else(not_found)?;
    let remote = query.remote.is_some_and(|value| value == "1");
    let as_html = match ending {
        "html" => true,
        "txt" => false,
        _ => return Err(not_found()),
    };
    let made = take_apart(raw.len(), move || {
        let body = Body::new(&raw);
        let held_back = !remote && body.html.as_deref().is_some_and(html::has_remote);
        if as_html { (html::page(&body, remote), held_back) } else { (body.text, false) }
    });
    let (content, held_back) = made.await?;
    let mut response = content.into_response();
    let headers = response.headers_mut();
    if as_html {
        let policy = if remote { html::POLICY_WITH_REMOTE } else { html::POLICY };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    }
    if held_back {
        headers.insert(HeaderName::from_static("x-remote-content"), HeaderValue::from_static("blocked"));
    }
    Ok(guarded(response))
}

async fn follow(Used(mailbox): Used, upgrade: WebSocketUpgrade) -> Response {
    let events = mailbox.events();
    // The mailbox must not rest while somebody listens.
    upgrade.on_upgrade(async move |socket| {
        events::tell(socket, events).await;
        drop(mailbox);
    })
}

async fn info(Used(mailbox): Used) -> Json<Value> {
    let counts = mailbox.counts();
    let index = mailbox.index();
    let count = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
    Json(json!({
        "Version": format!("ocore {}", env!("CARGO_PKG_VERSION")), "LatestVersion": "", "Database": "", "DatabaseSize": index.bytes(),
        "Messages": index.len(), "Unread": index.unread(), "Tags": index.tags(),
        "RuntimeStats": {
            "Uptime": mailbox.uptime(), "Memory": resident_bytes(), "MessagesDeleted": count(&counts.deleted),
            "SMTPAccepted": count(&counts.accepted), "SMTPAcceptedSize": count(&counts.accepted_bytes), "SMTPRejected": count(&counts.rejected),
            "SMTPIgnored": 0,
        },
    }))
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096).unsigned_abs()
}

/// Releasing messages is the API's business: it puts its own `MessageRelay` in the place of this one.
async fn webui(Used(mailbox): Used) -> Json<Value> {
    drop(mailbox);
    Json(json!({
        "Label": "oCore", "SpamAssassin": false, "ChaosEnabled": false, "DuplicatesIgnored": false, "HideDeleteAllButton": false,
        "MessageRelay": {
            "Enabled": false, "SMTPServer": "", "ReturnPath": "", "AllowedRecipients": "", "BlockedRecipients": "", "OverrideFrom": "",
            "PreserveMessageIDs": false,
        },
    }))
}
