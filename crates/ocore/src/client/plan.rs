//! `ocore plan`: what a deployment would do.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{ClientOptions, http::Api, output::Output, select};

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    target: select::Target,
}

impl Plan {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let preview = self.target.post(&api, "plan").await?;
        let named = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
        let mut shown = preview.clone();
        for key in ["install", "update", "dependants"] {
            shown[key] = json!(named(&preview["plan"][key]));
        }
        shown["way"] = json!(preview["plan"]["way"].as_str().unwrap_or_default().replace('_', " "));
        if output.json {
            out!("{preview:#}");
            return Ok(());
        }
        output.show(
            &shown,
            &[
                ("Way", "/way"),
                ("Branch", "/branch"),
                ("Commit", "/commitSha"),
                ("Live", "/liveCommitSha"),
                ("Install", "/install"),
                ("Update", "/update"),
                ("And with them", "/dependants"),
            ],
        );
        out!();
        for reason in preview["plan"]["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            out!("{reason}");
        }
        for change in preview["plan"]["changes"].as_array().into_iter().flatten() {
            out!("{}", line(change));
        }
        Ok(())
    }
}

/// As the plan's step logs it.
fn line(change: &Value) -> String {
    let word = |key: &str| change[key].as_str().unwrap_or_default();
    let mut place = word("module").to_owned();
    if !word("file").is_empty() {
        place = format!("{place}/{}", word("file"));
    }
    if let Some(number) = change["line"].as_i64() {
        place = format!("{place}:{number}");
    }
    format!("[{}] {place}: {}", word("way").replace('_', " "), word("text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_with_its_place() {
        let change = json!({ "way": "update_and_hold_writes", "module": "shop", "file": "models/a.py", "line": 3, "text": "it is gone" });
        assert_eq!(line(&change), "[update and hold writes] shop/models/a.py:3: it is gone");
        assert_eq!(line(&json!({ "way": "update", "module": "shop", "file": null, "line": null, "text": "new" })), "[update] shop: new");
    }
}
