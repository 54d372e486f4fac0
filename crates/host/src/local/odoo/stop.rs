//! Stopping an Odoo gracefully, without waiting for what is not worth it.
//!
//! After SIGTERM an Odoo takes no new requests and finishes those that it has. Then its processes take another second or more to take Python
//! apart: the master waits for each worker's end (`odoo/service/server.py`, `stop_workers_gracefully`). Everything that could be lost is over
//! before that, and it shows: no connection of its clients is open and no transaction is.

use std::{net::SocketAddr, time::Duration};

use rustix::process::Signal;
use sqlx::PgConnection;

use crate::{
    error::Result,
    local::{
        cluster::Cluster,
        data_sets::ODOO_ROLE,
        process::{self, Process},
    },
};

/// How long an Odoo may take to end its requests before it is ended by force.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// Nothing to lose at so many looks in a row: between the end of a transaction and the answer's first byte a request shows nothing.
const QUIET_LOOKS: u32 = 8;
/// How long PostgreSQL may take to tell what its sessions are at.
const SESSIONS_PATIENCE: Duration = Duration::from_secs(2);

/// What an Odoo may still be at.
pub(in crate::local) struct Work {
    pub http: SocketAddr,
    /// Where its database is.
    pub cluster: Cluster,
    /// Odoos of the instance that serve beside it, perhaps the same data.
    pub beside: Vec<Process>,
}

/// Stops it and all that it has started. Returns whether everything that it had begun had ended. Where another Odoo serves beside it, taking itself apart
/// gives way to that one; what it still does for users does not.
pub(in crate::local) async fn stop(process: &Process, work: Work) -> Result<bool> {
    let gives_way = !work.beside.is_empty();
    let mut looks = Looks { work, connection: None };
    let yielding = (gives_way && looks.is_over(Listening::Allowed).await).then(|| process.yield_processor());
    process.signal(Signal::TERM);
    let ended = tokio::select! {
        exited = process.exited() => { exited?; true }
        () = looks.until_quiet() => true,
        () = tokio::time::sleep(PATIENCE) => false,
    };
    let _yielding = yielding.or_else(|| gives_way.then(|| process.yield_processor()));
    process.stop(&[]).await?;
    Ok(ended)
}

/// Whether it may still take requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    Allowed,
    Over,
}

/// Looks at what an Odoo is still at.
struct Looks {
    work: Work,
    /// Made when it is first needed.
    connection: Option<PgConnection>,
}

impl Looks {
    /// Until there is nothing to lose.
    async fn until_quiet(&mut self) {
        let mut looks = 0;
        while looks < QUIET_LOOKS {
            tokio::time::sleep(LOOK_INTERVAL).await;
            looks = if self.is_over(Listening::Over).await { looks + 1 } else { 0 };
        }
    }

    /// What cannot be looked at is not over.
    async fn is_over(&mut self, listening: Listening) -> bool {
        if has_clients(self.work.http, listening) {
            return false;
        }
        let Ok(postmaster) = self.work.cluster.find() else { return false };
        let Some(postmaster) = postmaster else { return true };
        !has_transactions(postmaster.pid()) || !self.work.beside.is_empty() && self.are_transactions_of_others().await
    }

    /// Whether those who serve beside it have all the transactions that are open. The process titles do not say whose they are.
    async fn are_transactions_of_others(&mut self) -> bool {
        let look = async {
            let connection = match &mut self.connection {
                Some(connection) => connection,
                none => none.insert(self.work.cluster.connect_as_superuser().await.ok()?),
            };
            let query = "select application_name from pg_catalog.pg_stat_activity where usename = $1 and state is distinct from 'idle'";
            sqlx::query_scalar::<_, String>(query).bind(ODOO_ROLE).fetch_all(connection).await.ok()
        };
        let Ok(Some(names)) = tokio::time::timeout(SESSIONS_PATIENCE, look).await else {
            self.connection = None;
            return false;
        };
        names.iter().all(|name| self.work.beside.iter().any(|other| is_session_of(other, name)))
    }
}

