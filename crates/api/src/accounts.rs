//! Sign-up, log-in, sessions, the caller themselves.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use ocore_control::{
    Error,
    accounts::{self, LoggedIn, NewUser},
};
use ocore_model::ids::UserId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AppState,
    authorized::{Caller, SignedIn, from_our_own_page},
    cookies,
    extract::{Input, Peer},
    problem::Problem,
    wire::Message,
};

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SignUp {
    #[schema(format = Email)]
    #[schema(min_length = 3, max_length = 254)]
    email: String,
    /// At least 8 characters with a letter and a number.
    #[schema(format = Password)]
    #[schema(min_length = 8, max_length = 200)]
    password: String,
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// The token of an invitation; its organization is joined at once.
    invitation: Option<String>,
    /// As long as the installation has no user, only the holder of the token that `ocore serve` prints at its start may sign up. It works once.
    first_account_token: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LogIn {
    #[schema(format = Email)]
    email: String,
    #[schema(format = Password)]
    password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RefreshToken {
    /// A browser leaves it out and sends its cookie.
    refresh_token: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ChangePassword {
    #[schema(format = Password)]
    current_password: String,
    #[schema(format = Password)]
    #[schema(min_length = 8, max_length = 200)]
    new_password: String,
    /// Ends every other session of the user; true when left out.
    #[serde(default = "yes")]
    revoke_other_sessions: bool,
    /// Revokes every API key of the user, in all organizations; false when left out, since programs work with them.
    #[serde(default)]
    revoke_api_keys: bool,
}

fn yes() -> bool {
    true
}

/// A person.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct User {
    #[schema(value_type = Uuid)]
    id: UserId,
    email: String,
    name: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// A session that has begun or was renewed. The same tokens are set as HttpOnly cookies.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    user: User,
    access_token: String,
    /// Good for one use.
    refresh_token: String,
    /// `Bearer`
    token_type: &'static str,
    /// Seconds until the access token expires.
    expires_in: i64,
    /// Seconds until the refresh token expires.
    refresh_expires_in: i64,
}

impl From<accounts::User> for User {
    fn from(user: accounts::User) -> Self {
        Self { id: user.id, email: user.email, name: user.name, created_at: user.created_at, updated_at: user.updated_at }
    }
}

/// Sign up.
///
/// Makes a user and logs them in: the first one with the installation's token, then whoever is invited, or everybody where sign-up is open. Answers 429
/// after too many from one network.
#[utoipa::path(post, path = "/auth/signup", tag = "Accounts", request_body = SignUp, security(()),
    responses((status = 201, description = "The user is there and logged in.", body = Session)))]
pub(crate) async fn signup(State(state): State<AppState>, Peer(client): Peer, Input(body): Input<SignUp>) -> Result<Response, Problem> {
    let SignUp { email, password, name, invitation, first_account_token } = body;
    let new = NewUser { email, name, password, invitation, first_account_token };
    let logged_in = accounts::sign_up(&state.control, new, &client).await?;
    Ok(session(&state, StatusCode::CREATED, logged_in))
}

/// Log in.
///
/// Answers 429 after too many wrong passwords from one network, for one e-mail address or for all together.
#[utoipa::path(post, path = "/auth/login", tag = "Accounts", request_body = LogIn, security(()),
    responses((status = 200, description = "A session has begun.", body = Session)))]
pub(crate) async fn login(State(state): State<AppState>, Peer(client): Peer, Input(body): Input<LogIn>) -> Result<Response, Problem> {
    let logged_in = accounts::log_in(&state.control, &body.email, &body.password, &client).await?;
    Ok(session(&state, StatusCode::OK, logged_in))
}

/// Renew a session.
///
/// A refresh token works once: refresh one at a time, and keep the new one. A second use ends the session.
#[utoipa::path(post, path = "/auth/refresh", tag = "Accounts", request_body = Option<RefreshToken>, security(()),
    responses((status = 200, description = "New tokens.", body = Session)))]
pub(crate) async fn refresh(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Option<Input<RefreshToken>>,
) -> Result<Response, Problem> {
    let token = if let Some(token) = body.and_then(|Input(body)| body.refresh_token) {
        token
    } else {
        let missing = || Error::unauthenticated("authentication_required", "send a refresh token, or the cookie that has it");
        let token = cookies::refresh_token(&headers, &state.control.settings).ok_or_else(missing)?;
        from_our_own_page(&headers, &state)?;
        token
    };
    match accounts::refresh(&state.control, &token).await {
        Ok(logged_in) => Ok(session(&state, StatusCode::OK, logged_in)),
        Err(error) => {
            let mut response = Problem::from(error).into_response();
            // A browser would send the dead cookies for ever.
            if response.status() == StatusCode::UNAUTHORIZED {
                cookies::clear(response.headers_mut(), &state.control.settings);
            }
            Ok(response)
        }
    }
}

