//! Every operation of the document, who may call it, and the proof by calling it.
//!
//! **A new operation needs a row in [`OPERATIONS`]**; the test says so when it lacks one. A row whose path has an id needs a thing of that kind in
//! [`Things`], so that another tenant's call for it can be seen to find nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use axum::http::{Method, StatusCode};
use ocore_control::{api_keys, authorization::Scope, members, projects, roles};
use ocore_model::{
    ids::{DeploymentId, EnvironmentId, InstanceId, SnapshotId},
    permission::{Permission, SystemRole},
    project::ModuleSelection,
};
use ocore_testkit::store::Owned;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::TestApi;

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Anybody, without a token.
    Nothing,
    /// Any token.
    Token,
    /// A person's session, not an API key.
    Session,
    /// A person's session in the organization, whatever their role.
    Membership,
    /// This permission in the organization.
    Permission(&'static str),
    /// This permission; what it shows is the same for all tenants.
    Shared(&'static str),
}
use Needs::{Membership, Nothing, Permission as Right, Session, Shared, Token};

/// In the order in which they are tried: what ends the caller's session or membership comes last.
pub(crate) const OPERATIONS: &[(&str, Needs)] = &[
    // accounts
    ("POST /auth/signup", Nothing),
    ("POST /auth/login", Nothing),
    ("POST /auth/refresh", Nothing),
    ("GET /user", Token),
    ("POST /user/change-password", Session),
    // organizations
    ("GET /user/orgs", Token),
    ("POST /user/orgs", Session),
    ("GET /org", Right("view:organization")),
    ("PUT /org", Right("manage:organization")),
    ("DELETE /org", Right("manage:organization")),
    // members
    ("GET /members", Right("view:members")),
    ("POST /members/invite", Right("manage:members")),
    ("DELETE /members/{id}", Right("manage:members")),
    ("PUT /members/{id}/role", Right("manage:members")),
    ("GET /invitations", Right("view:members")),
    ("DELETE /invitations/{id}", Right("manage:members")),
    ("POST /invitations/accept", Session),
    // roles
    ("GET /permissions", Right("view:roles")),
    ("GET /roles", Right("view:roles")),
    ("POST /roles", Right("manage:roles")),
    ("PUT /roles/{id}", Right("manage:roles")),
    ("DELETE /roles/{id}", Right("manage:roles")),
    // API keys
    ("GET /api-keys", Right("view:api_keys")),
    ("POST /api-keys", Right("manage:api_keys")),
    ("DELETE /api-keys/{id}", Right("manage:api_keys")),
    // servers
    ("GET /servers", Right("view:servers")),
    ("GET /servers/{id}", Shared("view:servers")),
    // projects
    ("GET /projects", Right("view:projects")),
    ("POST /projects", Right("manage:projects")),
    ("GET /projects/{id}", Right("view:projects")),
    ("PUT /projects/{id}", Right("manage:projects")),
    ("DELETE /projects/{id}", Right("manage:projects")),
    ("GET /projects/{id}/branch-mappings", Right("view:projects")),
    ("PUT /projects/{id}/branch-mappings", Right("manage:projects")),
    // repositories
    ("GET /projects/{projectId}/repository", Right("view:projects")),
    ("POST /projects/{projectId}/repository", Right("manage:projects")),
    ("DELETE /projects/{projectId}/repository", Right("manage:projects")),
    ("POST /projects/{projectId}/repository/validate", Right("manage:projects")),
    ("POST /projects/{projectId}/repository/fetch", Right("manage:deployments")),
    ("POST /projects/{projectId}/repository/deploy-key", Right("manage:projects")),
    ("POST /projects/{projectId}/repository/host-key", Right("manage:projects")),
    ("PUT /projects/{projectId}/repository/submodule-sources", Right("manage:projects")),
    ("POST /projects/{projectId}/repository/webhook-secret", Right("manage:projects")),
    ("POST /webhooks/{projectId}", Nothing),
    // environments
    ("GET /environments", Right("view:environments")),
    ("GET /environments/{id}", Right("view:environments")),
    ("PUT /environments/{id}", Right("manage:environments")),
    ("DELETE /environments/{id}", Right("manage:environments")),
    ("PUT /environments/{id}/commit-behavior", Right("manage:environments")),
    ("GET /environments/{id}/egress", Right("view:egress")),
    ("PUT /environments/{id}/egress", Right("manage:egress")),
    ("GET /environments/{id}/sleep", Right("view:environments")),
    ("PUT /environments/{id}/sleep", Right("manage:environments")),
    ("GET /environments/{id}/deployments", Right("view:deployments")),
    ("POST /environments/{id}/trigger-build", Right("manage:deployments")),
    ("POST /environments/{id}/clone", Right("manage:environments")),
    ("GET /environments/{id}/neutralization", Right("view:environments")),
    ("GET /environments/{id}/quarantine", Right("view:environments")),
    ("POST /environments/{id}/quarantine/query", Right("manage:snapshots")),
    ("DELETE /environments/{id}/quarantine", Right("manage:environments")),
    ("POST /environments/{id}/rollback", Right("manage:deployments")),
    ("GET /environments/{id}/rollback-logs", Right("view:deployments")),
    ("GET /projects/{projectId}/environments", Right("view:environments")),
    ("POST /projects/{projectId}/environments", Right("manage:environments")),
    ("GET /projects/{projectId}/commits-since", Right("view:projects")),
    ("GET /projects/{projectId}/pipeline", Right("view:environments")),
    // caught mail
    ("GET /environments/{id}/mail", Right("view:environments")),
    ("POST /environments/{id}/mail/inject", Right("manage:environments")),
    ("POST /environments/{id}/mail/api/v1/message/{messageId}/release", Right("manage:environments")),
    ("GET /environments/{id}/mail-settings", Right("view:environments")),
    ("PUT /environments/{id}/mail-settings", Right("manage:environments")),
    // deployments
    ("GET /projects/{projectId}/deployments", Right("view:deployments")),
    ("POST /projects/{projectId}/deploy", Right("manage:deployments")),
    ("POST /projects/{projectId}/plan", Right("manage:deployments")),
    ("GET /deployments/{id}", Right("view:deployments")),
    ("POST /deployments/{id}/cancel", Right("manage:deployments")),
    ("GET /deployments/{id}/logs", Right("view:deployments")),
    ("GET /deployments/{id}/events", Right("view:deployments")),
    ("GET /deployments/{id}/report", Right("view:deployments")),
    ("GET /deployments/{id}/rollback/progress", Right("view:deployments")),
    // snapshots
    ("GET /environments/{id}/snapshots", Right("view:snapshots")),
    ("POST /environments/{id}/snapshots", Right("manage:snapshots")),
    ("GET /environments/{id}/snapshots/estimate", Right("view:snapshots")),
    ("GET /environments/{id}/snapshot-settings", Right("view:snapshots")),
    ("PUT /environments/{id}/snapshot-settings", Right("manage:snapshots")),
    ("GET /projects/{projectId}/snapshots", Right("view:snapshots")),
    ("GET /snapshots/{id}", Right("view:snapshots")),
    ("PATCH /snapshots/{id}", Right("manage:snapshots")),
    ("DELETE /snapshots/{id}", Right("manage:snapshots")),
    ("POST /snapshots/{id}/verify", Right("manage:snapshots")),
    ("GET /space", Right("view:snapshots")),
    // imports and exports
    ("GET /environments/{id}/imports", Right("view:deployments")),
    ("POST /environments/{id}/imports", Right("manage:deployments")),
    ("GET /imports/{id}", Right("view:deployments")),
    ("PATCH /imports/{id}", Right("manage:deployments")),
    ("POST /imports/{id}/filestore", Right("manage:deployments")),
    ("PATCH /imports/{id}/filestore", Right("manage:deployments")),
    ("POST /imports/{id}/start", Right("manage:deployments")),
    ("DELETE /imports/{id}", Right("manage:deployments")),
    ("GET /environments/{id}/exports", Right("view:snapshots")),
    ("POST /environments/{id}/exports", Right("manage:snapshots")),
    ("GET /exports/{id}", Right("view:snapshots")),
    ("GET /exports/{id}/download", Right("manage:snapshots")),
    ("GET /exports/{id}/credentials", Right("manage:snapshots")),
    ("DELETE /exports/{id}", Right("manage:snapshots")),
    // instances
    ("GET /instances", Right("view:instances")),
    ("POST /instances", Right("manage:instances")),
    ("GET /instances/{id}", Right("view:instances")),
    ("PUT /instances/{id}", Right("manage:instances")),
    ("DELETE /instances/{id}", Right("manage:instances")),
    ("POST /instances/{id}/control", Right("manage:instances")),
    ("GET /instances/{id}/logs", Right("manage:instances")),
    ("GET /instances/{id}/credentials", Right("manage:instances")),
    // audit
    ("GET /audit", Right("view:audit")),
    // events
    ("GET /events", Right("view:organization")),
    // the end
    ("POST /user/delete", Session),
    ("POST /members/leave", Membership),
    ("POST /auth/logout", Nothing),
];

/// Bodies of operations that look at them before they look for the thing, and that refuse the smallest which fits the schema.
const BODIES: &[(&str, &str)] = &[
    ("POST /projects/{projectId}/repository", r#"{ "repositoryUrl": "https://93.184.215.14/shop.git" }"#),
    ("POST /projects/{projectId}/environments", r#"{ "branch": "main" }"#),
    ("POST /projects/{projectId}/deploy", r#"{ "branch": "main" }"#),
    ("POST /projects/{projectId}/plan", r#"{ "branch": "main" }"#),
];

/// The same for query strings.
const QUERIES: &[(&str, &str)] =
    &[("GET /projects/{projectId}/commits-since", "?branch=main&since=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")];

/// One thing of each kind that belongs to an organization, by the beginning of its path.
struct Things(BTreeMap<&'static str, Uuid>);

impl Things {
    async fn new(api: &TestApi, owner: &Owned, member: &Owned) -> Result<Self> {
        let control = &api.store.control;
        let scope = &owner.scope;
        let member = members::list(control, &scope.grant()?).await?.into_iter().find(|other| other.user_id == member.login.user.id);
        let role = roles::NewRole { name: "Auditor".to_owned(), description: String::new(), permissions: vec!["view:projects".to_owned()] };
        let role = roles::create(control, &scope.grant()?, role).await?;
        let invitation = members::invite(control, &scope.grant()?, "guest@example.com", role.id).await?;
        let key = api_keys::NewApiKey { name: "ci".to_owned(), permissions: vec!["view:projects".to_owned()], expires_at: None };
        let key = api_keys::create(control, &scope.grant()?, key).await?;
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
        let project = projects::create(control, &scope.grant()?, project).await?;
        let (instance, environment, deployment) = insert_deployed(api, scope, project.id.as_uuid()).await?;
        let snapshot = insert_snapshot(api, environment).await?;
        let (import, export) = insert_transfers(api, scope, project.id.as_uuid(), environment).await?;
        Ok(Self(BTreeMap::from([
            ("/members/", member.context("the member")?.id.as_uuid()),
            ("/roles/", role.id.as_uuid()),
            ("/invitations/", invitation.invitation.id),
            ("/api-keys/", key.key.id.as_uuid()),
            ("/servers/", control.server_id.as_uuid()),
            ("/projects/", project.id.as_uuid()),
            ("/instances/", instance.as_uuid()),
            ("/environments/", environment.as_uuid()),
            ("/deployments/", deployment.as_uuid()),
            ("/snapshots/", snapshot.as_uuid()),
            ("/imports/", import),
            ("/exports/", export),
        ])))
    }

    /// The path with the thing's id; `None` when the path has none.
    fn path(&self, template: &str) -> Result<Option<String>> {
        if !template.contains('{') {
            return Ok(None);
        }
        let (_, id) =
            self.0.iter().find(|(start, _)| template.starts_with(*start)).with_context(|| format!("Things has nothing for {template}"))?;
        Ok(Some(filled(template, *id)))
    }
}

/// Rows of an instance with an environment and a deployment, as the engine would have written them.
pub(crate) async fn insert_deployed(api: &TestApi, scope: &Scope, project: Uuid) -> Result<(InstanceId, EnvironmentId, DeploymentId)> {
    let (instance, environment, deployment) = (InstanceId::new(), EnvironmentId::new(), DeploymentId::new());
    let pool = &api.store.control.pool;
    let organization = scope.organization_id.as_uuid();
    sqlx::query(
        "insert into instances (id, organization_id, project_id, server_id, name, slug, status, odoo_version, settings)
         values ($1, $2, $3, $4, 'shop', $5, 'running', '19.0', '{}')",
    )
    .bind(instance.as_uuid())
    .bind(organization)
    .bind(project)
    .bind(api.store.control.server_id.as_uuid())
    .bind(format!("shop-{}", scope.organization_slug))
    .execute(pool)
    .await?;
    sqlx::query(
        "insert into environments (id, organization_id, project_id, instance_id, name, branch, stage, commit_behavior, status)
         values ($1, $2, $3, $4, 'main', 'main', 'production', 'update_previous_build', 'active')",
    )
    .bind(environment.as_uuid())
    .bind(organization)
    .bind(project)
    .bind(instance.as_uuid())
    .execute(pool)
    .await?;
    sqlx::query(
        "insert into deployments (id, organization_id, project_id, environment_id, instance_id, status, trigger_type, branch, commit_sha,
                                  commit_author, commit_author_email, commit_message, data_origin)
         values ($1, $2, $3, $4, $5, 'succeeded', 'push', 'main', $6, 'Ada', 'ada@example.com', 'First', '{\"kind\": \"fresh\"}')",
    )
    .bind(deployment.as_uuid())
    .bind(organization)
    .bind(project)
    .bind(environment.as_uuid())
    .bind(instance.as_uuid())
    .bind("a".repeat(40))
    .execute(pool)
    .await?;
    Ok((instance, environment, deployment))
}

/// A snapshot of an environment, as if it had been taken.
async fn insert_snapshot(api: &TestApi, environment: EnvironmentId) -> Result<SnapshotId> {
    let snapshot = SnapshotId::new();
    sqlx::query(
        "insert into snapshots (id, organization_id, project_id, environment_id, instance_id, server_id, name, kind, status, data_set_id,
                                branch, stage, odoo_version, taken_at)
         select $1, environments.organization_id, environments.project_id, environments.id, instances.id, instances.server_id, 'kept',
                'manual', 'ready', $1, branch, stage, odoo_version, now()
         from environments join instances on instances.id = environments.instance_id where environments.id = $2",
    )
    .bind(snapshot.as_uuid())
    .bind(environment.as_uuid())
    .execute(&api.store.control.pool)
    .await?;
    Ok(snapshot)
}

/// Rows of an import and an export.
async fn insert_transfers(api: &TestApi, scope: &Scope, project: Uuid, environment: EnvironmentId) -> Result<(Uuid, Uuid)> {
    let (import, export) = (Uuid::now_v7(), Uuid::now_v7());
    let control = &api.store.control;
    sqlx::query(
        "insert into imports (id, organization_id, project_id, environment_id, server_id, status, file_name, size, expires_at)
         values ($1, $2, $3, $4, $5, 'rejected', 'backup.zip', 1, now() + interval '1 day')",
    )
    .bind(import)
    .bind(scope.organization_id.as_uuid())
    .bind(project)
    .bind(environment.as_uuid())
    .bind(control.server_id.as_uuid())
    .execute(&control.pool)
    .await?;
    sqlx::query(
        "insert into exports (id, organization_id, project_id, environment_id, server_id, status, format, neutralized, with_file_store,
                              snapshot_id, scratch_instance_id, scratch_data_set_id, file_name, expires_at)
         values ($1, $2, $3, $4, $5, 'failed', 'zip', true, true, $1, $1, $1, 'shop.zip', now() + interval '1 day')",
    )
    .bind(export)
    .bind(scope.organization_id.as_uuid())
    .bind(project)
    .bind(environment.as_uuid())
    .bind(control.server_id.as_uuid())
    .execute(&control.pool)
    .await?;
    Ok((import, export))
}

/// A path template with one id in every place.
pub(crate) fn filled(template: &str, id: Uuid) -> String {
    template.split('/').map(|part| if part.starts_with('{') { id.to_string() } else { part.to_owned() }).collect::<Vec<_>>().join("/")
}

/// An operation of the document with what it takes to call it.
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) method: Method,
    pub(crate) template: String,
    pub(crate) query: String,
    pub(crate) body: Option<Value>,
    public: bool,
}

fn document_operations() -> Result<Vec<Operation>> {
    let document = ocore_api::openapi();
    let mut operations = Vec::new();
    for (template, item) in document["paths"].as_object().context("paths")? {
        for (method, operation) in item.as_object().context("a path")? {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            let query: Vec<String> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "query" && parameter["required"] == true)
                .map(|parameter| {
                    let value = sample(&document, &parameter["schema"]);
                    let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
                    format!("{}={value}", parameter["name"].as_str().unwrap_or_default())
                })
                .collect();
            let name = format!("{method} {template}");
            let body = match BODIES.iter().find(|(operation, _)| *operation == name) {
                Some((_, body)) => Some(serde_json::from_str(body)?),
                None => (!body.is_null()).then(|| sample(&document, body)),
            };
            let query = match QUERIES.iter().find(|(operation, _)| *operation == name) {
                Some((_, query)) => (*query).to_owned(),
                None if query.is_empty() => String::new(),
                None => format!("?{}", query.join("&")),
            };
            operations.push(Operation {
                name,
                method,
                template: template.clone(),
                query,
                body,
                public: operation["security"].as_array().is_some_and(|ways| ways.iter().any(|way| way == &json!({}))),
            });
        }
    }
    Ok(operations)
}

