//! What each slot of an instance did while the route led to it: the colours of a deployment, told apart.
//!
//! An address alone is no slot: ports are used again, and a slot that rested for a failed deployment comes back under its own. So a slot here is
//! an address in one time in which the route led to it, named by the generation of the routes with which it came.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::StatusCode;
use ocore_model::edge::SlotTraffic;
use tokio_util::sync::CancellationToken;

use crate::latency::Durations;

/// Slots of one instance that are remembered: a deployment, the one before, and what a failed one brought back.
const REMEMBERED: usize = 4;

#[derive(Debug)]
pub(crate) struct Slot {
    http: SocketAddr,
    since_generation: u64,
    /// 0: the route leads to it.
    until_generation: AtomicU64,
    /// The route does not lead to it any more.
    pub(crate) left: CancellationToken,
    answers: AtomicU64,
    server_errors: AtomicU64,
    connect_failures: AtomicU64,
    broken: AtomicU64,
    timeouts: AtomicU64,
    latency: Durations,
}

impl Slot {
    fn new(http: SocketAddr, since_generation: u64) -> Self {
        Self {
            http,
            since_generation,
            until_generation: AtomicU64::new(0),
            left: CancellationToken::new(),
            answers: AtomicU64::new(0),
            server_errors: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            latency: Durations::default(),
        }
    }

    /// Odoo's answer has begun. `latency`: `None` for what says nothing about how quick it is.
    pub(crate) fn answered(&self, status: StatusCode, latency: Option<Duration>) {
        self.answers.fetch_add(1, Relaxed);
        if status.is_server_error() {
            self.server_errors.fetch_add(1, Relaxed);
        }
        if let Some(latency) = latency {
            self.latency.record(latency);
        }
    }

    pub(crate) fn was_not_reached(&self) {
        self.connect_failures.fetch_add(1, Relaxed);
    }

    /// It broke off before or within its answer.
    pub(crate) fn broke_off(&self) {
        self.broken.fetch_add(1, Relaxed);
    }

    pub(crate) fn took_too_long(&self) {
        self.timeouts.fetch_add(1, Relaxed);
    }

    fn traffic(&self) -> SlotTraffic {
        SlotTraffic {
            http: self.http,
            since_generation: self.since_generation,
            until_generation: Some(self.until_generation.load(Relaxed)).filter(|generation| *generation > 0),
            answers: self.answers.load(Relaxed),
            server_errors: self.server_errors.load(Relaxed),
            connect_failures: self.connect_failures.load(Relaxed),
            broken: self.broken.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            latency: self.latency.histogram(),
        }
    }
}

/// The slots of one instance, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<VecDeque<Arc<Slot>>>);

impl Slots {
    /// The slot that routes of this generation lead to. The one before stays in force until [`Slots::leave_all_but`].
    pub(crate) fn at(&self, http: SocketAddr, generation: u64) -> Arc<Slot> {
        let mut slots = self.lock();
        if let Some(last) = slots.iter().rev().find(|slot| slot.http == http && !slot.left.is_cancelled()) {
            return Arc::clone(last);
        }
        let slot = Arc::new(Slot::new(http, generation));
        slots.push_back(Arc::clone(&slot));
        if slots.len() > REMEMBERED
            && let Some(gone) = slots.iter().position(|slot| slot.left.is_cancelled())
        {
            slots.remove(gone);
        }
        slot
    }

    /// Routes of this generation are in force, and lead only to these addresses.
    pub(crate) fn leave_all_but(&self, live: impl Fn(SocketAddr) -> bool, generation: u64) {
        for slot in self.lock().iter().filter(|slot| !slot.left.is_cancelled() && !live(slot.http)) {
            slot.until_generation.store(generation, Relaxed);
            slot.left.cancel();
        }
    }

    pub(crate) fn traffic(&self) -> Vec<SlotTraffic> {
        self.lock().iter().map(|slot| slot.traffic()).collect()
    }

    /// Each change is whole, so a panic elsewhere does not spoil it.
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_comes_back_is_another_slot() {
        let (blue, green): (SocketAddr, SocketAddr) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let slots = Slots::default();
        slots.at(blue, 3).answered(StatusCode::OK, Some(Duration::from_millis(1)));
        slots.at(blue, 4).answered(StatusCode::BAD_GATEWAY, None);
        slots.leave_all_but(|http| http == blue, 4);
        slots.at(green, 5).was_not_reached();
        slots.leave_all_but(|http| http == green, 5);
        slots.at(blue, 6);
        slots.leave_all_but(|http| http == blue, 6);
        let seen: Vec<_> =
            slots.traffic().iter().map(|slot| (slot.http, slot.since_generation, slot.until_generation, slot.failures())).collect();
        assert_eq!(seen, [(blue, 3, Some(5), 1), (green, 5, Some(6), 1), (blue, 6, None, 0)]);
        assert_eq!(slots.traffic()[0].latency.count(), 1);
        for generation in 7..20 {
            let http = SocketAddr::from(([127, 0, 0, 1], generation));
            slots.at(http, generation.into());
            slots.leave_all_but(|address| address == http, generation.into());
        }
        let kept = slots.traffic();
        assert_eq!((kept.len(), kept.last().unwrap().since_generation, kept.last().unwrap().until_generation), (REMEMBERED, 19, None));
    }
}
