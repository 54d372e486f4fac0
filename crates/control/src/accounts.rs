//! People and how they prove who they are: sign-up, log-in, sessions, and the way from a token to a [`Scope`].

mod deletion;
mod first_account;
mod identity;
mod password;
mod place;
mod session;
pub(crate) mod throttle;

use std::net::IpAddr;

use chrono::{DateTime, TimeDelta, Utc};
use ocore_model::{ids::UserId, network::of_customer};
use serde_json::json;

pub use deletion::delete;
pub use first_account::keep_first_account_file;
pub(crate) use identity::Membership;
pub use identity::{API_KEY_PREFIX, Identity, Person, authenticate, identify};
pub use place::{Thing, scope_of};
pub use session::{Tokens, log_out, log_out_by_refresh_token, refresh};

use throttle::Attempt;

use crate::{Control, Error, FieldError, Result, audit, authorization::System, members, store};

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
    /// The token of the first account: as long as there is no user, only its holder may sign up.
    pub first_account_token: Option<String>,
}

/// From where somebody logs in.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// The client itself, not a proxy before us. `None`: the program itself, which nothing limits.
    pub address: Option<IpAddr>,
    pub user_agent: String,
}

impl Client {
    /// What counts as one place that calls come from.
    fn network(&self) -> Option<String> {
        self.address.map(|address| of_customer(address).to_string())
    }
}

/// A user who has just logged in or signed up.
#[derive(Debug, Clone)]
pub struct LoggedIn {
    pub user: User,
    pub tokens: Tokens,
}

/// What lets somebody make an account.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// There is no user, and they have the token for that.
    First,
    Invited,
    /// Sign-up is open.
    Open,
}

/// Makes a user and logs them in. The first user of an installation needs its token; others may when sign-up is open or they are invited.
/// An e-mail that is taken is `Conflict` with the code `email_taken`; too many from one address are `TooMany`.
pub async fn sign_up(control: &Control, new: NewUser, client: &Client) -> Result<LoggedIn> {
    let email = check_new_user(&new)?;
    let attempt = match &new.invitation {
        Some(_) => Attempt::invitation(client),
        None => Attempt::sign_up(control, client),
    };
    if let Some(attempt) = &attempt {
        throttle::count(control, attempt).await?;
    }
    // Before the costly hash, so that a closed installation cannot be kept busy; decided again in the transaction.
    admission(control, &mut *control.pool.acquire().await?, &new, &email).await?;
    let hash = password::hash(new.password.clone(), client).await?;
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    store::accounts::lock_sign_up(&mut transaction).await?;
    let admission = admission(control, &mut transaction, &new, &email).await?;
    let user = User { id: UserId::new(), email, name: new.name.trim().to_owned(), created_at: now, updated_at: now };
    if !store::accounts::insert_user(&mut transaction, &user, &hash).await? {
        return Err(Error::conflict("email_taken", "there is a user with this e-mail address already; log in instead"));
    }
    if let Some(invitation) = &new.invitation {
        members::join(control, &mut transaction, &user, invitation).await?;
    }
    match admission {
        Admission::First => store::accounts::forget_first_account(&mut transaction).await?,
        // Of the invited any number may come from one address.
        Admission::Invited => take_back(&mut transaction, attempt.as_ref()).await?,
        Admission::Open => {}
    }
    let tokens = session::begin(control, &mut transaction, user.id, client).await?;
    transaction.commit().await?;
    if admission == Admission::First {
        first_account::made(control);
    }
    tracing::info!(user_id = %user.id, "a user signed up");
    Ok(LoggedIn { user, tokens })
}

async fn admission(control: &Control, connection: &mut sqlx::PgConnection, new: &NewUser, email: &str) -> Result<Admission> {
    if !store::accounts::any_user(connection).await? {
        first_account::check(control, connection, new.first_account_token.as_deref()).await?;
        return Ok(Admission::First);
    }
    if new.first_account_token.is_some() {
        // Of two who sign up with it at once, the later one: it must not become just another account without a word.
        return Err(Error::conflict(
            "first_account_made",
            "this installation has its first account already; log in, or ask for an invitation",
        ));
    }
    if let Some(token) = &new.invitation {
        members::invitation_for(connection, email, token, control.clock.now()).await?;
        return Ok(Admission::Invited);
    }
    if control.settings.open_signup {
        return Ok(Admission::Open);
    }
    Err(Error::forbidden("signup_closed", "sign-up is closed on this installation; ask a member of an organization for an invitation"))
}

