//! What a production adds to each operation of the document, as docs/decisions/0017-rights.md lists it, and the proof by calling every operation in every
//! role at a production and at an environment that is none.

use anyhow::Result;
use axum::http::StatusCode;
use ocore_control::authorization::Scope;
use ocore_model::permission::{Permission, Resource, SystemRole};
use ocore_testkit::store::Owned;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    authorization::{
        Needs::{Permission as Right, Shared},
        Operation, key, operations, refused, status,
    },
    support::TestApi,
};

/// What needs `manage:production` on top of its own right, at a production.
const ADDS: &[&str] = &[
    "DELETE /projects/{id}",
    "PUT /projects/{id}/branch-mappings",
    "DELETE /environments/{id}",
    "PUT /environments/{id}/commit-behavior",
    "POST /environments/{id}/rollback",
    "PUT /environments/{id}/snapshot-settings",
    "PATCH /snapshots/{id}",
    "DELETE /snapshots/{id}",
    "POST /environments/{id}/imports",
    "PATCH /imports/{id}",
    "POST /imports/{id}/filestore",
    "PATCH /imports/{id}/filestore",
    "POST /imports/{id}/start",
    "DELETE /imports/{id}",
    "POST /environments/{id}/exports",
    "GET /exports/{id}/download",
    "GET /exports/{id}/credentials",
    "DELETE /exports/{id}",
    "PUT /instances/{id}",
    "DELETE /instances/{id}",
    "POST /instances/{id}/control",
    "GET /instances/{id}/credentials",
];

/// What needs it in a project that protects its production. (`POST /projects/{projectId}/deploy` and what makes a production as well; they need a
/// repository, and are tried in `control/tests/it/protection.rs`.)
const PROTECTED: &[&str] = &[
    "POST /environments/{id}/trigger-build",
    "POST /deployments/{id}/cancel",
    "GET /instances/{id}/logs",
    "POST /projects/{projectId}/repository",
    "DELETE /projects/{projectId}/repository",
    "POST /projects/{projectId}/repository/deploy-key",
    "POST /projects/{projectId}/repository/webhook-secret",
];

/// Whatever the stage: the setting itself.
const ALWAYS: &[&str] = &["PUT /projects/{id}"];

/// A project with an environment and one thing of each kind, all of it new.
struct Scene {
    project: Uuid,
    instance: Uuid,
    environment: Uuid,
    deployment: Uuid,
    snapshot: Uuid,
    import: Uuid,
    export: Uuid,
}

