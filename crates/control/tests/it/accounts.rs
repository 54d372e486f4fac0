use anyhow::Result;
use chrono::TimeDelta;
use ocore_control::{
    Error,
    accounts::{self, Client, NewUser},
    secrets::Secret,
};
use ocore_testkit::{Store, store::PASSWORD};

pub(crate) fn code(error: &Error) -> &'static str {
    match error {
        Error::Unauthenticated { code, .. }
        | Error::Forbidden { code, .. }
        | Error::Conflict { code, .. }
        | Error::Ambiguous { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

fn new_user(email: &str) -> NewUser {
    NewUser { email: email.to_owned(), name: "Ada".to_owned(), password: PASSWORD.to_owned(), invitation: None, first_account_token: None }
}

#[tokio::test]
async fn who_signs_up_can_log_in_and_is_known_by_the_access_token() -> Result<()> {
    let store = Store::new().await?;
    store.user("first@example.com").await?;
    let signed_up = accounts::sign_up(&store.control, new_user(" Ada@Example.com "), &Client::default()).await?;
    assert_eq!(signed_up.user.email, "ada@example.com");
    let logged_in = accounts::log_in(&store.control, "ADA@example.com", PASSWORD, &Client::default()).await?;
    let identity = accounts::identify(&store.control, &logged_in.tokens.access_token).await?;
    assert_eq!(identity.user_id, signed_up.user.id);
    assert_eq!(accounts::current_user(&store.control, &identity).await?.email, "ada@example.com");
    Ok(())
}

#[tokio::test]
async fn an_email_address_signs_up_once_in_whatever_case() -> Result<()> {
    let store = Store::new().await?;
    store.user("ada@example.com").await?;
    let error = accounts::sign_up(&store.control, new_user("ADA@example.com"), &Client::default()).await.unwrap_err();
    assert_eq!(code(&error), "email_taken");
    Ok(())
}

#[tokio::test]
async fn closed_sign_up_lets_only_the_invited_in() -> Result<()> {
    let store = Store::new().await?.with_settings(|settings| settings.open_signup = false);
    let owner = store.organization("acme").await?;
    let error = accounts::sign_up(&store.control, new_user("eve@example.com"), &Client::default()).await.unwrap_err();
    assert_eq!(code(&error), "signup_closed");

    let roles = ocore_control::roles::list(&store.control, &owner.scope.grant()?).await?;
    let viewer = roles.iter().find(|role| role.name == "Viewer").unwrap().id;
    let invitation = ocore_control::members::invite(&store.control, &owner.scope.grant()?, "bob@example.com", viewer).await?;
    let other = NewUser { invitation: Some(invitation.token.clone()), ..new_user("eve@example.com") };
    assert!(matches!(accounts::sign_up(&store.control, other, &Client::default()).await, Err(Error::NotFound { .. })));
    let bob = NewUser { invitation: Some(invitation.token), ..new_user("bob@example.com") };
    let bob = accounts::sign_up(&store.control, bob, &Client::default()).await?;
    let scope = accounts::authenticate(&store.control, &bob.tokens.access_token, None).await?;
    assert_eq!(scope.organization_slug, "acme");
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_email_address_are_told_alike() -> Result<()> {
    let store = Store::new().await?;
    store.user("ada@example.com").await?;
    let wrong = accounts::log_in(&store.control, "ada@example.com", "wrong horse 1", &Client::default()).await.unwrap_err();
    let unknown = accounts::log_in(&store.control, "eve@example.com", PASSWORD, &Client::default()).await.unwrap_err();
    assert_eq!(code(&wrong), "invalid_credentials");
    assert_eq!(wrong.to_string(), unknown.to_string());
    Ok(())
}

#[tokio::test]
async fn guessing_is_throttled_by_email_and_address_until_the_window_is_over() -> Result<()> {
    let store = Store::new().await?;
    store.user("ada@example.com").await?;
    let from = |address: &str| Client { address: Some(address.parse().unwrap()), user_agent: String::new() };
    for _ in 0..10 {
        let error = accounts::log_in(&store.control, "ada@example.com", "wrong horse 1", &from("192.0.2.1")).await.unwrap_err();
        assert_eq!(code(&error), "invalid_credentials");
    }
    let throttled = accounts::log_in(&store.control, "ada@example.com", PASSWORD, &from("192.0.2.1")).await.unwrap_err();
    assert!(matches!(throttled, Error::TooMany { retry_after_seconds: 1..=900 }), "{throttled:?}");
    accounts::log_in(&store.control, "ada@example.com", PASSWORD, &from("192.0.2.2")).await?;
    store.clock.advance(TimeDelta::minutes(16));
    accounts::log_in(&store.control, "ada@example.com", PASSWORD, &from("192.0.2.1")).await?;
    Ok(())
}

#[tokio::test]
async fn a_success_forgets_the_failures_before_it() -> Result<()> {
    let store = Store::new().await?;
    store.user("ada@example.com").await?;
    for _ in 0..3 {
        for _ in 0..9 {
            accounts::log_in(&store.control, "ada@example.com", "wrong horse 1", &Client::default()).await.unwrap_err();
        }
        accounts::log_in(&store.control, "ada@example.com", PASSWORD, &Client::default()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_refresh_token_works_once_and_its_second_use_ends_the_session() -> Result<()> {
    let store = Store::new().await?;
    let first = store.user("ada@example.com").await?.tokens;
    let second = accounts::refresh(&store.control, &first.refresh_token).await?.tokens;
    assert_ne!(first.refresh_token, second.refresh_token);
    accounts::identify(&store.control, &second.access_token).await?;

    let reused = accounts::refresh(&store.control, &first.refresh_token).await.unwrap_err();
    assert_eq!(code(&reused), "refresh_token_reused");
    let ended = accounts::identify(&store.control, &second.access_token).await.unwrap_err();
    assert_eq!(code(&ended), "session_ended");
    let ended = accounts::refresh(&store.control, &second.refresh_token).await.unwrap_err();
    assert_eq!(code(&ended), "refresh_token_invalid");
    Ok(())
}

#[tokio::test]
async fn two_uses_of_a_refresh_token_at_once_do_not_both_win() -> Result<()> {
    let store = Store::new().await?;
    let tokens = store.user("ada@example.com").await?.tokens;
    let (one, other) =
        tokio::join!(accounts::refresh(&store.control, &tokens.refresh_token), accounts::refresh(&store.control, &tokens.refresh_token));
    assert_eq!(u8::from(one.is_ok()) + u8::from(other.is_ok()), 1);
    Ok(())
}

#[tokio::test]
async fn tokens_expire_and_a_session_lives_as_long_as_it_is_refreshed() -> Result<()> {
    let store = Store::new().await?;
    let mut tokens = store.user("ada@example.com").await?.tokens;
    store.clock.advance(TimeDelta::minutes(61));
    let expired = accounts::identify(&store.control, &tokens.access_token).await.unwrap_err();
    assert_eq!(code(&expired), "token_expired");
    for _ in 0..3 {
        store.clock.advance(TimeDelta::days(20));
        tokens = accounts::refresh(&store.control, &tokens.refresh_token).await?.tokens;
    }
    store.clock.advance(TimeDelta::days(31));
    let expired = accounts::refresh(&store.control, &tokens.refresh_token).await.unwrap_err();
    assert_eq!(code(&expired), "refresh_token_invalid");
    Ok(())
}

#[tokio::test]
async fn log_out_ends_the_session_and_no_other() -> Result<()> {
    let store = Store::new().await?;
    let one = store.user("ada@example.com").await?;
    let other = accounts::log_in(&store.control, "ada@example.com", PASSWORD, &Client::default()).await?;
    accounts::log_out(&store.control, &store.person(&one).await?).await?;
    let ended = accounts::identify(&store.control, &one.tokens.access_token).await.unwrap_err();
    assert_eq!(code(&ended), "session_ended");
    accounts::identify(&store.control, &other.tokens.access_token).await?;
    Ok(())
}

#[tokio::test]
async fn a_token_that_another_installation_or_algorithm_signed_is_refused() -> Result<()> {
    let store = Store::new().await?;
    let tokens = store.user("ada@example.com").await?.tokens;
    let (head, signature) = tokens.access_token.rsplit_once('.').unwrap();
    let (_, claims) = head.split_once('.').unwrap();
    // {"alg":"none","typ":"JWT"}
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
    let flipped = format!("{head}.{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]);
    for token in [unsigned.as_str(), flipped.as_str(), "", "x", "a.b.c"] {
        assert_eq!(code(&accounts::identify(&store.control, token).await.unwrap_err()), "token_invalid", "{token}");
    }
    let elsewhere = store.with_settings(|settings| settings.secret = Secret::new(vec![1; 32]));
    assert_eq!(code(&accounts::identify(&elsewhere.control, &tokens.access_token).await.unwrap_err()), "token_invalid");
    Ok(())
}

#[tokio::test]
async fn among_several_organizations_one_is_named_and_only_ones_own_can_be() -> Result<()> {
    let store = Store::new().await?;
    let acme = store.organization("acme").await?;
    store.organization("globex").await?;
    assert_eq!(accounts::authenticate(&store.control, acme.token(), None).await?.organization_slug, "acme");
    assert!(matches!(accounts::authenticate(&store.control, acme.token(), Some("globex")).await, Err(Error::NotFound { .. })));
    assert!(matches!(accounts::authenticate(&store.control, acme.token(), Some("nobody")).await, Err(Error::NotFound { .. })));

    let new = ocore_control::organizations::NewOrganization { name: "Initech".to_owned(), slug: None };
    ocore_control::organizations::create(&store.control, &acme.person, new).await?;
    let error = accounts::authenticate(&store.control, acme.token(), None).await.unwrap_err();
    assert_eq!(code(&error), "organization_required");
    assert!(error.to_string().ends_with("acme, initech"), "{error}");

    let nobody = store.user("nobody@example.com").await?;
    let error = accounts::authenticate(&store.control, &nobody.tokens.access_token, None).await.unwrap_err();
    assert_eq!(code(&error), "no_organization");
    Ok(())
}
