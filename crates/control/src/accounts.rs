//! People and how they prove who they are: sign-up, log-in, sessions, and the way from a token to a [`Scope`].

mod deletion;
mod identity;
mod password;
mod session;
mod throttle;

use std::net::IpAddr;

use chrono::{DateTime, TimeDelta, Utc};
use ocore_model::ids::UserId;

pub use deletion::delete;
pub(crate) use identity::Membership;
pub use identity::{API_KEY_PREFIX, Identity, Person, authenticate, identify};
pub use session::{Tokens, log_out, log_out_by_refresh_token, refresh};

use crate::{Control, Error, FieldError, Result, authorization::System, members, secrets, store};

/// A person as they see themselves.
#[derive(Debug, Clone)]
pub struct User {
    pub id: UserId,
    pub email: String,
    pub name: String,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// What a new user says about themselves.
#[derive(Debug, Clone)]
pub struct NewUser {
    pub email: String,
    pub name: String,
    pub password: String,
    /// The token of an invitation: its holder may sign up where sign-up is closed, and joins the organization at once.
    pub invitation: Option<String>,
}

/// From where somebody logs in.
#[derive(Debug, Clone, Default)]
pub struct Client {
    pub address: Option<IpAddr>,
    pub user_agent: String,
}

/// A user who has just logged in or signed up.
#[derive(Debug, Clone)]
pub struct LoggedIn {
    pub user: User,
    pub tokens: Tokens,
}

/// Makes a user and logs them in. The first user of an installation always may; others when sign-up is open or they are invited.
/// An e-mail that is taken is `Conflict` with the code `email_taken`.
pub async fn sign_up(control: &Control, new: NewUser, client: &Client) -> Result<LoggedIn> {
    let email = check_new_user(&new)?;
    // Before the costly hash, so that a closed installation cannot be kept busy; decided again in the transaction.
    may_sign_up(control, &mut *control.pool.acquire().await?, &new).await?;
    let hash = password::hash(new.password.clone()).await?;
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    store::accounts::lock_sign_up(&mut transaction).await?;
    may_sign_up(control, &mut transaction, &new).await?;
    let user = User { id: UserId::new(), email, name: new.name.trim().to_owned(), created_at: now, updated_at: now };
    if !store::accounts::insert_user(&mut transaction, &user, &hash).await? {
        return Err(Error::conflict("email_taken", "there is a user with this e-mail address already; log in instead"));
    }
    if let Some(invitation) = &new.invitation {
        members::join(&mut transaction, &user, invitation, now).await?;
    }
    let tokens = session::begin(control, &mut transaction, user.id, client).await?;
    transaction.commit().await?;
    tracing::info!(user_id = %user.id, "a user signed up");
    Ok(LoggedIn { user, tokens })
}

async fn may_sign_up(control: &Control, connection: &mut sqlx::PgConnection, new: &NewUser) -> Result<()> {
    if control.settings.open_signup || !store::accounts::any_user(connection).await? {
        return Ok(());
    }
    let invited = match &new.invitation {
        Some(token) => store::members::pending_invitation(connection, &secrets::token_hash(token), control.clock.now()).await?.is_some(),
        None => false,
    };
    if invited {
        return Ok(());
    }
    Err(Error::forbidden("signup_closed", "sign-up is closed on this installation; ask a member of an organization for an invitation"))
}

/// Logs a user in. A wrong password and an unknown e-mail give the same answer, `invalid_credentials`, after the same work; too many attempts
/// from one address for one e-mail give `TooMany`.
pub async fn log_in(control: &Control, email: &str, password: &str, client: &Client) -> Result<LoggedIn> {
    let wrong = || Error::unauthenticated("invalid_credentials", "the e-mail address or the password is wrong");
    let email = normalize_email(email);
    let attempt = throttle::Attempt::of(&email, client);
    throttle::count(control, &attempt).await?;
    let known = store::accounts::user_by_email(&mut *control.pool.acquire().await?, &email).await?;
    let (user, hash) = match known {
        Some((user, hash)) => (Some(user), Some(hash)),
        None => (None, None),
    };
    let matches = password::verify(password.to_owned(), hash).await?;
    let Some(user) = user.filter(|_| matches) else {
        return Err(wrong());
    };
    let mut transaction = control.pool.begin().await?;
    throttle::forget(&mut transaction, &attempt).await?;
    let tokens = session::begin(control, &mut transaction, user.id, client).await?;
    transaction.commit().await?;
    Ok(LoggedIn { user, tokens })
}

/// What a user changes their password with.
#[derive(Clone)]
pub struct PasswordChange {
    pub current: String,
    pub new: String,
    pub revoke_other_sessions: bool,
}

/// Changes the caller's password. A wrong current one is `Invalid`, and counts as an attempt to log in.
pub async fn change_password(control: &Control, person: &Person, change: PasswordChange, client: &Client) -> Result<()> {
    password::check(&change.new).map_err(|message| Error::invalid("newPassword", message))?;
    let user = store::accounts::user(&mut *control.pool.acquire().await?, person.user_id).await?.ok_or(Error::NotFound { what: "user" })?;
    let attempt = throttle::Attempt::of(&user.email, client);
    throttle::count(control, &attempt).await?;
    let known = store::accounts::user_by_email(&mut *control.pool.acquire().await?, &user.email).await?;
    if !password::verify(change.current, known.map(|(_, hash)| hash)).await? {
        return Err(Error::invalid("currentPassword", "this is not your password"));
    }
    let hash = password::hash(change.new).await?;
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    throttle::forget(&mut transaction, &attempt).await?;
    store::accounts::set_password(&mut transaction, user.id, &hash, now).await?;
    if change.revoke_other_sessions {
        store::accounts::revoke_other_sessions(&mut transaction, user.id, person.session_id, now).await?;
    }
    transaction.commit().await?;
    tracing::info!(user_id = %user.id, "a user changed their password");
    Ok(())
}

/// The user behind an identity.
pub async fn current_user(control: &Control, identity: &Identity) -> Result<User> {
    store::accounts::user(&mut *control.pool.acquire().await?, identity.user_id).await?.ok_or(Error::NotFound { what: "user" })
}

/// How long ended sessions are kept, for whoever looks into what happened.
const KEPT: TimeDelta = TimeDelta::days(7);

/// Removes sessions that ended a week ago and counts of attempts that no longer hold. The program calls it now and then.
pub async fn prune(_system: System, control: &Control) -> Result<()> {
    let now = control.clock.now();
    store::accounts::prune(&mut *control.pool.acquire().await?, now, now - KEPT).await
}

pub(crate) fn normalize_email(email: &str) -> String {
    email.trim().to_lowercase()
}

/// The normalized e-mail address, or what is wrong with the input, all fields at once.
fn check_new_user(new: &NewUser) -> Result<String> {
    let mut fields = Vec::new();
    let email = match check_email(&new.email) {
        Ok(email) => email,
        Err(message) => {
            fields.push(FieldError { field: "email".to_owned(), message: message.to_owned() });
            String::new()
        }
    };
    let name = new.name.trim();
    if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        fields.push(FieldError { field: "name".to_owned(), message: "give a name of 1 to 100 characters".to_owned() });
    }
    if let Err(message) = password::check(&new.password) {
        fields.push(FieldError { field: "password".to_owned(), message: message.to_owned() });
    }
    if fields.is_empty() { Ok(email) } else { Err(Error::Invalid { fields }) }
}

/// A plain check that catches slips; only a mail that arrives could prove more.
pub(crate) fn check_email(email: &str) -> Result<String, &'static str> {
    let email = normalize_email(email);
    let plausible = email.len() <= 254
        && !email.chars().any(|c| c.is_control() || c.is_whitespace() || "<>(),;:\\\"[]".contains(c))
        && email.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty()
                && local.len() <= 64
                && !domain.contains('@')
                && !domain.is_empty()
                && domain.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
        });
    if plausible { Ok(email) } else { Err("give an e-mail address such as ada@example.com") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn email_addresses_are_checked_for_slips_and_lowered() {
        for good in ["ada@example.com", " Ada@Example.COM ", "a.b+c@sub.example.org", "root@localhost", "ü@exämple.de"] {
            assert!(check_email(good).is_ok(), "{good}");
        }
        assert_eq!(check_email(" Ada@Example.COM ").unwrap(), "ada@example.com");
        for bad in ["", "ada", "@example.com", "ada@", "a b@example.com", "ada@example..com", "a@b@c", "ada@-example.com", "<a@b.c>"] {
            assert!(check_email(bad).is_err(), "{bad}");
        }
    }
}
