//! How many sleepers may be woken: each takes the memory of an Odoo, and whoever knows their names could wake all of them at once.
//!
//! A bucket for all, and one for each client address; both fill again over a minute. To wait for one that is being woken already takes nothing.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ocore_model::network;

use crate::config::WakeLimits;

const MINUTE: Duration = Duration::from_mins(1);

/// Who has woken too many, and in how long another one may be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooMany {
    /// This client.
    OfClient(Duration),
    /// All together.
    InAll(Duration),
}

#[derive(Debug)]
pub(crate) struct Wakes {
    limits: WakeLimits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    all: Bucket,
    /// Only those that are not full again. A client enters by a wake, of which there are so many a minute in all, so this stays small.
    clients: HashMap<IpAddr, Bucket>,
}

/// So many at once, and so many more in each minute.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(limit: u32, now: Instant) -> Self {
        Self { left: f64::from(limit), at: now }
    }

    fn fill(&mut self, limit: u32, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(limit) / MINUTE.as_secs_f64();
        self.left = (self.left + gained).min(f64::from(limit));
        self.at = now;
    }

    fn is_full(&self, limit: u32) -> bool {
        self.left >= f64::from(limit)
    }

    /// How long until there is one; zero when there is.
    fn wait(&self, limit: u32) -> Duration {
        let missing = (1.0 - self.left).max(0.0);
        // With a limit of 0 nothing ever fills it; whoever is told so asks again in a minute.
        if limit == 0 { MINUTE } else { MINUTE.mul_f64(missing / f64::from(limit)) }
    }
}

impl Wakes {
    pub(crate) fn new(limits: WakeLimits) -> Self {
        let state = State { all: Bucket::full(limits.in_all, Instant::now()), clients: HashMap::new() };
        Self { limits, state: Mutex::new(state) }
    }

    /// Takes one for this client, who is `None` when nobody knows who asks: a proxy of ours that does not say it.
    pub(crate) fn take(&self, client: Option<IpAddr>) -> Result<(), TooMany> {
        self.take_at(client, Instant::now())
    }

    fn take_at(&self, client: Option<IpAddr>, now: Instant) -> Result<(), TooMany> {
        let WakeLimits { per_client, in_all } = self.limits;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let client = client.map(network::of_customer);
        let own = client.map(|client| {
            let mut bucket = state.clients.get(&client).copied().unwrap_or(Bucket::full(per_client, now));
            bucket.fill(per_client, now);
            bucket
        });
        if let Some(wait) = own.map(|own| own.wait(per_client)).filter(|wait| !wait.is_zero()) {
            return Err(TooMany::OfClient(wait));
        }
        state.all.fill(in_all, now);
        let wait = state.all.wait(in_all);
        if !wait.is_zero() {
            return Err(TooMany::InAll(wait));
        }
        state.all.left -= 1.0;
        if let Some((client, mut own)) = client.zip(own) {
            state.clients.retain(|_, bucket| {
                bucket.fill(per_client, now);
                !bucket.is_full(per_client)
            });
            own.left -= 1.0;
            state.clients.insert(client, own);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_s_minute_is_its_own_and_comes_again() {
        let wakes = Wakes::new(WakeLimits { per_client: 2, in_all: 100 });
        let now = Instant::now();
        let (one, other) = (Some(address("192.0.2.1")), Some(address("192.0.2.2")));
        assert_eq!((wakes.take_at(one, now), wakes.take_at(one, now)), (Ok(()), Ok(())));
        assert_eq!(wakes.take_at(one, now), Err(TooMany::OfClient(Duration::from_secs(30))));
        assert_eq!(wakes.take_at(other, now), Ok(()));
        let later = now + Duration::from_secs(30);
        assert_eq!(wakes.take_at(one, later), Ok(()));
        assert!(wakes.take_at(one, later).is_err());
    }

    #[test]
    fn all_addresses_of_one_network_are_one_client_and_all_clients_have_one_limit() {
        let wakes = Wakes::new(WakeLimits { per_client: 1, in_all: 3 });
        let now = Instant::now();
        assert_eq!(wakes.take_at(Some(address("2001:db8::1")), now), Ok(()));
        assert!(matches!(wakes.take_at(Some(address("2001:db8::2")), now), Err(TooMany::OfClient(_))));
        assert_eq!(wakes.take_at(Some(address("2001:db8:0:1::1")), now), Ok(()));
        assert_eq!(wakes.take_at(None, now), Ok(()));
        assert_eq!(wakes.take_at(Some(address("192.0.2.9")), now), Err(TooMany::InAll(Duration::from_secs(20))));
    }

    #[test]
    fn who_was_here_is_forgotten_and_who_was_refused_never_kept() {
        let wakes = Wakes::new(WakeLimits { per_client: 3, in_all: 50 });
        let now = Instant::now();
        for number in 0..100_000_u32 {
            let _ = wakes.take_at(Some(IpAddr::V4(number.into())), now);
        }
        assert_eq!(wakes.state.lock().unwrap().clients.len(), 50);
        assert_eq!(wakes.take_at(Some(address("192.0.2.1")), now + MINUTE), Ok(()));
        assert_eq!(wakes.state.lock().unwrap().clients.len(), 1);
    }
}