/// A value that fits a schema of the document, as small as it can be.
fn sample(document: &Value, schema: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return sample(document, &document[&"components"]["schemas"][reference.rsplit('/').next().unwrap_or_default()]);
    }
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    for choice in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[choice].as_array() {
            let real = choices.iter().find(|choice| choice["type"] != "null");
            return real.map_or(Value::Null, |choice| sample(document, choice));
        }
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let mut whole = serde_json::Map::new();
        for part in parts {
            whole.extend(sample(document, part).as_object().cloned().unwrap_or_default());
        }
        return Value::Object(whole);
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"].as_array().and_then(|kinds| kinds.iter().find_map(Value::as_str)));
    match (kind, schema["format"].as_str()) {
        (Some("object"), _) => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            Value::Object(
                required
                    .iter()
                    .filter_map(Value::as_str)
                    .map(|name| (name.to_owned(), sample(document, &schema["properties"][name])))
                    .collect(),
            )
        }
        (Some("array"), _) => json!([]),
        (Some("integer" | "number"), _) => json!(1),
        (Some("boolean"), _) => json!(false),
        (Some("string"), Some("uuid")) => json!(Uuid::now_v7()),
        (Some("string"), Some("email")) => json!("somebody@example.com"),
        (Some("string"), Some("date-time")) => json!("2100-01-01T00:00:00Z"),
        (Some("string"), _) => json!("main"),
        _ => Value::Null,
    }
}

