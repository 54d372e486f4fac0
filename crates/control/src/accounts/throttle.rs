//! Slows guessing and piling up: so many attempts in a window of time, counted in the store, so that every replica knows.
//!
//! What is counted belongs to where the attempts come from, never to the account that they are aimed at alone: a stranger's wrong passwords must not
//! keep its user out (docs/decisions/0016-first-account.md).

use chrono::TimeDelta;
use ocore_model::ids::SessionId;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::Client;
use crate::{Control, Error, Result, store};

const QUARTER: TimeDelta = TimeDelta::minutes(15);
const HOUR: TimeDelta = TimeDelta::hours(1);

/// Wrong passwords for one e-mail address from one network.
const LOG_INS_OF_PAIR: i32 = 10;
/// Wrong passwords from one network, whomever they are for. A company is often one network, so several people may have a bad morning at once.
const LOG_INS_OF_NETWORK: i32 = 50;
/// Wrong current passwords in one session.
const OWN_PASSWORDS: i32 = 10;
/// Invitations that nobody made, from one network.
const INVITATIONS: i32 = 20;

/// One count: of what, how many, in which time.
pub(crate) struct Attempt {
    key: Vec<u8>,
    limit: i32,
    window: TimeDelta,
    what: &'static str,
}

impl Attempt {
    fn new(what: &'static str, subject: &str, limit: i32, window: TimeDelta) -> Self {
        Self { key: Sha256::digest(format!("{what} {subject}").as_bytes()).to_vec(), limit, window, what }
    }

    /// To log in as somebody, whether they exist or not, from somewhere.
    pub(super) fn log_in(email: &str, client: &Client) -> Self {
        let network = client.network().unwrap_or_default();
        Self::new("log-in", &format!("{network} {email}"), LOG_INS_OF_PAIR, QUARTER)
    }

    /// To log in from somewhere, as whomever. `None` for the program itself.
    pub(super) fn log_in_from(client: &Client) -> Option<Self> {
        Some(Self::new("log-in from", &client.network()?, LOG_INS_OF_NETWORK, QUARTER))
    }

    /// To give one's own password again in a session, to change it or to delete the account. Apart from log-ins: whoever has got hold of a session must not lock its user out.
    pub(super) fn own_password(session: SessionId) -> Self {
        Self::new("own password", &session.to_string(), OWN_PASSWORDS, QUARTER)
    }

    /// To use an invitation.
    pub(crate) fn invitation(client: &Client) -> Option<Self> {
        Some(Self::new("invitation", &client.network()?, INVITATIONS, HOUR))
    }

    /// To sign up without one. `None` where any number may.
    pub(super) fn sign_up(control: &Control, client: &Client) -> Option<Self> {
        let limit = i32::try_from(control.settings.limits.signups_per_hour).unwrap_or(i32::MAX);
        if limit == 0 {
            return None;
        }
        Some(Self::new("sign-up", &client.network()?, limit, HOUR))
    }
}

/// Counts an attempt before it is looked at, so that a burst cannot pass together; `TooMany` when there were too many.
pub(crate) async fn count(control: &Control, attempt: &Attempt) -> Result<()> {
    let now = control.clock.now();
    let counted = store::accounts::count_attempt(&mut *control.pool.acquire().await?, &attempt.key, now, now + attempt.window).await?;
    if counted.attempts <= attempt.limit {
        return Ok(());
    }
    if counted.attempts == attempt.limit + 1 {
        tracing::warn!(what = attempt.what, limit = attempt.limit, until = %counted.window_ends_at, "too many attempts from one place");
    }
    let wait = (counted.window_ends_at - now).num_seconds().max(1);
    Err(Error::TooMany { retry_after_seconds: wait.cast_unsigned() })
}

/// A success forgets the failures before it.
pub(super) async fn forget(connection: &mut PgConnection, attempt: &Attempt) -> Result<()> {
    store::accounts::forget_attempts(connection, &attempt.key).await
}

/// A success does not count itself, and leaves what failed before it: else one's own account would wash away the guesses at others'.
pub(crate) async fn take_back(connection: &mut PgConnection, attempt: &Attempt) -> Result<()> {
    store::accounts::take_back_attempt(connection, &attempt.key).await
}
