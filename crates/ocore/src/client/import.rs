//! `ocore env import`: an existing Odoo comes in. The upload goes on where it was broken off, also in a later call with the same file.

use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::TryStreamExt;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{ClientOptions, failure::Failure, http::Api, output::Output, select};

/// One request brings that much: a session is renewed between two, and a proxy in between need not bear more.
const STRIDE: u64 = 256 << 20;
const CHUNK: usize = 256 * 1024;
/// How often an upload that does not get on is tried again, and how long is waited at most in between.
const TRIES: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Bring in the data of an Odoo that runs elsewhere: as they are into production, made harmless into any other environment
#[derive(Debug, Args)]
pub struct Import {
    /// By id, slug, branch or project/branch
    environment: String,
    /// A zip of Odoo's database manager, a dump of pg_dump (custom, or a directory as tar), or its SQL
    #[arg(required_unless_present = "from_postgres", conflicts_with = "from_postgres")]
    file: Option<PathBuf>,
    /// Dump this running database first, with the pg_dump of this machine: postgres://user@host/name
    #[arg(long, value_name = "URL")]
    from_postgres: Option<String>,
    /// The file store: an archive of it, or the directory itself
    #[arg(long, value_name = "PATH")]
    filestore: Option<PathBuf>,
    /// Accept what the check warns of, and do not ask
    #[arg(long)]
    yes: bool,
    /// Return when the deployment is queued
    #[arg(long)]
    no_wait: bool,
}

