//! What happens in a mailbox, as Mailpit's websocket tells it: JSON objects with `Type` and `Data`.

use axum::extract::ws::{Message, WebSocket};
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use uuid::Uuid;

use crate::message::Summary;

#[derive(Debug, Clone)]
pub(crate) enum Event {
    New(Box<Summary>),
    Update {
        id: Uuid,
        read: Option<bool>,
        tags: Option<Vec<String>>,
    },
    Delete {
        id: Uuid,
    },
    /// All messages are gone.
    Truncate,
    /// The oldest messages are gone.
    Prune,
    Stats {
        total: usize,
        unread: usize,
    },
}

impl Event {
    fn to_json(&self) -> Value {
        match self {
            Self::New(summary) => json!({ "Type": "new", "Data": summary }),
            Self::Update { id, read, tags } => {
                let mut data = json!({ "ID": id.simple().to_string() });
                if let Some(read) = read {
                    data["Read"] = json!(read);
                }
                if let Some(tags) = tags {
                    data["Tags"] = json!(tags);
                }
                json!({ "Type": "update", "Data": data })
            }
            Self::Delete { id } => json!({ "Type": "delete", "Data": { "ID": id.simple().to_string() } }),
            Self::Truncate => json!({ "Type": "truncate", "Data": null }),
            Self::Prune => json!({ "Type": "prune", "Data": null }),
            Self::Stats { total, unread } => {
                json!({ "Type": "stats", "Data": { "Total": total, "Unread": unread, "Version": env!("CARGO_PKG_VERSION") } })
            }
        }
    }
}

/// Tells until the listener goes. Who is too slow is told to look again.
pub(crate) async fn tell(mut socket: WebSocket, mut events: Receiver<Event>) {
    loop {
        let event = tokio::select! {
            event = events.recv() => match event {
                Ok(event) => event,
                Err(RecvError::Lagged(_)) => Event::Prune,
                Err(RecvError::Closed) => return,
            },
            message = socket.recv() => match message {
                Some(Ok(_)) => continue,
                _ => return,
            },
        };
        if socket.send(Message::Text(event.to_json().to_string().into())).await.is_err() {
            return;
        }
    }
}
