//! What every call has in common.

use anyhow::Result;
use axum::http::{Method, StatusCode};
use ocore_testkit::store::METRICS_TOKEN;
use serde_json::json;

use crate::support::TestApi;

#[tokio::test]
async fn every_problem_has_the_id_of_its_request() -> Result<()> {
    let api = TestApi::new().await?;
    let answer = api.get("/user").header("x-request-id", "my-own-id").send().await?;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    assert_eq!(answer.headers["x-request-id"], "my-own-id");
    assert_eq!(answer.body["requestId"], "my-own-id");
    assert_eq!(answer.body["type"], "urn:ocore:problem:authentication_required");

    let answer = api.get("/user").header("x-request-id", "bad id; $(x)").send().await?;
    let id = answer.headers["x-request-id"].to_str()?;
    assert!(id.parse::<uuid::Uuid>().is_ok(), "{id}");
    assert_eq!(answer.body["requestId"], id);
    Ok(())
}

#[tokio::test]
async fn what_the_api_does_not_have_is_a_problem_too() -> Result<()> {
    let api = TestApi::new().await?;
    assert_eq!(api.get("/nothing").problem(StatusCode::NOT_FOUND).await?, "no_such_path");
    assert_eq!(api.raw(Method::GET, "/nothing").problem(StatusCode::NOT_FOUND).await?, "no_such_path");
    assert_eq!(api.call(Method::PATCH, "/user").problem(StatusCode::METHOD_NOT_ALLOWED).await?, "method_not_allowed");
    Ok(())
}

