//! Counts over all tenants, for the operator of the installation.

use sqlx::PgConnection;

use crate::Result;

pub(crate) async fn ping(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!(r#"select 1 as "one!""#).fetch_one(connection).await?;
    Ok(())
}

pub(crate) async fn deployments(connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(r#"select status, count(*) as "count!" from deployments group by status"#).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
}

pub(crate) async fn instances(connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(r#"select status, count(*) as "count!" from instances group by status"#).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
}
