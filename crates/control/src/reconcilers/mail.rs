//! What is not production sends to its mail catcher and nowhere else, also when a module or a person has added a server.

use crate::{Control, Result, mail};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    mail::reconcile(control).await
}
