//! What the edge had counted at the moments of a deployment.

use std::collections::BTreeMap;

use ocore_model::{
    edge::RouteTraffic,
    ids::DeploymentId,
    report::{Mark, Moment},
};
use sqlx::{PgConnection, types::Json};

use crate::Result;

/// The first mark of a moment that can come once only stays; others take the place of an earlier run's.
pub(crate) async fn set(connection: &mut PgConnection, deployment: DeploymentId, moment: Moment, mark: &Mark) -> Result<()> {
    sqlx::query!(
        "insert into deployment_marks (deployment_id, moment, traffic, logged_errors) values ($1, $2, $3, $4)
         on conflict (deployment_id, moment) do update set traffic = excluded.traffic, logged_errors = excluded.logged_errors where $5",
        deployment.as_uuid(),
        moment.as_str(),
        Json(&mark.traffic) as _,
        mark.logged_errors.map(|errors| i64::try_from(errors).unwrap_or(i64::MAX)),
        moment.comes_again(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn of_deployment(connection: &mut PgConnection, deployment: DeploymentId) -> Result<BTreeMap<Moment, Mark>> {
    let rows = sqlx::query!(
        r#"select moment as "moment: Moment", traffic as "traffic: Json<RouteTraffic>", logged_errors from deployment_marks where deployment_id = $1"#,
        deployment.as_uuid(),
    )
    .fetch_all(connection)
    .await?;
    let mark = |traffic: Json<RouteTraffic>, errors: Option<i64>| Mark { traffic: traffic.0, logged_errors: errors.map(i64::unsigned_abs) };
    Ok(rows.into_iter().map(|row| (row.moment, mark(row.traffic, row.logged_errors))).collect())
}
