//! What programs rely on: calls that may be sent again, answers that have not changed, lists of what is wanted, inputs that are refused by their names.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{environments::Scene, support::TestApi};

const KEY: &str = "idempotency-key";

#[tokio::test]
async fn a_call_with_a_key_is_carried_out_once_and_answered_alike() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let make = |name: &str, key: &str| {
        api.post("/projects", &json!({ "name": name, "odooVersion": "19.0" })).token(owner.token()).header(KEY, key).send()
    };
    let first = make("Shop", "a").await?;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.text);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let again = make("Shop", "a").await?;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.headers["location"], first.headers["location"]);
    assert_ne!(again.headers["x-request-id"], first.headers["x-request-id"]);
    // Another call under the same key is a mistake, and does nothing.
    let other = make("Warehouse", "a").await?;
    assert_eq!((other.status, &other.body["errors"][0]["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("Idempotency-Key")));
    // Without the key, or with another one, it is another call.
    assert_eq!(make("Shop", "b").await?.body["code"], "project_name_taken");
    // What was refused did nothing, so its key is free.
    assert_eq!(make("Other", "b").await?.status, StatusCode::CREATED);
    // A secret that is shown once is shown to who sends the same call again, and lies sealed in the store.
    let key = json!({ "name": "ci", "permissions": ["view:projects"] });
    let made = api.post("/api-keys", &key).token(owner.token()).header(KEY, "k").expect(StatusCode::CREATED).await?;
    let same = api.post("/api-keys", &key).token(owner.token()).header(KEY, "k").expect(StatusCode::CREATED).await?;
    assert_eq!(made["key"], same["key"]);
    assert_eq!(api.get("/api-keys").token(owner.token()).expect(StatusCode::OK).await?["total"], 1);
    let secret = made["key"].as_str().context("a key")?.as_bytes().to_vec();
    let answers: Vec<Vec<u8>> =
        sqlx::query_scalar("select answer from idempotency_keys where answer is not null").fetch_all(&api.store.control.pool).await?;
    assert!(answers.len() >= 3 && answers.iter().all(|answer| !answer.windows(secret.len()).any(|part| part == secret)));
    // It was kept for a day.
    sqlx::query("update idempotency_keys set created_at = created_at - interval '25 hours'").execute(&api.store.control.pool).await?;
    assert_eq!(make("Shop", "a").await?.body["code"], "project_name_taken");
    for bad in ["", &"x".repeat(256), "a\tb"] {
        let answer = make("Third", bad).await?;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{bad:?}: {}", answer.text);
    }
    Ok(())
}

#[tokio::test]
async fn a_key_is_its_callers_alone() -> Result<()> {
    let api = TestApi::new().await?;
    let (acme, other) = (api.store.organization("acme").await?, api.store.organization("other").await?);
    let body = json!({ "name": "Shop", "odooVersion": "19.0" });
    let of = async |token: &str| api.post("/projects", &body).token(token).header(KEY, "same").send().await;
    let (one, two) = (of(acme.token()).await?, of(other.token()).await?);
    assert_eq!((one.status, two.status), (StatusCode::CREATED, StatusCode::CREATED));
    assert_ne!(one.body["id"], two.body["id"]);
    // A program with a key of the same person is another caller.
    let key = json!({ "name": "ci", "permissions": ["manage:projects"] });
    let key = api.post("/api-keys", &key).token(acme.token()).expect(StatusCode::CREATED).await?;
    assert_eq!(of(key["key"].as_str().context("a key")?).await?.body["code"], "project_name_taken");
    // Whoever has lost a right does not get the answer that took it.
    let member = api.store.member(&acme.scope, "dev@acme.example", "Developer").await?;
    let body = json!({ "name": "Theirs", "odooVersion": "19.0" });
    let of_member = || api.post("/projects", &body).token(member.token()).header(KEY, "m");
    of_member().expect(StatusCode::CREATED).await?;
    sqlx::query("update members set role_id = (select id from roles where name = 'Viewer' and organization_id = members.organization_id) where user_id = $1")
        .bind(member.scope.user_id.as_uuid())
        .execute(&api.store.control.pool)
        .await?;
    assert_eq!(of_member().problem(StatusCode::FORBIDDEN).await?, "permission_missing");
    Ok(())
}

#[tokio::test]
async fn two_at_once_with_one_key_are_one_call() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let body = json!({ "name": "Shop", "odooVersion": "19.0" });
    let calls = (0..8).map(|_| api.post("/projects", &body).token(owner.token()).header(KEY, "k").send());
    let mut made = 0;
    for answer in futures::future::try_join_all(calls).await? {
        match answer.status {
            StatusCode::CREATED => made += usize::from(!answer.headers.contains_key("idempotency-replayed")),
            StatusCode::CONFLICT => assert_eq!(answer.body["code"], "idempotency_in_progress"),
            other => panic!("{other}: {}", answer.text),
        }
    }
    assert_eq!(made, 1);
    // A process that died over a call leaves its key behind: nobody can say whether the call took effect, so it is not carried out again.
    let pool = &api.store.control.pool;
    sqlx::query("update idempotency_keys set answer = null, process = gen_random_uuid()").execute(pool).await?;
    let call = api.post("/projects", &body).token(owner.token()).header(KEY, "k");
    assert_eq!(call.problem(StatusCode::CONFLICT).await?, "idempotency_interrupted");
    // Another process, which is what is left after kill -9, gives the answers of the one before.
    let call = api.post("/projects", &json!({ "name": "Second", "odooVersion": "19.0" })).token(owner.token()).header(KEY, "k2");
    let first = call.expect(StatusCode::CREATED).await?;
    sqlx::query("update idempotency_keys set process = gen_random_uuid()").execute(pool).await?;
    let later = TestApi::on(api.store.clone());
    let call = later.post("/projects", &json!({ "name": "Second", "odooVersion": "19.0" })).token(owner.token()).header(KEY, "k2");
    assert_eq!(call.expect(StatusCode::CREATED).await?, first);
    Ok(())
}

#[tokio::test]
async fn whoever_has_an_answer_is_told_that_it_is_the_same() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let token = scene.scenario.owner.token();
    let path = format!("/environments/{}", environment.id);
    let answer = scene.api.get(&path).token(token).send().await?;
    let tag = answer.headers["etag"].to_str()?.to_owned();
    let same = scene.api.get(&path).token(token).header("if-none-match", &tag).send().await?;
    assert_eq!((same.status, same.text.as_str()), (StatusCode::NOT_MODIFIED, ""));
    assert_eq!(same.headers["etag"], tag.as_str());
    // Two editors began with the same state; the second one is told.
    let change = |name: &str, tag: &str| scene.api.put(&path, &json!({ "name": name })).token(token).header("if-match", tag).send();
    let (one, two) = futures::future::try_join(change("one", &tag), change("two", &tag)).await?;
    let statuses = BTreeSet::from([one.status, two.status]);
    assert_eq!(statuses, BTreeSet::from([StatusCode::OK, StatusCode::PRECONDITION_FAILED]), "{} {}", one.text, two.text);
    let changed = scene.api.get(&path).token(token).header("if-none-match", &tag).send().await?;
    assert_eq!(changed.status, StatusCode::OK);
    let now = changed.headers["etag"].to_str()?.to_owned();
    assert_eq!(change("three", &format!("\"x\", {now}")).await?.status, StatusCode::OK);
    assert_eq!(change("four", "*").await?.status, StatusCode::OK);
    assert_eq!(change("five", "nope").await?.body["code"], "changed_meanwhile");
    // A path that nobody can GET has nothing to compare with.
    let call = scene.api.put(&format!("{path}/commit-behavior"), &json!({ "behavior": "do_nothing" })).token(token).header("if-match", "*");
    assert_eq!(call.expect(StatusCode::UNPROCESSABLE_ENTITY).await?["errors"][0]["field"], "If-Match");
    // Another tenant learns nothing by it.
    let other = scene.scenario.store.organization("other").await?;
    let call = scene.api.put(&path, &json!({ "name": "x" })).token(other.token()).header("if-match", &now);
    assert_eq!(call.problem(StatusCode::NOT_FOUND).await?, "not_found");
    Ok(())
}

