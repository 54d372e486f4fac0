//! `ocore odoo`: the distributions that instances run from.

use anyhow::Result;
use clap::Subcommand;
use ocore_model::names::OdooVersion;

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

pub async fn run(_command: OdooCommand, _config: &Config, _json: bool) -> Result<()> {
    Ok(())
}
