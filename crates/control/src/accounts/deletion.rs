//! The end of an account: with its sessions, its keys and its memberships. What it did keeps its name in the audit log of the organizations, and the
//! authors of commits stay who they were.

use serde_json::json;

use super::{Client, Identity, password, throttle};
use crate::{Control, Error, Result, audit, store};

/// Deletes the caller's own account, when they give its password again. Refused while an organization with anybody or anything else in it would be left
/// without an owner; one that they own alone and that is empty goes with the account.
pub async fn delete(control: &Control, identity: &Identity, password: String, client: &Client) -> Result<()> {
    let person = identity.person()?;
    let user = store::accounts::user(&mut *control.pool.acquire().await?, person.user_id).await?.ok_or(Error::NotFound { what: "user" })?;
    let attempt = throttle::Attempt::own_password(person.session_id);
    throttle::count(control, &attempt).await?;
    let known = store::accounts::user_by_email(&mut *control.pool.acquire().await?, &user.email).await?;
    if !password::verify(password, known.map(|(_, hash)| hash), client).await? {
        return Err(Error::invalid("password", "this is not your password"));
    }
    let mut transaction = control.pool.begin().await?;
    let mut own = store::organizations::of_user(&mut transaction, user.id).await?;
    // Everybody locks several of them in the same order.
    own.sort_by_key(|own| own.organization.id);
    let mut last = Vec::new();
    for own in own {
        let scope = identity.scope(Some(&own.organization.slug))?;
        store::members::lock(&mut transaction, &scope).await?;
        let members = store::members::list(&mut transaction, &scope).await?;
        let others_own = members.iter().any(|member| member.is_owner && member.user_id != user.id);
        let owns = members.iter().any(|member| member.is_owner && member.user_id == user.id);
        if !owns || others_own {
            let detail = json!({ "email": user.email, "role": own.role });
            audit::record(&mut transaction, control, &scope, "account.deleted", &format!("user:{}", user.id), &detail).await?;
        } else if members.len() == 1 && store::organizations::is_empty(&mut transaction, &scope).await? {
            store::removals::delete_organization(&mut transaction, own.organization.id).await?;
        } else {
            last.push(own.organization.slug);
        }
    }
    if !last.is_empty() {
        return Err(Error::conflict(
            "last_owner",
            format!("{} would have no owner left: make somebody else an owner, or delete what is yours alone first", last.join(", ")),
        ));
    }
    throttle::forget(&mut transaction, &attempt).await?;
    store::accounts::delete_user(&mut transaction, user.id).await?;
    transaction.commit().await?;
    tracing::info!(user_id = %user.id, "a user deleted their account");
    Ok(())
}
