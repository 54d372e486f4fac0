//! The threads that carry clients' connections.
//!
//! Each has a runtime of its own, and a connection stays with the one that it was given: its client, its Odoo and the answer between them are read
//! and written where they are, and no thread has to wake another one for them. What a worker never does is work: it reads, writes and waits.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pool::Pool;

/// One thread.
struct Worker {
    handle: Handle,
    /// Its connections to Odoo. They are of use here only: whoever reads them elsewhere has this thread wake that one.
    pool: Arc<Pool>,
    /// Its connections to clients, websockets apart.
    carried: AtomicUsize,
}

/// A connection that a worker carries; ends with this.
pub(crate) struct Carried(Arc<Worker>);

impl Carried {
    pub(crate) fn handle(&self) -> &Handle {
        &self.0.handle
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.0.pool
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.carried.fetch_sub(1, Relaxed);
    }
}

/// One passes on some ten thousand requests a second, far more than the Odoos of a server answer; the second one serves while the kernel lets the
/// first one wait.
pub(crate) struct Workers([Arc<Worker>; 2]);

impl Workers {
    /// The threads end, with all that they carry, when the guard is dropped.
    pub(crate) fn start(connect_timeout: Duration) -> io::Result<(Self, DropGuard)> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let start = |number: usize| -> io::Result<_> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let ended = end.clone().cancelled_owned();
            thread::Builder::new().name(format!("ocore-edge-{number}")).spawn(move || runtime.block_on(ended))?;
            Ok(Arc::new(Worker { handle, pool: Arc::new(Pool::new(connect_timeout)), carried: AtomicUsize::new(0) }))
        };
        Ok((Self([start(0)?, start(1)?]), guard))
    }

    /// Gives a connection to the one that carries the fewest.
    pub(crate) fn carry(&self) -> Carried {
        let [first, second] = &self.0;
        let worker = if second.carried.load(Relaxed) < first.carried.load(Relaxed) { second } else { first };
        worker.carried.fetch_add(1, Relaxed);
        Carried(Arc::clone(worker))
    }

    /// [`Pool::keep_only`] of all.
    pub(crate) fn keep_only(&self, live: &HashSet<SocketAddr>) {
        self.0.iter().for_each(|worker| worker.pool.keep_only(live));
    }

    /// [`Pool::sweep`] of all.
    pub(crate) fn sweep(&self) {
        self.0.iter().for_each(|worker| worker.pool.sweep());
    }
}