impl Import {
    pub async fn run(self, options: &ClientOptions, output: Output) -> Result<()> {
        let api = Api::logged_in(options)?;
        let environment = select::environment(&api, &self.environment).await?;
        // What is made on the way lies there until the end.
        let scratch = Scratch::new()?;
        let backup = match (&self.file, &self.from_postgres) {
            (Some(file), _) => file.clone(),
            (None, Some(url)) => dump(url, &scratch.path.join("database.dump"), output).await?,
            (None, None) => return Err(Failure::Usage("give a file, or --from-postgres".to_owned()).into()),
        };
        let store = match &self.filestore {
            Some(path) if path.is_dir() => Some(pack(path, &scratch.path.join("filestore.tar"), output).await?),
            other => other.clone(),
        };
        let import = begin(&api, &environment, &backup, store.as_deref()).await?;
        let path = format!("/imports/{}", select::id(&import));
        if let Some(store) = &store {
            upload(&api, &path, "filestore", store, output).await?;
        }
        upload(&api, &path, "backup", &backup, output).await?;
        drop(scratch);
        let checked = wait_for_check(&api, &path, output).await?;
        show(&checked, output);
        let warnings = checked["facts"]["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty());
        let target = environment["branch"].as_str().unwrap_or_default();
        let question = if warnings { format!("Import into {target} in spite of this?") } else { format!("Import into {target}?") };
        if !self.yes && !confirm(&question)? {
            return Err(Failure::Usage("nothing was imported; the upload is kept for a day".to_owned()).into());
        }
        let started = api.post(&format!("{path}/start"), json!({ "acceptWarnings": true })).await?;
        let deployment = api.get(&format!("/deployments/{}", started["deploymentId"].as_str().unwrap_or_default())).await?;
        if self.no_wait {
            output.done(&deployment, &format!("Queued as deployment {}.", select::id(&deployment)));
            return Ok(());
        }
        super::deployment::follow(&api, output, &deployment).await
    }
}

/// A directory for what is made on the way; gone at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("ocore-import-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// To a file first, so that a connection that breaks costs no second dump.
async fn dump(url: &str, target: &Path, output: Output) -> Result<PathBuf> {
    say(output, "Dumping the database.");
    let mut program = tokio::process::Command::new("pg_dump");
    program.args(["--format=custom", "--no-owner", "--no-acl", "--file"]).arg(target).arg("--dbname").arg(url);
    run(program, "pg_dump").await?;
    Ok(target.to_owned())
}

async fn pack(directory: &Path, target: &Path, output: Output) -> Result<PathBuf> {
    say(output, "Packing the file store.");
    let mut program = tokio::process::Command::new("tar");
    program.args(["--create", "--file"]).arg(target).arg("--directory").arg(directory).arg(".");
    run(program, "tar").await?;
    Ok(target.to_owned())
}

async fn run(mut program: tokio::process::Command, name: &str) -> Result<()> {
    let status = program.stdin(Stdio::null()).kill_on_drop(true).status().await;
    match status.with_context(|| format!("{name} cannot be started; is it installed?"))? {
        status if status.success() => Ok(()),
        status => bail!("{name} ended with {status}"),
    }
}

async fn announcement(file: &Path) -> Result<Value> {
    let metadata = tokio::fs::metadata(file).await.with_context(|| format!("{} cannot be read", file.display()))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(json!({ "fileName": name, "size": metadata.len() }))
}

fn is_same(part: &Value, announced: &Value) -> bool {
    part["fileName"] == announced["fileName"] && part["size"] == announced["size"]
}

/// One that an earlier call has begun with these files, or a new one.
async fn begin(api: &Api, environment: &Value, backup: &Path, store: Option<&Path>) -> Result<Value> {
    let path = format!("/environments/{}/imports", select::id(environment));
    let announced = announcement(backup).await?;
    let store = match store {
        Some(store) => Some(announcement(store).await?),
        None => None,
    };
    let known = api.get(&path).await?;
    let fits = |import: &&Value| {
        import["status"] == "receiving"
            && is_same(&import["backup"], &announced)
            && store.as_ref().map_or(import["fileStore"].is_null(), |store| is_same(&import["fileStore"], store))
    };
    let begun = known["imports"].as_array().into_iter().flatten().find(fits);
    let id = if let Some(begun) = begun {
        select::id(begun).to_owned()
    } else {
        let target = api.post(&path, announced).await?;
        let id = target["importId"].as_str().context("the server names no import")?.to_owned();
        if let Some(store) = store {
            api.post(&format!("/imports/{id}/filestore"), store).await?;
        }
        id
    };
    api.get(&format!("/imports/{id}")).await
}

/// Uploads what has not arrived yet, and goes on after each break.
async fn upload(api: &Api, import: &str, part: &str, file: &Path, output: Output) -> Result<()> {
    let (key, target) = if part == "filestore" { ("fileStore", format!("{import}/filestore")) } else { ("backup", import.to_owned()) };
    let size = tokio::fs::metadata(file).await?.len();
    let bar = progress(part, size, output);
    let mut failures = 0;
    loop {
        let known = api.get(import).await;
        let offset = match &known {
            Ok(state) => state[key]["offset"].as_u64().context("the server does not say how much has arrived")?,
            Err(_) => 0,
        };
        if let Err(error) = &known
            && matches!(error.downcast_ref::<Failure>(), Some(Failure::Problem(problem)) if problem.status < 500)
        {
            return known.map(drop);
        }
        if known.is_ok() {
            bar.set_position(offset);
            if offset >= size {
                bar.finish_and_clear();
                return Ok(());
            }
            let mut source = tokio::fs::File::open(file).await?;
            source.seek(SeekFrom::Start(offset)).await?;
            let counter = bar.clone();
            let pieces = ReaderStream::with_capacity(source.take(STRIDE), CHUNK);
            let body = reqwest::Body::wrap_stream(pieces.inspect_ok(move |piece| counter.inc(piece.len() as u64)));
            match api.upload(&target, offset, body).await {
                Ok(()) => {
                    failures = 0;
                    continue;
                }
                // The server has an opinion; it will not change by itself, but for the place where to go on.
                Err(error) => match error.downcast_ref::<Failure>() {
                    Some(Failure::Problem(problem)) if problem.code != "upload_offset" && problem.status < 500 => return Err(error),
                    _ => {}
                },
            }
        }
        failures += 1;
        if failures > TRIES {
            return Err(Failure::Usage("the upload does not get on; the same command goes on with it later".to_owned()).into());
        }
        bar.set_message("interrupted; trying again");
        tokio::time::sleep(LONGEST_PAUSE.min(Duration::from_millis(250) * 2_u32.pow(failures.min(8)))).await;
        bar.set_message("");
    }
}

fn progress(part: &str, size: u64, output: Output) -> ProgressBar {
    if !output.interactive {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    if let Ok(style) = ProgressStyle::with_template("{prefix:9} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(part.to_owned());
    bar
}

async fn wait_for_check(api: &Api, import: &str, output: Output) -> Result<Value> {
    say(output, "Checking the backup.");
    loop {
        let state = api.get(import).await?;
        match state["status"].as_str() {
            Some("receiving" | "received") => tokio::time::sleep(LOOK_AGAIN).await,
            Some("checked" | "failed") => return Ok(state),
            Some("rejected") => {
                let message = state["message"].as_str().unwrap_or_default();
                return Err(Failure::Usage(format!("it cannot be imported: {message}")).into());
            }
            other => return Err(Failure::Usage(format!("the import is {}", other.unwrap_or("gone"))).into()),
        }
    }
}

fn show(import: &Value, output: Output) {
    if output.json {
        return;
    }
    let facts = &import["facts"];
    let modules = facts["modules"].as_array().map_or(0, Vec::len);
    let bytes = |key: &str| HumanBytes(facts[key].as_u64().unwrap_or_default()).to_string();
    note!(
        "Odoo {}, PostgreSQL {}, {modules} modules, {} of SQL, {} files ({})",
        facts["odooSeries"].as_str().unwrap_or("?"),
        facts["postgresVersion"].as_str().unwrap_or("?"),
        bytes("databaseBytes"),
        facts["fileStoreFiles"].as_u64().unwrap_or_default(),
        bytes("fileStoreBytes"),
    );
    for warning in facts["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        note!("Warning: {warning}");
    }
}

pub(super) fn say(output: Output, sentence: &str) {
    if !output.json {
        note!("{sentence}");
    }
}

fn confirm(question: &str) -> Result<bool> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{question} There is no terminal to ask at; give --yes")).into());
    }
    dialoguer::Confirm::new().with_prompt(question).default(false).interact().context("cannot ask")
}
