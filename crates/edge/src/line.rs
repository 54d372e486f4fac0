//! The line in which the requests of one instance wait while it rests, and in which they go on when it serves again.
//!
//! They go on in the order in which they came, a few at first and one more with each answer, so that an Odoo that has just started is not
//! run over. Who comes while others still wait stands behind them. Websockets stand apart and go on after the requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::oneshot;

use crate::config::HoldLimits;

/// What waits at this edge in all.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    held: AtomicU64,
    body_bytes: AtomicU64,
}

impl Totals {
    /// Requests and handshakes.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }
}

/// A part of the totals, given back when it is dropped.
#[derive(Debug)]
struct Share {
    totals: Arc<Totals>,
    body_bytes: u64,
}

impl Share {
    fn take(totals: &Arc<Totals>, body_bytes: u64, limits: &HoldLimits) -> Result<Self, Full> {
        let held = totals.held.fetch_add(1, Relaxed) + 1;
        let bytes = totals.body_bytes.fetch_add(body_bytes, Relaxed).saturating_add(body_bytes);
        let share = Self { totals: Arc::clone(totals), body_bytes };
        if held > limits.in_all as u64 || bytes > limits.body_bytes { Err(Full) } else { Ok(share) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.totals.held.fetch_sub(1, Relaxed);
        self.totals.body_bytes.fetch_sub(self.body_bytes, Relaxed);
    }
}

/// There is no place left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Websocket,
}

#[derive(Debug)]
pub(crate) struct Line {
    limits: HoldLimits,
    totals: Arc<Totals>,
    state: Mutex<State>,
    /// The gate is open; read without the lock by every request.
    is_free: AtomicBool,
    held_total: AtomicU64,
}

#[derive(Debug)]
struct State {
    gate: Gate,
    next_ticket: u64,
    /// By ticket, so in the order of arrival.
    requests: BTreeMap<u64, oneshot::Sender<()>>,
    websockets: BTreeMap<u64, oneshot::Sender<()>>,
    /// Called, and not answered yet.
    under_way: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Nobody waits, everybody passes.
    Open,
    /// Everybody waits.
    Closed,
    /// As many pass at once.
    Ramp(usize),
}

impl State {
    fn waiting(&mut self, kind: Kind) -> &mut BTreeMap<u64, oneshot::Sender<()>> {
        match kind {
            Kind::Request => &mut self.requests,
            Kind::Websocket => &mut self.websockets,
        }
    }

    fn held(&self) -> usize {
        self.requests.len() + self.websockets.len()
    }

    /// Calls as many as may go, and opens the gate when nobody waits any more.
    fn advance(&mut self) {
        let Gate::Ramp(window) = self.gate else { return };
        while self.under_way.len() < window {
            let Some((ticket, call)) = self.requests.pop_first().or_else(|| self.websockets.pop_first()) else { break };
            // One whose client has just gone makes room for the next.
            if call.send(()).is_ok() {
                self.under_way.insert(ticket);
            }
        }
        if self.held() == 0 {
            self.gate = Gate::Open;
        }
    }
}

impl Line {
    pub(crate) fn new(limits: HoldLimits, totals: Arc<Totals>) -> Self {
        let state =
            State { gate: Gate::Open, next_ticket: 0, requests: BTreeMap::new(), websockets: BTreeMap::new(), under_way: BTreeSet::new() };
        Self { limits, totals, state: Mutex::new(state), is_free: AtomicBool::new(true), held_total: AtomicU64::new(0) }
    }

    /// Nobody waits, and nobody needs to.
    pub(crate) fn is_free(&self) -> bool {
        self.is_free.load(Relaxed)
    }

    pub(crate) fn held(&self) -> u64 {
        self.lock().held() as u64
    }

    pub(crate) fn held_total(&self) -> u64 {
        self.held_total.load(Relaxed)
    }

    /// From now on everybody waits.
    pub(crate) fn close(&self) {
        self.change(|state| state.gate = Gate::Closed);
    }

    /// The instance serves again: who waits goes on, step by step.
    pub(crate) fn open(&self) {
        self.change(|state| {
            if state.gate == Gate::Closed {
                state.gate = Gate::Ramp(self.limits.release_window.max(1));
            }
        });
    }

    /// There is nothing to wait for: who waits looks again at where the route leads.
    pub(crate) fn dismiss(&self) {
        self.change(|state| {
            state.requests.clear();
            state.websockets.clear();
            state.gate = Gate::Open;
        });
    }

    /// A place at the end of the line; `None` when the gate is open.
    pub(crate) fn join(self: &Arc<Self>, kind: Kind, body_bytes: u64) -> Result<Option<Place>, Full> {
        let mut state = self.lock();
        if state.gate == Gate::Open {
            return Ok(None);
        }
        let limit = match kind {
            Kind::Request => self.limits.requests,
            Kind::Websocket => self.limits.websockets,
        };
        if state.waiting(kind).len() >= limit {
            return Err(Full);
        }
        let share = Share::take(&self.totals, body_bytes, &self.limits)?;
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let (call, called) = oneshot::channel();
        state.waiting(kind).insert(ticket, call);
        drop(state);
        self.held_total.fetch_add(1, Relaxed);
        Ok(Some(Place { line: Arc::clone(self), ticket, kind, called, share: Some(share), body_bytes, answered: false }))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.advance();
        self.is_free.store(state.gate == Gate::Open, Relaxed);
    }

