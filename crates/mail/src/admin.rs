//! How the host says which mailboxes there are. Only who may open the socket file reaches it.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, put},
};
use ocore_model::{
    ids::InstanceId,
    mail::{MailboxSpec, MailboxStatus},
};

use crate::{error::MailError, mailboxes::Mailboxes};

pub(crate) fn router() -> Router<Arc<Mailboxes>> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/mailboxes", get(list))
        .route("/mailboxes/{instance}", put(put_mailbox).delete(remove_mailbox))
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn list(State(mailboxes): State<Arc<Mailboxes>>) -> Json<Vec<MailboxStatus>> {
    let status =
        |slot: Arc<crate::mailboxes::Slot>| MailboxStatus { instance: slot.instance, spec: slot.spec, problem: slot.listening().err() };
    Json(mailboxes.all().into_iter().map(status).collect())
}

fn failed(error: MailError) -> Response {
    tracing::error!(%error, "a mailbox could not be changed");
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
}

async fn put_mailbox(State(mailboxes): State<Arc<Mailboxes>>, Path(instance): Path<InstanceId>, Json(spec): Json<MailboxSpec>) -> Response {
    match mailboxes.put(instance, spec).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(error),
    }
}

async fn remove_mailbox(State(mailboxes): State<Arc<Mailboxes>>, Path(instance): Path<InstanceId>) -> Response {
    match mailboxes.remove(instance).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(error),
    }
}
