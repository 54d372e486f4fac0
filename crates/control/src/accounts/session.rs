//! Sessions: one a log-in. A short access token (JWT, HS256) proves it; a refresh token, good for one use, renews it. A refresh token that
//! comes a second time was stolen or is held by a thief's victim; which of the two cannot be known, so the whole session ends. There is no
//! grace for a second use: a client refreshes once at a time.

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ocore_model::ids::{SessionId, UserId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Client, LoggedIn, Person};
use crate::{
    Control, Error, Result,
    secrets::{self, Purpose},
    store::{self, accounts::RefreshToken},
};

const ISSUER: &str = "ocore";
const AUDIENCE: &str = "ocore-api";
const REFRESH_TOKEN_PREFIX: &str = "refresh_";

/// What proves a session. Never logged: `Debug` says only when they expire.
#[derive(Clone)]
pub struct Tokens {
    pub access_token: String,
    pub access_expires_at: DateTime<Utc>,
    pub refresh_token: String,
    pub refresh_expires_at: DateTime<Utc>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokens")
            .field("access_expires_at", &self.access_expires_at)
            .field("refresh_expires_at", &self.refresh_expires_at)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: String,
    aud: String,
    pub(super) sub: UserId,
    pub(super) sid: SessionId,
    iat: i64,
    exp: i64,
}

/// Starts a session for a user who has just proven who they are.
pub(super) async fn begin(control: &Control, connection: &mut PgConnection, user: UserId, client: &Client) -> Result<Tokens> {
    let session = SessionId::new();
    let now = control.clock.now();
    let user_agent: String = client.user_agent.chars().filter(|c| !c.is_control()).take(300).collect();
    store::accounts::insert_session(connection, session, user, &user_agent, now, now + control.settings.refresh_token_lifetime).await?;
    issue(control, connection, user, session, now).await
}

/// Exchanges a refresh token for new tokens. Works once a token: the second use ends the session, `refresh_token_reused`.
pub async fn refresh(control: &Control, refresh_token: &str) -> Result<LoggedIn> {
    let invalid = || Error::unauthenticated("refresh_token_invalid", "the refresh token is unknown or its session has ended; log in again");
    let now = control.clock.now();
    let hash = secrets::token_hash(refresh_token);
    let mut transaction = control.pool.begin().await?;
    let RefreshToken { session_id, user_id, used_at, expires_at, revoked_at } =
        store::accounts::refresh_token_for_update(&mut transaction, &hash).await?.ok_or_else(invalid)?;
    if revoked_at.is_some() || expires_at <= now {
        return Err(invalid());
    }
    if used_at.is_some() {
        store::accounts::revoke_session(&mut transaction, session_id, now).await?;
        transaction.commit().await?;
        tracing::warn!(%user_id, %session_id, "a refresh token was used twice; its session has ended");
        return Err(Error::unauthenticated(
            "refresh_token_reused",
            "this refresh token was used before, so somebody else may have it; the session has ended, log in again",
        ));
    }
    store::accounts::use_refresh_token(&mut transaction, &hash, now).await?;
    store::accounts::extend_session(&mut transaction, session_id, now + control.settings.refresh_token_lifetime).await?;
    let tokens = issue(control, &mut transaction, user_id, session_id, now).await?;
    let user = store::accounts::user(&mut transaction, user_id).await?.ok_or_else(invalid)?;
    transaction.commit().await?;
    Ok(LoggedIn { user, tokens })
}

/// Ends the session. An ended one stays ended.
pub async fn log_out(control: &Control, person: &Person) -> Result<()> {
    store::accounts::revoke_session(&mut *control.pool.acquire().await?, person.session_id, control.clock.now()).await
}

/// Ends the session of a refresh token, used or not. One that nobody knows has no session: done.
pub async fn log_out_by_refresh_token(control: &Control, refresh_token: &str) -> Result<()> {
    let mut connection = control.pool.acquire().await?;
    let hash = secrets::token_hash(refresh_token);
    if let Some(token) = store::accounts::refresh_token_for_update(&mut connection, &hash).await? {
        store::accounts::revoke_session(&mut connection, token.session_id, control.clock.now()).await?;
    }
    Ok(())
}

async fn issue(control: &Control, connection: &mut PgConnection, user: UserId, session: SessionId, now: DateTime<Utc>) -> Result<Tokens> {
    let access_expires_at = now + control.settings.access_token_lifetime;
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: user,
        sid: session,
        iat: now.timestamp(),
        exp: access_expires_at.timestamp(),
    };
    let key = EncodingKey::from_secret(&secrets::derive(&control.settings, Purpose::AccessTokens));
    let access_token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
        .map_err(|error| Error::internal("signing an access token", error))?;
    let refresh_token = secrets::new_token(REFRESH_TOKEN_PREFIX);
    store::accounts::insert_refresh_token(connection, &secrets::token_hash(&refresh_token), session, now).await?;
    Ok(Tokens { access_token, access_expires_at, refresh_token, refresh_expires_at: now + control.settings.refresh_token_lifetime })
}

/// The claims of a token that this installation signed and that has not expired. Whether its session still stands is for the store to say.
pub(super) fn verify(control: &Control, access_token: &str) -> Result<Claims> {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    // By the control plane's own clock, below.
    validation.validate_exp = false;
    let key = DecodingKey::from_secret(&secrets::derive(&control.settings, Purpose::AccessTokens));
    let claims = jsonwebtoken::decode::<Claims>(access_token, &key, &validation)
        .map_err(|_| Error::unauthenticated("token_invalid", "the access token is not one of this installation; log in"))?
        .claims;
    if claims.exp <= control.clock.now().timestamp() {
        return Err(Error::unauthenticated("token_expired", "the access token has expired; refresh it or log in again"));
    }
    Ok(claims)
}