    /// Each change is whole, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's place in the line, and then its turn; both end when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    line: Arc<Line>,
    ticket: u64,
    kind: Kind,
    called: oneshot::Receiver<()>,
    share: Option<Share>,
    body_bytes: u64,
    answered: bool,
}

/// Why the waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// It is this one's turn.
    Turn,
    /// There is nothing to wait for.
    Dismissed,
}

impl Place {
    pub(crate) async fn call(&mut self) -> Call {
        let call = match (&mut self.called).await {
            Ok(()) => Call::Turn,
            Err(_) => Call::Dismissed,
        };
        self.share = None;
        call
    }

    pub(crate) fn is_in(&self, line: &Arc<Line>) -> bool {
        Arc::ptr_eq(&self.line, line)
    }

    /// Back into the line, before all who came later. False when the gate is open and nobody needs to wait.
    pub(crate) fn again(&mut self) -> Result<bool, Full> {
        let (line, ticket, kind) = (Arc::clone(&self.line), self.ticket, self.kind);
        let mut outcome = Ok(false);
        line.change(|state| {
            state.under_way.remove(&ticket);
            if state.gate == Gate::Open {
                return;
            }
            if self.share.is_none() {
                match Share::take(&line.totals, self.body_bytes, &line.limits) {
                    Ok(share) => self.share = Some(share),
                    Err(full) => {
                        outcome = Err(full);
                        return;
                    }
                }
            }
            let (call, called) = oneshot::channel();
            self.called = called;
            state.waiting(kind).insert(ticket, call);
            outcome = Ok(true);
        });
        outcome
    }

    /// Odoo has answered: it can take one more.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.change(|state| {
            state.waiting(self.kind).remove(&self.ticket);
            if state.under_way.remove(&self.ticket)
                && self.answered
                && let Gate::Ramp(window) = &mut state.gate
            {
                *window += 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(limits: HoldLimits) -> Arc<Line> {
        Arc::new(Line::new(limits, Arc::default()))
    }

    fn join(line: &Arc<Line>, kind: Kind) -> Place {
        line.join(kind, 10).unwrap().unwrap()
    }

    /// Which of them have been called.
    fn called(places: &mut [Place]) -> Vec<u64> {
        places.iter_mut().filter_map(|place| place.called.try_recv().is_ok().then_some(place.ticket)).collect()
    }

    #[test]
    fn they_go_on_in_their_order_a_few_at_first_and_more_with_each_answer() {
        let line = line(HoldLimits { release_window: 2, ..HoldLimits::default() });
        assert!(line.join(Kind::Request, 0).unwrap().is_none(), "nobody waits at an open gate");
        line.close();
        let mut places = vec![join(&line, Kind::Websocket)];
        places.extend((0..6).map(|_| join(&line, Kind::Request)));
        assert_eq!((line.held(), called(&mut places)), (7, vec![]));
        line.open();
        assert_eq!(called(&mut places), [1, 2]);
        // Who comes now stands behind the others.
        places.push(join(&line, Kind::Request));
        places.remove(1).answered();
        assert_eq!(called(&mut places), [3, 4]);
        // One that fails makes room for one, not for two.
        drop(places.remove(1));
        assert_eq!(called(&mut places), [5]);
        places.remove(1).answered();
        assert_eq!(called(&mut places), [6, 7]);
        assert!(!line.is_free());
        places.remove(1).answered();
        assert_eq!(called(&mut places), [0], "the websocket comes last");
        assert!(line.is_free());
        drop(places);
        assert_eq!((line.held(), line.held_total(), line.totals.held()), (0, 8, 0));
        assert!(line.lock().under_way.is_empty());
    }

    #[test]
    fn who_leaves_gives_the_place_back() {
        let limits = HoldLimits { requests: 3, websockets: 1, in_all: 3, body_bytes: 25, release_window: 1 };
        let line = line(limits);
        line.close();
        let first = join(&line, Kind::Request);
        let second = join(&line, Kind::Request);
        assert_eq!(line.join(Kind::Request, 10).unwrap_err(), Full, "too many bytes");
        let third = line.join(Kind::Request, 5).unwrap().unwrap();
        assert_eq!(line.join(Kind::Websocket, 0).unwrap_err(), Full, "too many in all");
        drop(third);
        let _websocket = line.join(Kind::Websocket, 0).unwrap().unwrap();
        assert_eq!(line.join(Kind::Websocket, 0).unwrap_err(), Full, "too many websockets");
        drop(first);
        line.open();
        assert_eq!(called(&mut [second]), [1]);
    }

    #[tokio::test]
    async fn a_second_hold_and_a_dismissal_end_well() {
        let line = line(HoldLimits { release_window: 1, ..HoldLimits::default() });
        line.close();
        let mut first = join(&line, Kind::Request);
        let mut second = join(&line, Kind::Request);
        line.open();
        assert_eq!(first.call().await, Call::Turn);
        line.close();
        let third = join(&line, Kind::Request);
        // The first was not answered before the gate closed again: it keeps its place.
        assert!(first.again().unwrap());
        line.open();
        assert_eq!(first.call().await, Call::Turn);
        line.dismiss();
        assert_eq!(second.call().await, Call::Dismissed);
        assert!(line.is_free() && line.held() == 0);
        assert!(!second.again().unwrap(), "an open gate lets it through");
        drop((first, second, third));
        assert_eq!(line.totals.held(), 0);
    }
}
