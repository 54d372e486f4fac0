//! Server-sent events. `id:` is a cursor that the client sends back as `Last-Event-ID`; a comment every 15 s keeps proxies from hanging up.

use std::{convert::Infallible, str::FromStr, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt};
use ocore_control::{
    Error, Result,
    authorization::ViewOrganization,
    deployments::{Progress, ProgressEvent},
    events::{self, EventCursor, OrganizationEvent},
};
use serde_json::{Value, json};

use crate::{AppState, Problem, authorized::Authorized};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The last event that a client saw, if it says one.
pub(crate) fn last_event_id<C: FromStr>(headers: &HeaderMap) -> Result<Option<C>, Problem> {
    let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else { return Ok(None) };
    let cursor = value.to_str().ok().and_then(|text| text.parse().ok());
    cursor.map(Some).ok_or_else(|| Error::invalid("Last-Event-ID", "it is not the id of an event of this stream").into())
}

/// An answer that goes on. An error ends it; the client comes back with the last id and misses nothing.
pub(crate) fn stream(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let events = events.map(Ok::<_, Infallible>);
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Nginx holds answers back otherwise.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    response
}

/// Events until the first error, which is logged.
fn until_error<T: Send + 'static>(items: impl Stream<Item = Result<T>> + Send + 'static) -> impl Stream<Item = T> + Send + 'static {
    items
        .inspect(|item| {
            if let Err(error) = item {
                tracing::warn!(%error, "a stream of events ends early");
            }
        })
        .take_while(|item| futures::future::ready(item.is_ok()))
        .filter_map(|item| futures::future::ready(item.ok()))
}

/// What has no value is left out, as everywhere.
fn event(id: &impl ToString, kind: &str, mut data: Value) -> Event {
    if let Some(members) = data.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    Event::default().id(id.to_string()).event(kind).data(data.to_string())
}

pub(crate) fn of_deployment(progress: impl Stream<Item = Result<ProgressEvent>> + Send + 'static) -> Response {
    stream(until_error(progress).map(|ProgressEvent { cursor, progress }| match progress {
        Progress::Status { status, message, excerpt } => {
            event(&cursor, "status", json!({ "status": status, "message": message, "excerpt": excerpt }))
        }
        Progress::Step { name, status, summary, duration_ms } => {
            event(&cursor, "step", json!({ "name": name, "status": status, "summary": summary, "durationMs": duration_ms }))
        }
        Progress::Line { step, text } => event(&cursor, "line", json!({ "step": step, "text": text })),
    }))
}

/// Follow an organization
///
/// Server-sent events about everything of the organization from now on, or after `Last-Event-ID`: `deployment.status`, `deployment.step`,
/// `instance.status`, `environment.status`, each `{projectId, environmentId, instanceId, deploymentId, createdAt, payload}`. None is lost and
/// none comes twice. The stream does not end.
#[utoipa::path(get, path = "/events", tag = "Events",
    params(("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that was seen")),
    responses((status = 200, description = "What happens", content_type = "text/event-stream", body = String)))]
pub(crate) async fn of_organization(
    Authorized(grant): Authorized<ViewOrganization>,
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after: Option<EventCursor> = last_event_id(&headers)?;
    let (begin, events) = events::follow(&state.control, &grant, after).await?;
    // Without data it is no event for the client, but the id that it comes back with.
    let begin = futures::stream::once(futures::future::ready(Event::default().id(begin.to_string())));
    Ok(stream(begin.chain(until_error(events).map(|OrganizationEvent { cursor, kind, body }| event(&cursor, &kind, body)))))
}
