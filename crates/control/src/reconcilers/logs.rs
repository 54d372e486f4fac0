//! Odoo's logs do not fill the disk.

use crate::{Control, Result};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    control.host.rotate_logs().await?;
    Ok(Vec::new())
}
