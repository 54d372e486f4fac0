use anyhow::{Context, Result};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::TestApi;

async fn make(api: &TestApi, token: &str, name: &str) -> Result<Value> {
    api.post("/projects", &json!({ "name": name, "odooVersion": "19.0" })).token(token).expect(StatusCode::CREATED).await
}

fn path(project: &Value) -> String {
    format!("/projects/{}", project["id"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_new_project_has_a_repository_to_push_to_and_sensible_settings() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let project = make(&api, owner.token(), "Web Shop").await?;
    assert_eq!(project["repository"]["kind"], "built_in");
    assert_eq!(project["repository"]["gitRemote"], "http://127.0.0.1:8700/git/acme/web-shop.git");
    assert_eq!(project["moduleSelection"], json!({ "kind": "own" }));
    assert_eq!((project["withDemo"].as_bool(), project["createEnvironmentOnPush"].as_bool()), (Some(false), Some(true)));
    assert_eq!(api.get(&path(&project)).token(owner.token()).expect(StatusCode::OK).await?, project);
    Ok(())
}

#[tokio::test]
async fn inputs_are_checked_and_each_field_is_named() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let bad = json!({ "name": "", "slug": "X", "odooVersion": "nineteen", "moduleSelection": { "kind": "list", "modules": [] } });
    let problem = api.post("/projects", &bad).token(owner.token()).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    let fields: Vec<&str> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["name", "moduleSelection.modules", "slug", "odooVersion"]);
    let hurtful = json!({ "name": "Shop", "odooVersion": "19.0", "moduleSelection": { "kind": "list", "modules": ["a;b"] } });
    api.post("/projects", &hurtful).token(owner.token()).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    Ok(())
}

#[tokio::test]
async fn names_are_unique_in_the_organization_and_slugs_get_numbers() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    make(&api, owner.token(), "Web Shop").await?;
    let same = json!({ "name": "web shop", "odooVersion": "19.0" });
    assert_eq!(api.post("/projects", &same).token(owner.token()).problem(StatusCode::CONFLICT).await?, "project_name_taken");
    assert_eq!(make(&api, owner.token(), "Web-Shop").await?["slug"], "web-shop-2");
    let taken = json!({ "name": "Other", "slug": "web-shop", "odooVersion": "19.0" });
    assert_eq!(api.post("/projects", &taken).token(owner.token()).problem(StatusCode::CONFLICT).await?, "slug_taken");
    let other = api.store.organization("globex").await?;
    assert_eq!(make(&api, other.token(), "Web Shop").await?["slug"], "web-shop");
    Ok(())
}

#[tokio::test]
async fn a_change_keeps_what_it_does_not_name() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let project = make(&api, owner.token(), "Shop").await?;
    let change =
        json!({ "description": "All of it", "moduleSelection": { "kind": "list", "modules": ["sale", "shop_theme"] }, "withDemo": true });
    let changed = api.put(&path(&project), &change).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!((changed["name"].as_str(), changed["description"].as_str()), (Some("Shop"), Some("All of it")));
    assert_eq!(changed["moduleSelection"]["modules"], json!(["sale", "shop_theme"]));
    assert_eq!(changed["createEnvironmentOnPush"], true);
    make(&api, owner.token(), "Other").await?;
    let taken = api.put(&path(&project), &json!({ "name": "OTHER" })).token(owner.token());
    assert_eq!(taken.problem(StatusCode::CONFLICT).await?, "project_name_taken");
    Ok(())
}

#[tokio::test]
async fn an_archived_project_is_listed_on_demand_and_comes_back() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let project = make(&api, owner.token(), "Shop").await?;
    let archived = api.delete(&path(&project)).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(archived["archived"], true);
    assert_eq!(api.delete(&path(&project)).token(owner.token()).expect(StatusCode::OK).await?["archivedAt"], archived["archivedAt"]);
    assert_eq!(api.get("/projects").token(owner.token()).expect(StatusCode::OK).await?["total"], 0);
    for query in ["includeArchived", "include_archived"] {
        let all = api.get(&format!("/projects?{query}=true")).token(owner.token()).expect(StatusCode::OK).await?;
        assert_eq!(all["total"], 1);
    }
    api.put(&path(&project), &json!({ "archived": false })).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(api.get("/projects").token(owner.token()).expect(StatusCode::OK).await?["total"], 1);
    Ok(())
}

#[tokio::test]
async fn branch_mappings_are_replaced_as_a_whole_and_lead_to_instances_of_the_project() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let project = make(&api, owner.token(), "Shop").await?;
    let instance = uuid::Uuid::now_v7();
    sqlx::query(
        "insert into instances (id, organization_id, project_id, server_id, name, slug, status, odoo_version, settings)
         values ($1, $2, $3, $4, 'shop', 'shop', 'running', '19.0', '{}')",
    )
    .bind(instance)
    .bind(owner.scope.organization_id.as_uuid())
    .bind(project["id"].as_str().context("id")?.parse::<uuid::Uuid>()?)
    .bind(api.store.control.server_id.as_uuid())
    .execute(&api.store.control.pool)
    .await?;
    let path = format!("{}/branch-mappings", path(&project));
    let put = |mappings: Value| api.put(&path, &json!({ "branchMappings": mappings })).token(owner.token());

    let bad = json!([{ "branchPattern": "a b", "instanceId": uuid::Uuid::now_v7() }]);
    let problem = put(bad).expect(StatusCode::UNPROCESSABLE_ENTITY).await?;
    let fields: Vec<&str> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["branchMappings[0].branchPattern", "branchMappings[0].instanceId"]);

    let two = json!([
        { "branchPattern": "main", "instanceId": instance, "priority": 1 },
        { "branchPattern": "feature/*", "instanceId": instance, "priority": 5 },
    ]);
    let written = put(two).expect(StatusCode::OK).await?;
    assert_eq!((written["total"].as_i64(), written["branchMappings"][0]["branchPattern"].as_str()), (Some(2), Some("feature/*")));
    put(json!([{ "branchPattern": "main", "instanceId": instance }])).expect(StatusCode::OK).await?;
    let list = api.get(&path).token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!((list["total"].as_i64(), list["branchMappings"][0]["priority"].as_i64()), (Some(1), Some(0)));
    Ok(())
}
