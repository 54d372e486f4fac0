//! What the edge of a server should route: computed whole from the store, numbered by a generation that is raised in the transaction of
//! each change, and applied after it. What is lost between the two is made good by the routes reconciler.

use std::time::Duration;

use ocore_host::HostError;
use ocore_model::{
    ids::{InstanceId, ServerId},
    instance::InstanceStatus,
    route::{Route, RouteSnapshot, RouteState},
};
use sqlx::PgConnection;

use crate::{
    Control, Error, Result,
    store::{self, routes::RouteRow},
};

/// A bound that is too long costs nothing as long as deployments end; one that is too short costs requests.
const SHORTEST_HOLD: Duration = Duration::from_secs(30);
/// Longer than this, people are better served by a page and programs by an error. Also where no deployment has told yet how long one takes.
const LONGEST_HOLD: Duration = Duration::from_mins(2);

/// How long requests are held, by how long the last deployments held them: twice the median, and no less than the longest, within bounds.
pub(crate) fn hold_limit(mut held: Vec<Duration>) -> Duration {
    held.sort_unstable();
    match (held.get(held.len() / 2), held.last()) {
        (Some(median), Some(longest)) => (*median * 2).max(*longest).clamp(SHORTEST_HOLD, LONGEST_HOLD),
        _ => LONGEST_HOLD,
    }
}

/// Who asks for a sleeper waits no longer than this.
const LONGEST_WAKE: Duration = Duration::from_mins(1);

/// Notes, in the transaction that changes it, that an instance's route is another now.
pub async fn raise(connection: &mut PgConnection, instance: InstanceId) -> Result<()> {
    store::routes::raise(connection, instance).await
}

/// The routes of a server as they should be.
pub async fn snapshot(control: &Control, server: ServerId) -> Result<RouteSnapshot> {
    // One statement: generation and rows are of the same moment.
    let rows = store::routes::list(&mut *control.pool.acquire().await?, server).await?;
    let generation = rows.first().map_or(0, |row| row.generation);
    let routes = rows.into_iter().filter_map(|row| row.route).filter_map(|row| route(&row, &control.settings.base_domain)).collect();
    Ok(RouteSnapshot { generation: generation.unsigned_abs(), routes })
}

/// Brings this server's edge to what the store says. Returns the generation in force. Safe to call at any time, also twice at once: a newer
/// snapshot wins. An edge that has a higher generation than the store ever gave (the store was restored from a backup) is overtaken.
pub async fn apply(control: &Control) -> Result<u64> {
    let snapshot = snapshot(control, control.server_id).await?;
    match control.host.apply_routes(snapshot).await {
        Ok(applied) => Ok(applied),
        Err(HostError::Fenced { newest, .. }) => {
            let mut connection = control.pool.acquire().await?;
            if store::routes::generation(&mut connection, control.server_id).await? >= newest {
                // Somebody was faster, with newer routes.
                return Ok(newest.unsigned_abs());
            }
            store::routes::lift(&mut connection, control.server_id, newest).await?;
            drop(connection);
            Ok(control.host.apply_routes(self::snapshot(control, control.server_id).await?).await?)
        }
        Err(error) => Err(Error::from(error)),
    }
}

/// Raises the generation for an instance and applies the routes.
pub async fn refresh(control: &Control, instance: InstanceId) -> Result<()> {
    raise(&mut *control.pool.acquire().await?, instance).await?;
    apply(control).await.map(|_| ())
}

fn route(row: &RouteRow, base_domain: &str) -> Option<Route> {
    Some(Route {
        instance_id: row.instance_id,
        hosts: vec![format!("{}.{base_domain}", row.slug).to_lowercase()],
        title: row.name.clone(),
        state: state(row)?,
    })
}

