//! `ocore env export`: an environment's data, as a file that another Odoo can restore.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::{ClientOptions, failure::Failure, http::Api, import::say, output::Output, select};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 20;

/// Download an environment's data; it goes on serving meanwhile
#[derive(Debug, Args)]
pub struct Export {
    /// By id, slug, branch or project/branch
    environment: String,
    #[arg(long, value_enum, default_value = "zip")]
    format: Format,
    /// Make the data harmless first: no mail, no payments, no secrets
    #[arg(long)]
    neutralized: bool,
    /// The database alone
    #[arg(long)]
    no_filestore: bool,
    /// Where to; by default the name that the server gives it
    #[arg(long, short)]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// As Odoo's database manager writes and reads it
    Zip,
    /// pg_dump's custom format
    Custom,
    /// pg_dump's directory format
    Directory,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::Custom => "custom",
            Self::Directory => "directory",
        }
    }
}

impl Export {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let environment = select::environment(&api, &self.environment).await?;
        let body = json!({ "format": self.format.word(), "neutralized": self.neutralized, "withFilestore": !self.no_filestore });
        let mut export = api.post(&format!("/environments/{}/exports", select::id(&environment)), body).await?;
        say(output, "Writing the export from a copy.");
        let path = format!("/exports/{}", select::id(&export));
        while matches!(export["status"].as_str(), Some("waiting" | "running")) {
            tokio::time::sleep(LOOK_AGAIN).await;
            export = api.get(&path).await?;
        }
        if export["status"] != "done" {
            return Err(Failure::Usage(format!("the export failed: {}", export["message"].as_str().unwrap_or_default())).into());
        }
        let size = export["bytes"].as_u64().context("the server does not say how large the export is")?;
        let target = match self.output {
            Some(target) => target,
            None => PathBuf::from(export["fileName"].as_str().context("the export has no name")?.replace('/', "-")),
        };
        download(&api, &format!("{path}/download"), &target, size, output).await?;
        output.done(&export, &format!("Wrote {}.", target.display()));
        if self.neutralized && !output.json {
            let credentials = api.get(&format!("{path}/credentials")).await?;
            if let Some(password) = credentials["password"].as_str() {
                note!("The password of Odoo's admin in it is {password}");
            }
        }
        Ok(())
    }
}

/// Beside the target until it is whole, and on from where a connection broke.
async fn download(api: &Api, path: &str, target: &std::path::Path, size: u64, output: Output) -> Result<()> {
    let mut name = target.file_name().context("the output needs a file name")?.to_owned();
    name.push(".part");
    let beside = target.with_file_name(name);
    let bar = if output.interactive { ProgressBar::new(size) } else { ProgressBar::hidden() };
    let mut file = tokio::fs::File::create(&beside).await.with_context(|| format!("{} cannot be written", beside.display()))?;
    let mut arrived = 0;
    let mut failures = 0;
    while arrived < size {
        let range = format!("bytes={arrived}-");
        let answer = api.send(Method::GET, path, None, &[("range", &range)]).await;
        let mut stream = match answer {
            Ok(answer) => answer.bytes_stream(),
            Err(error) if failures >= TRIES || matches!(error.downcast_ref::<Failure>(), Some(Failure::Problem(_))) => return Err(error),
            Err(_) => {
                failures += 1;
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
        };
        while let Some(Ok(bytes)) = stream.next().await {
            file.write_all(&bytes).await.with_context(|| format!("{} cannot be written", beside.display()))?;
            arrived += bytes.len() as u64;
            failures = 0;
            bar.set_position(arrived);
        }
    }
    bar.finish_and_clear();
    file.sync_all().await?;
    std::fs::rename(&beside, target).with_context(|| format!("{} cannot be written", target.display()))?;
    Ok(())
}
