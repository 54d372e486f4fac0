//! The catcher as a process: opens its socket, takes mail, and ends without losing what it accepted.

use std::{io, path::Path, sync::Arc, time::Duration};

use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Runtime,
    time::interval,
};
use tokio_util::sync::CancellationToken;

use crate::{admin, config::MailConfig, error::MailError, mailboxes::Mailboxes, rest};

const REST: Duration = Duration::from_secs(30);
const EXPIRY: Duration = Duration::from_hours(1);
/// How long answers under way may take when the catcher stops.
const GRACE: Duration = Duration::from_secs(5);

/// A catcher whose socket is open.
pub struct Catcher {
    mailboxes: Arc<Mailboxes>,
    listener: UnixListener,
}

/// The runtime for a catcher's process of its own: two workers, few threads for the disk, little memory while nothing happens.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_stack_size(512 << 10)
        .thread_name("ocore-mail")
        .enable_all()
        .build()
}

/// Runs a catcher until `shutdown`. The mailboxes on disk take mail at once, so nobody else needs to be there.
pub async fn run(config: MailConfig, shutdown: CancellationToken) -> Result<(), MailError> {
    Catcher::open(config).await?.serve(shutdown).await
}

impl Catcher {
    /// Opens the socket and starts the mailboxes that are there.
    pub async fn open(config: MailConfig) -> Result<Self, MailError> {
        let listener = listen(&config.socket).await?;
        Ok(Self { mailboxes: Mailboxes::open(config)?, listener })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), MailError> {
        let Self { mailboxes, listener } = self;
        let socket = mailboxes.config.socket.clone();
        let stop = shutdown.child_token();
        let upkeep = tokio::spawn(upkeep(Arc::clone(&mailboxes), stop.clone()));
        let router = admin::router().merge(rest::router()).with_state(Arc::clone(&mailboxes));
        let graceful = stop.clone().cancelled_owned();
        let mut serving = tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(graceful).await });
        tracing::info!(socket = %socket.display(), "the mail catcher serves");
        let outcome = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = &mut serving => ended.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(MailError::Admin),
        };
        // Removed before it is free: afterwards the name may be another catcher's.
        let _ = std::fs::remove_file(&socket);
        stop.cancel();
        mailboxes.stop().await;
        let _ = upkeep.await;
        if !serving.is_finished() {
            let _ = tokio::time::timeout(GRACE, serving).await;
        }
        outcome
    }
}

async fn upkeep(mailboxes: Arc<Mailboxes>, stop: CancellationToken) {
    let (mut rest, mut expiry) = (interval(REST.min(mailboxes.config.idle)), interval(EXPIRY));
    loop {
        tokio::select! {
            _ = rest.tick() => mailboxes.rest().await,
            _ = expiry.tick() => mailboxes.expire().await,
            () = stop.cancelled() => return,
        }
    }
}

/// Opens the socket with mode 0600 under its name at once, in the place of one that a dead catcher left.
async fn listen(socket: &Path) -> Result<UnixListener, MailError> {
    if UnixStream::connect(socket).await.is_ok() {
        return Err(MailError::AlreadyRunning { socket: socket.to_owned() });
    }
    let open = || -> io::Result<UnixListener> {
        if let Some(directory) = socket.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut fresh = socket.as_os_str().to_owned();
        fresh.push(".new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&fresh, socket)?;
        Ok(listener)
    };
    open().map_err(|source| MailError::Socket { socket: socket.to_owned(), source })
}