async fn take_back(connection: &mut sqlx::PgConnection, attempt: Option<&Attempt>) -> Result<()> {
    match attempt {
        Some(attempt) => throttle::take_back(connection, attempt).await,
        None => Ok(()),
    }
}

/// Logs a user in. A wrong password and an unknown e-mail give the same answer, `invalid_credentials`, after the same work; too many wrong ones
/// from one address, for one e-mail or for all of them together, give `TooMany`. Nothing that comes from elsewhere counts.
pub async fn log_in(control: &Control, email: &str, password: &str, client: &Client) -> Result<LoggedIn> {
    let wrong = || Error::unauthenticated("invalid_credentials", "the e-mail address or the password is wrong");
    let email = normalize_email(email);
    let attempt = Attempt::log_in(&email, client);
    throttle::count(control, &attempt).await?;
    // Only then: whoever hammers at one account does not use up what their neighbours have.
    let from_there = Attempt::log_in_from(client);
    if let Some(from_there) = &from_there {
        throttle::count(control, from_there).await?;
    }
    let known = store::accounts::user_by_email(&mut *control.pool.acquire().await?, &email).await?;
    let (user, hash) = match known {
        Some((user, hash)) => (Some(user), Some(hash)),
        None => (None, None),
    };
    let matches = password::verify(password.to_owned(), hash, client).await?;
    let Some(user) = user.filter(|_| matches) else {
        return Err(wrong());
    };
    let mut transaction = control.pool.begin().await?;
    throttle::forget(&mut transaction, &attempt).await?;
    take_back(&mut transaction, from_there.as_ref()).await?;
    let tokens = session::begin(control, &mut transaction, user.id, client).await?;
    for own in store::organizations::of_user(&mut transaction, user.id).await? {
        let detail = json!({ "email": user.email });
        audit::record_of_person(&mut transaction, control, own.organization.id, user.id, "user.logged_in", &detail).await?;
    }
    transaction.commit().await?;
    Ok(LoggedIn { user, tokens })
}

/// What a user changes their password with.
#[derive(Clone)]
pub struct PasswordChange {
    pub current: String,
    pub new: String,
    pub revoke_other_sessions: bool,
    pub revoke_api_keys: bool,
}

/// Changes the caller's password; gives how many API keys of theirs still open something. A wrong current one is `Invalid`, and too many of those in one
/// session are `TooMany`; neither counts as an attempt to log in.
pub async fn change_password(control: &Control, person: &Person, change: PasswordChange, client: &Client) -> Result<u64> {
    password::check(&change.new).map_err(|message| Error::invalid("newPassword", message))?;
    let attempt = Attempt::own_password(person.session_id);
    throttle::count(control, &attempt).await?;
    let known = store::accounts::password_hash(&mut *control.pool.acquire().await?, person.user_id).await?;
    let current = known.ok_or(Error::NotFound { what: "user" })?;
    if !password::verify(change.current, Some(current), client).await? {
        return Err(Error::invalid("currentPassword", "this is not your password"));
    }
    let hash = password::hash(change.new, client).await?;
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    throttle::forget(&mut transaction, &attempt).await?;
    store::accounts::set_password(&mut transaction, person.user_id, &hash, now).await?;
    if change.revoke_other_sessions {
        store::accounts::revoke_other_sessions(&mut transaction, person.user_id, person.session_id, now).await?;
    }
    if change.revoke_api_keys {
        store::api_keys::revoke_of_user(&mut transaction, person.user_id, now).await?;
    }
    let keys = store::api_keys::count_of_user(&mut transaction, person.user_id, now).await?;
    transaction.commit().await?;
    tracing::info!(user_id = %person.user_id, "a user changed their password");
    Ok(keys)
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