/// Log out.
///
/// Ends the session of the refresh token in the body, or else the caller's own. An ended session stays ended.
#[utoipa::path(post, path = "/auth/logout", tag = "Accounts", request_body = Option<RefreshToken>, security((), ("bearer" = []), ("cookie" = [])),
    responses((status = 200, description = "The session has ended; the cookies are cleared.", body = Message)))]
pub(crate) async fn logout(
    State(state): State<AppState>,
    headers: HeaderMap,
    caller: Result<SignedIn, Problem>,
    body: Option<Input<RefreshToken>>,
) -> Result<Response, Problem> {
    let settings = &state.control.settings;
    if let Some(token) = body.and_then(|Input(body)| body.refresh_token) {
        accounts::log_out_by_refresh_token(&state.control, &token).await?;
    } else {
        match (caller, cookies::refresh_token(&headers, settings)) {
            (Ok(SignedIn(person)), _) => accounts::log_out(&state.control, &person).await?,
            // The access cookie is gone first; the refresh cookie still says which session it is.
            (Err(_), Some(token)) => {
                from_our_own_page(&headers, &state)?;
                accounts::log_out_by_refresh_token(&state.control, &token).await?;
            }
            (Err(problem), None) => return Err(problem),
        }
    }
    let mut response = Message::json("logged out").into_response();
    cookies::clear(response.headers_mut(), settings);
    Ok(response)
}

/// Show the caller.
///
/// The user who is logged in, or who made the API key.
#[utoipa::path(get, path = "/user", tag = "Accounts", responses((status = 200, description = "The caller.", body = User)))]
pub(crate) async fn user(State(state): State<AppState>, Caller(identity): Caller) -> Result<Json<User>, Problem> {
    Ok(Json(accounts::current_user(&state.control, &identity).await?.into()))
}

/// Change the password.
///
/// Other sessions end with it; the answer says how many API keys still work. Answers 429 after too many wrong current passwords.
#[utoipa::path(post, path = "/user/change-password", tag = "Accounts", request_body = ChangePassword,
    responses((status = 200, description = "The new password holds.", body = Message)))]
pub(crate) async fn change_password(
    State(state): State<AppState>,
    SignedIn(person): SignedIn,
    Peer(client): Peer,
    Input(body): Input<ChangePassword>,
) -> Result<Json<Message>, Problem> {
    let change = accounts::PasswordChange {
        current: body.current_password,
        new: body.new_password,
        revoke_other_sessions: body.revoke_other_sessions,
        revoke_api_keys: body.revoke_api_keys,
    };
    let keys = accounts::change_password(&state.control, &person, change, &client).await?;
    Ok(Message::json(match keys {
        0 => "the password is changed".to_owned(),
        keys => format!("the password is changed; {keys} of your API keys still work, revoke those that you do not know"),
    }))
}

/// The password once more.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeleteAccount {
    #[schema(format = Password)]
    password: String,
}

/// Delete one's account.
///
/// With its sessions, API keys and memberships; audit logs and commits keep the name. 409 `last_owner` while an organization that is not empty would be left
/// without an owner.
#[utoipa::path(post, path = "/user/delete", tag = "Accounts", request_body = DeleteAccount,
    responses((status = 200, description = "It is gone; the cookies are cleared.", body = Message)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(identity): Caller,
    Peer(client): Peer,
    Input(body): Input<DeleteAccount>,
) -> Result<Response, Problem> {
    accounts::delete(&state.control, &identity, body.password, &client).await?;
    let mut response = Message::json("your account is deleted").into_response();
    cookies::clear(response.headers_mut(), &state.control.settings);
    Ok(response)
}

fn session(state: &AppState, status: StatusCode, LoggedIn { user, tokens }: LoggedIn) -> Response {
    let now = state.control.clock.now();
    let body = Session {
        user: user.into(),
        access_token: tokens.access_token.clone(),
        refresh_token: tokens.refresh_token.clone(),
        token_type: "Bearer",
        expires_in: (tokens.access_expires_at - now).num_seconds(),
        refresh_expires_in: (tokens.refresh_expires_at - now).num_seconds(),
    };
    let mut response = (status, Json(body)).into_response();
    cookies::set(response.headers_mut(), &tokens, now, &state.control.settings);
    response
}