#[tokio::test]
async fn lists_show_what_is_wanted_in_the_order_that_is_wanted() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    scene.scenario.commit("second")?;
    scene.scenario.push("main").await?;
    scene.scenario.push("feature/x").await?;
    let project = scene.scenario.project;
    let total = async |path: &str| -> Result<Value> { Ok(scene.get(path).await?["total"].clone()) };
    let deployments = format!("/projects/{project}/deployments");
    for (query, expected) in [
        ("", 3),
        ("?status=succeeded", 1),
        ("?status=queued", 2),
        ("?status=queued&branch=main", 1),
        ("?triggerType=push", 3),
        ("?triggerType=rollback", 0),
        ("?since=2100-01-01T00:00:00Z", 0),
        ("?until=2100-01-01T00:00:00%2B02:00", 3),
    ] {
        let page = scene.get(&format!("{deployments}{query}")).await?;
        assert_eq!((&page["total"], page["deployments"].as_array().map(Vec::len)), (&json!(expected), Some(expected)), "{query}");
    }
    assert_eq!(total(&format!("/environments/{}/deployments?status=queued", environment.id)).await?, 1);
    let order = |page: &Value| -> Vec<String> {
        page["deployments"].as_array().into_iter().flatten().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect()
    };
    let mut newest = order(&scene.get(&deployments).await?);
    newest.reverse();
    assert_eq!(order(&scene.get(&format!("{deployments}?sort=createdAt")).await?), newest);

    for (query, expected) in [
        ("", 2),
        ("?environmentType=production", 1),
        ("?environmentType=staging", 0),
        ("?branch=feature/x", 1),
        (format!("?projectId={project}").as_str(), 2),
        (format!("?projectId={}", environment.id).as_str(), 0),
    ] {
        assert_eq!(total(&format!("/environments{query}")).await?, expected, "{query}");
    }
    let names = scene.get("/environments?sort=-name").await?;
    assert!(names["environments"][0]["name"].as_str() > names["environments"][1]["name"].as_str());
    assert_eq!(scene.get(&format!("/projects/{project}/environments?environmentType=production")).await?.as_array().map(Vec::len), Some(1));
    assert_eq!(total("/instances?status=running").await?, 1);

    scene.put(&format!("/environments/{}/commit-behavior", environment.id), json!({ "behavior": "do_nothing" }), StatusCode::OK).await?;
    let user = scene.scenario.owner.scope.user_id;
    for (query, expected) in [
        ("?action=environment.commit_behavior_changed", 1),
        ("?action=environment.", 1),
        ("?action=environment", 0),
        (format!("?subject=environment:{}", environment.id).as_str(), 1),
        (format!("?userId={user}&action=environment.").as_str(), 1),
        (format!("?userId={}", environment.id).as_str(), 0),
        ("?action=environment.&until=2000-01-01T00:00:00Z", 0),
    ] {
        assert_eq!(total(&format!("/audit{query}")).await?, expected, "{query}");
    }
    Ok(())
}

