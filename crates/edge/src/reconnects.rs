//! For how long a client is without its websocket when a deployment takes the slot away under it.
//!
//! Nothing in a websocket says which one it follows, so a client is known by its address, its session and its program. Who has several is
//! taken for served in the order in which they were lost.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, header};
use ocore_model::histogram::Histogram;

use crate::latency::Durations;

/// Lost websockets of one instance that are remembered at once.
const REMEMBERED: usize = 4096;
/// Whoever has not come back by then closed the page.
const FORGET_AFTER: Duration = Duration::from_mins(2);

/// Who opened a websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientKey(u64);

impl ClientKey {
    pub(crate) fn of(address: IpAddr, headers: &HeaderMap) -> Self {
        let mut hasher = DefaultHasher::new();
        address.hash(&mut hasher);
        headers.get(header::USER_AGENT).hash(&mut hasher);
        let mut cookies = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(';'));
        // Odoo's session; the other cookies change while a page is open.
        cookies.find_map(|cookie| cookie.trim().strip_prefix("session_id=")).hash(&mut hasher);
        Self(hasher.finish())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Reconnects {
    closed: AtomicU64,
    /// In the order in which they were lost.
    lost: Mutex<VecDeque<(ClientKey, Instant)>>,
    gaps: Durations,
}

impl Reconnects {
    /// A slot that the route left took this client's websocket with it.
    pub(crate) fn closed(&self, client: ClientKey) {
        self.closed.fetch_add(1, Relaxed);
        let mut lost = self.lock();
        if lost.len() >= REMEMBERED {
            lost.pop_front();
        }
        lost.push_back((client, Instant::now()));
    }

    /// A client has a websocket, perhaps again.
    pub(crate) fn opened(&self, client: ClientKey) {
        let mut lost = self.lock();
        while lost.front().is_some_and(|(_, since)| since.elapsed() > FORGET_AFTER) {
            lost.pop_front();
        }
        if let Some(index) = lost.iter().position(|(one, _)| *one == client)
            && let Some((_, since)) = lost.remove(index)
        {
            self.gaps.record(since.elapsed());
        }
    }

    pub(crate) fn closed_by_switch(&self) -> u64 {
        self.closed.load(Relaxed)
    }

    pub(crate) fn gaps(&self) -> Histogram {
        self.gaps.histogram()
    }

    /// Each change is whole, so a panic elsewhere does not spoil it.
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(ClientKey, Instant)>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_ends_with_the_same_clients_next_websocket() {
        let key = |address: &str, cookie: &str| {
            let headers = HeaderMap::from_iter([(header::COOKIE, cookie.parse().unwrap())]);
            ClientKey::of(address.parse().unwrap(), &headers)
        };
        let (one, other) = (key("10.0.0.1", "tz=UTC; session_id=abc"), key("10.0.0.1", "session_id=def"));
        assert_eq!(one, key("10.0.0.1", "session_id=abc; cids=1"));
        assert_ne!(one, other);
        assert_ne!(one, key("10.0.0.2", "session_id=abc"));
        let reconnects = Reconnects::default();
        reconnects.opened(one);
        reconnects.closed(one);
        reconnects.closed(one);
        reconnects.opened(other);
        assert_eq!((reconnects.closed_by_switch(), reconnects.gaps().count()), (2, 0));
        for _ in 0..3 {
            reconnects.opened(one);
        }
        assert_eq!(reconnects.gaps().count(), 2);
    }
}
