//! Stopping an Odoo gracefully, without waiting for what is not worth it.
//!
//! After SIGTERM an Odoo takes no new requests and finishes those that it has. Then its processes take another second or more to take Python
//! apart: the master waits for each worker's end (`odoo/service/server.py`, `stop_workers_gracefully`). Everything that could be lost is over
//! before that, and it shows: no connection of its clients is open and no transaction is.

use std::{net::SocketAddr, time::Duration};

use rustix::process::Signal;

use crate::{
    error::Result,
    local::{
        data_sets::ODOO_ROLE,
        process::{self, Process},
    },
};

/// How long an Odoo may take to end its requests before it is ended by force.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// Nothing to lose at so many looks in a row: between the end of a transaction and the answer's first byte a request shows nothing.
const QUIET_LOOKS: u32 = 8;

/// What an Odoo may still be at.
#[derive(Debug, Clone, Copy)]
pub(in crate::local) struct Work {
    pub http: SocketAddr,
    /// The postmaster of its cluster; `None` when that does not run.
    pub postmaster: Option<i32>,
}

/// Stops it and all that it has started. Returns whether everything that it had begun had ended.
pub(in crate::local) async fn stop(process: &Process, work: Option<Work>) -> Result<bool> {
    process.signal(Signal::TERM);
    let ended = tokio::select! {
        exited = process.exited() => { exited?; true }
        () = quiet(work) => true,
        () = tokio::time::sleep(PATIENCE) => false,
    };
    process.stop(&[]).await?;
    Ok(ended)
}

/// Until there is nothing to lose. Without knowing what it works with, never.
async fn quiet(work: Option<Work>) {
    let Some(work) = work else { return std::future::pending().await };
    let mut looks = 0;
    while looks < QUIET_LOOKS {
        tokio::time::sleep(LOOK_INTERVAL).await;
        looks = if work.is_over() { looks + 1 } else { 0 };
    }
}

impl Work {
    fn is_over(self) -> bool {
        !has_clients(self.http) && self.postmaster.is_none_or(|postmaster| !has_transactions(postmaster))
    }
}

/// Whether somebody listens on the port or is connected to it (proc(5), `/proc/net/tcp`). What cannot be read is busy.
fn has_clients(http: SocketAddr) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/net/tcp") else { return true };
    table.lines().skip(1).any(|line| is_busy(line, http.port()))
}

fn is_busy(line: &str, port: u16) -> bool {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let mut words = line.split_whitespace().skip(1);
    let (Some(local), Some(_), Some(state)) = (words.next(), words.next(), words.next()) else { return false };
    let local = local.rsplit_once(':').and_then(|(_, digits)| u16::from_str_radix(digits, 16).ok());
    local == Some(port) && matches!(state, ESTABLISHED | LISTEN)
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
        assert!(is_busy(&line("4E20", "01"), 20_000));
        assert!(is_busy(&line("4E20", "0A"), 20_000));
        assert!(!is_busy(&line("4E20", "06"), 20_000));
        assert!(!is_busy(&line("4E21", "01"), 20_000));
    }
}
