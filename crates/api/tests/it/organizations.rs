use anyhow::{Context, Result};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::TestApi;

async fn role(api: &TestApi, token: &str, name: &str) -> Result<Value> {
    let roles = api.get("/roles").token(token).expect(StatusCode::OK).await?;
    let role = roles["roles"].as_array().and_then(|roles| roles.iter().find(|role| role["name"] == name)).context("no such role")?;
    Ok(role["id"].clone())
}

#[tokio::test]
async fn an_organization_is_made_shown_changed_and_deleted() -> Result<()> {
    let api = TestApi::new().await?;
    let ada = api.store.user("ada@example.com").await?;
    let token = &ada.tokens.access_token;
    assert_eq!(api.get("/org").token(token).problem(StatusCode::BAD_REQUEST).await?, "no_organization");
    let made = api.post("/user/orgs", &json!({ "name": "Größe & Söhne" })).token(token).expect(StatusCode::CREATED).await?;
    assert_eq!((made["slug"].as_str(), made["role"].as_str()), (Some("gr-e-s-hne"), Some("Owner")));
    let taken = json!({ "name": "Other", "slug": "gr-e-s-hne" });
    assert_eq!(api.post("/user/orgs", &taken).token(token).problem(StatusCode::CONFLICT).await?, "slug_taken");
    let again = api.post("/user/orgs", &json!({ "name": "Größe & Söhne" })).token(token).expect(StatusCode::CREATED).await?;
    assert_eq!(again["slug"], "gr-e-s-hne-2");

    let list = api.get("/user/orgs").token(token).expect(StatusCode::OK).await?;
    assert_eq!(list["total"], 2);
    assert_eq!(api.get("/org").token(token).problem(StatusCode::BAD_REQUEST).await?, "organization_required");
    let change = json!({ "name": "Acme", "slug": "acme", "logoUrl": "https://acme.example/logo.svg" });
    let changed = api.put("/org", &change).token(token).organization("gr-e-s-hne").expect(StatusCode::OK).await?;
    assert_eq!((changed["id"].clone(), changed["slug"].as_str()), (made["id"].clone(), Some("acme")));
    let bad = json!({ "name": "x", "slug": "-", "logoUrl": "javascript:alert(1)" });
    let problem = api.put("/org", &bad).token(token).organization("acme").expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(3));

    api.post("/projects", &json!({ "name": "Shop", "odooVersion": "19.0" }))
        .token(token)
        .organization("acme")
        .expect(StatusCode::CREATED)
        .await?;
    assert_eq!(api.delete("/org").token(token).organization("acme").problem(StatusCode::CONFLICT).await?, "organization_in_use");
    let wrong = api.delete("/org?confirm=globex").token(token).organization("acme").problem(StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(wrong, "invalid_input");
    api.delete("/org?confirm=acme").token(token).organization("acme").expect(StatusCode::OK).await?;
    assert_eq!(api.get("/org").token(token).organization("acme").problem(StatusCode::NOT_FOUND).await?, "not_found");
    assert_eq!(api.get("/org").token(token).expect(StatusCode::OK).await?["slug"], "gr-e-s-hne-2");
    Ok(())
}

