//! What environments may reach, in the store.

use ocore_model::{
    egress::EgressMode,
    environment::Stage,
    ids::{EnvironmentId, InstanceId, ServerId},
};
use serde_json::Value;
use sqlx::PgConnection;

use crate::{Result, authorization::Scope};

/// An environment's policy.
#[derive(Debug, Clone)]
pub(crate) struct EgressRow {
    pub id: EnvironmentId,
    pub instance_id: InstanceId,
    pub branch: String,
    pub stage: Stage,
    pub egress: EgressMode,
    /// A list of [`ocore_model::egress::Destination`].
    pub egress_allow: Value,
    /// The addresses of each name in it.
    pub egress_addresses: Value,
    pub egress_version: i64,
}

macro_rules! select_egress {
    ($filter:tt $(, $argument:expr)*) => {
        sqlx::query_as!(
            EgressRow,
            r#"select environments.id as "id: EnvironmentId", environments.instance_id as "instance_id: InstanceId", environments.branch,
                      environments.stage as "stage: Stage", environments.egress as "egress: EgressMode", environments.egress_allow,
                      environments.egress_addresses, environments.egress_version
               from environments join instances on instances.id = environments.instance_id
               where environments.status <> 'deleted' and "# + $filter
            $(, $argument)*
        )
    };
}

pub(crate) async fn find(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId) -> Result<Option<EgressRow>> {
    Ok(select_egress!("environments.id = $2 and environments.organization_id = $1", scope.organization_id.as_uuid(), id.as_uuid())
        .fetch_optional(connection)
        .await?)
}

/// One of the organization, locked until the end of the transaction.
pub(crate) async fn lock(connection: &mut PgConnection, scope: &Scope, id: EnvironmentId) -> Result<Option<EgressRow>> {
    Ok(select_egress!(
        "environments.id = $2 and environments.organization_id = $1 for no key update of environments",
        scope.organization_id.as_uuid(),
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Of the environment that an instance serves.
pub(crate) async fn of_instance(connection: &mut PgConnection, instance: InstanceId) -> Result<Option<EgressRow>> {
    Ok(select_egress!("environments.instance_id = $1", instance.as_uuid()).fetch_optional(connection).await?)
}

/// Those whose newest version the server has not taken.
pub(crate) async fn unsettled(connection: &mut PgConnection, server: ServerId) -> Result<Vec<EgressRow>> {
    Ok(select_egress!(
        "instances.server_id = $1 and environments.egress_applied is distinct from environments.egress_version order by environments.id",
        server.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

/// The closed ones that allow something.
pub(crate) async fn allowing(connection: &mut PgConnection, server: ServerId) -> Result<Vec<EgressRow>> {
    Ok(select_egress!(
        "instances.server_id = $1 and environments.stage <> 'production' and environments.egress = 'closed'
         and jsonb_array_length(environments.egress_allow) > 0 order by environments.id",
        server.as_uuid()
    )
    .fetch_all(connection)
    .await?)
}

pub(crate) async fn set(
    connection: &mut PgConnection,
    id: EnvironmentId,
    mode: EgressMode,
    allow: &Value,
    addresses: &Value,
) -> Result<()> {
    sqlx::query!(
        "update environments set egress = $2, egress_allow = $3, egress_addresses = $4, updated_at = now() where id = $1",
        id.as_uuid(),
        mode.as_str(),
        allow,
        addresses,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Other addresses for the same names, unless somebody has changed the policy since that version.
pub(crate) async fn set_addresses(connection: &mut PgConnection, id: EnvironmentId, version: i64, addresses: &Value) -> Result<bool> {
    let done = sqlx::query!(
        "update environments set egress_addresses = $3 where id = $1 and egress_version = $2",
        id.as_uuid(),
        version,
        addresses
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The server has taken that version.
pub(crate) async fn note_applied(connection: &mut PgConnection, id: EnvironmentId, version: i64) -> Result<()> {
    sqlx::query!("update environments set egress_applied = $2 where id = $1 and coalesce(egress_applied, 0) < $2", id.as_uuid(), version)
        .execute(connection)
        .await?;
    Ok(())
}