/// What the edge does with a request; `None` when the name is nobody's any more.
fn state(row: &RouteRow) -> Option<RouteState> {
    let updating = |message: &str| Some(RouteState::Updating { message: message.to_owned() });
    if row.updating && !matches!(row.status, InstanceStatus::Removing | InstanceStatus::Deleted) {
        let message = "A deployment is on its way.".to_owned();
        return Some(match row.held_until {
            // After that moment the edge shows by itself what `Updating` shows.
            Some(until) => RouteState::Holding { message, until, seconds: LONGEST_HOLD.as_secs() as u32 },
            None => RouteState::Updating { message },
        });
    }
    match row.status {
        InstanceStatus::Removing | InstanceStatus::Deleted => None,
        InstanceStatus::Creating => Some(RouteState::Building { message: "The first deployment is on its way.".to_owned() }),
        InstanceStatus::Restarting => updating("Odoo is being restarted."),
        InstanceStatus::Stopped => Some(RouteState::Stopped),
        InstanceStatus::Asleep => Some(RouteState::Asleep { seconds: LONGEST_WAKE.as_secs() as u32 }),
        InstanceStatus::Failed if row.deploying && row.http.is_none() => {
            Some(RouteState::Building { message: "Another deployment is on its way.".to_owned() })
        }
        InstanceStatus::Failed => Some(RouteState::Failed { message: String::new() }),
        InstanceStatus::Running => match row.http.as_deref().map(str::parse) {
            Some(Ok(http)) => {
                Some(RouteState::Serving { http, websocket: row.websocket.as_deref().and_then(|address| address.parse().ok()) })
            }
            _ => updating("Odoo is being started."),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: InstanceStatus) -> RouteRow {
        RouteRow {
            instance_id: InstanceId::new(),
            name: "Shop".to_owned(),
            slug: "shop".to_owned(),
            status,
            updating: false,
            held_until: None,
            http: Some("127.0.0.1:8069".to_owned()),
            websocket: None,
            deploying: false,
        }
    }

    #[test]
    fn a_running_instance_is_served_at_its_name() {
        let route = route(&row(InstanceStatus::Running), "localhost").unwrap();
        assert_eq!(route.hosts, ["shop.localhost"]);
        assert_eq!(route.state, RouteState::Serving { http: "127.0.0.1:8069".parse().unwrap(), websocket: None });
    }

    #[test]
    fn every_other_state_has_a_page_and_a_removed_one_has_no_route() {
        let mut updating = row(InstanceStatus::Running);
        updating.updating = true;
        assert!(matches!(state(&updating), Some(RouteState::Updating { .. })));
        let until = chrono::DateTime::from_timestamp_micros(1_700_000_000_000_001).unwrap();
        updating.held_until = Some(until);
        let message = "A deployment is on its way.".to_owned();
        assert_eq!(state(&updating), Some(RouteState::Holding { message, until, seconds: 120 }));
        assert_eq!(state(&row(InstanceStatus::Stopped)), Some(RouteState::Stopped));
        assert_eq!(state(&row(InstanceStatus::Asleep)), Some(RouteState::Asleep { seconds: 60 }));
        assert_eq!(state(&row(InstanceStatus::Failed)), Some(RouteState::Failed { message: String::new() }));
        assert!(matches!(state(&row(InstanceStatus::Creating)), Some(RouteState::Building { .. })));
        let mut again = row(InstanceStatus::Failed);
        (again.deploying, again.http) = (true, None);
        assert!(matches!(state(&again), Some(RouteState::Building { .. })));
        assert_eq!(state(&row(InstanceStatus::Removing)), None);
        assert_eq!(state(&row(InstanceStatus::Deleted)), None);
    }

    #[test]
    fn a_hold_is_bounded_by_what_the_last_ones_took() {
        let limit = |seconds: &[u64]| hold_limit(seconds.iter().copied().map(Duration::from_secs).collect()).as_secs();
        assert_eq!(limit(&[]), 120);
        assert_eq!(limit(&[2, 3, 3]), 30);
        assert_eq!(limit(&[20, 9, 18]), 36);
        assert_eq!(limit(&[3, 3, 3, 40, 3]), 40);
        assert_eq!(limit(&[3, 600]), 120);
    }
}
