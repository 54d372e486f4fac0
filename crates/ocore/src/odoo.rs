//! `ocore odoo`: the distributions that instances run from.

use std::{io::IsTerminal, sync::Arc};

use anyhow::Result;
use clap::Subcommand;
use ocore_host::{
    Distribution, LogSink, Progress,
    local::{LocalHostConfig, distribution},
};
use ocore_model::names::OdooVersion;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

#[derive(Debug, Subcommand)]
pub enum OdooCommand {
    /// Fetch and prepare an Odoo from packages; found again quickly when it is there
    Install {
        /// Such as 19.0
        version: OdooVersion,
    },
    /// The Odoos that are installed or configured
    List,
}

/// Progress goes to standard error, a line each; a terminal gets the last line only.
struct Terminal {
    interactive: bool,
}

impl LogSink for Terminal {
    fn line(&self, text: &str) {
        if self.interactive {
            crate::terminal::beside(format_args!("\r\x1b[K{}", text.chars().take(110).collect::<String>()));
        } else {
            note!("{text}");
        }
    }
}

pub async fn run(command: OdooCommand, config: &Config, json: bool) -> Result<()> {
    match command {
        OdooCommand::Install { version } => {
            let interactive = std::io::stderr().is_terminal();
            let progress = Progress { log: Arc::new(Terminal { interactive }), cancel: CancellationToken::new() };
            let installed = distribution::install(&config.odoo.directory, &version, &progress).await;
            if interactive {
                crate::terminal::beside(format_args!("\r\x1b[K"));
            }
            show(&[installed?.distribution], json);
        }
        OdooCommand::List => show(&list(&config.host()).await, json),
    }
    Ok(())
}

async fn list(config: &LocalHostConfig) -> Vec<Distribution> {
    distribution::list(config).await
}

fn show(distributions: &[Distribution], json: bool) {
    if json {
        out!("{:#}", json!({ "distributions": distributions }));
        return;
    }
    for distribution in distributions {
        out!("Odoo {}  {} modules  {}", distribution.odoo_version, distribution.modules.len(), distribution.id);
    }
}
