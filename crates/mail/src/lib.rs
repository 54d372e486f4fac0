//! The mail catcher: every environment that is not production sends here, and nothing leaves.
//!
//! One process a server, `ocore mail-catcher`, with a mailbox for each instance. A mailbox is an SMTP listener that takes mail only from its own
//! instance, and a directory of append-only segments: what was accepted is on the disk. Mailpit's REST API, its events and a page are served on
//! the administration socket, below `/box/<instance>/`; the API of oCore reaches them from there and knows who may see them. It outlives the
//! control plane: mailboxes are kept on disk and asked of nobody.

mod admin;
mod compose;
mod config;
mod error;
mod events;
mod html;
mod index;
mod mailbox;
mod mailboxes;
mod message;
mod page;
mod parse;
mod peer;
mod rest;
mod search;
mod segments;
mod server;
mod smtp;

pub use config::{Limits, MailConfig};
pub use error::MailError;
pub use server::{Catcher, run, runtime};
