//! The real binary, real PostgreSQL, real Git, real Odoo, one installation a test. Each test says what a user would see.

#![allow(unreachable_pub, reason = "a test binary exports nothing")]

mod admin;
mod behaviors;
mod broken_pushes;
mod browser;
mod command_line;
mod copies;
mod crashes;
mod doors;
mod edge;
mod hold;
mod imports;
mod journey;
mod machine_trouble;
mod mail;
mod mail_page;
mod new_colour;
mod outside;
mod ports;
mod quarantine;
mod reload;
mod scene;
mod sleep;
mod snapshots;
mod templates;
mod troubled_updates;
mod watch;