#[tokio::test]
async fn an_invitation_leads_its_receiver_in_and_nobody_else() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let viewer = role(&api, owner.token(), "Viewer").await?;
    let invite = json!({ "email": "Bob@example.com", "roleId": viewer });
    let invitation = api.post("/members/invite", &invite).token(owner.token()).expect(StatusCode::CREATED).await?;
    assert_eq!((invitation["email"].as_str(), invitation["status"].as_str()), (Some("bob@example.com"), Some("pending")));
    let url = invitation["url"].as_str().context("url")?.strip_prefix("http://127.0.0.1:8700").context("another host")?;
    let page = api.raw(axum::http::Method::GET, url).send().await?;
    assert!(page.status == StatusCode::OK && page.text.contains("/api/invitations/accept"), "{}", page.text);

    let accept = json!({ "token": invitation["token"] });
    let eve = api.store.user("eve@example.com").await?;
    let stolen = api.post("/invitations/accept", &accept).token(&eve.tokens.access_token);
    assert_eq!(stolen.problem(StatusCode::NOT_FOUND).await?, "not_found");
    let bob = api.store.user("bob@example.com").await?;
    api.post("/invitations/accept", &accept).token(&bob.tokens.access_token).expect(StatusCode::OK).await?;
    let again = api.post("/invitations/accept", &accept).token(&bob.tokens.access_token);
    assert_eq!(again.problem(StatusCode::NOT_FOUND).await?, "not_found");

    let members = api.get("/members").token(&bob.tokens.access_token).expect(StatusCode::OK).await?;
    assert_eq!((members["total"].as_i64(), members["members"][1]["role"]["name"].as_str()), (Some(2), Some("Viewer")));
    let twice = api.post("/members/invite", &invite).token(owner.token());
    assert_eq!(twice.problem(StatusCode::CONFLICT).await?, "already_member");
    Ok(())
}

#[tokio::test]
async fn an_invitation_is_gone_when_cancelled_replaced_or_old() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let viewer = role(&api, owner.token(), "Viewer").await?;
    let bob = api.store.user("bob@example.com").await?;
    let invite = async || {
        api.post("/members/invite", &json!({ "email": "bob@example.com", "roleId": viewer }))
            .token(owner.token())
            .expect(StatusCode::CREATED)
            .await
    };
    let accept = async |invitation: &Value| {
        api.post("/invitations/accept", &json!({ "token": invitation["token"] })).token(&bob.tokens.access_token).status().await
    };
    let replaced = invite().await?;
    let cancelled = invite().await?;
    assert_eq!(accept(&replaced).await?, StatusCode::NOT_FOUND);
    let list = api.get("/invitations").token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!((list["total"].as_i64(), &list["invitations"][0]["id"]), (Some(1), &cancelled["id"]));
    let path = format!("/invitations/{}", cancelled["id"].as_str().context("id")?);
    api.delete(&path).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(accept(&cancelled).await?, StatusCode::NOT_FOUND);

    let old = invite().await?;
    api.store.clock.advance(chrono::TimeDelta::days(8));
    let bob = ocore_control::accounts::log_in(
        &api.store.control,
        "bob@example.com",
        ocore_testkit::store::PASSWORD,
        &ocore_control::accounts::Client::default(),
    )
    .await?;
    let late = api.post("/invitations/accept", &json!({ "token": old["token"] })).token(&bob.tokens.access_token);
    assert_eq!(late.status().await?, StatusCode::NOT_FOUND);
    Ok(())
}

#[tokio::test]
async fn the_last_owner_neither_leaves_nor_steps_down() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let second = api.store.member(&owner.scope, "second@example.com", "Viewer").await?;
    let (owner_role, viewer_role) = (role(&api, owner.token(), "Owner").await?, role(&api, owner.token(), "Viewer").await?);
    let members = api.get("/members").token(owner.token()).expect(StatusCode::OK).await?;
    let path = |index: usize| format!("/members/{}", members["members"][index]["id"].as_str().unwrap());

    assert_eq!(
        api.call(axum::http::Method::POST, "/members/leave").token(owner.token()).problem(StatusCode::CONFLICT).await?,
        "last_owner"
    );
    let down = json!({ "roleId": viewer_role });
    assert_eq!(api.put(&format!("{}/role", path(0)), &down).token(owner.token()).problem(StatusCode::CONFLICT).await?, "last_owner");
    assert_eq!(api.delete(&path(0)).token(owner.token()).problem(StatusCode::CONFLICT).await?, "cannot_remove_self");

    let up = json!({ "roleId": owner_role });
    let promoted = api.put(&format!("{}/role", path(1)), &up).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(promoted["role"]["name"], "Owner");
    api.call(axum::http::Method::POST, "/members/leave").token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(api.get("/members").token(second.token()).expect(StatusCode::OK).await?["total"], 1);
    assert_eq!(api.get("/org").token(owner.token()).problem(StatusCode::BAD_REQUEST).await?, "no_organization");
    Ok(())
}

