//! The edge through its sockets, with real HTTP servers behind it.

#![allow(clippy::unwrap_used)]

mod addresses;
mod border;
mod closed;
mod handover;
mod headers;
mod hold;
mod limits;
mod pages;
mod routes;
mod shutdown;
mod sleep;
mod smuggling;
mod streams;
mod support;
mod switching;
mod traffic;
mod websockets;
