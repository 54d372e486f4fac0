use anyhow::{Context, Result};
use axum::http::{Method, StatusCode};
use ocore_testkit::store::PASSWORD;
use serde_json::{Value, json};

use crate::support::{Answer, TestApi};

/// What a browser would send back.
fn cookies(answer: &Answer) -> String {
    let cookies = answer.headers.get_all("set-cookie").iter().filter_map(|cookie| cookie.to_str().ok());
    cookies.filter_map(|cookie| cookie.split(';').next()).collect::<Vec<_>>().join("; ")
}

async fn log_in(api: &TestApi, email: &str) -> Result<Answer> {
    let answer = api.post("/auth/login", &json!({ "email": email, "password": PASSWORD })).send().await?;
    anyhow::ensure!(answer.status == StatusCode::OK, "{}", answer.text);
    Ok(answer)
}

#[tokio::test]
async fn a_program_signs_up_works_refreshes_and_logs_out() -> Result<()> {
    let api = TestApi::new().await?;
    api.store.user("first@example.com").await?;
    let body = json!({ "email": "Ada@example.com", "name": "Ada", "password": PASSWORD });
    let session = api.post("/auth/signup", &body).expect(StatusCode::CREATED).await?;
    assert_eq!(session["user"]["email"], "ada@example.com");
    assert_eq!((session["tokenType"].as_str(), session["expiresIn"].as_i64()), (Some("Bearer"), Some(3600)));
    let token = session["accessToken"].as_str().context("accessToken")?;
    assert_eq!(api.get("/user").token(token).expect(StatusCode::OK).await?["name"], "Ada");

    let refreshed = api.post("/auth/refresh", &json!({ "refreshToken": session["refreshToken"] })).expect(StatusCode::OK).await?;
    let token = refreshed["accessToken"].as_str().context("accessToken")?;
    api.post("/auth/logout", &json!({ "refreshToken": refreshed["refreshToken"] })).expect(StatusCode::OK).await?;
    assert_eq!(api.get("/user").token(token).problem(StatusCode::UNAUTHORIZED).await?, "session_ended");
    Ok(())
}

#[tokio::test]
async fn inputs_of_sign_up_are_checked_all_at_once() -> Result<()> {
    let api = TestApi::new().await?;
    let body = json!({ "email": "ada", "name": " ", "password": "short" });
    let problem = api.post("/auth/signup", &body).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    let fields: Vec<&str> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["email", "name", "password"]);
    Ok(())
}

#[tokio::test]
async fn a_browser_is_known_by_its_cookies_and_only_our_own_pages_may_use_them() -> Result<()> {
    let api = TestApi::new().await?;
    api.store.organization("acme").await?;
    let session = log_in(&api, "owner@acme.example").await?;
    for cookie in session.headers.get_all("set-cookie") {
        let cookie = cookie.to_str()?;
        assert!(cookie.contains("; HttpOnly; SameSite=Lax; Max-Age=") && cookie.contains("Path=/;"), "{cookie}");
    }
    let cookies = cookies(&session);
    api.get("/org").header("cookie", &cookies).expect(StatusCode::OK).await?;

    let post = |headers: &[(&str, &str)]| {
        let mut call = api.post("/projects", &json!({ "name": "Shop", "odooVersion": "19.0" })).header("cookie", &cookies);
        for (name, value) in headers {
            call = call.header(name, value);
        }
        call
    };
    for headers in [
        &[][..],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "none")],
        &[("origin", "http://shop.localhost:8080"), ("host", "localhost:8700")],
        &[("origin", "null"), ("host", "localhost:8700")],
        &[("origin", "http://"), ("host", "")],
    ] {
        assert_eq!(post(headers).problem(StatusCode::FORBIDDEN).await?, "cross_site_request", "{headers:?}");
    }
    post(&[("sec-fetch-site", "same-origin")]).expect(StatusCode::CREATED).await?;
    let origin = [("origin", "http://localhost:8700"), ("host", "localhost:8700")];
    assert_eq!(post(&origin).problem(StatusCode::CONFLICT).await?, "project_name_taken");
    Ok(())
}

