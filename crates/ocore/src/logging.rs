//! Where the server's own log goes: standard error, for people or as JSON for programs.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::Log;

/// Starts the log. `RUST_LOG` overrides the configured filter; a filter that cannot be read falls back to `info`.
pub fn start(config: &Log) {
    let filter =
        EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(&config.filter)).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if config.json {
        registry.with(fmt::layer().json().with_writer(std::io::stderr)).init();
    } else {
        registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).init();
    }
}
