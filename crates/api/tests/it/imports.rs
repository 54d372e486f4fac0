//! Uploads of backups over the API, received by a real host.

use anyhow::{Context, Result};
use axum::http::{Method, StatusCode};
use ocore_control::projects;
use ocore_host::testing::Sandbox;
use ocore_model::{ids::EnvironmentId, project::ModuleSelection};
use ocore_testkit::{Store, store::Owned};
use serde_json::{Value, json};

use crate::{
    authorization::insert_deployed,
    support::{Answer, Call, TestApi},
};

struct Scene {
    api: TestApi,
    owner: Owned,
    environment: EnvironmentId,
    _sandbox: Sandbox,
}

impl Scene {
    /// A production environment that has been deployed.
    async fn new() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let api = TestApi::on(Store::with_host(sandbox.host().await?).await?);
        let owner = api.store.organization("acme").await?;
        let project = projects::NewProject {
            name: "Shop".to_owned(),
            slug: None,
            description: String::new(),
            odoo_version: Some("19.0".to_owned()),
            module_selection: ModuleSelection::Own,
            with_demo: false,
            create_environment_on_push: true,
            protects_production: false,
        };
        let project = projects::create(&api.store.control, &owner.scope.grant()?, project).await?;
        let (_, environment, _) = insert_deployed(&api, &owner.scope, project.id.as_uuid()).await?;
        Ok(Self { api, owner, environment, _sandbox: sandbox })
    }

    async fn stage(&self, stage: &str) -> Result<()> {
        sqlx::query("update environments set stage = $2 where id = $1")
            .bind(self.environment.as_uuid())
            .bind(stage)
            .execute(&self.api.store.control.pool)
            .await?;
        Ok(())
    }

    fn path(&self) -> String {
        format!("/environments/{}/imports", self.environment)
    }

    fn announce(&self, size: usize) -> Call<'_> {
        self.api.post(&self.path(), &json!({ "fileName": "backup.zip", "size": size })).token(self.owner.token())
    }

    async fn begin(&self, size: usize) -> Result<String> {
        let begun = self.announce(size).expect(StatusCode::CREATED).await?;
        assert_eq!(begun["offset"], 0);
        let id = begun["importId"].as_str().context("an id")?;
        assert_eq!(begun["uploadUrl"], format!("/api/imports/{id}"));
        Ok(format!("/imports/{id}"))
    }

    async fn append(&self, path: &str, offset: usize, bytes: &str) -> Result<Answer> {
        self.api
            .call(Method::PATCH, path)
            .token(self.owner.token())
            .header("content-type", "application/offset+octet-stream")
            .header("upload-offset", &offset.to_string())
            .text(bytes)
            .send()
            .await
    }

    async fn show(&self, path: &str) -> Result<Value> {
        self.api.get(path).token(self.owner.token()).expect(StatusCode::OK).await
    }
}

fn offset(answer: &Answer) -> Option<&str> {
    answer.headers.get("upload-offset").and_then(|value| value.to_str().ok())
}