#[tokio::test]
async fn a_browser_refreshes_and_logs_out_by_cookie() -> Result<()> {
    let api = TestApi::new().await?;
    api.store.user("ada@example.com").await?;
    let first = cookies(&log_in(&api, "ada@example.com").await?);
    let refresh = || api.call(Method::POST, "/auth/refresh");
    assert_eq!(refresh().problem(StatusCode::UNAUTHORIZED).await?, "authentication_required");
    assert_eq!(refresh().header("cookie", &first).problem(StatusCode::FORBIDDEN).await?, "cross_site_request");
    let second = refresh().header("cookie", &first).header("sec-fetch-site", "same-origin").send().await?;
    assert_eq!(second.status, StatusCode::OK);
    let second = cookies(&second);

    let out = api.call(Method::POST, "/auth/logout").header("cookie", &second).header("sec-fetch-site", "same-origin").send().await?;
    assert_eq!(out.status, StatusCode::OK);
    assert_eq!(cookies(&out), "ocore_access=; ocore_refresh=");
    assert_eq!(api.get("/user").header("cookie", &second).problem(StatusCode::UNAUTHORIZED).await?, "session_ended");
    Ok(())
}

#[tokio::test]
async fn under_https_the_cookies_are_secure_and_bound_to_the_host() -> Result<()> {
    let store = ocore_testkit::Store::new().await?.with_settings(|settings| settings.public_url = "https://ocore.example.com".to_owned());
    store.user("ada@example.com").await?;
    let api = TestApi::on(store);
    let session = log_in(&api, "ada@example.com").await?;
    for cookie in session.headers.get_all("set-cookie") {
        let cookie = cookie.to_str()?;
        assert!(cookie.starts_with("__Host-ocore_") && cookie.ends_with("; Secure"), "{cookie}");
    }
    api.get("/user").header("cookie", &cookies(&session)).expect(StatusCode::OK).await?;
    Ok(())
}

#[tokio::test]
async fn a_changed_password_holds_and_other_sessions_end_on_demand() -> Result<()> {
    let api = TestApi::new().await?;
    let other = api.store.user("ada@example.com").await?;
    let own = log_in(&api, "ada@example.com").await?.body;
    let token = own["accessToken"].as_str().context("accessToken")?;
    let change = |current: &str, new: &str| json!({ "currentPassword": current, "newPassword": new, "revokeOtherSessions": true });
    let wrong = change("wrong horse 1", "better horse 2");
    let problem: Value = api.post("/user/change-password", &wrong).token(token).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(problem["errors"][0]["field"], "currentPassword");
    api.post("/user/change-password", &change(PASSWORD, "better horse 2")).token(token).expect(StatusCode::OK).await?;
    api.get("/user").token(token).expect(StatusCode::OK).await?;
    assert_eq!(api.get("/user").token(&other.tokens.access_token).problem(StatusCode::UNAUTHORIZED).await?, "session_ended");
    let old = json!({ "email": "ada@example.com", "password": PASSWORD });
    assert_eq!(api.post("/auth/login", &old).problem(StatusCode::UNAUTHORIZED).await?, "invalid_credentials");
    Ok(())
}

#[tokio::test]
async fn a_changed_password_ends_other_sessions_unless_told_otherwise_and_says_how_many_keys_work() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let key = json!({ "name": "laptop", "permissions": ["view:projects"] });
    let key = api.post("/api-keys", &key).token(owner.token()).expect(StatusCode::CREATED).await?;
    let key = key["key"].as_str().context("key")?;
    let thief = log_in(&api, "owner@acme.example").await?.body;
    let thief = thief["accessToken"].as_str().context("accessToken")?;
    let keep = json!({ "currentPassword": PASSWORD, "newPassword": "better horse 2", "revokeOtherSessions": false });
    api.post("/user/change-password", &keep).token(owner.token()).expect(StatusCode::OK).await?;
    api.get("/user").token(thief).expect(StatusCode::OK).await?;

    let change = json!({ "currentPassword": "better horse 2", "newPassword": "better horse 3" });
    let answer = api.post("/user/change-password", &change).token(owner.token()).expect(StatusCode::OK).await?;
    assert!(answer["message"].as_str().unwrap().contains("1 of your API keys still work"), "{answer}");
    assert_eq!(api.get("/user").token(thief).problem(StatusCode::UNAUTHORIZED).await?, "session_ended");
    api.get("/projects").token(key).expect(StatusCode::OK).await?;

    let all = json!({ "currentPassword": "better horse 3", "newPassword": "better horse 4", "revokeApiKeys": true });
    api.post("/user/change-password", &all).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(api.get("/projects").token(key).problem(StatusCode::UNAUTHORIZED).await?, "api_key_revoked");
    Ok(())
}