/// Odoo calls its sessions by the process that has them (`db_app_name`).
fn is_session_of(odoo: &Process, application_name: &str) -> bool {
    let pid = application_name.strip_prefix("odoo-").and_then(|digits| digits.parse().ok());
    pid.is_some_and(|pid: i32| odoo.all().iter().any(|entry| entry.pid == pid))
}

/// Whether somebody is connected to the port, or may be (proc(5), `/proc/net/tcp`). What cannot be read is busy.
fn has_clients(http: SocketAddr, listening: Listening) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/net/tcp") else { return true };
    table.lines().skip(1).any(|line| is_busy(line, http.port(), listening))
}

fn is_busy(line: &str, port: u16, listening: Listening) -> bool {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let mut words = line.split_whitespace().skip(1);
    let (Some(local), Some(_), Some(state)) = (words.next(), words.next(), words.next()) else { return false };
    let local = local.rsplit_once(':').and_then(|(_, digits)| u16::from_str_radix(digits, 16).ok());
    local == Some(port) && (state == ESTABLISHED || state == LISTEN && listening == Listening::Over)
}

/// Whether one of Odoo's sessions does anything, by the titles that PostgreSQL gives its processes (`update_process_title`):
/// `postgres: odoo odoo [local] idle`.
pub(super) fn has_transactions(postmaster: i32) -> bool {
    process::scan().iter().filter(|entry| entry.parent == postmaster).any(|entry| {
        let Ok(title) = std::fs::read(format!("/proc/{}/cmdline", entry.pid)) else { return false };
        is_working(&String::from_utf8_lossy(&title))
    })
}

fn is_working(title: &str) -> bool {
    let title = title.trim_end_matches(['\0', ' ']);
    title.strip_prefix(&format!("postgres: {ODOO_ROLE} ")).is_some_and(|session| !session.ends_with(" idle"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{exec::Program, process::tests::new};

    #[tokio::test]
    async fn a_session_is_of_the_odoo_whose_process_it_is_called_by() {
        let directory = tempfile::tempdir().unwrap();
        let program = Program::new("sh").args(["-c", "sleep 1000 & echo $! >$0; wait"]).arg(directory.path().join("child"));
        let odoo = Process::start(new(directory.path(), program), &directory.path().join("log")).await.unwrap();
        let child = loop {
            let text = std::fs::read_to_string(directory.path().join("child")).unwrap_or_default();
            if text.ends_with('\n') {
                break text.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(is_session_of(&odoo, &format!("odoo-{}", odoo.pid())) && is_session_of(&odoo, &format!("odoo-{child}")));
        for stranger in [&format!("odoo-{}", std::process::id()), "odoo-", "odoo", &child, ""] {
            assert!(!is_session_of(&odoo, stranger), "{stranger}");
        }
        odoo.stop(&[]).await.unwrap();
        assert!(!is_session_of(&odoo, &format!("odoo-{child}")));
    }

    #[test]
    fn a_session_of_odoo_works_unless_it_is_idle() {
        assert!(is_working("postgres: odoo odoo [local] idle in transaction\0\0"));
        assert!(is_working("postgres: odoo odoo [local] UPDATE"));
        assert!(!is_working("postgres: odoo odoo [local] idle\0\0\0"));
        assert!(!is_working("postgres: autovacuum worker odoo"));
        assert!(!is_working("postgres: postgres odoo [local] SELECT"));
    }

    #[test]
    fn a_port_is_busy_while_somebody_listens_or_is_connected() {
        let line = |port: &str, state: &str| format!("   3: 0100007F:{port} 0100007F:A2B4 {state} 00000000:00000000 00:00000000 00000000");
        for listening in [Listening::Allowed, Listening::Over] {
            assert!(is_busy(&line("4E20", "01"), 20_000, listening));
            assert_eq!(is_busy(&line("4E20", "0A"), 20_000, listening), listening == Listening::Over);
            assert!(!is_busy(&line("4E20", "06"), 20_000, listening));
            assert!(!is_busy(&line("4E21", "01"), 20_000, listening));
        }
    }
}
