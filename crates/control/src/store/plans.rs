//! What a plan is made from, and where it is kept.

use ocore_model::{
    ids::{DeploymentId, EnvironmentId},
    names::OdooVersion,
};
use serde_json::Value;
use sqlx::PgConnection;

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

/// An [`ocore_model::deployment::ModulePlan`].
pub(crate) async fn of_deployment(connection: &mut PgConnection, scope: &Scope, deployment: DeploymentId) -> Result<Option<Value>> {
    let found = sqlx::query_scalar!(
        "select plan from deployments where id = $2 and organization_id = $1",
        scope.organization_id.as_uuid(),
        deployment.as_uuid(),
    );
    Ok(found.fetch_optional(connection).await?.flatten())
}