pub(crate) async fn status(
    api: &TestApi,
    operation: &Operation,
    path: &str,
    token: Option<&str>,
    organization: Option<&str>,
) -> Result<StatusCode> {
    let mut call = api.call(operation.method.clone(), &format!("{path}{}", operation.query));
    if let Some(token) = token {
        call = call.token(token);
    }
    if let Some(organization) = organization {
        call = call.organization(organization);
    }
    if let Some(body) = &operation.body {
        call = call.json(body);
    }
    call.status().await
}

pub(crate) fn refused(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}

/// A key of the owner with these permissions.
pub(crate) async fn key(api: &TestApi, owner: &Owned, permissions: impl Iterator<Item = Permission>) -> Result<String> {
    let permissions = permissions.map(|permission| permission.to_string()).collect();
    let new = api_keys::NewApiKey { name: "probe".to_owned(), permissions, expires_at: None };
    Ok(api_keys::create(&api.store.control, &owner.scope.grant()?, new).await?.plaintext)
}

/// The operations in the order of the table; an error that names what one of the two lacks.
pub(crate) fn operations() -> Result<Vec<(Operation, Needs)>> {
    let mut documented: BTreeMap<String, Operation> =
        document_operations()?.into_iter().map(|operation| (operation.name.clone(), operation)).collect();
    let mut operations = Vec::new();
    for (name, needs) in OPERATIONS {
        let operation = documented.remove(*name).with_context(|| format!("the document has no operation `{name}`; remove its row"))?;
        operations.push((operation, *needs));
    }
    let missing: Vec<String> = documented.into_keys().collect();
    ensure!(missing.is_empty(), "these operations need a row in OPERATIONS: {}", missing.join(", "));
    Ok(operations)
}