#[tokio::test]
async fn a_query_parameter_that_an_operation_does_not_have_is_refused_everywhere() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let document = ocore_api::openapi();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().context("paths")? {
        for method in item.as_object().context("a path")?.keys() {
            let mut place = path.clone();
            while let (Some(begin), Some(end)) = (place.find('{'), place.find('}')) {
                place.replace_range(begin..=end, &environment.id.to_string());
            }
            let method: Method = method.to_uppercase().parse()?;
            let call = scene.api.call(method, &format!("{place}?foo=1")).token(scene.scenario.owner.token());
            let problem = call.expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
            assert_eq!(problem["errors"][0]["field"], "foo", "{path}");
            tried += 1;
        }
    }
    assert!(tried > 100);
    for (query, field) in
        [("LIMIT=1", "LIMIT"), ("limit=1&limit=2", "limit"), ("limit=%00", "limit"), ("action=a%00b", "action"), ("sort=name", "sort")]
    {
        let problem =
            scene.api.get(&format!("/audit?{query}")).token(scene.scenario.owner.token()).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], field, "{query}");
    }
    Ok(())
}

#[tokio::test]
async fn a_member_of_two_organizations_says_which_by_the_things_id_or_in_the_query() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let api = &scene.api;
    // The owner makes a second organization: nothing says any more which one a call is about.
    let token = scene.scenario.owner.token();
    let second = scene.post("/user/orgs", json!({ "name": "Second" }), StatusCode::CREATED).await?;
    let (first, second) = (scene.scenario.owner.scope.organization_slug.clone(), second["slug"].as_str().context("a slug")?.to_owned());
    assert_eq!(api.get("/environments").token(token).problem(StatusCode::BAD_REQUEST).await?, "organization_required");
    for (slug, total) in [(&first, 1), (&second, 0)] {
        assert_eq!(api.get(&format!("/environments?org={slug}")).token(token).expect(StatusCode::OK).await?["total"], total);
    }
    // A browser has the cookie and no header.
    let cookie = format!("ocore_access={token}");
    let project = scene.scenario.project;
    for path in [
        format!("/environments/{}", environment.id),
        format!("/environments/{}/deployments", environment.id),
        format!("/projects/{project}"),
        format!("/projects/{project}/pipeline?recentDeployments=1"),
        format!("/instances/{}", environment.instance_id),
    ] {
        assert_eq!(api.get(&path).header("cookie", &cookie).send().await?.status, StatusCode::OK, "{path}");
        let join = if path.contains('?') { '&' } else { '?' };
        assert_eq!(api.get(&format!("{path}{join}org={first}")).header("cookie", &cookie).send().await?.status, StatusCode::OK, "{path}");
        // Named, it is not looked for elsewhere.
        assert_eq!(api.get(&path).token(token).organization(&second).send().await?.status, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(api.get(&format!("/events?org={first}")).header("cookie", &cookie).status().await?, StatusCode::OK);
    let call = api.get(&format!("/environments?org={first}")).token(token).organization(&second);
    assert_eq!(call.expect(StatusCode::UNPROCESSABLE_ENTITY).await?["errors"][0]["field"], "org");
    assert_eq!(api.get("/environments?org=nobodys").token(token).problem(StatusCode::NOT_FOUND).await?, "not_found");
    // A stranger's thing, and one that nobody has, look alike.
    let other = scene.scenario.store.organization("other").await?;
    let mut strangers = Vec::new();
    for id in [other.scope.organization_id.as_uuid(), uuid::Uuid::now_v7()] {
        let answer = api.get(&format!("/environments/{id}")).token(token).send().await?;
        strangers.push((answer.status, answer.body["detail"].clone()));
    }
    let foreign =
        api.post("/projects", &json!({ "name": "Theirs", "odooVersion": "19.0" })).token(other.token()).expect(StatusCode::CREATED).await?;
    let answer = api.get(&format!("/projects/{}", foreign["id"].as_str().context("an id")?)).token(token).send().await?;
    assert_eq!((answer.status, &answer.body["detail"]), (StatusCode::NOT_FOUND, &json!("there is no such project")));
    assert_eq!(strangers[0], strangers[1]);
    assert_eq!(strangers[0], (StatusCode::NOT_FOUND, json!("there is no such environment")));
    Ok(())
}

#[tokio::test]
async fn no_text_with_nul_and_no_list_for_an_object_gets_in_anywhere() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let document = ocore_api::openapi();
    let (mut texts, mut lists) = (0, 0);
    for (path, item) in document["paths"].as_object().context("paths")? {
        for (method, operation) in item.as_object().context("a path")? {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let Some(name) = schema_name(schema) else { continue };
            let mut place = path.clone();
            while let (Some(begin), Some(end)) = (place.find('{'), place.find('}')) {
                place.replace_range(begin..=end, &environment.id.to_string());
            }
            let method: Method = method.to_uppercase().parse()?;
            let send =
                async |body: &Value| scene.api.call(method.clone(), &place).token(scene.scenario.owner.token()).json(body).send().await;
            for property in document["components"]["schemas"][name]["properties"].as_object().into_iter().flatten().map(|(name, _)| name) {
                for value in [json!("a\u{0}b"), json!(["\u{0}"]), json!({ "x": "\u{0}" }), json!({ "\u{0}": "x" })] {
                    let answer = send(&json!({ property: value })).await?;
                    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path} {property} {value}: {}", answer.text);
                    let field = answer.body["errors"][0]["field"].as_str().context("a field")?;
                    assert!(field.starts_with(property.as_str()), "{path} {property}: {field}");
                    texts += 1;
                }
            }
            for body in [json!([]), json!(["a", "b", "c"]), json!("x"), json!(1), json!(true)] {
                let answer = send(&body).await?;
                assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path} {body}: {}", answer.text);
                lists += 1;
            }
        }
    }
    assert!(texts > 300 && lists > 100, "{texts} {lists}");
    // Below the first level too.
    let path = format!("/projects/{}", scene.scenario.project);
    let problem = scene.put(&path, json!({ "moduleSelection": ["own"] }), StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(problem["errors"][0]["field"], "moduleSelection");
    let mapping = json!({ "branchMappings": [["main", environment.instance_id, 1]] });
    let problem = scene.put(&format!("{path}/branch-mappings"), mapping, StatusCode::UNPROCESSABLE_ENTITY).await?;
    assert_eq!(problem["errors"][0]["field"], "branchMappings[0]");
    Ok(())
}

