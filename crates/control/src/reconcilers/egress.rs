//! What is not production stays closed, also when somebody has flushed the server's network rules or a name has moved.

use crate::{Control, Result, egress};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    egress::reconcile(control).await
}