const MORE_THAN_OWN: &str = "more_than_own_permissions";

#[tokio::test]
async fn nobody_gives_more_than_they_have() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let admin = api.store.member(&owner.scope, "admin@example.com", "Admin").await?;
    let developer = api.store.member(&owner.scope, "developer@example.com", "Developer").await?;
    let owner_role = role(&api, owner.token(), "Owner").await?;
    let members = api.get("/members").token(owner.token()).expect(StatusCode::OK).await?;
    let member = |index: usize| members["members"][index]["id"].as_str().unwrap().to_owned();

    let invite = json!({ "email": "eve@example.com", "roleId": owner_role });
    assert_eq!(api.post("/members/invite", &invite).token(admin.token()).problem(StatusCode::FORBIDDEN).await?, MORE_THAN_OWN);
    let up = json!({ "roleId": owner_role });
    assert_eq!(
        api.put(&format!("/members/{}/role", member(1)), &up).token(admin.token()).problem(StatusCode::FORBIDDEN).await?,
        MORE_THAN_OWN
    );
    assert_eq!(api.delete(&format!("/members/{}", member(0))).token(admin.token()).problem(StatusCode::FORBIDDEN).await?, MORE_THAN_OWN);
    let strong = json!({ "name": "Strong", "permissionIds": ["manage:organization"] });
    assert_eq!(api.post("/roles", &strong).token(admin.token()).problem(StatusCode::FORBIDDEN).await?, MORE_THAN_OWN);
    let strong = api.post("/roles", &strong).token(owner.token()).expect(StatusCode::CREATED).await?;
    let weaker = json!({ "permissionIds": ["view:projects"] });
    let path = format!("/roles/{}", strong["id"].as_str().context("id")?);
    assert_eq!(api.put(&path, &weaker).token(admin.token()).problem(StatusCode::FORBIDDEN).await?, MORE_THAN_OWN);
    let key = json!({ "name": "ci", "permissions": ["manage:members"] });
    assert_eq!(api.post("/api-keys", &key).token(developer.token()).problem(StatusCode::FORBIDDEN).await?, MORE_THAN_OWN);
    Ok(())
}

#[tokio::test]
async fn roles_of_the_system_stand_and_others_come_and_go() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let token = owner.token();
    let viewer = role(&api, token, "Viewer").await?;
    let path = format!("/roles/{}", viewer.as_str().context("id")?);
    assert_eq!(api.put(&path, &json!({ "name": "Reader" })).token(token).problem(StatusCode::CONFLICT).await?, "system_role");
    assert_eq!(api.delete(&path).token(token).problem(StatusCode::CONFLICT).await?, "system_role");

    let new = json!({ "name": "Releaser", "description": "Ships.", "permissionIds": ["manage:deployments", "view:projects"] });
    let made = api.post("/roles", &new).token(token).expect(StatusCode::CREATED).await?;
    assert_eq!(api.post("/roles", &new).token(token).problem(StatusCode::CONFLICT).await?, "role_name_taken");
    let wrong = json!({ "name": "Wrong", "permissionIds": ["manage:everything"] });
    let problem = api.post("/roles", &wrong).token(token).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(problem["errors"][0]["field"], "permissionIds[0]");
    let path = format!("/roles/{}", made["id"].as_str().context("id")?);
    assert_eq!(api.put(&path, &json!({ "name": "Viewer" })).token(token).problem(StatusCode::CONFLICT).await?, "role_name_taken");
    let changed = api.put(&path, &json!({ "permissionIds": ["view:projects"] })).token(token).expect(StatusCode::OK).await?;
    assert_eq!((changed["name"].as_str(), &changed["permissions"]), (Some("Releaser"), &json!(["view:projects"])));

    let bob = api.store.member(&owner.scope, "bob@example.com", "Releaser").await?;
    assert_eq!(api.delete(&path).token(token).problem(StatusCode::CONFLICT).await?, "role_in_use");
    assert_eq!(api.get("/members").token(bob.token()).problem(StatusCode::FORBIDDEN).await?, "permission_missing");
    api.call(axum::http::Method::POST, "/members/leave").token(bob.token()).expect(StatusCode::OK).await?;
    api.delete(&path).token(token).expect(StatusCode::OK).await?;
    Ok(())
}