impl Scene {
    async fn new(api: &TestApi, scope: &Scope, stage: &str, protects: bool) -> Result<Self> {
        let [project, instance, environment, deployment, snapshot, import, export] = std::array::from_fn(|_| Uuid::now_v7());
        let statements = [
            "insert into projects (id, organization_id, name, slug, odoo_version, module_selection, repository_kind, protects_production)
             values ($3, $1, $3::uuid::text, $3::uuid::text, '19.0', '{\"kind\": \"own\"}', 'built_in', $10)",
            "insert into instances (id, organization_id, project_id, server_id, name, slug, status, odoo_version, settings)
             values ($4, $1, $3, $2, 'shop', $4::uuid::text, 'running', '19.0', '{}')",
            "insert into environments (id, organization_id, project_id, instance_id, name, branch, stage, commit_behavior, status)
             values ($5, $1, $3, $4, 'main', 'main', $11, 'update_previous_build', 'active')",
            "insert into deployments (id, organization_id, project_id, environment_id, instance_id, status, trigger_type, branch, commit_sha,
                                      commit_author, commit_author_email, commit_message, data_origin)
             values ($6, $1, $3, $5, $4, 'succeeded', 'push', 'main', repeat('a', 40), 'Ada', 'ada@example.com', 'First', '{\"kind\": \"fresh\"}')",
            "insert into snapshots (id, organization_id, project_id, environment_id, instance_id, server_id, name, kind, status, data_set_id,
                                    branch, stage, odoo_version, taken_at)
             values ($7, $1, $3, $5, $4, $2, 'kept', 'manual', 'ready', $7, 'main', $11, '19.0', now())",
            "insert into imports (id, organization_id, project_id, environment_id, server_id, status, file_name, size, expires_at)
             values ($8, $1, $3, $5, $2, 'rejected', 'backup.zip', 1, now() + interval '1 day')",
            "insert into exports (id, organization_id, project_id, environment_id, server_id, status, format, neutralized, with_file_store,
                                  snapshot_id, scratch_instance_id, scratch_data_set_id, file_name, expires_at)
             values ($9, $1, $3, $5, $2, 'failed', 'zip', false, true, $9, $9, $9, 'shop.zip', now() + interval '1 day')",
        ];
        for statement in statements {
            // Every statement knows all parameters, so that one list serves them all.
            let typed = "with given as (select $1::uuid, $2::uuid, $3::uuid, $4::uuid, $5::uuid, $6::uuid, $7::uuid, $8::uuid, $9::uuid, $10::bool, $11::text) ";
            let mut query = sqlx::query(sqlx::AssertSqlSafe(format!("{typed}{statement}")));
            for id in [scope.organization_id.as_uuid(), api.store.control.server_id.as_uuid()] {
                query = query.bind(id);
            }
            for id in [project, instance, environment, deployment, snapshot, import, export] {
                query = query.bind(id);
            }
            query.bind(protects).bind(stage).execute(&api.store.control.pool).await?;
        }
        Ok(Self { project, instance, environment, deployment, snapshot, import, export })
    }

    /// The operation's path, query and body for these things, so that it is about them.
    fn call(&self, mut operation: Operation) -> (Operation, String) {
        let own = [
            ("/projects/", self.project),
            ("/instances/", self.instance),
            ("/environments/", self.environment),
            ("/deployments/", self.deployment),
            ("/snapshots/", self.snapshot),
            ("/imports/", self.import),
            ("/exports/", self.export),
        ];
        let id = own.iter().find(|(start, _)| operation.template.starts_with(start)).map_or_else(Uuid::now_v7, |(_, id)| *id);
        let path = crate::authorization::filled(&operation.template, id);
        let body: Option<Value> = match operation.name.as_str() {
            "PUT /projects/{id}/branch-mappings" => {
                Some(json!({ "branchMappings": [{ "branchPattern": "evil", "instanceId": self.instance }] }))
            }
            "PUT /projects/{id}" => Some(json!({ "protectsProduction": true })),
            "POST /environments/{id}/rollback" => Some(json!({ "snapshotId": self.snapshot, "createSafetySnapshot": false })),
            "POST /environments/{id}/exports" => Some(json!({ "neutralized": false })),
            "PUT /instances/{id}" => Some(json!({ "envVars": { "A": "b" } })),
            _ => None,
        };
        operation.body = body.or(operation.body);
        if operation.name == "DELETE /projects/{id}" {
            operation.query = format!("?confirm={}", self.project);
        }
        (operation, path)
    }
}

/// Who calls, and what they may do.
struct Caller {
    name: String,
    token: String,
    allows: Box<dyn Fn(Permission) -> bool>,
}

async fn callers(api: &TestApi, owner: &Owned) -> Result<Vec<Caller>> {
    let mut callers = Vec::new();
    for role in [SystemRole::Viewer, SystemRole::Developer] {
        let member = api.store.member(&owner.scope, &format!("{role}@example.com"), role.as_str()).await?;
        let allows = Box::new(move |permission| role.permissions().allows(permission));
        callers.push(Caller { name: role.to_string(), token: member.token().to_owned(), allows });
    }
    // A key of an owner that has everything else is no way around it.
    let others = |permission: Permission| permission != Permission::manage(Resource::Production);
    let token = key(api, owner, Permission::all().filter(|permission| others(*permission))).await?;
    callers.push(Caller { name: "a key without manage:production".to_owned(), token, allows: Box::new(others) });
    for role in [SystemRole::Admin] {
        let member = api.store.member(&owner.scope, &format!("{role}@example.com"), role.as_str()).await?;
        let allows = Box::new(move |permission| role.permissions().allows(permission));
        callers.push(Caller { name: role.to_string(), token: member.token().to_owned(), allows });
    }
    callers.push(Caller { name: "Owner".to_owned(), token: owner.token().to_owned(), allows: Box::new(|_| true) });
    Ok(callers)
}

