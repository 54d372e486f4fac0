//! Why an edge could not start or went down.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum EdgeError {
    #[error("the edge has no address to listen on; set at least one")]
    NoAddress,
    #[error("cannot listen on {address}; see who has it with `ss -ltnp`, or choose another address")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("another edge already answers at {}; stop it first", .socket.display())]
    AlreadyRunning { socket: PathBuf },
    #[error("cannot open the administration socket {}", .socket.display())]
    AdminSocket {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use {} for the stored routes", .path.display())]
    RoutesFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the edge that runs did not hand over to this one, and serves on")]
    Handover(#[source] io::Error),
    #[error("the edge's threads could not be started")]
    Workers(#[source] io::Error),
    #[error("the administration socket failed")]
    Admin(#[source] io::Error),
}
