//! What ends an Odoo from outside: an update that waits for a lock that only itself can hold, or takes the last space of the pool; the kernel, when the
//! memory is used up; the death of its PostgreSQL. Each has a sentence of its own, since what Odoo logs then is a symptom, and often nothing.

use std::{
    collections::HashMap,
    future::Future,
    time::{Duration, Instant},
};

use ocore_model::ids::InstanceId;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Progress,
    error::{HostError, Result},
    local::{LocalHost, cluster::Cluster, pool::human, process::Process},
};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Nobody else uses the data of an update. So a session of it that has waited for so long waits for another one of the same update, and PostgreSQL has
/// seen no circle in that: it would wait for ever.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);
/// What PostgreSQL's sessions and their clients say when a process of the server was killed.
const SIGNS_OF_A_DEAD_CLUSTER: [&str; 3] = [
    "terminating connection because of crash of another server process",
    "server closed the connection unexpectedly",
    "the database system is in recovery mode",
];

/// Around one run or start of an Odoo.
pub(super) struct Guard<'a> {
    host: &'a LocalHost,
    instance: InstanceId,
    cluster: Cluster,
    postmaster: Option<Process>,
    memory_kills: Option<u64>,
    asked: CancellationToken,
    /// What it runs with: the guard can cancel it.
    pub(super) progress: Progress,
}

/// A session that waits for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    pid: i32,
    /// Since when its statement runs.
    since: String,
    statement: String,
    /// The table, where the lock is of one.
    relation: Option<String>,
    /// What the session that it waits for has done last.
    holder: Option<String>,
}

impl<'a> Guard<'a> {
    /// Before it starts. The cluster runs.
    pub(super) fn begin(host: &'a LocalHost, instance: InstanceId, cluster: &Cluster, progress: &Progress) -> Result<Self> {
        Ok(Self {
            host,
            instance,
            cluster: cluster.clone(),
            postmaster: cluster.find()?,
            memory_kills: host.cgroups.memory_kills(instance),
            asked: progress.cancel.clone(),
            progress: Progress { cancel: progress.cancel.child_token(), ..progress.clone() },
        })
    }

    /// Around a start on data that others may use too.
    pub(super) async fn over_start<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        work.await.map_err(|error| self.explain(error))
    }

    /// Around an update of data that nobody else uses, which is ended when it can come to no good end.
    pub(super) async fn over_update<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::pin!(work);
        let outcome = tokio::select! {
            biased;
            outcome = &mut work => outcome,
            reason = self.reason_to_end() => {
                self.progress.cancel.cancel();
                match work.await {
                    Err(HostError::Cancelled) if !self.asked.is_cancelled() => return Err(reason),
                    outcome => outcome,
                }
            }
        };
        outcome.map_err(|error| self.explain(error))
    }

    async fn reason_to_end(&self) -> HostError {
        let mut connection = None;
        let mut seen = HashMap::new();
        let (begun, patience) = (Instant::now(), self.host.config.patience.update);
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if begun.elapsed() >= patience {
                return HostError::rejected(format!(
                    "the update had not ended after {} s and was ended: something in the modules waits for what does not come, or it needs more time than \
                     odoo.update_seconds gives it; see the last lines of its log",
                    patience.as_secs()
                ));
            }
            if let Err(error) = self.host.pool.require_for_the_live().await {
                return HostError::machine_from(format!("the update was ended before the disk was full: {error}"), error);
            }
            if connection.is_none() {
                connection = self.cluster.connect_as_owner().await.ok();
            }
            let Some(open) = &mut connection else { continue };
            match waiting(open).await {
                Ok(waiting) => {
                    if let Some(stuck) = stuck(&mut seen, waiting, Instant::now()) {
                        return HostError::rejected(in_words(&stuck));
                    }
                }
                // A database that is away is the work's own business.
                Err(_) => connection = None,
            }
        }
    }

    /// The reason from outside, where there is one.
    fn explain(&self, error: HostError) -> HostError {
        if matches!(error, HostError::Cancelled | HostError::Fenced { .. }) {
            return error;
        }
        let kills = self.host.cgroups.memory_kills(self.instance);
        if kills.zip(self.memory_kills).is_some_and(|(now, before)| now > before) {
            let limit =
                self.host.cgroups.memory_limit().map_or_else(|| "that the machine has".to_owned(), |bytes| format!("of {}", human(bytes)));
            return HostError::Rejected {
                summary: format!(
                    "the memory was used up, and the kernel ended a process: all of an instance may take no more than the limit {limit} together, and a new Odoo or \
                     an update beside a live Odoo half of that; make the modules take less at once, or raise limits.instance_memory_bytes"
                ),
                excerpt: error.excerpt().to_owned(),
            };
        }
        let words = format!("{error}\n{}", error.excerpt());
        let is_gone = self.postmaster.as_ref().is_some_and(|postmaster| !postmaster.is_alive());
        if is_gone || SIGNS_OF_A_DEAD_CLUSTER.iter().any(|sign| words.contains(sign)) {
            return HostError::machine_from(
                format!(
                    "PostgreSQL was killed while Odoo worked with it, which is no fault of the modules: deploy again, and if it comes again see {} and the \
                     kernel's log",
                    self.cluster.log.display()
                ),
                error,
            );
        }
        error
    }
}

