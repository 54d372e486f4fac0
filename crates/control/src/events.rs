//! Everything that happens in an organization, as one stream.

use std::{fmt, pin::Pin, str::FromStr, time::Duration};

use futures::{Stream, stream};
use ocore_model::ids::OrganizationId;
use serde_json::Value;

use crate::{
    Control, Result,
    authorization::{Grant, ViewOrganization},
    signals::{Signal, Subscription},
    store,
};

/// A position in an organization's stream: the transaction that wrote the event, and the event. Text form `<transaction>.<event>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventCursor {
    pub transaction: i64,
    pub event: i64,
}

impl fmt::Display for EventCursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.transaction, self.event)
    }
}

/// A text that is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not the id of an event")]
pub struct InvalidCursor;

impl FromStr for EventCursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (transaction, event) = text.split_once('.').ok_or(InvalidCursor)?;
        let number = |text: &str| text.parse().map_err(|_| InvalidCursor);
        Ok(Self { transaction: number(transaction)?, event: number(event)? })
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct OrganizationEvent {
    pub cursor: EventCursor,
    /// `deployment.status`, `instance.status` …
    pub kind: String,
    /// `{projectId, environmentId, instanceId, deploymentId, createdAt, payload}`
    pub body: Value,
}

const BATCH: i64 = 500;
/// Older transactions may hold an event back without a signal when they end, so this poll is quick.
const POLL: Duration = Duration::from_secs(2);

/// What happens in the organization after `cursor`, or after this call; none lost, none twice. It does not end by itself. Returns the position
/// where it begins, too: a follower that comes back before the first event says that one.
///
/// Two transactions may end in another order than they wrote, so an event is shown only when all older transactions have ended. A long one
/// delays the stream and makes no hole in it.
pub async fn follow(
    control: &Control,
    grant: &Grant<ViewOrganization>,
    after: Option<EventCursor>,
) -> Result<(EventCursor, Pin<Box<dyn Stream<Item = Result<OrganizationEvent>> + Send>>)> {
    let subscription = control.signals.subscribe(&control.pool);
    let cursor = match after {
        Some(cursor) => cursor,
        None => store::events::present(&mut *control.pool.acquire().await?).await?,
    };
    let follower = Follower {
        subscription,
        control: control.clone(),
        organization: grant.organization_id,
        cursor,
        read: Vec::new().into_iter(),
        more: true,
    };
    let events = stream::try_unfold(follower, |mut follower| async move { Ok(Some((follower.next().await?, follower))) });
    Ok((cursor, Box::pin(events)))
}

struct Follower {
    control: Control,
    subscription: Subscription,
    organization: OrganizationId,
    cursor: EventCursor,
    read: std::vec::IntoIter<OrganizationEvent>,
    more: bool,
}

impl Follower {
    async fn next(&mut self) -> Result<OrganizationEvent> {
        loop {
            if let Some(event) = self.read.next() {
                self.cursor = event.cursor;
                return Ok(event);
            }
            if !self.more {
                let _ = tokio::time::timeout(POLL, self.signalled()).await;
            }
            let mut connection = self.control.pool.acquire().await?;
            let events = store::events::after(&mut connection, self.organization, self.cursor, BATCH).await?;
            self.more = events.len() as i64 == BATCH;
            self.read = events.into_iter();
        }
    }

    async fn signalled(&mut self) {
        loop {
            match self.subscription.next().await {
                Signal::Resync => return,
                Signal::Changed { organization, .. } if organization == self.organization => return,
                Signal::Changed { .. } => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_what_it_writes() {
        let cursor = EventCursor { transaction: 7, event: 12 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "7", "7.", ".7", "7.x", "a.b"] {
            assert_eq!(bad.parse::<EventCursor>(), Err(InvalidCursor), "{bad}");
        }
    }
}
