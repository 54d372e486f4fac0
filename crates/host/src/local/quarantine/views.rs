//! Materialized views hold what was in the tables when somebody looked last: credentials that have been taken out since, too.

use sqlx::{AssertSqlSafe, PgConnection};

use super::run_sql::{lost, of_the_data};
use crate::{api::Progress, error::Result};

/// Of one of them.
const PATIENCE: &str = "10min";

/// Refreshes those that hold something, the older ones first, on which later ones may rest. The answer is those that could not be.
pub(super) async fn refresh(connection: &mut PgConnection, progress: &Progress) -> Result<Vec<String>> {
    let views: Vec<(String, String)> = sqlx::query_as(
        "select n.nspname || '.' || c.relname, format('%I.%I', n.nspname, c.relname)
           from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
          where c.relkind = 'm' and c.relispopulated order by c.oid",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(lost)?;
    if views.is_empty() {
        return Ok(Vec::new());
    }
    progress.log.line(&format!("Refreshing {} materialized views, which hold what was in the tables before.", views.len()));
    sqlx::raw_sql(AssertSqlSafe(format!("set statement_timeout = '{PATIENCE}'"))).execute(&mut *connection).await.map_err(lost)?;
    let mut stale = Vec::new();
    for (name, view) in views {
        let refreshed = sqlx::raw_sql(AssertSqlSafe(format!("refresh materialized view {view}"))).execute(&mut *connection).await;
        if let Err(error) = refreshed {
            // Also one that takes too long.
            let is_slow = error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("57014");
            let Some(reason) = of_the_data(&error).or_else(|| is_slow.then(|| "it takes too long".to_owned())) else {
                return Err(lost(error));
            };
            progress.log.line(&format!("The materialized view {name} could not be refreshed: {reason}"));
            stale.push(name);
        }
    }
    sqlx::raw_sql("set statement_timeout = 0").execute(connection).await.map_err(lost)?;
    Ok(stale)
}
