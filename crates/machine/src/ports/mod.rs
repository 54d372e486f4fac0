//! TCP ports on the loopback interface that are bound once and stay so, whoever listens there.
//!
//! A port that nobody holds belongs to whoever binds it first, and on one machine with tenants' code that may be anybody. So each port is bound by root when it
//! is given to somebody, and kept while it is theirs: also while nothing of theirs runs. Who listens there gets that very socket.
//!
//! The socket has `SO_REUSEPORT` and not `SO_REUSEADDR`: nobody but root can bind the port beside it, in whatever state it is, and connections that wait for
//! their end (`TIME_WAIT`) do not keep it from listening again (socket(7); `inet_bind_conflict` in the kernel's `net/ipv4/inet_connection_sock.c`).

mod client;
mod holder;
mod keeper;

pub use self::{
    client::Ports,
    keeper::{Keeper, answers},
};
