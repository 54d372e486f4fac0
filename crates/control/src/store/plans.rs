//! What a plan is made from, and where it is kept.

use std::collections::BTreeSet;

use ocore_model::{
    ids::{DeploymentId, EnvironmentId},
    names::OdooVersion,
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, authorization::Scope};

/// What of a project and an instance decides about a plan.
#[derive(Debug, Clone)]
pub(crate) struct PlanSettings {
    pub odoo_version: OdooVersion,
    /// An [`ocore_model::project::ModuleSelection`].
    pub module_selection: Value,
}

pub(crate) async fn settings(connection: &mut PgConnection, environment: EnvironmentId) -> Result<Option<PlanSettings>> {
    Ok(sqlx::query_as!(
        PlanSettings,
        r#"select instances.odoo_version as "odoo_version: OdooVersion", projects.module_selection
           from environments
               join instances on instances.id = environments.instance_id
               join projects on projects.id = environments.project_id
           where environments.id = $1"#,
        environment.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// Modules that deployments which went well have installed or updated in an environment.
pub(crate) async fn once_installed(connection: &mut PgConnection, environment: EnvironmentId) -> Result<BTreeSet<String>> {
    let names = sqlx::query_scalar!(
        r#"select distinct name as "name!"
           from deployments,
               jsonb_array_elements_text(coalesce(plan -> 'install', '[]') || coalesce(plan -> 'update', '[]')) as names (name)
           where environment_id = $1 and status = 'succeeded' and plan is not null"#,
        environment.as_uuid(),
    );
    Ok(names.fetch_all(connection).await?.into_iter().collect())
}

/// [`ocore_model::deployment::ModulePlan`]s of those that have made one.
pub(crate) async fn of_deployments(
    connection: &mut PgConnection,
    scope: &Scope,
    deployments: &[Uuid],
) -> Result<Vec<(DeploymentId, Value)>> {
    let found = sqlx::query!(
        r#"select id as "id: DeploymentId", plan as "plan!" from deployments where id = any($2) and organization_id = $1 and plan is not null"#,
        scope.organization_id.as_uuid(),
        deployments,
    );
    Ok(found.fetch_all(connection).await?.into_iter().map(|row| (row.id, row.plan)).collect())
}

/// An [`ocore_model::deployment::ModulePlan`].
pub(crate) async fn of_deployment(connection: &mut PgConnection, scope: &Scope, deployment: DeploymentId) -> Result<Option<Value>> {
    let found = sqlx::query_scalar!(
        "select plan from deployments where id = $2 and organization_id = $1",
        scope.organization_id.as_uuid(),
        deployment.as_uuid(),
    );
    Ok(found.fetch_optional(connection).await?.flatten())
}
