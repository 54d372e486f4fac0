//! Passwords: their rules, and Argon2id on threads that may block, a bounded number at a time.

use std::{sync::LazyLock, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use crate::{Error, Result};

/// Each hash takes 19 MiB and tens of milliseconds of a core; so many run at once.
static WORKERS: Semaphore = Semaphore::const_new(2);

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
pub(super) async fn hash(password: String) -> Result<String> {
    blocking(move || hash_now(&password)).await?
}

/// Whether the password is the one of the hash. Without a hash it does the same work and says no.
pub(super) async fn verify(password: String, hash: Option<String>) -> Result<bool> {
    blocking(move || {
        let expected = hash.as_ref().or(NOBODY.as_ref()).ok_or_else(|| Error::broken("the password hash of nobody"))?;
        let expected = PasswordHash::new(expected).map_err(|error| Error::broken(format!("a stored password hash: {error}")))?;
        let matches = hasher()?.verify_password(password.as_bytes(), &expected).is_ok();
        Ok(matches && hash.is_some())
    })
    .await?
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let permit = tokio::time::timeout(LONGEST_WAIT, WORKERS.acquire())
        .await
        .map_err(|_| Error::Unavailable {
            code: "too_busy",
            message: "too many people log in at this moment; try again in a few seconds".to_owned(),
        })?
        .map_err(|error| Error::internal("waiting for a place to hash a password", error))?;
    let result = tokio::task::spawn_blocking(work).await;
    drop(permit);
    result.map_err(|error| Error::internal("hashing a password", error))
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
        let stored = hash("correct horse 1".to_owned()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(verify("correct horse 1".to_owned(), Some(stored.clone())).await.unwrap());
        assert!(!verify("correct horse 2".to_owned(), Some(stored)).await.unwrap());
    }

    #[tokio::test]
    async fn nobody_has_no_password() {
        assert!(!verify("a password that nobody has 1".to_owned(), None).await.unwrap());
    }
}
