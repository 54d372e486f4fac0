//! Who follows something is woken here: one listener a process on the store's notifications, fanned out to all followers.
//!
//! A signal only says where to look, never what happened: the rows do that. So a signal may be spurious, and one that is lost costs a
//! follower the time of its slow poll, nothing more.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ocore_model::ids::{DeploymentId, OrganizationId};
use sqlx::{
    PgPool,
    postgres::{PgListener, PgNotification},
};
use tokio::sync::{Notify, broadcast};

/// The notification channel; the triggers of the schema write to it.
const CHANNEL: &str = "ocore_events";
/// A follower that is further behind than this looks at the rows anyway.
const BACKLOG: usize = 1024;
/// How long a listener without followers keeps its connection.
const LINGER: Duration = Duration::from_secs(30);
/// Between two attempts to reach a store that is away.
const RETRY: Duration = Duration::from_secs(1);

/// Where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Signals may have been missed: look everywhere.
    Resync,
    Changed {
        organization: OrganizationId,
        deployment: Option<DeploymentId>,
    },
}

impl Signal {
    fn parse(payload: &str) -> Self {
        let mut words = payload.split(' ');
        match (words.next().map(str::parse), words.next().map(str::parse)) {
            (Some(Ok(organization)), None) => Self::Changed { organization, deployment: None },
            (Some(Ok(organization)), Some(Ok(deployment))) => Self::Changed { organization, deployment: Some(deployment) },
            _ => Self::Resync,
        }
    }
}

/// The process's followers and their listener. Clones are the same one. The listener lives while there are followers, so that an idle
/// process holds no connection for it.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    sender: Arc<Mutex<Option<broadcast::Sender<Signal>>>>,
    reconcilers: Arc<Mutex<BTreeMap<&'static str, Arc<Notify>>>>,
}

impl Signals {
    /// Has a reconciler of this process run soon, or run again if it runs. In another process, and when none runs here, its timer does it.
    pub fn wake(&self, reconciler: &'static str) {
        self.waker(reconciler).notify_one();
    }

    /// What [`Self::wake`] notifies.
    pub(crate) fn waker(&self, reconciler: &'static str) -> Arc<Notify> {
        self.reconcilers.lock().unwrap_or_else(PoisonError::into_inner).entry(reconciler).or_default().clone()
    }

    /// Signals from now on. Subscribe first and read the rows then: what comes in between is signalled.
    pub fn subscribe(&self, pool: &PgPool) -> Subscription {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = if let Some(sender) = sender.as_ref() {
            sender.subscribe()
        } else {
            let (fresh, receiver) = broadcast::channel(BACKLOG);
            *sender = Some(fresh);
            tokio::spawn(listen(self.clone(), pool.clone()));
            receiver
        };
        Subscription { receiver }
    }

    /// Ends the listener when nobody follows. A follower that comes at the same moment starts the next one.
    fn leave_if_alone(&self) -> bool {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = sender.as_ref().is_none_or(|sender| sender.receiver_count() == 0);
        if alone {
            *sender = None;
        }
        alone
    }

    fn send(&self, signal: Signal) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            // Fails only without followers, and then nobody misses it.
            let _ = sender.send(signal);
        }
    }
}

/// One follower's signals.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Signal>,
}

impl Subscription {
    /// The next signal. Safe to drop and call again.
    pub async fn next(&mut self) -> Signal {
        match self.receiver.recv().await {
            Ok(signal) => signal,
            Err(broadcast::error::RecvError::Lagged(_)) => Signal::Resync,
            // The listener has gone, which it does not while somebody follows. The follower's poll carries on.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Takes what has already arrived, so that one look at the rows answers all of it.
    pub fn drain(&mut self) {
        while matches!(self.receiver.try_recv(), Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_))) {}
    }
}

/// Listens while there are followers. After each (re)connection everybody looks once, since notifications before it are lost.
async fn listen(signals: Signals, pool: PgPool) {
    loop {
        match connect(&pool).await {
            Ok(mut listener) => {
                signals.send(Signal::Resync);
                loop {
                    match tokio::time::timeout(LINGER, listener.try_recv()).await {
                        Ok(Ok(Some(notification))) => signals.send(parse(&notification)),
                        // The connection was lost and is there again.
                        Ok(Ok(None)) => signals.send(Signal::Resync),
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "the listener on the store's notifications lost its connection");
                            break;
                        }
                        Err(_) => {}
                    }
                    if signals.leave_if_alone() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the store's notifications cannot be listened to; followers poll"),
        }
        if signals.leave_if_alone() || pool.is_closed() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn connect(pool: &PgPool) -> sqlx::Result<PgListener> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

fn parse(notification: &PgNotification) -> Signal {
    Signal::parse(notification.payload())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_nobody_understands_makes_everybody_look() {
        let (organization, deployment) = (OrganizationId::new(), DeploymentId::new());
        assert_eq!(Signal::parse(&organization.to_string()), Signal::Changed { organization, deployment: None });
        assert_eq!(Signal::parse(&format!("{organization} {deployment}")), Signal::Changed { organization, deployment: Some(deployment) });
        assert_eq!(Signal::parse(""), Signal::Resync);
        assert_eq!(Signal::parse("7"), Signal::Resync);
        assert_eq!(Signal::parse(&format!("{organization} x")), Signal::Resync);
    }
}
