//! The store knows what this machine is and that it lives.

use crate::{Control, Result, authorization::System, servers};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    servers::heartbeat(System, control).await?;
    Ok(Vec::new())
}
