//! The real binary, real PostgreSQL, real Git, real Odoo, one installation a test. Each test says what a user would see.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod behaviors;
mod broken_pushes;
mod command_line;
mod copies;
mod crashes;
mod hold;
mod journey;
mod machine_trouble;
mod scene;
mod snapshots;