#[tokio::test]
async fn bodies_that_do_not_fit_are_told_apart() -> Result<()> {
    let api = TestApi::new().await?;
    let login = async |body: &str| api.call(Method::POST, "/auth/login").header("content-type", "application/json").text(body).send().await;
    let answer = login("{").await?;
    assert_eq!((answer.status, answer.body["code"].as_str()), (StatusCode::BAD_REQUEST, Some("malformed_json")));
    let answer = login(r#"{"email": "a@example.com"}"#).await?;
    assert_eq!((answer.status, answer.body["errors"][0]["field"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("password")));
    let answer = login(r#"{"email": "a@example.com", "password": "x", "remember": true}"#).await?;
    assert_eq!((answer.status, answer.body["errors"][0]["field"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("remember")));
    let large = json!({ "email": "a".repeat(2 << 20), "password": "x" }).to_string();
    let answer = login(&large).await?;
    assert_eq!((answer.status, answer.body["code"].as_str()), (StatusCode::PAYLOAD_TOO_LARGE, Some("body_too_large")));
    let code = api.call(Method::POST, "/auth/login").text("email=a").problem(StatusCode::UNSUPPORTED_MEDIA_TYPE).await?;
    assert_eq!(code, "json_required");
    Ok(())
}

#[tokio::test]
async fn an_id_or_a_query_that_does_not_fit_is_refused() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let code = api.get("/projects/42").token(owner.token()).problem(StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(code, "invalid_input");
    let answer = api.get("/projects?includeArchived=perhaps").token(owner.token()).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(answer["errors"][0]["field"], "includeArchived");
    let answer = api.get("/projects?archived=true").token(owner.token()).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(answer["errors"][0]["field"], "archived");
    Ok(())
}

#[tokio::test]
async fn the_document_and_its_page_come_from_the_binary() -> Result<()> {
    let api = TestApi::new().await?;
    let document = api.get("/openapi.json").expect(StatusCode::OK).await?;
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document, ocore_api::openapi());
    let mut ids = std::collections::HashSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{}", operation["operationId"]);
            assert!(operation["responses"]["422"].is_object() && operation["responses"]["500"].is_object(), "{}", operation["operationId"]);
        }
    }

    assert_eq!(api.get("/docs").send().await?.headers["location"], "docs/");
    let page = api.get("/docs/").send().await?;
    assert_eq!(page.headers["content-type"], "text/html");
    let assets: Vec<&str> =
        page.text.split(['"', '\'']).filter(|text| [".js", ".css", ".png"].iter().any(|ending| text.ends_with(ending))).collect();
    assert!(assets.len() >= 3, "{}", page.text);
    for asset in assets {
        assert!(!asset.contains("://"), "{asset} is fetched from elsewhere");
        let path = format!("/docs/{}", asset.trim_start_matches("./"));
        assert_eq!(api.get(&path).status().await?, StatusCode::OK, "{asset}");
    }
    let start = api.get("/docs/swagger-initializer.js").send().await?;
    assert!(start.text.contains("../openapi.json") && !start.text.contains("://"), "{}", start.text);
    assert_eq!(api.get("/docs/../../etc/passwd").status().await?, StatusCode::NOT_FOUND);
    Ok(())
}

#[tokio::test]
async fn health_readiness_and_metrics_tell_the_truth() -> Result<()> {
    let api = TestApi::new().await?;
    assert_eq!(api.raw(Method::GET, "/healthz").expect(StatusCode::OK).await?["status"], "ok");
    // The store answers; there is no machine in this test.
    let ready = api.raw(Method::GET, "/readyz").token(METRICS_TOKEN).expect(StatusCode::SERVICE_UNAVAILABLE).await?;
    let checks: Vec<(&str, bool)> =
        ready["checks"].as_array().unwrap().iter().map(|check| (check["name"].as_str().unwrap(), check["ok"].as_bool().unwrap())).collect();
    assert_eq!(checks, [("store", true), ("host", false), ("edge", false)]);

    api.get("/servers/018f3b1e-0000-7000-8000-000000000000").status().await?;
    let metrics = api.raw(Method::GET, "/metrics").token(METRICS_TOKEN).send().await?;
    assert!(metrics.text.contains(r#"ocore_http_requests_total{method="GET",route="/api/servers/{id}",status="401"}"#), "{}", metrics.text);
    assert!(metrics.text.contains("ocore_http_request_seconds_bucket"), "{}", metrics.text);
    assert!(metrics.text.contains("ocore_deployments{status=\"failed\"} 0"), "{}", metrics.text);
    Ok(())
}

#[tokio::test]
async fn metrics_and_the_details_of_readiness_are_for_whoever_has_their_token() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    // From this machine too: every tenant's Odoo runs on it.
    for peer in ["203.0.113.9", "127.0.0.1", "::1"] {
        for token in ["", "x", owner.token(), &METRICS_TOKEN[1..]] {
            let answer = api.raw(Method::GET, "/metrics").from(peer).token(token).send().await?;
            assert_eq!(
                (answer.status, answer.body["code"].as_str()),
                (StatusCode::UNAUTHORIZED, Some("metrics_token_required")),
                "{peer} {token}"
            );
            let answer = api.raw(Method::GET, "/readyz").from(peer).token(token).send().await?;
            assert_eq!((answer.status, answer.text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"unavailable"}"#));
        }
        assert_eq!(api.raw(Method::GET, "/metrics").from(peer).status().await?, StatusCode::UNAUTHORIZED);
        assert_eq!(api.raw(Method::GET, "/metrics").from(peer).token(METRICS_TOKEN).status().await?, StatusCode::OK);
    }
    // An empty setting is no token that everybody has.
    let store =
        ocore_testkit::Store::new().await?.with_settings(|settings| settings.metrics_token = ocore_control::secrets::Secret::new(""));
    let api = TestApi::on(store);
    assert_eq!(api.raw(Method::GET, "/metrics").token("").status().await?, StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn every_answer_tells_browsers_to_keep_nothing_and_to_guess_no_types() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let login = json!({ "email": "owner@acme.example", "password": ocore_testkit::store::PASSWORD });
    let key = json!({ "name": "laptop", "permissions": ["view:projects"] });
    let calls = [
        (api.post("/auth/login", &login), StatusCode::OK),
        (api.post("/api-keys", &key).token(owner.token()), StatusCode::CREATED),
        (api.get("/projects").token(owner.token()), StatusCode::OK),
        (api.get("/projects"), StatusCode::UNAUTHORIZED),
        (api.raw(Method::GET, "/nothing"), StatusCode::NOT_FOUND),
        (api.raw(Method::GET, "/metrics").token(METRICS_TOKEN), StatusCode::OK),
        (api.raw(Method::GET, "/invitations/invitation_x"), StatusCode::OK),
    ];
    for (call, status) in calls {
        let answer = call.send().await?;
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(!answer.headers.contains_key("strict-transport-security"));
    }
    // What is the same for everybody may be kept.
    let asset = api.get("/docs/swagger-ui.css").send().await?;
    assert_eq!((asset.status, &asset.headers["cache-control"]), (StatusCode::OK, &"max-age=3600".parse()?));
    assert_eq!(asset.headers["x-content-type-options"], "nosniff");

    let store = ocore_testkit::Store::new().await?.with_settings(|settings| settings.public_url = "https://ocore.example.com".to_owned());
    let answer = TestApi::on(store).get("/user").send().await?;
    assert_eq!(answer.headers["strict-transport-security"], "max-age=31536000");
    Ok(())
}
