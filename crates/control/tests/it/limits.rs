//! How much one address, one person and one organization may do, and that nobody can use it against somebody else.

use anyhow::Result;
use chrono::TimeDelta;
use ocore_control::{
    Error,
    accounts::{self, Client, NewUser, PasswordChange},
    members,
    organizations::{self, NewOrganization},
    projects::{self, NewProject},
    roles,
};
use ocore_model::project::ModuleSelection;
use ocore_testkit::{Store, store::PASSWORD};

use crate::accounts::code;

fn from(address: &str) -> Client {
    Client { address: Some(address.parse().expect("an address")), user_agent: String::new() }
}

fn new_user(email: &str) -> NewUser {
    NewUser { email: email.to_owned(), name: "Ada".to_owned(), password: PASSWORD.to_owned(), invitation: None, first_account_token: None }
}

fn is_too_many(error: &Error) -> bool {
    matches!(error, Error::TooMany { retry_after_seconds: 1.. })
}

#[tokio::test]
async fn guesses_at_many_accounts_from_one_address_end_and_their_users_come_in_from_elsewhere() -> Result<()> {
    let store = Store::new().await?;
    store.user("ada@example.com").await?;
    store.user("eve@example.com").await?;
    let mut wrong = 0;
    let mut refused = None;
    for number in 0..60 {
        // One's own account in between washes nothing away; another address of the same /64 is the same customer.
        if number % 7 == 0 && refused.is_none() {
            accounts::log_in(&store.control, "eve@example.com", PASSWORD, &from("2001:db8:1:2::1")).await?;
        }
        let email = format!("user{number}@example.com");
        let guess = accounts::log_in(&store.control, &email, "Summer2026", &from(&format!("2001:db8:1:2::{number:x}"))).await.unwrap_err();
        if is_too_many(&guess) {
            refused = refused.or(Some(number));
        } else {
            assert_eq!(code(&guess), "invalid_credentials");
            wrong += 1;
        }
    }
    assert_eq!((wrong, refused), (50, Some(50)));
    accounts::log_in(&store.control, "ada@example.com", PASSWORD, &from("2001:db8:1:3::1")).await?;
    store.clock.advance(TimeDelta::minutes(16));
    accounts::log_in(&store.control, "ada@example.com", PASSWORD, &from("2001:db8:1:2::1")).await?;
    Ok(())
}

#[tokio::test]
async fn hammering_at_one_account_locks_neither_its_user_elsewhere_nor_the_neighbours_in_the_same_network() -> Result<()> {
    let store = Store::new().await?;
    store.user("ada@example.com").await?;
    store.user("bob@example.com").await?;
    for _ in 0..200 {
        accounts::log_in(&store.control, "ada@example.com", "wrong horse 1", &from("192.0.2.1")).await.unwrap_err();
    }
    assert!(is_too_many(&accounts::log_in(&store.control, "ada@example.com", PASSWORD, &from("192.0.2.1")).await.unwrap_err()));
    accounts::log_in(&store.control, "ada@example.com", PASSWORD, &from("192.0.2.2")).await?;
    accounts::log_in(&store.control, "bob@example.com", PASSWORD, &from("192.0.2.1")).await?;
    Ok(())
}

#[tokio::test]
async fn wrong_current_passwords_end_in_their_session_and_lock_no_log_in() -> Result<()> {
    let store = Store::new().await?;
    let stolen = store.user("ada@example.com").await?;
    let stolen = store.person(&stolen).await?;
    let client = from("192.0.2.1");
    let change = |current: &str| PasswordChange {
        current: current.to_owned(),
        new: "better horse 2".to_owned(),
        revoke_other_sessions: true,
        revoke_api_keys: false,
    };
    for _ in 0..10 {
        let wrong = accounts::change_password(&store.control, &stolen, change("wrong horse 1"), &client).await.unwrap_err();
        assert!(matches!(wrong, Error::Invalid { .. }), "{wrong:?}");
    }
    // From wherever it is used.
    for client in [client.clone(), from("203.0.113.9")] {
        let refused = accounts::change_password(&store.control, &stolen, change(PASSWORD), &client).await.unwrap_err();
        assert!(is_too_many(&refused), "{refused:?}");
    }
    let own = accounts::log_in(&store.control, "ada@example.com", PASSWORD, &client).await?;
    let own = store.person(&own).await?;
    accounts::change_password(&store.control, &own, change(PASSWORD), &client).await?;
    Ok(())
}

