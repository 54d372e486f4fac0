//! How the installation is: whether what it needs answers, and the numbers that an operator watches.

use std::time::Duration;

use ocore_host::PoolFacts;
use ocore_model::edge::RouteTraffic;

use crate::{Control, store};

/// Nothing that answers at all takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether one of the parts answers.
#[derive(Debug, Clone)]
pub struct Check {
    pub name: &'static str,
    /// `None` when it does; otherwise what is wrong, for an operator.
    pub problem: Option<String>,
}

/// The store, the host and the edge, asked side by side.
pub async fn checks(control: &Control) -> Vec<Check> {
    let store = async { store::health::ping(&mut *control.pool.acquire().await?).await };
    let host = async { control.host.facts().await.map(drop) };
    let edge = async { control.host.edge_status().await.map(drop) };
    let (store, host, edge) = tokio::join!(check("store", store), check("host", host), check("edge", edge));
    vec![store, host, edge]
}

async fn check<E: std::fmt::Display>(name: &'static str, work: impl Future<Output = Result<(), E>>) -> Check {
    let problem = match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::warn!(%error, "{name} is not ready");
            Some(format!("the {name} does not answer"))
        }
        Err(_) => Some(format!("the {name} has not answered for {} s", PATIENCE.as_secs())),
    };
    Check { name, problem }
}

/// What metrics are made of. `None` where it cannot be read at the moment.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    /// Statuses that occur, and how often.
    pub deployments: Option<Vec<(String, i64)>>,
    /// The same of instances.
    pub instances: Option<Vec<(String, i64)>>,
    /// The memory that the sleep of instances frees, in bytes.
    pub freed_bytes: Option<i64>,
    pub pool: Option<PoolFacts>,
    /// What the users of each instance got from the edge.
    pub edge: Option<Vec<RouteTraffic>>,
}

pub async fn numbers(control: &Control) -> Numbers {
    let store = async {
        let mut connection = control.pool.acquire().await?;
        let deployments = store::health::deployments(&mut connection).await?;
        let instances = store::health::instances(&mut connection).await?;
        let freed = store::sleep::freed(&mut connection).await?;
        Ok::<_, crate::Error>((deployments, instances, freed))
    };
    let (store, facts, edge) = tokio::join!(
        tokio::time::timeout(PATIENCE, store),
        tokio::time::timeout(PATIENCE, control.host.facts()),
        tokio::time::timeout(PATIENCE, control.host.all_traffic())
    );
    let (deployments, instances, freed_bytes) = match store.ok().and_then(Result::ok) {
        Some((deployments, instances, freed)) => (Some(deployments), Some(instances), Some(freed)),
        None => (None, None, None),
    };
    Numbers {
        deployments,
        instances,
        freed_bytes,
        pool: facts.ok().and_then(Result::ok).map(|facts| facts.pool),
        edge: edge.ok().and_then(Result::ok),
    }
}
