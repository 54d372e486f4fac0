//! The file with the token of the first account is there as long as there is no user, and goes when a process that was killed has left it.

use crate::{Control, Result, accounts, authorization::System};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    accounts::keep_first_account_file(System, control).await?;
    Ok(Vec::new())
}
