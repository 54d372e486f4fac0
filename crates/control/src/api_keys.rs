//! API keys: how programs come in. A key is shown once, kept as a hash, limited to chosen permissions, and never stronger than the member
//! who made it is at the moment of its use.

use chrono::{DateTime, Datelike, Utc};
use ocore_model::{
    ids::{ApiKeyId, UserId},
    permission::{Permission, PermissionSet, Resource},
};
use serde_json::json;

use crate::{
    Control, Error, FieldError, Result,
    accounts::API_KEY_PREFIX,
    audit,
    authorization::{Credential, Grant, ManageApiKeys, ViewApiKeys},
    secrets, store,
};

/// How much of a key stays readable, so that its owner can tell it from others.
const SHOWN_CHARACTERS: usize = API_KEY_PREFIX.len() + 6;

/// A key, without what proves it.
#[derive(Debug, Clone)]
pub struct ApiKey {
    pub id: ApiKeyId,
    /// Its maker.
    pub user_id: UserId,
    pub user_email: String,
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    pub permissions: PermissionSet,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    /// To the minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone)]
pub struct NewApiKey {
    pub name: String,
    /// Words such as `manage:instances`; at least one.
    pub permissions: Vec<String>,
    pub expires_at: Option<DateTime<Utc>>,
}

/// A key at the only moment when it can be read.
#[derive(Clone)]
pub struct CreatedApiKey {
    pub key: ApiKey,
    pub plaintext: String,
}

pub async fn list(control: &Control, grant: &Grant<ViewApiKeys>) -> Result<Vec<ApiKey>> {
    store::api_keys::list(&mut *control.pool.acquire().await?, grant).await
}

/// Makes a key of the caller. More permissions than the caller has are `Forbidden`. One that is made with another key never outlives that: it expires
/// no later, and ends when that is revoked.
pub async fn create(control: &Control, grant: &Grant<ManageApiKeys>, new: NewApiKey) -> Result<CreatedApiKey> {
    let now = control.clock.now();
    let mut fields = Vec::new();
    let name = new.name.trim().to_owned();
    if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        fields.push(FieldError { field: "name".to_owned(), message: "give a name of 1 to 100 characters".to_owned() });
    }
    let permissions = parse_permissions("permissions", &new.permissions, &mut fields);
    if new.permissions.is_empty() {
        fields.push(FieldError { field: "permissions".to_owned(), message: "choose at least one permission".to_owned() });
    }
    if new.expires_at.is_some_and(|expires_at| expires_at <= now) {
        fields.push(FieldError { field: "expiresAt".to_owned(), message: "it lies in the past".to_owned() });
    }
    // RFC 3339 has four digits for a year: a later one could not be read back.
    if new.expires_at.is_some_and(|expires_at| expires_at.year() > 9999) {
        fields.push(FieldError {
            field: "expiresAt".to_owned(),
            message: "use a year up to 9999, or leave it out for a key that does not expire".to_owned(),
        });
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    may_give(&grant.permissions, &permissions)?;
    let mut transaction = control.pool.begin().await?;
    let made_with = match grant.credential {
        Credential::Session => None,
        Credential::ApiKey(id) => Some(id),
    };
    let expires_at = match made_with {
        None => new.expires_at,
        Some(id) => expiry_within(store::api_keys::hold(&mut transaction, id).await?.ok_or_else(revoked)?, new.expires_at)?,
    };
    let user = store::accounts::user(&mut transaction, grant.user_id).await?.ok_or(Error::NotFound { what: "user" })?;
    let plaintext = secrets::new_token(API_KEY_PREFIX);
    let key = ApiKey {
        id: ApiKeyId::new(),
        user_id: user.id,
        user_email: user.email,
        name,
        prefix: plaintext[..SHOWN_CHARACTERS].to_owned(),
        permissions,
        created_at: now,
        expires_at,
        last_used_at: None,
    };
    store::api_keys::insert(&mut transaction, grant, &key, &secrets::token_hash(&plaintext), made_with).await?;
    let detail = json!({ "name": key.name, "prefix": key.prefix, "permissions": key.permissions });
    audit::record(&mut transaction, control, grant, "api_key.created", &format!("api_key:{}", key.id), &detail).await?;
    transaction.commit().await?;
    tracing::info!(api_key_id = %key.id, user_id = %key.user_id, "an API key was made");
    Ok(CreatedApiKey { key, plaintext })
}

/// When a key expires that is made with one that expires then.
fn expiry_within(of_maker: Option<DateTime<Utc>>, wished: Option<DateTime<Utc>>) -> Result<Option<DateTime<Utc>>> {
    match (of_maker, wished) {
        (Some(latest), Some(wished)) if wished > latest => Err(Error::invalid(
            "expiresAt",
            format!("a key that is made with another one expires no later than that: at {} at the latest", latest.to_rfc3339()),
        )),
        (of_maker, wished) => Ok(wished.or(of_maker)),
    }
}

fn revoked() -> Error {
    Error::unauthenticated("api_key_revoked", "this API key has been revoked")
}

/// Ends a key at once, and those that were made with it. Everybody ends their own; those of others need `manage:members`, and are `NotFound` without it.
pub async fn revoke(control: &Control, grant: &Grant<ManageApiKeys>, id: ApiKeyId) -> Result<()> {
    let of = if grant.permissions.allows(Permission::manage(Resource::Members)) { None } else { Some(grant.user_id) };
    let mut transaction = control.pool.begin().await?;
    if !store::api_keys::revoke(&mut transaction, grant, id, of, control.clock.now()).await? {
        return Err(Error::NotFound { what: "API key" });
    }
    audit::record(&mut transaction, control, grant, "api_key.revoked", &format!("api_key:{id}"), &json!({})).await?;
    transaction.commit().await?;
    Ok(())
}

/// The words that are permissions; the others become errors of the field.
pub(crate) fn parse_permissions(field: &str, words: &[String], fields: &mut Vec<FieldError>) -> PermissionSet {
    words
        .iter()
        .enumerate()
        .filter_map(|(index, word)| match word.parse::<Permission>() {
            Ok(permission) => Some(permission),
            Err(error) => {
                fields.push(FieldError { field: format!("{field}[{index}]"), message: error.to_string() });
                None
            }
        })
        .collect()
}

/// Nobody gives more than they have.
pub(crate) fn may_give(own: &PermissionSet, given: &PermissionSet) -> Result<()> {
    let missing: Vec<String> =
        given.iter().filter(|&permission| !own.allows(permission)).map(|permission| permission.to_string()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::forbidden("more_than_own_permissions", format!("you cannot give permissions that you do not have: {}", missing.join(", "))))
}