#[test]
fn every_operation_of_the_document_has_its_row_and_says_the_same_of_its_security() -> Result<()> {
    for (operation, needs) in operations()? {
        assert_eq!(operation.public, needs == Nothing, "{}", operation.name);
    }
    Ok(())
}

#[tokio::test]
async fn without_a_token_nothing_but_the_public_answers() -> Result<()> {
    let api = TestApi::new().await?;
    for (operation, needs) in operations()? {
        let path = filled(&operation.template, Uuid::now_v7());
        for token in [None, Some("ocore_unknown"), Some("x.y.z")] {
            if needs != Nothing {
                let status = status(&api, &operation, &path, token, Some("acme")).await?;
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{} with {token:?}", operation.name);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_role_may_do_what_the_permission_table_says_and_nothing_else() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let mut callers = vec![];
    for role in [SystemRole::Viewer, SystemRole::Developer, SystemRole::Admin] {
        callers.push((role, api.store.member(&owner.scope, &format!("{role}@example.com"), role.as_str()).await?));
    }
    Things::new(&api, &owner, &callers[0].1).await?;
    callers.push((SystemRole::Owner, owner));
    for (role, caller) in &callers {
        for (operation, needs) in operations()? {
            let path = filled(&operation.template, Uuid::now_v7());
            let allowed = match needs {
                Nothing => continue,
                Token | Session | Membership => true,
                Right(permission) | Shared(permission) => role.permissions().allows(permission.parse()?),
            };
            let status = status(&api, &operation, &path, Some(caller.token()), Some("acme")).await?;
            if allowed {
                assert!(!refused(status), "{role} may {}: {status}", operation.name);
            } else {
                assert_eq!(status, StatusCode::FORBIDDEN, "{role} may not {}", operation.name);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_api_key_needs_exactly_the_permission_and_never_replaces_a_person() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let viewer = api.store.member(&owner.scope, "viewer@example.com", "Viewer").await?;
    Things::new(&api, &owner, &viewer).await?;
    let all = key(&api, &owner, Permission::all()).await?;
    for (operation, needs) in operations()? {
        let path = filled(&operation.template, Uuid::now_v7());
        match needs {
            Nothing => {}
            Token => assert!(!refused(status(&api, &operation, &path, Some(&all), None).await?), "{}", operation.name),
            Session | Membership => {
                assert_eq!(status(&api, &operation, &path, Some(&all), None).await?, StatusCode::FORBIDDEN, "{}", operation.name);
            }
            Right(permission) | Shared(permission) => {
                let permission: Permission = permission.parse()?;
                let exact = key(&api, &owner, std::iter::once(permission)).await?;
                let allowed = status(&api, &operation, &path, Some(&exact), None).await?;
                assert!(!refused(allowed), "a key with {permission} may {}: {allowed}", operation.name);
                let others = Permission::all().filter(|other| other.resource != permission.resource);
                let others = key(&api, &owner, others).await?;
                let other = status(&api, &operation, &path, Some(&others), None).await?;
                assert_eq!(other, StatusCode::FORBIDDEN, "a key with all but {permission} may not {}", operation.name);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn another_tenant_finds_nothing_neither_by_slug_nor_by_id() -> Result<()> {
    let api = TestApi::new().await?;
    let owner = api.store.organization("acme").await?;
    let member = api.store.member(&owner.scope, "member@example.com", "Viewer").await?;
    let things = Things::new(&api, &owner, &member).await?;
    let stranger = api.store.organization("globex").await?;
    let mut seen = Vec::new();
    for (operation, needs) in operations()? {
        if !matches!(needs, Right(_) | Shared(_) | Membership) {
            continue;
        }
        let own = things.path(&operation.template)?;
        let path = own.clone().unwrap_or_else(|| operation.template.clone());
        let by_slug = status(&api, &operation, &path, Some(stranger.token()), Some("acme")).await?;
        if by_slug != StatusCode::NOT_FOUND {
            seen.push(format!("{} in another tenant's organization: {by_slug}", operation.name));
        }
        if let (Some(path), false) = (own, matches!(needs, Shared(_))) {
            let by_id = status(&api, &operation, &path, Some(stranger.token()), None).await?;
            if by_id != StatusCode::NOT_FOUND {
                seen.push(format!("{} of another tenant's thing: {by_id}", operation.name));
            }
        }
    }
    assert!(seen.is_empty(), "{seen:#?}");
    Ok(())
}
