use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result};
use ocore_control::{
    Control, Error,
    accounts::{self, Client, LoggedIn, NewUser},
    authorization::System,
    secrets::Secret,
};
use ocore_testkit::{Store, store::PASSWORD};

use crate::accounts::code;

async fn sign_up(control: &Control, email: &str, token: Option<&str>) -> Result<LoggedIn, Error> {
    let new = NewUser {
        email: email.to_owned(),
        name: "Ada".to_owned(),
        password: PASSWORD.to_owned(),
        invitation: None,
        first_account_token: token.map(str::to_owned),
    };
    accounts::sign_up(control, new, &Client::default()).await
}

async fn token(control: &Control) -> Result<String> {
    accounts::keep_first_account_file(System, control).await?.context("there is a user")
}

#[tokio::test]
async fn the_first_account_takes_its_token_whether_sign_up_is_open_or_not() -> Result<()> {
    for open in [true, false] {
        let store = Store::new().await?.with_settings(|settings| settings.open_signup = open);
        let control = &store.control;
        // Nobody has been told a token yet.
        assert_eq!(code(&sign_up(control, "eve@example.com", Some("first_")).await.unwrap_err()), "first_account_token_invalid");
        let token = token(control).await?;
        let file = &control.settings.first_account_file;
        assert_eq!(fs::read_to_string(file)?.trim(), token);
        assert_eq!(fs::metadata(file)?.permissions().mode() & 0o777, 0o600);

        assert_eq!(code(&sign_up(control, "eve@example.com", None).await.unwrap_err()), "first_account_token_required");
        for wrong in ["", "first_", &token[..token.len() - 1], &token.to_lowercase()] {
            assert_eq!(
                code(&sign_up(control, "eve@example.com", Some(wrong)).await.unwrap_err()),
                "first_account_token_invalid",
                "{wrong}"
            );
        }
        sign_up(control, "ada@example.com", Some(&token)).await?;
        assert!(!file.exists());
        assert_eq!(code(&sign_up(control, "eve@example.com", Some(&token)).await.unwrap_err()), "first_account_made");
        let after = sign_up(control, "bob@example.com", None).await;
        if open { drop(after?) } else { assert_eq!(code(&after.unwrap_err()), "signup_closed") }
    }
    Ok(())
}

#[tokio::test]
async fn of_many_who_come_with_the_token_at_once_one_gets_in() -> Result<()> {
    let store = Store::new().await?;
    let token = token(&store.control).await?;
    let emails: Vec<String> = (0..6).map(|number| format!("user{number}@example.com")).collect();
    let tries = futures::future::join_all(emails.iter().map(|email| sign_up(&store.control, email, Some(&token)))).await;
    assert_eq!(tries.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for error in tries.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(code(error), "first_account_made");
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_try_and_every_start_leave_the_token_as_it_is() -> Result<()> {
    let store = Store::new().await?;
    let first = token(&store.control).await?;
    // The password is refused after the token was right.
    let short = NewUser {
        email: "ada@example.com".to_owned(),
        name: "Ada".to_owned(),
        password: "short".to_owned(),
        invitation: None,
        first_account_token: Some(first.clone()),
    };
    assert!(matches!(accounts::sign_up(&store.control, short, &Client::default()).await, Err(Error::Invalid { .. })));
    // A start that was killed in the middle of writing, and one that somebody emptied the file before.
    let file = store.control.settings.first_account_file.clone();
    fs::write(file.with_extension("new"), "half of i")?;
    fs::write(&file, "")?;
    assert_eq!(token(&store.control).await?, first);
    assert_eq!(fs::read_to_string(&file)?.trim(), first);
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    sign_up(&store.control, "ada@example.com", Some(&first)).await?;
    // Killed between the account and the file's end.
    fs::write(&file, &first)?;
    assert_eq!(accounts::keep_first_account_file(System, &store.control).await?, None);
    assert!(!file.exists());
    Ok(())
}

#[tokio::test]
async fn a_used_token_stays_used_when_all_users_have_gone_and_another_installation_has_another() -> Result<()> {
    let store = Store::new().await?;
    let first = token(&store.control).await?;
    sign_up(&store.control, "ada@example.com", Some(&first)).await?;
    sqlx::query("delete from users").execute(&store.control.pool).await?;
    assert_eq!(code(&sign_up(&store.control, "eve@example.com", Some(&first)).await.unwrap_err()), "first_account_token_invalid");
    let second = token(&store.control).await?;
    assert_ne!(first, second);
    // Whoever has a copy of the store but not the secret cannot make it.
    let elsewhere = Store::new().await?.with_settings(|settings| settings.secret = Secret::new(vec![1; 32]));
    let nonce: uuid::Uuid = sqlx::query_scalar("select nonce from first_account").fetch_one(&store.control.pool).await?;
    sqlx::query("insert into first_account (nonce) values ($1)").bind(nonce).execute(&elsewhere.control.pool).await?;
    assert_ne!(token(&elsewhere.control).await?, second);
    sign_up(&store.control, "ada@example.com", Some(&second)).await?;
    Ok(())
}
