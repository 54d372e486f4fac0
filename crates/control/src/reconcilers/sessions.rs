//! Sessions that ended long ago, and attempts to log in that no longer count, go.

use crate::{Control, Result, accounts, authorization::System};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    accounts::prune(System, control).await?;
    Ok(Vec::new())
}
