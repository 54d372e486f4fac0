//! A real catcher in this process, reached as its instance and its API reach it: over SMTP and over its socket.

mod catching;
mod mailpit;
mod support;
mod trouble;
