//! The edge routes what the store says, also after it was restarted or has missed a change.

use crate::{Control, Result, routes, store};

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let wanted = store::routes::generation(&mut *control.pool.acquire().await?, control.server_id).await?;
    let has = control.host.edge_status().await?.generation;
    if wanted == 0 || has == wanted.unsigned_abs() {
        return Ok(Vec::new());
    }
    let applied = routes::apply(control).await?;
    Ok(vec![format!("brought the edge from route generation {has} to {applied}")])
}