#[tokio::test]
async fn an_upload_is_resumed_at_its_offset_and_nowhere_else() -> Result<()> {
    let scene = Scene::new().await?;
    let path = scene.begin(10).await?;
    let first = scene.append(&path, 0, "abcd").await?;
    assert_eq!((first.status, offset(&first)), (StatusCode::NO_CONTENT, Some("4")));
    for wrong in [0, 3, 5] {
        let refused = scene.append(&path, wrong, "xxxx").await?;
        assert_eq!((refused.status, offset(&refused)), (StatusCode::CONFLICT, Some("4")), "{wrong}");
        assert_eq!(refused.body["code"], "upload_offset");
    }
    let head = scene.api.call(Method::HEAD, &path).token(scene.owner.token()).send().await?;
    assert_eq!((head.status, offset(&head)), (StatusCode::OK, Some("4")));
    assert_eq!(head.headers.get("upload-length").and_then(|value| value.to_str().ok()), Some("10"));
    let large = scene.append(&path, 4, "efghijklm").await?;
    assert_eq!((large.status, large.body["code"].as_str()), (StatusCode::CONFLICT, Some("rejected")), "{}", large.text);
    let shown = scene.show(&path).await?;
    let arrived = shown["backup"]["offset"].as_u64().context("an offset")?;
    let last = scene.append(&path, usize::try_from(arrived)?, &"efghij"[usize::try_from(arrived)? - 4..]).await?;
    assert_eq!((last.status, offset(&last)), (StatusCode::NO_CONTENT, Some("10")));
    assert_eq!(scene.show(&path).await?["status"], "received");
    assert_eq!(scene.append(&path, 10, "k").await?.body["code"], "upload_ended");

    let start = || scene.api.post(&format!("{path}/start"), &json!({})).token(scene.owner.token());
    assert_eq!(start().problem(StatusCode::CONFLICT).await?, "not_checked");
    // A file store that is announced now is waited for.
    let store = json!({ "fileName": "filestore.tar", "size": 3 });
    let target = scene.api.post(&format!("{path}/filestore"), &store).token(scene.owner.token()).expect(StatusCode::CREATED).await?;
    assert_eq!((&target["offset"], target["uploadUrl"].as_str()), (&json!(0), Some(format!("/api{path}/filestore").as_str())));
    assert_eq!(start().problem(StatusCode::CONFLICT).await?, "not_received");
    assert_eq!(scene.append(&format!("{path}/filestore"), 0, "abc").await?.status, StatusCode::NO_CONTENT);
    assert_eq!(scene.show(&path).await?["status"], "received");

    let listed = scene.show(&scene.path()).await?;
    assert_eq!(listed["imports"].as_array().map(Vec::len), Some(1));
    for _ in 0..2 {
        assert_eq!(scene.api.delete(&path).token(scene.owner.token()).send().await?.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(scene.show(&path).await?["status"], "expired");
    assert!(scene.api.store.control.host.uploads().await?.is_empty());
    assert_eq!(start().problem(StatusCode::CONFLICT).await?, "expired");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_when_it_is_announced() -> Result<()> {
    let scene = Scene::new().await?;
    for body in [
        json!({ "fileName": "", "size": 1 }),
        json!({ "fileName": "a", "size": 0 }),
        json!({ "fileName": "a", "size": -1 }),
        json!({ "fileName": "a", "size": 1, "sha256": "xyz" }),
        json!({ "fileName": "a" }),
    ] {
        let call = scene.api.post(&scene.path(), &body).token(scene.owner.token());
        assert_eq!(call.problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input", "{body}");
    }
    let answer = scene.announce(1 << 60).send().await?;
    assert_eq!((answer.status, answer.body["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("no_room")));
    assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("this upload needs")), "{}", answer.text);
    let path = scene.begin(3).await?;
    let call = scene
        .api
        .call(Method::PATCH, &path)
        .token(scene.owner.token())
        .header("content-type", "application/offset+octet-stream")
        .text("abc");
    assert_eq!(call.problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input");
    Ok(())
}

#[tokio::test]
async fn only_an_admin_imports_into_production_and_no_other_tenant_sees_an_import() -> Result<()> {
    let scene = Scene::new().await?;
    let developer = scene.api.store.member(&scene.owner.scope, "dev@example.com", "Developer").await?;
    let admin = scene.api.store.member(&scene.owner.scope, "admin@example.com", "Admin").await?;
    let stranger = scene.api.store.organization("globex").await?;
    let body = json!({ "fileName": "backup.zip", "size": 3 });
    let create = |token: &str| scene.api.post(&scene.path(), &body).token(token).organization("acme");
    assert_eq!(create(developer.token()).problem(StatusCode::FORBIDDEN).await?, "permission_missing");
    create(admin.token()).expect(StatusCode::CREATED).await?;

    // What a developer has begun elsewhere does not become an import into production by a change of the stage.
    scene.stage("staging").await?;
    let begun = create(developer.token()).expect(StatusCode::CREATED).await?;
    let path = format!("/imports/{}", begun["importId"].as_str().context("an id")?);
    scene.stage("production").await?;
    let upload = |token: &str| {
        scene
            .api
            .call(Method::PATCH, &path)
            .token(token)
            .header("content-type", "application/offset+octet-stream")
            .header("upload-offset", "0")
            .text("abc")
    };
    assert_eq!(upload(developer.token()).organization("acme").problem(StatusCode::FORBIDDEN).await?, "permission_missing");
    let start = scene.api.post(&format!("{path}/start"), &json!({})).token(developer.token()).organization("acme");
    assert_eq!(start.problem(StatusCode::FORBIDDEN).await?, "permission_missing");

    assert_eq!(upload(stranger.token()).problem(StatusCode::NOT_FOUND).await?, "not_found");
    for call in [scene.api.get(&path), scene.api.delete(&path), scene.api.post(&format!("{path}/start"), &json!({}))] {
        assert_eq!(call.token(stranger.token()).problem(StatusCode::NOT_FOUND).await?, "not_found");
    }
    Ok(())
}

#[tokio::test]
async fn productions_data_as_they_are_go_to_admins_only() -> Result<()> {
    let scene = Scene::new().await?;
    let developer = scene.api.store.member(&scene.owner.scope, "dev@example.com", "Developer").await?;
    let path = format!("/environments/{}/exports", scene.environment);
    let create = |body: Value| scene.api.post(&path, &body).token(developer.token()).organization("acme");
    assert_eq!(create(json!({})).problem(StatusCode::FORBIDDEN).await?, "permission_missing");
    // Nothing is live here.
    assert_eq!(create(json!({ "neutralized": true })).problem(StatusCode::CONFLICT).await?, "nothing_live");
    assert_eq!(create(json!({ "format": "rar" })).problem(StatusCode::UNPROCESSABLE_ENTITY).await?, "invalid_input");
    Ok(())
}
