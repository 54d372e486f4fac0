//! Slows guessing: so many log-ins for one e-mail from one address in a window of time, counted in the store, so that every replica knows.

use std::net::IpAddr;

use chrono::TimeDelta;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::Client;
use crate::{Control, Error, Result, store};

const ATTEMPTS: i32 = 10;
const WINDOW: TimeDelta = TimeDelta::minutes(15);

/// Whose attempt it is: the e-mail (known or not) and the network it comes from.
pub(super) struct Attempt {
    key: Vec<u8>,
}

impl Attempt {
    pub(super) fn of(email: &str, client: &Client) -> Self {
        let network = client.address.map(network).unwrap_or_default();
        Self { key: Sha256::digest(format!("{network} {email}").as_bytes()).to_vec() }
    }
}

/// An IPv4 address, or the /64 that one IPv6 customer has.
fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{:x?}", &address.segments()[..4]),
    }
}

/// Counts an attempt before its password is looked at, so that a burst cannot pass together; `TooMany` when there were too many.
pub(super) async fn count(control: &Control, attempt: &Attempt) -> Result<()> {
    let now = control.clock.now();
    let counted = store::accounts::count_attempt(&mut *control.pool.acquire().await?, &attempt.key, now, now + WINDOW).await?;
    if counted.attempts <= ATTEMPTS {
        return Ok(());
    }
    let wait = (counted.window_ends_at - now).num_seconds().max(1);
    Err(Error::TooMany { retry_after_seconds: wait.cast_unsigned() })
}

/// A success forgets the failures before it.
pub(super) async fn forget(connection: &mut PgConnection, attempt: &Attempt) -> Result<()> {
    store::accounts::forget_attempts(connection, &attempt.key).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ipv6_network_is_one_caller() {
        let of = |address: &str| network(address.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
