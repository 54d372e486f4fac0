//! Odoos that stand still while their data are copied, so that nothing they write is missing from the copy and nothing needs to be started again
//! if the copy comes to nothing.
//!
//! A paused Odoo keeps all that it has open: users' websockets, sessions of its database, the lock of its crons. It goes on within a moment
//! ([`LocalHost::serve`]), or is ended without having run again. What matters is that no transaction is open when it stands still. Odoo works in
//! explicit transactions (`odoo/sql_db.py`), so a session that PostgreSQL calls idle has nothing on its way that could still commit.

use std::time::Duration;

use ocore_model::ids::{DataSetId, InstanceId};
use rustix::process::Signal;
use tokio::time::Instant;

use super::stop::{self, LOOK_INTERVAL, PATIENCE};
use crate::{
    error::{HostError, Result},
    local::{
        LocalHost,
        cluster::Cluster,
        data_sets::{ODOO_ROLE, RUN_PATIENCE},
        process::Process,
    },
};

/// Between two looks at the sessions of an Odoo that stands still.
const SECOND_LOOK: Duration = Duration::from_millis(5);
/// How long PostgreSQL may take to end a session.
const END_PATIENCE: Duration = Duration::from_secs(10);

impl LocalHost {
    /// Pauses every Odoo that serves the data set, and stops every other recorded process that uses it, but for its cluster. Done already is done.
    pub(in crate::local) async fn rest_users_of(&self, instance: InstanceId, data_set: DataSetId, cluster: &Cluster) -> Result<()> {
        for (process, slot) in self.users_of(instance, data_set)? {
            match slot {
                Some(_) => pause(&process, cluster).await?,
                None => drop(process.stop(&[(Signal::TERM, RUN_PATIENCE)]).await?),
            }
        }
        Ok(())
    }
}

/// Between two transactions, if it comes to such a moment in time; otherwise those that are open are ended, as they would be if it were stopped.
async fn pause(odoo: &Process, cluster: &Cluster) -> Result<()> {
    let Some(postmaster) = cluster.find()?.map(|postmaster| postmaster.pid()) else { return odoo.pause().await };
    let deadline = Instant::now() + PATIENCE;
    loop {
        while stop::has_transactions(postmaster) && !odoo.is_paused() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        odoo.pause().await?;
        if !works(postmaster).await {
            return Ok(());
        }
        if Instant::now() >= deadline {
            break;
        }
        odoo.resume().await?;
        tokio::time::sleep(SECOND_LOOK).await;
    }
    tracing::warn!(pid = odoo.pid(), "an Odoo did not end its transactions in time; they are rolled back");
    end_transactions(cluster, postmaster).await
}

/// Whether something that a paused Odoo has begun in its database still goes on.
async fn works(postmaster: i32) -> bool {
    if stop::has_transactions(postmaster) {
        return true;
    }
    // What it sent in the very last moment may just be on its way.
    tokio::time::sleep(SECOND_LOOK).await;
    stop::has_transactions(postmaster)
}

async fn end_transactions(cluster: &Cluster, postmaster: i32) -> Result<()> {
    let failed = |error| HostError::machine_from("the transactions of an Odoo that stands still could not be ended", error);
    let mut connection = cluster.connect_as_superuser().await.map_err(failed)?;
    sqlx::query(
        "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity where usename = $1 and state is distinct from 'idle'",
    )
    .bind(ODOO_ROLE)
    .execute(&mut connection)
    .await
    .map_err(failed)?;
    let ended = async {
        while works(postmaster).await {
            tokio::time::sleep(SECOND_LOOK).await;
        }
    };
    tokio::time::timeout(END_PATIENCE, ended).await.map_err(|_| {
        HostError::machine(format!("PostgreSQL did not end the transactions of an Odoo within {} s; see its log", END_PATIENCE.as_secs()))
    })
}