async fn waiting(connection: &mut PgConnection) -> Result<Vec<Waiting>, sqlx::Error> {
    type Row = (i32, String, String, Option<String>, Option<String>);
    let rows: Vec<Row> = sqlx::query_as(
        "select a.pid, coalesce(a.query_start::text, ''), coalesce(a.query::text, ''),
             (select c.relname::text from pg_catalog.pg_locks as l join pg_catalog.pg_class as c on c.oid = l.relation
              where l.pid = a.pid and not l.granted limit 1),
             (select b.query::text from pg_catalog.pg_stat_activity as b
              where b.pid = any(pg_catalog.pg_blocking_pids(a.pid)) and b.usename = current_user limit 1)
         from pg_catalog.pg_stat_activity as a
         where a.wait_event_type = 'Lock' and a.datname = pg_catalog.current_database() and a.pid <> pg_catalog.pg_backend_pid()
             and exists (select from pg_catalog.pg_stat_activity as b
                 where b.pid = any(pg_catalog.pg_blocking_pids(a.pid)) and b.usename = current_user)",
    )
    .fetch_all(connection)
    .await?;
    let session = |(pid, since, statement, relation, holder)| Waiting { pid, since, statement, relation, holder };
    Ok(rows.into_iter().map(session).collect())
}

/// The session that has waited at each look for too long. `seen` is kept from look to look.
fn stuck(seen: &mut HashMap<(i32, String), Instant>, waiting: Vec<Waiting>, now: Instant) -> Option<Waiting> {
    let key = |waiting: &Waiting| (waiting.pid, waiting.since.clone());
    seen.retain(|known, _| waiting.iter().any(|waiting| key(waiting) == *known));
    waiting.into_iter().find(|waiting| now.duration_since(*seen.entry(key(waiting)).or_insert(now)) >= LOCK_PATIENCE)
}

fn in_words(stuck: &Waiting) -> String {
    let table = stuck.relation.as_ref().map(|relation| format!(" on the table {relation}")).unwrap_or_default();
    let holder = stuck.holder.as_deref().map(|statement| format!(" (its last statement: {})", short(statement))).unwrap_or_default();
    format!(
        "the update waited for {} s in `{}` for a lock{table} that another connection of the same update holds{holder}, and was ended: it would have waited for \
         ever; let a migration script work with the cursor that it is given, or commit and close its own connection first",
        LOCK_PATIENCE.as_secs(),
        short(&stuck.statement)
    )
}

/// On one line.
fn short(statement: &str) -> String {
    const LENGTH: usize = 120;
    let line = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > LENGTH { line.chars().take(LENGTH).collect::<String>() + "…" } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(pid: i32, second: u32) -> Waiting {
        Waiting {
            pid,
            since: second.to_string(),
            statement: "update shop_thing\n   set name = 'x'".to_owned(),
            relation: None,
            holder: Some("lock table shop_thing".to_owned()),
        }
    }

    #[test]
    fn a_session_is_stuck_when_one_statement_has_waited_at_each_look() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut seen = HashMap::new();
        assert_eq!(stuck(&mut seen, vec![session(1, 1)], at(0)), None);
        assert_eq!(stuck(&mut seen, vec![session(1, 1), session(2, 5)], at(10)), None);
        assert_eq!(stuck(&mut seen, vec![session(1, 18), session(2, 5)], at(20)), None, "another statement");
        assert_eq!(stuck(&mut seen, vec![session(1, 18)], at(29)), None, "the second one goes on");
        assert_eq!(stuck(&mut seen, vec![session(1, 18), session(2, 5)], at(30)), None, "it waits anew");
        assert_eq!(stuck(&mut seen, vec![session(1, 18)], at(40)), Some(session(1, 18)));
    }

    #[test]
    fn the_sentence_says_what_waits_for_what_and_what_to_do() {
        insta::assert_snapshot!(in_words(&session(1, 1)), @"the update waited for 20 s in `update shop_thing set name = 'x'` for a lock that another connection of the same update holds (its last statement: lock table shop_thing), and was ended: it would have waited for ever; let a migration script work with the cursor that it is given, or commit and close its own connection first");
    }
}
