//! `ocore mail`.

use std::{io::Read, path::PathBuf};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{ClientOptions, http::Api, output::Output, select};

#[derive(Debug, Subcommand)]
pub enum MailCommand {
    /// The newest messages, or those that fit a search
    List {
        environment: String,
        /// As on the page: from: to: subject: is:unread has:attachment after: before: tag: "words" -not
        #[arg(long, default_value = "")]
        search: String,
        #[arg(short = 'n', long, default_value_t = 50)]
        limit: usize,
    },
    /// One message, by its id; the newest without one
    Show {
        environment: String,
        #[arg(default_value = "latest")]
        message: String,
        /// Its source as it came
        #[arg(long)]
        raw: bool,
    },
    /// Write every message that fits into a directory, a file each
    Export {
        environment: String,
        directory: PathBuf,
        #[arg(long, default_value = "")]
        search: String,
    },
    /// Wait until a message comes that fits
    Wait(Wait),
    /// Hand Odoo a mail as if it had come
    Inject {
        environment: String,
        /// A whole message; `-` for standard input
        file: PathBuf,
    },
    /// Send a message, marked as a test, to addresses on the environment's list
    Release {
        environment: String,
        message: String,
        #[arg(long, required = true)]
        to: Vec<String>,
    },
    /// Show or replace the addresses to which messages may be released
    ReleaseList {
        environment: String,
        /// The new list; `--to ''` empties it
        #[arg(long)]
        to: Option<Vec<String>>,
    },
}

#[derive(Debug, Args)]
pub struct Wait {
    environment: String,
    /// A part of the receiver's name or address
    #[arg(long)]
    to: Option<String>,
    /// A part of the subject
    #[arg(long)]
    subject: Option<String>,
    /// Further conditions, as in `list`
    #[arg(long, default_value = "")]
    search: String,
    /// Only messages that come after this one
    #[arg(long)]
    after: Option<String>,
    /// Seconds
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

const COLUMNS: &[(&str, &str)] = &[
    ("received", "/Created"),
    ("from", "/From/Address"),
    ("to", "/To/0/Address"),
    ("subject", "/Subject"),
    ("files", "/Attachments"),
    ("id", "/ID"),
];
const FIELDS: &[(&str, &str)] = &[
    ("From", "/From/Address"),
    ("To", "/To/0/Address"),
    ("Subject", "/Subject"),
    ("Date", "/Date"),
    ("Received", "/Created"),
    ("Size", "/Size"),
    ("Id", "/ID"),
];
/// Messages that one look brings.
const PAGE: usize = 200;

fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn listing(search: &str, start: usize, limit: usize) -> String {
    if search.trim().is_empty() {
        format!("api/v1/messages?start={start}&limit={limit}")
    } else {
        format!("api/v1/search?query={}&start={start}&limit={limit}", encode(search))
    }
}

impl MailCommand {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let base = async |environment: &str| -> Result<String> {
            let environment = select::environment(&api, environment).await?;
            Ok(format!("/environments/{}/mail", select::id(&environment)))
        };
        match self {
            Self::List { environment, search, limit } => {
                let answer = api.get(&format!("{}/{}", base(&environment).await?, listing(&search, 0, limit))).await?;
                let rows = answer["messages"].as_array().cloned().unwrap_or_default();
                output.list(&answer, &rows, COLUMNS, "No message fits.");
            }
            Self::Show { environment, message, raw } => {
                let path = format!("{}/api/v1/message/{}", base(&environment).await?, encode(&message));
                if raw {
                    let source = api.text(&format!("{path}/raw")).await?;
                    crate::terminal::write(&source);
                    return Ok(());
                }
                let message = api.get(&path).await?;
                output.show(&message, FIELDS);
                if !output.json {
                    out!("\n{}", message["Text"].as_str().unwrap_or_default());
                }
            }
            Self::Export { environment, directory, search } => export(&api, &base(&environment).await?, directory, &search, output).await?,
            Self::Wait(wait) => {
                let base = base(&wait.environment).await?;
                output.show(&wait.run(&api, &base).await?, FIELDS);
            }
            Self::Inject { environment, file } => {
                let mut message = Vec::new();
                if file.as_os_str() == "-" {
                    std::io::stdin().read_to_end(&mut message)?;
                } else {
                    message = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                }
                let answer = api.post(&format!("{}/inject", base(&environment).await?), json!({ "raw": STANDARD.encode(message) })).await?;
                output.done(&answer, "Odoo has taken the mail.");
            }
            Self::Release { environment, message, to } => {
                let path = format!("{}/api/v1/message/{}/release", base(&environment).await?, encode(&message));
                let body = json!({ "to": to });
                api.send(reqwest::Method::POST, &path, Some(body), &[]).await?;
                output.done(&json!({ "released": true }), "It was released.");
            }
            Self::ReleaseList { environment, to } => {
                let path = format!("{}-settings", base(&environment).await?);
                let answer = match to {
                    Some(to) => {
                        let addresses: Vec<String> = to.into_iter().filter(|address| !address.is_empty()).collect();
                        api.put(&path, json!({ "releaseAddresses": addresses })).await?
                    }
                    None => api.get(&path).await?,
                };
                output.show(&answer, &[("Addresses", "/releaseAddresses")]);
            }
        }
        Ok(())
    }
}

impl Wait {
    async fn run(self, api: &Api, base: &str) -> Result<Value> {
        let quoted =
            |field: &str, value: Option<String>| value.map(|value| format!("{field}:\"{}\" ", value.replace('"', " "))).unwrap_or_default();
        let query = format!("{}{}{}", quoted("to", self.to), quoted("subject", self.subject), self.search);
        let after = self.after.map(|after| format!("&after={}", encode(&after))).unwrap_or_default();
        let path = format!("{base}/api/v1/wait?query={}&timeout={}{after}", encode(query.trim()), self.timeout);
        api.get(&path).await.with_context(|| format!("no such message within {} s", self.timeout))
    }
}

async fn export(api: &Api, base: &str, directory: PathBuf, search: &str, output: Output) -> Result<()> {
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut written = Vec::new();
    loop {
        let answer = api.get(&format!("{base}/{}", listing(search, written.len(), PAGE))).await?;
        let Some(messages) = answer["messages"].as_array().filter(|messages| !messages.is_empty()) else { break };
        for message in messages {
            let id = message["ID"].as_str().filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            let Some(id) = id else { bail!("the mail catcher gave a message without an id") };
            let response = api.send(reqwest::Method::GET, &format!("{base}/api/v1/message/{id}/raw"), None, &[]).await?;
            let path = directory.join(format!("{id}.eml"));
            std::fs::write(&path, response.bytes().await?).with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path.display().to_string());
        }
    }
    let size = written.len();
    output.done(&json!({ "files": written }), &format!("{size} messages are in {}.", directory.display()));
    Ok(())
}
