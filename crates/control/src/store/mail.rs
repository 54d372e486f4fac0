//! Mailboxes of environments in the store: ports, and to whom messages may be released.

use ocore_model::{
    environment::Stage,
    ids::{DataSetId, EnvironmentId, InstanceId, ServerId},
    instance::InstanceStatus,
};
use serde_json::Value;
use sqlx::PgConnection;

use crate::{Result, authorization::Scope};

/// An environment as its mail sees it.
#[derive(Debug, Clone)]
pub(crate) struct MailRow {
    pub(crate) environment: EnvironmentId,
    pub(crate) instance: InstanceId,
    pub(crate) branch: String,
    pub(crate) stage: Stage,
    pub(crate) status: InstanceStatus,
    pub(crate) data_set: Option<DataSetId>,
    pub(crate) http: Option<String>,
    pub(crate) mail_port: Option<i32>,
    pub(crate) release_to: Value,
}

/// One of the organization.
pub(crate) async fn find(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId) -> Result<Option<MailRow>> {
    Ok(sqlx::query_as!(
        MailRow,
        r#"select environments.id as "environment: EnvironmentId", instances.id as "instance: InstanceId", environments.branch,
                  environments.stage as "stage: Stage", instances.status as "status: InstanceStatus",
                  instances.active_data_set_id as "data_set: DataSetId", instances.active_http as http, instances.mail_port,
                  environments.mail_release_to as release_to
           from environments join instances on instances.id = environments.instance_id
           where environments.organization_id = $1 and environments.id = $2 and environments.status <> 'deleted'"#,
        scope.organization_id.as_uuid(),
        id.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}

/// Every environment of a server that is there and is not being deleted.
pub(crate) async fn of_server(connection: &mut PgConnection, server: ServerId) -> Result<Vec<MailRow>> {
    Ok(sqlx::query_as!(
        MailRow,
        r#"select environments.id as "environment: EnvironmentId", instances.id as "instance: InstanceId", environments.branch,
                  environments.stage as "stage: Stage", instances.status as "status: InstanceStatus",
                  instances.active_data_set_id as "data_set: DataSetId", instances.active_http as http, instances.mail_port,
                  environments.mail_release_to as release_to
           from environments join instances on instances.id = environments.instance_id
           where instances.server_id = $1 and environments.status = 'active'"#,
        server.as_uuid(),
    )
    .fetch_all(connection)
    .await?)
}

/// The stage of the environment that an instance serves.
pub(crate) async fn stage_of(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<Stage>> {
    Ok(sqlx::query_scalar!(
        r#"select stage as "stage: Stage" from environments where instance_id = $1 and status <> 'deleted'"#,
        instance.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

pub(crate) async fn set_port(connection: &mut PgConnection, instance: InstanceId, port: Option<i32>) -> Result<()> {
    sqlx::query!("update instances set mail_port = $2 where id = $1 and mail_port is distinct from $2", instance.as_uuid(), port)
        .execute(connection)
        .await?;
    Ok(())
}

pub(crate) async fn set_release_to(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId, addresses: &Value) -> Result<()> {
    sqlx::query!(
        "update environments set mail_release_to = $3, updated_at = now() where organization_id = $1 and id = $2",
        scope.organization_id.as_uuid(),
        id.as_uuid(),
        addresses,
    )
    .execute(connection)
    .await?;
    Ok(())
}
