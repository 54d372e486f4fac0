//! Calls that may be sent again: whoever gives one a key of their own choice gets, for a day, the answer of the first for each that follows with the same
//! key, and what the call does is done once.
//!
//! A key is claimed in the store before the call is carried out and gets its answer afterwards. What a killed process leaves is a claim without an answer:
//! nobody can say whether the call had taken effect, so it is never carried out again under that key, and the caller is told.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::TimeDelta;
use ocore_model::{
    ids::{ApiKeyId, OrganizationId, UserId},
    permission::{Permission, PermissionSet},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Control, Error, Result,
    accounts::Identity,
    authorization::{Credential, Scope},
    secrets::{self, Place, Secret},
    store,
};

/// For so long an answer is given again.
const KEPT: TimeDelta = TimeDelta::days(1);
/// A key's length in bytes.
pub const LONGEST_KEY: usize = 255;

/// This process, for claims that outlive it.
static PROCESS: LazyLock<Uuid> = LazyLock::new(Uuid::now_v7);

/// Whose key it is. The same key of another user, of another of their API keys or in another organization is another key.
#[derive(Debug, Clone)]
pub struct Caller {
    pub(crate) user_id: UserId,
    pub(crate) api_key_id: Option<ApiKeyId>,
    pub(crate) organization_id: Option<OrganizationId>,
    permissions: PermissionSet,
}

impl Caller {
    /// `scope`: the organization that the call is about, if it is about one.
    pub fn new(identity: &Identity, scope: Option<&Scope>) -> Self {
        let api_key_id = match identity.credential {
            Credential::Session => None,
            Credential::ApiKey(key) => Some(key),
        };
        Self {
            user_id: identity.user_id,
            api_key_id,
            organization_id: scope.map(|scope| scope.organization_id),
            permissions: scope.map(|scope| scope.permissions.clone()).unwrap_or_default(),
        }
    }

    pub(crate) fn permission_words(&self) -> Vec<String> {
        self.permissions.iter().map(|permission| permission.to_string()).collect()
    }

    /// Whoever has lost a right since does not get an answer that took it.
    fn may_still(&self, words: &[String]) -> bool {
        words.iter().all(|word| word.parse::<Permission>().is_ok_and(|permission| self.permissions.allows(permission)))
    }
}

/// An answer of the API as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    pub status: u16,
    /// Name and value of those headers that are the answer's own.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// A claimed key: carry out the call, then [`answer`] it, or [`release`] it when nothing was done.
#[derive(Debug, Clone, Copy)]
pub struct Claim(Uuid);

/// What a key says to do.
#[derive(Debug)]
pub enum Begun {
    /// The first call.
    New(Claim),
    /// It was carried out; this was its answer.
    Replay(StoredAnswer),
}

/// Claims a key for a call. `digest` says what the call is: another one under the same key is `Invalid`. `Conflict` with `idempotency_in_progress` while the
/// first is carried out, and with `idempotency_interrupted` when a process died over it.
pub async fn begin(control: &Control, caller: &Caller, key: &str, digest: &[u8]) -> Result<Begun> {
    let named = |message: String| Error::invalid("Idempotency-Key", message);
    if key.is_empty() || key.len() > LONGEST_KEY || key.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(named(format!("use 1 to {LONGEST_KEY} printable ASCII characters, such as a UUID")));
    }
    let now = control.clock.now();
    let mut connection = control.pool.acquire().await?;
    store::idempotency::forget_before(&mut connection, now - KEPT).await?;
    // Between a claim that fails and the look at who has it, that one may have given it back.
    for _ in 0..8 {
        let id = Uuid::now_v7();
        if store::idempotency::claim(&mut connection, id, caller, key, digest, *PROCESS, now).await? {
            return Ok(Begun::New(Claim(id)));
        }
        let Some(earlier) = store::idempotency::earlier(&mut connection, caller, key).await? else { continue };
        if earlier.digest != digest {
            return Err(named("this key was used for another call; take a new key for each".to_owned()));
        }
        if !caller.may_still(&earlier.permissions) {
            return Err(Error::forbidden(
                "permission_missing",
                "you have lost a right since the first call with this key; its answer is not given again",
            ));
        }
        return match earlier.answer {
            Some(sealed) => Ok(Begun::Replay(open(control, earlier.id, &sealed)?)),
            None if earlier.process == *PROCESS => Err(Error::conflict(
                "idempotency_in_progress",
                "the first call with this key is still being carried out; send it again in a moment",
            )),
            None => Err(Error::conflict(
                "idempotency_interrupted",
                "oCore was stopped in the middle of the first call with this key; look whether it took effect before you send it with a new key",
            )),
        };
    }
    Err(Error::conflict("idempotency_in_progress", "other calls with this key come and go; send it again in a moment"))
}

/// Keeps the answer of a claimed call. It may hold secrets that are shown once, so it is sealed.
pub async fn answer(control: &Control, Claim(id): Claim, answer: &StoredAnswer) -> Result<()> {
    let StoredAnswer { status, headers, body } = answer.clone();
    let written = serde_json::to_vec(&Written { status, headers, body: STANDARD.encode(body) });
    let written = written.map_err(|error| Error::internal("writing an answer that is kept", error))?;
    let sealed = secrets::seal(&control.settings, place(id), &Secret::new(written))?;
    store::idempotency::answer(&mut *control.pool.acquire().await?, id, &sealed).await
}

/// Gives the key back: the call was refused and did nothing, so it may be sent again.
pub async fn release(control: &Control, Claim(id): Claim) -> Result<()> {
    store::idempotency::release(&mut *control.pool.acquire().await?, id).await
}

fn open(control: &Control, id: Uuid, sealed: &[u8]) -> Result<StoredAnswer> {
    let broken = |error: &dyn std::fmt::Display| Error::broken(format!("the kept answer {id}: {error}"));
    let opened = secrets::open(&control.settings, place(id), sealed)?;
    let Written { status, headers, body } = serde_json::from_slice(opened.expose()).map_err(|error| broken(&error))?;
    Ok(StoredAnswer { status, headers, body: STANDARD.decode(body).map_err(|error| broken(&error))? })
}

fn place(row: Uuid) -> Place {
    Place { table: "idempotency_keys", column: "answer", row }
}
