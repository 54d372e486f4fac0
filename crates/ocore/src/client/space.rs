//! `ocore space`.

use anyhow::Result;
use serde_json::{Value, json};

use super::{ClientOptions, http::Api, output, output::Output, snapshot::readable};

/// What each environment and snapshot owns alone and what it shares.
pub async fn show(options: &ClientOptions, output: Output) -> Result<()> {
    let space = Api::logged_in(options)?.get("/space").await?;
    let mut rows = Vec::new();
    for (kind, key) in [("environment", "environments"), ("snapshot", "snapshots")] {
        for row in space[key].as_array().into_iter().flatten() {
            let mut row = readable(row, &["referencedBytes", "exclusiveBytes", "sharedBytes"]);
            row["kind"] = json!(kind);
            if kind == "environment" {
                row["environmentName"] = Value::Null;
            }
            rows.push(row);
        }
    }
    let columns = [
        ("what", "/kind"),
        ("name", "/name"),
        ("of", "/environmentName"),
        ("alone", "/exclusiveBytes"),
        ("shared", "/sharedBytes"),
        ("in all", "/referencedBytes"),
    ];
    output.list(&space, &rows, &columns, "There is nothing yet that needs space.");
    if !output.json {
        let bytes = |key: &str| output::bytes(space[key].as_u64().unwrap_or_default());
        let (alone, free, total) = (bytes("exclusiveBytes"), bytes("poolAvailableBytes"), bytes("poolTotalBytes"));
        note!("{alone} are owned alone; the server has {free} free of {total}.");
    }
    Ok(())
}
