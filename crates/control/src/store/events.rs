//! Events in the store; the schema's triggers write them.

use ocore_model::ids::OrganizationId;
use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use crate::{
    Result,
    events::{EventCursor, OrganizationEvent},
};

/// The position behind everything that can be seen now.
pub async fn present(connection: &mut PgConnection) -> Result<EventCursor> {
    let transaction = sqlx::query_scalar!(r#"select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as "transaction!""#)
        .fetch_one(connection)
        .await?;
    Ok(EventCursor { transaction, event: 0 })
}

/// The organization's events after a position whose transactions, and all older ones, have ended.
pub async fn after(
    connection: &mut PgConnection,
    organization: OrganizationId,
    cursor: EventCursor,
    limit: i64,
) -> Result<Vec<OrganizationEvent>> {
    let rows = sqlx::query!(
        r#"select id, transaction_id::text::bigint as "transaction!", kind,
                  jsonb_strip_nulls(jsonb_build_object(
                      'projectId', project_id, 'environmentId', environment_id, 'instanceId', instance_id, 'deploymentId', deployment_id,
                      'createdAt', to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'payload', payload
                  )) as "body!: Json<Value>"
           from events
           where organization_id = $1 and (transaction_id, id) > ($2::text::xid8, $3)
             and transaction_id < pg_snapshot_xmin(pg_current_snapshot())
           order by transaction_id, id limit $4"#,
        organization.as_uuid(),
        cursor.transaction.to_string(),
        cursor.event,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| OrganizationEvent {
            cursor: EventCursor { transaction: row.transaction, event: row.id },
            kind: row.kind,
            body: row.body.0,
        })
        .collect())
}
