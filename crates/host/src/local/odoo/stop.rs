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

/// Stops it and all that it has started. Returns whether everything that it had begun had ended. Where another Odoo serves `beside` it, taking itself
/// apart gives way to that one; what it still does for users does not.
pub(in crate::local) async fn stop(process: &Process, work: Work, beside: bool) -> Result<bool> {
    let yielding = (beside && work.is_over(Listening::Allowed)).then(|| process.yield_processor());
    process.signal(Signal::TERM);
    let ended = tokio::select! {
        exited = process.exited() => { exited?; true }
        () = quiet(work) => true,
        () = tokio::time::sleep(PATIENCE) => false,
    };
    let _yielding = yielding.or_else(|| beside.then(|| process.yield_processor()));
    process.stop(&[]).await?;
    Ok(ended)
}

/// Until there is nothing to lose.
async fn quiet(work: Work) {
    let mut looks = 0;
    while looks < QUIET_LOOKS {
        tokio::time::sleep(LOOK_INTERVAL).await;
        looks = if work.is_over(Listening::Over) { looks + 1 } else { 0 };
    }
}

/// Whether it may still take requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    Allowed,
    Over,
}

impl Work {
    fn is_over(self, listening: Listening) -> bool {
        !has_clients(self.http, listening) && self.postmaster.is_none_or(|postmaster| !has_transactions(postmaster))
    }
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
