use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use ocore_control::{
    Error,
    accounts::{self, Client, PasswordChange},
    api_keys::{self, CreatedApiKey, NewApiKey},
    authorization::Scope,
};
use ocore_model::ids::ApiKeyId;
use ocore_testkit::{Store, store::PASSWORD};

use crate::accounts::code;

async fn make(store: &Store, scope: &Scope, expires_at: Option<DateTime<Utc>>) -> Result<CreatedApiKey, Error> {
    let new = NewApiKey { name: "key".to_owned(), permissions: vec!["manage:api_keys".to_owned()], expires_at };
    api_keys::create(&store.control, &scope.grant()?, new).await
}

/// Who the holder of a key is.
async fn holder(store: &Store, key: &CreatedApiKey) -> Result<Scope, Error> {
    accounts::authenticate(&store.control, &key.plaintext, None).await
}

fn now(store: &Store) -> DateTime<Utc> {
    store.control.clock.now()
}

#[tokio::test]
async fn a_key_that_a_key_makes_expires_no_later_than_that() -> Result<()> {
    let store = Store::new().await?;
    let owner = store.organization("acme").await?;
    let tomorrow = now(&store) + TimeDelta::days(1);
    let leaked = make(&store, &owner.scope, Some(tomorrow)).await?;
    let thief = holder(&store, &leaked).await?;
    let later = make(&store, &thief, Some(tomorrow + TimeDelta::seconds(1))).await.err();
    assert!(matches!(&later, Some(Error::Invalid { fields }) if fields[0].field == "expiresAt"), "{later:?}");
    // Without an end it gets that of its maker, and so does one that it makes itself.
    let child = make(&store, &thief, None).await?;
    let grandchild = make(&store, &holder(&store, &child).await?, None).await?;
    assert_eq!((child.key.expires_at, grandchild.key.expires_at), (Some(tomorrow), Some(tomorrow)));
    let sooner = make(&store, &thief, Some(tomorrow - TimeDelta::hours(1))).await?;
    assert_eq!(sooner.key.expires_at, Some(tomorrow - TimeDelta::hours(1)));
    store.clock.advance(TimeDelta::days(1));
    for key in [&leaked, &child, &grandchild] {
        assert_eq!(code(&holder(&store, key).await.unwrap_err()), "api_key_expired");
    }
    Ok(())
}

#[tokio::test]
async fn with_a_key_goes_all_that_was_made_with_it() -> Result<()> {
    let store = Store::new().await?;
    let owner = store.organization("acme").await?;
    // Neither of them ever expires.
    let leaked = make(&store, &owner.scope, None).await?;
    let thief = holder(&store, &leaked).await?;
    let child = make(&store, &thief, None).await?;
    let grandchild = make(&store, &holder(&store, &child).await?, None).await?;
    let own = make(&store, &owner.scope, None).await?;
    api_keys::revoke(&store.control, &owner.scope.grant()?, leaked.key.id).await?;
    for key in [&leaked, &child, &grandchild] {
        assert_eq!(code(&holder(&store, key).await.unwrap_err()), "api_key_revoked");
    }
    holder(&store, &own).await?;
    let left: Vec<ApiKeyId> = api_keys::list(&store.control, &owner.scope.grant()?).await?.into_iter().map(|key| key.id).collect();
    assert_eq!(left, [own.key.id]);
    // Whoever came in before it was revoked makes none either.
    assert_eq!(make(&store, &thief, None).await.err().as_ref().map(code), Some("api_key_revoked"));
    Ok(())
}

#[tokio::test]
async fn keys_that_are_made_while_theirs_is_revoked_do_not_survive_it() -> Result<()> {
    let store = Store::new().await?;
    let owner = store.organization("acme").await?;
    for _ in 0..5 {
        let leaked = make(&store, &owner.scope, None).await?;
        let thief = holder(&store, &leaked).await?;
        let (made, revoked) = tokio::join!(futures::future::join_all((0..6).map(|_| make(&store, &thief, None))), async {
            api_keys::revoke(&store.control, &owner.scope.grant()?, leaked.key.id).await
        });
        revoked?;
        for key in made.into_iter().flatten() {
            assert_eq!(code(&holder(&store, &key).await.unwrap_err()), "api_key_revoked");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_changed_password_says_how_many_keys_work_and_revokes_them_on_demand() -> Result<()> {
    let store = Store::new().await?;
    let owner = store.organization("acme").await?;
    let other = store.organization("globex").await?;
    let key = make(&store, &owner.scope, None).await?;
    make(&store, &owner.scope, Some(now(&store) + TimeDelta::hours(1))).await?;
    let others = make(&store, &other.scope, None).await?;
    store.clock.advance(TimeDelta::hours(1));
    let login = accounts::log_in(&store.control, "owner@acme.example", PASSWORD, &Client::default()).await?;
    let person = store.person(&login).await?;
    let change = |current: &str, new: &str, revoke_api_keys: bool| PasswordChange {
        current: current.to_owned(),
        new: new.to_owned(),
        revoke_other_sessions: true,
        revoke_api_keys,
    };
    // The expired one opens nothing.
    let kept = accounts::change_password(&store.control, &person, change(PASSWORD, "better horse 2", false), &Client::default()).await?;
    assert_eq!(kept, 1);
    holder(&store, &key).await?;
    let kept =
        accounts::change_password(&store.control, &person, change("better horse 2", "better horse 3", true), &Client::default()).await?;
    assert_eq!(kept, 0);
    assert_eq!(code(&holder(&store, &key).await.unwrap_err()), "api_key_revoked");
    holder(&store, &others).await?;
    Ok(())
}
