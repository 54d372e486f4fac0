//! `ocore api-key`.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::{ClientOptions, http::Api, output::Output};

#[derive(Debug, Subcommand)]
pub enum ApiKeyCommand {
    List,
    /// Make a key; it is shown this once
    Create {
        name: String,
        /// Such as view:projects; repeat it. Without any: all that you may do yourself
        #[arg(long = "permission")]
        permissions: Vec<String>,
        /// An RFC 3339 time
        #[arg(long)]
        expires_at: Option<String>,
    },
    Revoke {
        id: String,
    },
}

impl ApiKeyCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        match self {
            Self::List => {
                let answer = api.get("/api-keys").await?;
                let rows = answer["apiKeys"].as_array().cloned().unwrap_or_default();
                let columns = [
                    ("name", "/name"),
                    ("prefix", "/prefix"),
                    ("permissions", "/permissions"),
                    ("last used", "/lastUsedAt"),
                    ("expires", "/expiresAt"),
                    ("id", "/id"),
                ];
                output.list(&answer, &rows, &columns, "There is no API key yet.");
            }
            Self::Create { name, mut permissions, expires_at } => {
                if permissions.is_empty() {
                    let organization = api.get("/org").await?;
                    permissions = organization["permissions"]
                        .as_array()
                        .map(|all| all.iter().filter_map(|permission| permission.as_str().map(str::to_owned)).collect())
                        .unwrap_or_default();
                }
                let body = json!({ "name": name, "permissions": permissions, "expiresAt": expires_at });
                let answer = api.post("/api-keys", body).await?;
                if output.json {
                    out!("{answer:#}");
                } else {
                    note!("Keep it now; it is not shown again.");
                    out!("{}", answer["key"].as_str().unwrap_or_default());
                }
            }
            Self::Revoke { id } => {
                let answer = api.delete(&format!("/api-keys/{id}")).await?;
                output.done(&answer, "The key is void.");
            }
        }
        Ok(())
    }
}
