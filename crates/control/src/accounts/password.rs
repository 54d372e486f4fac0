//! Passwords: their rules, and Argon2id on threads that may block, a bounded number at a time and in line for each client.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use super::Client;
use crate::{Error, Result};

/// Each hash takes 19 MiB and tens of milliseconds of a core; so many run at once.
static WORKERS: Semaphore = Semaphore::const_new(2);

/// So many of one client's passwords may be at work or wait for it, so that one client alone cannot make everybody wait.
const IN_LINE: usize = 4;

/// How many each client has in line, by its network. Who has none is not in it.
static LINES: LazyLock<Mutex<HashMap<String, usize>>> = LazyLock::new(Mutex::default);

/// A caller who would wait longer is told to come back.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What is verified for an e-mail that nobody has, so that the answer takes as long as for one that somebody has.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| hash_now("a password that nobody has 1").ok());

/// At least 8 characters with a letter and a number; at most 200 bytes, since a hash of more is only work.
pub(super) fn check(password: &str) -> Result<(), &'static str> {
    if password.chars().count() < 8 {
        return Err("use at least 8 characters");
    }
    if password.len() > 200 {
        return Err("use at most 200 bytes");
    }
    if !password.chars().any(char::is_alphabetic) || !password.chars().any(char::is_numeric) {
        return Err("use at least one letter and one number");
    }
    Ok(())
}

/// The PHC string of a password.
pub(super) async fn hash(password: String, client: &Client) -> Result<String> {
    blocking(client, move || hash_now(&password)).await?
}

/// Whether the password is the one of the hash. Without a hash it does the same work and says no.
pub(super) async fn verify(password: String, hash: Option<String>, client: &Client) -> Result<bool> {
    blocking(client, move || {
        let expected = hash.as_ref().or(NOBODY.as_ref()).ok_or_else(|| Error::broken("the password hash of nobody"))?;
        let expected = PasswordHash::new(expected).map_err(|error| Error::broken(format!("a stored password hash: {error}")))?;
        let matches = hasher()?.verify_password(password.as_bytes(), &expected).is_ok();
        Ok(matches && hash.is_some())
    })
    .await?
}

async fn blocking<T: Send + 'static>(client: &Client, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let place = PlaceInLine::take(client)?;
    let permit = tokio::time::timeout(LONGEST_WAIT, WORKERS.acquire())
        .await
        .map_err(|_| Error::Unavailable {
            code: "too_busy",
            message: "too many people log in at this moment; try again in a few seconds".to_owned(),
        })?
        .map_err(|error| Error::internal("waiting for a place to hash a password", error))?;
    // Both go with the work and not with this call: a client that hangs up ends the call, and the work goes on.
    let work = move || {
        let _held = (place, permit);
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal("hashing a password", error))
}

/// A client's place among those whose passwords are looked at.
struct PlaceInLine {
    network: Option<String>,
}

impl PlaceInLine {
    /// `TooMany` when the client has its share in line.
    fn take(client: &Client) -> Result<Self> {
        let network = client.network();
        if let Some(network) = &network {
            let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting = lines.entry(network.clone()).or_default();
            if *waiting >= IN_LINE {
                return Err(Error::TooMany { retry_after_seconds: 1 });
            }
            *waiting += 1;
        }
        Ok(Self { network })
    }
}

impl Drop for PlaceInLine {
    fn drop(&mut self) {
        let Some(network) = &self.network else { return };
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = lines.get_mut(network) {
            *waiting -= 1;
            if *waiting == 0 {
                lines.remove(network);
            }
        }
    }
}

/// Argon2id with 19 MiB, two passes, one lane (OWASP Password Storage Cheat Sheet).
fn hasher() -> Result<Argon2<'static>> {
    let params = Params::new(19 * 1024, 2, 1, None).map_err(|error| Error::broken(format!("Argon2's parameters: {error}")))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &str) -> Result<String> {
    let hash = hasher()?.hash_password(password.as_bytes()).map_err(|error| Error::broken(format!("hashing a password: {error}")))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_need_eight_characters_a_letter_and_a_number() {
        assert!(check("abcdefg1").is_ok());
        assert!(check("größe123").is_ok());
        for bad in ["abc1", "abcdefgh", "12345678", ""] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check(&"a1".repeat(101)).is_err());
    }

    #[tokio::test]
    async fn a_hash_is_argon2id_with_the_chosen_cost_and_verifies_its_password_only() {
        let stored = hash("correct horse 1".to_owned(), &Client::default()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(verify("correct horse 1".to_owned(), Some(stored.clone()), &Client::default()).await.unwrap());
        assert!(!verify("correct horse 2".to_owned(), Some(stored), &Client::default()).await.unwrap());
    }

    #[tokio::test]
    async fn nobody_has_no_password() {
        assert!(!verify("a password that nobody has 1".to_owned(), None, &Client::default()).await.unwrap());
    }

    #[tokio::test]
    async fn one_client_has_its_share_in_line_and_others_are_served_beside_it() {
        let from = |address: &str| Client { address: Some(address.parse().unwrap()), user_agent: String::new() };
        let (busy, neighbour, other) = (from("2001:db8::1"), from("2001:db8::2"), from("192.0.2.7"));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(Mutex::new(held));
        let mut lines = Vec::new();
        for _ in 0..IN_LINE {
            let held = held.clone();
            let place = PlaceInLine::take(&busy).unwrap();
            lines.push(tokio::task::spawn_blocking(move || {
                let _place = place;
                held.lock().unwrap().recv().unwrap();
            }));
        }
        // Its neighbour in the /64 is the same client.
        for client in [&busy, &neighbour] {
            assert!(matches!(verify("x".to_owned(), None, client).await, Err(Error::TooMany { .. })));
        }
        assert!(!verify("x".to_owned(), None, &other).await.unwrap());
        for _ in 0..IN_LINE {
            release.send(()).unwrap();
        }
        for line in lines {
            line.await.unwrap();
        }
        assert!(!verify("x".to_owned(), None, &busy).await.unwrap());
    }

    #[tokio::test]
    async fn whoever_hangs_up_keeps_the_place_until_the_work_has_ended() {
        let client = Client { address: Some("192.0.2.77".parse().unwrap()), user_agent: String::new() };
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let call = tokio::spawn({
            let client = client.clone();
            async move {
                blocking(&client, move || {
                    let _ = begun.send(());
                    held.recv().unwrap();
                })
                .await
            }
        });
        begins.await.unwrap();
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        assert_eq!(LINES.lock().unwrap().get("192.0.2.77"), Some(&1));
        release.send(()).unwrap();
        while LINES.lock().unwrap().contains_key("192.0.2.77") {
            tokio::task::yield_now().await;
        }
    }
}