#[tokio::test]
async fn every_operation_in_every_role_at_every_stage_answers_as_the_table_says() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let callers = callers(&api, &owner).await?;
    let manages = Permission::manage(Resource::Production);
    let (mut wrong, mut tried) = (Vec::new(), Vec::new());
    for (stage, protects) in [("production", false), ("production", true), ("staging", true)] {
        for (operation, needs) in operations()? {
            let (Right(permission) | Shared(permission)) = needs else { continue };
            // The organization itself is tried in `organizations.rs`; here it must stand.
            if !operation.template.contains('{') || operation.name == "DELETE /members/{id}" {
                continue;
            }
            let permission: Permission = permission.parse()?;
            let scene = Scene::new(&api, &owner.scope, stage, protects).await?;
            let (operation, path) = scene.call(operation);
            let name = operation.name.as_str();
            tried.push(name.to_owned());
            let adds = stage == "production" && (ADDS.contains(&name) || protects && PROTECTED.contains(&name))
                || (ALWAYS.contains(&name) && !protects)
                || (protects && PROTECTED.contains(&name) && name.contains("/repository"));
            for caller in &callers {
                let may = (caller.allows)(permission) && (!adds || (caller.allows)(manages));
                let status = status(&api, &operation, &path, Some(&caller.token), Some("acme")).await?;
                if refused(status) == may {
                    wrong.push(format!("{} at {stage} (protected: {protects}) by {}: {status}", operation.name, caller.name));
                }
            }
        }
    }
    let unknown: Vec<&&str> = ADDS.iter().chain(PROTECTED).chain(ALWAYS).filter(|name| !tried.contains(&(**name).to_owned())).collect();
    assert!(wrong.is_empty() && unknown.is_empty(), "{wrong:#?} {unknown:?}");
    Ok(())
}

#[tokio::test]
async fn a_developer_reads_no_variable_of_a_production_in_any_answer() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let developer = api.store.member(&owner.scope, "developer@example.com", "Developer").await?;
    for (stage, shown) in [("production", "***"), ("staging", "sk_live_1")] {
        let scene = Scene::new(&api, &owner.scope, stage, false).await?;
        let path = format!("/instances/{}", scene.instance);
        let set = json!({ "envVars": { "STRIPE_KEY": "sk_live_1" } });
        assert_eq!(api.put(&path, &set).token(owner.token()).expect(StatusCode::OK).await?["envVars"], set["envVars"]);
        let one = api.get(&path).token(developer.token()).organization("acme").expect(StatusCode::OK).await?;
        assert_eq!(one["envVars"]["STRIPE_KEY"], shown);
        let all = api.get("/instances").token(developer.token()).organization("acme").send().await?;
        assert_eq!(all.text.contains("sk_live_1"), stage == "staging");
        // Nor by a body that leaves them as they are.
        let renamed = api.put(&path, &json!({ "name": "x" })).token(developer.token()).organization("acme").send().await?;
        assert_eq!(renamed.text.contains("sk_live_1"), stage == "staging", "{}", renamed.text);
        if stage == "staging" {
            api.delete(&path).token(owner.token()).expect(StatusCode::ACCEPTED).await?;
        } else {
            let audit = api.get("/audit").token(owner.token()).expect(StatusCode::OK).await?;
            let entry = &audit["entries"][0];
            assert_eq!(
                (entry["action"].as_str(), &entry["detail"]["envVars"]),
                (Some("instance.settings_changed"), &json!(["STRIPE_KEY"]))
            );
            assert!(!audit.to_string().contains("sk_live_1"), "names, never values");
            sqlx::query("update instances set status = 'deleted' where id = $1")
                .bind(scene.instance)
                .execute(&api.store.control.pool)
                .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_deploys_production_is_a_setting_that_only_its_managers_change() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let developer = api.store.member(&owner.scope, "developer@example.com", "Developer").await?;
    let new = json!({ "name": "Shop", "odooVersion": "19.0", "protectsProduction": true });
    let refused = api.post("/projects", &new).token(developer.token()).organization("acme").problem(StatusCode::FORBIDDEN).await?;
    assert_eq!(refused, "permission_missing");
    let made = api.post("/projects", &new).token(owner.token()).expect(StatusCode::CREATED).await?;
    assert_eq!(made["protectsProduction"], true);
    let path = format!("/projects/{}", made["id"].as_str().unwrap_or_default());
    let off = json!({ "protectsProduction": false });
    api.put(&path, &off).token(developer.token()).organization("acme").problem(StatusCode::FORBIDDEN).await?;
    assert_eq!(api.put(&path, &off).token(owner.token()).expect(StatusCode::OK).await?["protectsProduction"], false);
    let audit = api.get("/audit").token(owner.token()).expect(StatusCode::OK).await?;
    assert_eq!(audit["entries"][0]["action"], "project.production_protection_changed");
    Ok(())
}