fn schema_name(schema: &Value) -> Option<&str> {
    let reference = schema["$ref"].as_str().or_else(|| schema["oneOf"].as_array()?.iter().find_map(|one| one["$ref"].as_str()))?;
    reference.rsplit('/').next()
}

#[tokio::test]
async fn words_of_the_wrong_type_name_their_field() -> Result<()> {
    let scene = Scene::new().await?;
    let environment = scene.scenario.live("main").await?;
    let (id, instance) = (environment.id, environment.instance_id);
    let calls = [
        (Method::PUT, format!("/environments/{id}/commit-behavior"), "behavior"),
        (Method::POST, format!("/instances/{instance}/control"), "action"),
        (Method::POST, format!("/projects/{}/environments", scene.scenario.project), "environmentType"),
        (Method::POST, format!("/environments/{id}/clone"), "targetType"),
        (Method::POST, format!("/environments/{id}/exports"), "format"),
        (Method::PUT, format!("/environments/{id}/snapshot-settings"), "failurePolicy"),
    ];
    for (method, path, field) in calls {
        for value in [json!(1), json!(true), json!([]), json!({}), json!("nothing"), json!(["development"])] {
            let call = scene.api.call(method.clone(), &path).token(scene.scenario.owner.token()).json(&json!({ field: value }));
            let problem = call.expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
            assert_eq!(problem["errors"][0]["field"], field, "{path} {value}: {problem}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_left_out_of_a_sleep_rule_stays() -> Result<()> {
    let scene = Scene::new().await?;
    scene.scenario.commit("first")?;
    let environment = scene.scenario.environment_of(&scene.scenario.push("feature/x").await?).await?;
    let path = format!("/environments/{}/sleep", environment.id);
    let put = async |body: Value| scene.put(&path, body, StatusCode::OK).await;
    assert_eq!(put(json!({ "ownMinutes": 77 })).await?["ownMinutes"], 77);
    let sleep = put(json!({ "wakesForScheduledActions": true })).await?;
    assert_eq!((&sleep["ownMinutes"], &sleep["wakesForScheduledActions"]), (&json!(77), &json!(true)));
    assert_eq!(put(json!({})).await?, sleep);
    let sleep = put(json!({ "ownMinutes": null })).await?;
    assert_eq!((sleep.get("ownMinutes"), &sleep["wakesForScheduledActions"]), (None, &json!(true)));
    Ok(())
}

#[tokio::test]
async fn times_are_the_same_at_once_and_later_and_can_be_read_by_everybody() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let made =
        api.post("/projects", &json!({ "name": "Shop", "odooVersion": "19.0" })).token(owner.token()).expect(StatusCode::CREATED).await?;
    let read = api.get(&format!("/projects/{}", made["id"].as_str().context("an id")?)).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(made, read);
    for bad in ["+262000-12-31T23:59:59Z", "+010000-01-01T00:00:00Z", "2000-01-01T00:00:00Z"] {
        let body = json!({ "name": "x", "permissions": ["view:projects"], "expiresAt": bad });
        let problem = api.post("/api-keys", &body).token(owner.token()).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
        assert_eq!(problem["errors"][0]["field"], "expiresAt", "{bad}");
    }
    Ok(())
}
