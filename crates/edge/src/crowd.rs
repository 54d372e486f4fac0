//! Connections by client address, so that one client cannot take all of them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many connections each address has; only those that have some are in it.
#[derive(Debug, Default)]
pub(crate) struct Crowd(Mutex<HashMap<IpAddr, usize>>);

impl Crowd {
    /// A place for one more connection until it is dropped; `None` when the address has as many already.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, limit: usize) -> Option<Member> {
        let mut crowd = self.lock();
        let count = crowd.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Member { crowd: Arc::clone(self), address })
    }

    /// Each change is whole, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection among those of its address.
#[derive(Debug)]
pub(crate) struct Member {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut crowd = self.crowd.lock();
        if let Some(count) = crowd.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                crowd.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_places_and_gives_them_back() {
        let crowd = Arc::new(Crowd::default());
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = crowd.enter(one, 2).unwrap();
        let second = crowd.enter(one, 2).unwrap();
        assert!(crowd.enter(one, 2).is_none() && crowd.enter(other, 2).is_some());
        drop(first);
        let third = crowd.enter(one, 2).unwrap();
        drop((second, third));
        assert!(crowd.lock().is_empty());
    }
}