#[tokio::test]
async fn the_first_account_takes_the_token_in_the_body() -> Result<()> {
    let api = TestApi::new().await?;
    let token = ocore_control::accounts::keep_first_account_file(ocore_control::authorization::System, &api.store.control).await?;
    let body = |token: Option<&str>| json!({ "email": "ada@example.com", "name": "Ada", "password": PASSWORD, "firstAccountToken": token });
    assert_eq!(api.post("/auth/signup", &body(None)).problem(StatusCode::FORBIDDEN).await?, "first_account_token_required");
    assert_eq!(api.post("/auth/signup", &body(Some("x"))).problem(StatusCode::FORBIDDEN).await?, "first_account_token_invalid");
    api.post("/auth/signup", &body(token.as_deref())).expect(StatusCode::CREATED).await?;
    assert_eq!(api.post("/auth/signup", &body(token.as_deref())).problem(StatusCode::CONFLICT).await?, "first_account_made");
    Ok(())
}

/// A store whose API stands behind a proxy at 10.0.0.1.
async fn behind_a_proxy() -> Result<TestApi> {
    let store = ocore_testkit::Store::new().await?.with_settings(|settings| {
        settings.trusted_proxies = vec!["10.0.0.1".parse().expect("a network"), "fd00::/8".parse().expect("a network")];
        settings.limits.signups_per_hour = 3;
    });
    store.user("ada@example.com").await?;
    Ok(TestApi::on(store))
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_client_is_locked_and_not_everybody() -> Result<()> {
    let api = behind_a_proxy().await?;
    let log_in = |client: &str, password: &str| {
        let body = json!({ "email": "ada@example.com", "password": password });
        api.post("/auth/login", &body).from("10.0.0.1").header("x-forwarded-for", client)
    };
    for _ in 0..10 {
        log_in("203.0.113.9", "wrong horse 1").problem(StatusCode::UNAUTHORIZED).await?;
    }
    assert_eq!(log_in("203.0.113.9", PASSWORD).status().await?, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(log_in("203.0.113.10", PASSWORD).status().await?, StatusCode::OK);
    // What the locked client writes before the proxy's word changes nothing, nor does a second trusted proxy between.
    for claim in ["203.0.113.10, 203.0.113.9", "10.0.0.1, 203.0.113.9", "203.0.113.9, fd00::1", "[2001:db8::1]:1, 203.0.113.9:4711"] {
        assert_eq!(log_in(claim, PASSWORD).status().await?, StatusCode::TOO_MANY_REQUESTS, "{claim}");
    }
    Ok(())
}

#[tokio::test]
async fn who_is_no_trusted_proxy_speaks_for_itself_alone() -> Result<()> {
    let api = behind_a_proxy().await?;
    let guess = json!({ "email": "ada@example.com", "password": "wrong horse 1" });
    let right = json!({ "email": "ada@example.com", "password": PASSWORD });
    let names = ["x-forwarded-for", "forwarded", "x-real-ip", "true-client-ip"];
    for number in 0..10 {
        let mut call = api.post("/auth/login", &guess).from("203.0.113.9");
        for name in names {
            call = call.header(name, &format!("198.51.100.{number}"));
        }
        call.problem(StatusCode::UNAUTHORIZED).await?;
    }
    let claim = api.post("/auth/login", &right).from("203.0.113.9").header("x-forwarded-for", "198.51.100.99");
    assert_eq!(claim.status().await?, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(api.post("/auth/login", &right).from("198.51.100.3").status().await?, StatusCode::OK);

    // A line that is no text does not open the way to the claim before it: the proxy itself is the client then.
    for number in 0..10 {
        let call = api.post("/auth/login", &guess).from("10.0.0.1").header("x-forwarded-for", &format!("198.51.100.{number}"));
        call.bytes_header("x-forwarded-for", b"\xff, 203.0.113.77").problem(StatusCode::UNAUTHORIZED).await?;
    }
    let call = api.post("/auth/login", &right).from("10.0.0.1").header("x-forwarded-for", "198.51.100.99");
    assert_eq!(call.bytes_header("x-forwarded-for", b"\xff, 203.0.113.77").status().await?, StatusCode::TOO_MANY_REQUESTS);
    Ok(())
}

#[tokio::test]
async fn one_address_does_not_sign_up_or_guess_without_end() -> Result<()> {
    let api = behind_a_proxy().await?;
    let mut statuses = Vec::new();
    for number in 0..25 {
        let body = json!({ "email": format!("user{number}@example.com"), "name": "Ada", "password": PASSWORD });
        statuses.push(api.post("/auth/signup", &body).from(&format!("2001:db8::{number:x}")).status().await?);
    }
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::CREATED).count(), 3);
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::TOO_MANY_REQUESTS).count(), 22);

    let mut refused = 0;
    for number in 0..55 {
        let body = json!({ "email": format!("other{number}@example.com"), "password": "Summer2026" });
        refused += u32::from(api.post("/auth/login", &body).from("203.0.113.5").status().await? == StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(refused, 5);
    Ok(())
}

#[tokio::test]
async fn too_many_attempts_are_told_when_to_come_back() -> Result<()> {
    let api = TestApi::new().await?;
    let guess = json!({ "email": "ada@example.com", "password": "wrong horse 1" });
    for _ in 0..10 {
        api.post("/auth/login", &guess).problem(StatusCode::UNAUTHORIZED).await?;
    }
    let answer = api.post("/auth/login", &guess).send().await?;
    assert_eq!((answer.status, answer.body["code"].as_str()), (StatusCode::TOO_MANY_REQUESTS, Some("too_many_attempts")));
    assert!(answer.headers["retry-after"].to_str()?.parse::<u32>()? <= 900);
    Ok(())
}

#[tokio::test]
async fn an_account_goes_with_its_keys_sessions_and_memberships_and_leaves_its_name_in_the_audit_log() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let bob = api.store.member(&owner.scope, "bob@example.com", "Admin").await?;
    let new = json!({ "name": "ci", "permissions": ["view:projects"] });
    let key = api.post("/api-keys", &new).token(bob.token()).organization("acme").expect(StatusCode::CREATED).await?;
    let key = key["key"].as_str().context("key")?;
    let role = json!({ "name": "Auditor", "permissionIds": ["view:audit"] });
    api.post("/roles", &role).token(bob.token()).organization("acme").expect(StatusCode::CREATED).await?;

    let delete = |password: &str| api.post("/user/delete", &json!({ "password": password }));
    assert_eq!(delete("wrong horse 1").token(bob.token()).problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input");
    assert_eq!(delete(PASSWORD).token(key).problem(StatusCode::FORBIDDEN).await?, "session_required");
    let second = log_in(&api, "bob@example.com").await?;
    let answer = delete(PASSWORD).token(bob.token()).send().await?;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    for token in [bob.token(), second.body["accessToken"].as_str().context("accessToken")?, key] {
        assert_eq!(api.get("/user").token(token).status().await?, StatusCode::UNAUTHORIZED);
    }
    let again = json!({ "email": "bob@example.com", "password": PASSWORD });
    assert_eq!(api.post("/auth/login", &again).problem(StatusCode::UNAUTHORIZED).await?, "invalid_credentials");
    assert_eq!(api.get("/members").token(owner.token()).expect(StatusCode::OK).await?["total"], 1);
    let audit = api.get("/audit").token(owner.token()).expect(StatusCode::OK).await?.to_string();
    for said in ["account.deleted", "role.created", "api_key.created", "bob@example.com"] {
        assert!(audit.contains(said), "{said}: {audit}");
    }
    assert!(!audit.contains(key), "the log has no key");
    Ok(())
}

#[tokio::test]
async fn the_last_owner_goes_only_when_nothing_and_nobody_is_left() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let bob = api.store.member(&owner.scope, "bob@example.com", "Developer").await?;
    let delete = || api.post("/user/delete", &json!({ "password": PASSWORD })).token(owner.token());
    let refused = delete().expect(StatusCode::CONFLICT).await?;
    assert_eq!(refused["code"], "last_owner");
    assert!(refused["detail"].as_str().unwrap_or_default().contains("acme would have no owner left"), "{refused}");
    api.post("/members/leave", &json!({})).token(bob.token()).organization("acme").expect(StatusCode::OK).await?;
    // Alone, but with a project.
    api.post("/projects", &json!({ "name": "Shop", "odooVersion": "19.0" })).token(owner.token()).expect(StatusCode::CREATED).await?;
    assert_eq!(delete().problem(StatusCode::CONFLICT).await?, "last_owner");
    let gone = api.delete("/org?confirm=acme").token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(gone["message"], "acme is deleted");
    api.post("/user/orgs", &json!({ "name": "Empty" })).token(owner.token()).expect(StatusCode::CREATED).await?;
    delete().expect(StatusCode::OK).await?;
    let left: i64 =
        sqlx::query_scalar("select (select count(*) from organizations) + (select count(*) from users where email like 'owner%')")
            .fetch_one(&api.store.control.pool)
            .await?;
    assert_eq!(left, 0);
    Ok(())
}