#[tokio::test]
async fn an_api_key_is_shown_once_and_weakens_with_its_maker() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let developer = api.store.member(&owner.scope, "developer@example.com", "Developer").await?;
    let new = json!({ "name": "ci", "permissions": ["manage:projects"] });
    let made = api.post("/api-keys", &new).token(developer.token()).expect(StatusCode::CREATED).await?;
    let key = made["key"].as_str().context("key")?.to_owned();
    assert!(key.starts_with("ocore_") && key.starts_with(made["prefix"].as_str().context("prefix")?));
    let list = api.get("/api-keys").token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!((list["total"].as_i64(), &list["apiKeys"][0]["key"]), (Some(1), &Value::Null));

    let project = json!({ "name": "Shop", "odooVersion": "19.0" });
    api.post("/projects", &project).token(&key).expect(StatusCode::CREATED).await?;
    assert_eq!(
        api.get("/user/orgs").token(&key).expect(StatusCode::OK).await?["organizations"][0]["permissions"],
        json!(["view:projects", "manage:projects"])
    );
    let used = api.get("/api-keys").token(owner.token()).expect(StatusCode::OK).await?;
    assert!(used["apiKeys"][0]["lastUsedAt"].is_string());

    let members = api.get("/members").token(owner.token()).expect(StatusCode::OK).await?;
    let member = format!("/members/{}", members["members"][1]["id"].as_str().context("id")?);
    let viewer = json!({ "roleId": role(&api, owner.token(), "Viewer").await? });
    api.put(&format!("{member}/role"), &viewer).token(owner.token()).expect(StatusCode::OK).await?;
    api.get("/projects").token(&key).expect(StatusCode::OK).await?;
    assert_eq!(api.post("/projects", &project).token(&key).problem(StatusCode::FORBIDDEN).await?, "permission_missing");

    api.delete(&member).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(api.get("/projects").token(&key).status().await?, StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn an_api_key_ends_when_it_expires_or_is_revoked() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let admin = api.store.member(&owner.scope, "admin@example.com", "Admin").await?;
    let developer = api.store.member(&owner.scope, "developer@example.com", "Developer").await?;
    let make = async |token: &str, expires_at: Value| {
        let new = json!({ "name": "ci", "permissions": ["view:projects"], "expiresAt": expires_at });
        api.post("/api-keys", &new).token(token).send().await
    };
    let now = ocore_model::clock::Clock::now(&*api.store.clock);
    let past = make(owner.token(), json!(now - chrono::TimeDelta::seconds(1))).await?;
    assert_eq!((past.status, past.body["errors"][0]["field"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("expiresAt")));
    let short = make(owner.token(), json!(now + chrono::TimeDelta::minutes(5))).await?.body;
    api.get("/projects").token(short["key"].as_str().context("key")?).expect(StatusCode::OK).await?;
    api.store.clock.advance(chrono::TimeDelta::minutes(6));
    assert_eq!(
        api.get("/projects").token(short["key"].as_str().context("key")?).problem(StatusCode::UNAUTHORIZED).await?,
        "api_key_expired"
    );

    let long = make(owner.token(), Value::Null).await?.body;
    let path = format!("/api-keys/{}", long["id"].as_str().context("id")?);
    assert_eq!(api.delete(&path).token(developer.token()).problem(StatusCode::NOT_FOUND).await?, "not_found");
    api.delete(&path).token(admin.token()).expect(StatusCode::OK).await?;
    assert_eq!(
        api.get("/projects").token(long["key"].as_str().context("key")?).problem(StatusCode::UNAUTHORIZED).await?,
        "api_key_revoked"
    );
    assert_eq!(api.delete(&path).token(owner.token()).problem(StatusCode::NOT_FOUND).await?, "not_found");
    Ok(())
}