#[tokio::test]
async fn sign_ups_from_one_address_are_counted_and_the_invited_are_not() -> Result<()> {
    let store = Store::new().await?.with_settings(|settings| settings.limits.signups_per_hour = 3);
    let owner = store.organization("acme").await?;
    let office = from("192.0.2.1");
    for number in 0..2 {
        accounts::sign_up(&store.control, new_user(&format!("user{number}@example.com")), &office).await?;
    }
    // Asking whether an address is taken counts as well.
    assert_eq!(code(&accounts::sign_up(&store.control, new_user("user0@example.com"), &office).await.unwrap_err()), "email_taken");
    let more = accounts::sign_up(&store.control, new_user("user3@example.com"), &office).await.unwrap_err();
    assert!(is_too_many(&more), "{more:?}");

    let roles = roles::list(&store.control, &owner.scope.grant()?).await?;
    let viewer = roles.iter().find(|role| role.name == "Viewer").unwrap().id;
    for number in 0..4 {
        let email = format!("invited{number}@example.com");
        let invitation = members::invite(&store.control, &owner.scope.grant()?, &email, viewer).await?;
        let invited = NewUser { invitation: Some(invitation.token), ..new_user(&email) };
        accounts::sign_up(&store.control, invited, &office).await?;
    }
    accounts::sign_up(&store.control, new_user("user4@example.com"), &from("192.0.2.2")).await?;
    store.clock.advance(TimeDelta::minutes(61));
    accounts::sign_up(&store.control, new_user("user5@example.com"), &office).await?;
    Ok(())
}

#[tokio::test]
async fn invitations_cannot_be_tried_without_end_signed_up_or_not() -> Result<()> {
    let store = Store::new().await?;
    let owner = store.organization("acme").await?;
    let eve = store.member(&owner.scope, "eve@example.com", "Viewer").await?;
    let store = store.with_settings(|settings| settings.open_signup = false);
    let viewer = roles::list(&store.control, &owner.scope.grant()?).await?.iter().find(|role| role.name == "Viewer").unwrap().id;
    let bobs = members::invite(&store.control, &owner.scope.grant()?, "bob@example.com", viewer).await?;
    let client = from("192.0.2.1");
    let bob = |token: &str| NewUser { invitation: Some(token.to_owned()), ..new_user("bob@example.com") };
    for number in 0..10 {
        let guess = format!("invitation_{number}");
        assert!(matches!(accounts::sign_up(&store.control, bob(&guess), &client).await, Err(Error::NotFound { .. })));
        // One that is real and somebody else's.
        assert!(matches!(members::accept(&store.control, &eve.person, &bobs.token, &client).await, Err(Error::NotFound { .. })));
    }
    assert!(is_too_many(&members::accept(&store.control, &eve.person, &bobs.token, &client).await.unwrap_err()));
    assert!(is_too_many(&accounts::sign_up(&store.control, bob(&bobs.token), &client).await.unwrap_err()));
    accounts::sign_up(&store.control, bob(&bobs.token), &from("192.0.2.2")).await?;
    Ok(())
}

#[tokio::test]
async fn a_user_makes_so_many_organizations_and_no_more_by_handing_them_over() -> Result<()> {
    let store = Store::new().await?.with_settings(|settings| settings.limits.organizations_per_user = 3);
    let owner = store.organization("acme").await?;
    let new = |number: usize| NewOrganization { name: format!("Acme {number}"), slug: None };
    let tries = futures::future::join_all((0..6).map(|number| organizations::create(&store.control, &owner.person, new(number)))).await;
    assert_eq!(tries.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    for error in tries.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(code(error), "too_many_organizations");
        assert!(error.to_string().contains("limits.organizations_per_user"), "{error}");
    }
    // Somebody else becomes its owner, and the maker leaves: it still counts as the maker's.
    let heir = store.member(&owner.scope, "heir@example.com", "Owner").await?;
    members::leave(&store.control, &owner.scope, &owner.person).await?;
    assert_eq!(code(&organizations::create(&store.control, &owner.person, new(9)).await.unwrap_err()), "too_many_organizations");
    organizations::remove(&store.control, &heir.scope.grant()?, Some("acme")).await?;
    organizations::create(&store.control, &owner.person, new(9)).await?;
    Ok(())
}

#[tokio::test]
async fn an_organization_has_so_many_projects_archived_ones_included() -> Result<()> {
    let store = Store::new().await?.with_settings(|settings| settings.limits.projects_per_organization = 3);
    let owner = store.organization("acme").await?;
    let grant = owner.scope.grant()?;
    let new = |number: usize| NewProject {
        name: format!("Shop {number}"),
        slug: None,
        description: String::new(),
        odoo_version: Some("19.0".to_owned()),
        module_selection: ModuleSelection::Own,
        with_demo: false,
        create_environment_on_push: true,
        protects_production: false,
    };
    let first = projects::create(&store.control, &grant, new(0)).await?;
    projects::archive(&store.control, &grant, first.id).await?;
    let tries = futures::future::join_all((1..6).map(|number| projects::create(&store.control, &grant, new(number)))).await;
    assert_eq!(tries.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    for error in tries.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(code(error), "too_many_projects");
        assert!(error.to_string().contains("limits.projects_per_organization"), "{error}");
    }
    let other = store.organization("globex").await?;
    projects::create(&store.control, &other.scope.grant()?, new(0)).await?;
    Ok(())
}
