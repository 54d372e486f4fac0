//! Python environments on top of a distribution's: what a project's `requirements.txt` asks for, installed once and shared by its releases.
//!
//! ```text
//! <pool>/environments/<id>/environment.json    written last: names the attempt that is whole
//! <pool>/environments/<id>/<attempt>/venv      at its final place from the start, since its scripts name it
//! ```
//!
//! While it is made there are also `home`, `tmp` and `tree`, the source as pip builds in it.
//!
//! pip runs code of the packages that it builds: as a user of its own that owns nothing else, in a network in which there is nothing but the
//! [gateway](super::gateway). When all of it has ended, what it has left becomes root's.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, lchown},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    requirements::{Requirements, without_links},
    seal::{Kind, seal},
    tree,
};
use crate::{
    api::{Progress, ReleaseId, Source},
    error::{HostError, Result},
    local::{
        LocalHost,
        build_users::BuildUser,
        copy,
        data_sets::open_to_group,
        distribution::InstalledDistribution,
        durable::{self, blocking},
        exec::Program,
        pip,
    },
};

const RECORD: &str = "environment.json";
const SCRATCH: &str = "tmp";
const TREE: &str = "tree";
/// Packages without ready builds may be compiled.
const INSTALL_TIME: Duration = Duration::from_mins(30);

/// A whole environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) id: String,
    pub(super) python: PathBuf,
    /// The group that may read it.
    pub(super) gid: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    attempt: String,
}

impl LocalHost {
    /// The environment for these requirements of a source, made when it is not there.
    pub(super) async fn environment(
        &self,
        id: &str,
        requirements: &Requirements,
        distribution: &InstalledDistribution,
        source: &Source,
        progress: &Progress,
    ) -> Result<Environment> {
        let directory = self.layout.environments().join(id);
        let _turn = self.builds.take(&directory.display().to_string()).await;
        let gid = self.ledger.release_gid(&ReleaseId(id.to_owned())).await?;
        let at = |attempt: &str| Environment { id: id.to_owned(), python: directory.join(attempt).join("venv/bin/python"), gid };
        if let Some(record) = durable::read_json::<Record>(&directory.join(RECORD))? {
            progress.log.line("The Python environment is there already.");
            return Ok(at(&record.attempt));
        }
        durable::make_directory(&self.layout.environments(), 0o711)?;
        durable::make_directory(&directory, 0o700)?;
        open_to_group(&directory, gid)?;
        let attempt = uuid::Uuid::new_v4().simple().to_string();
        let place = directory.join(&attempt);
        let user = self.claim_build_user().await?;
        let owner = user.uid;
        let installed = self.install(&place, &user, gid, requirements, distribution, source, progress).await;
        // What is left of it could still write there.
        let released = user.release().await;
        let made = match installed.and(released) {
            Ok(()) => finish(&place, owner).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            copy::remove(&place).await?;
            self.ledger.forget_release(&ReleaseId(id.to_owned())).await?;
        }
        made?;
        durable::write_json(&directory.join(RECORD), &Record { attempt: attempt.clone() })?;
        Ok(at(&attempt))
    }

    /// Runs pip, and with it code of whatever it builds.
    #[expect(clippy::too_many_arguments, reason = "each is a part of one build")]
    async fn install(
        &self,
        place: &Path,
        user: &BuildUser,
        gid: u32,
        requirements: &Requirements,
        distribution: &InstalledDistribution,
        source: &Source,
        progress: &Progress,
    ) -> Result<()> {
        let names: Vec<&str> = requirements.files.iter().map(|(path, _)| path.as_str()).collect();
        progress.log.line(&format!("Installing the Python packages of {}.", names.join(", ")));
        let [venv, home, scratch, tree] = ["venv", "home", SCRATCH, TREE].map(|name| place.join(name));
        for directory in [place, &venv, &home, &scratch] {
            durable::make_directory(directory, 0o755)?;
        }
        for directory in [&venv, &home, &scratch] {
            own(directory, user.uid)?;
        }
        // A package is built where its source is, so the build gets directories of its own.
        let sealed = self.source_tree(&source.id)?;
        let hosts = requirements.hosts(&sealed);
        let files: Vec<(PathBuf, String)> = requirements.files.iter().map(|(path, text)| (tree.join(path), without_links(text))).collect();
        let (target, owner) = (tree.clone(), user.uid);
        let written = files.clone();
        blocking(move || {
            tree::link_tree(&sealed, &target, owner)?;
            written.iter().try_for_each(|(path, text)| replace(path, text))
        })
        .await?;
        let program = Program::new(&distribution.python).args(["-I", "-m", "venv", "--without-pip"]).arg(&venv).yields().without_network();
        let program = program.of_build(user, vec![gid]).env("HOME", &home).cancel(progress.cancel.clone()).time_limit(INSTALL_TIME);
        program.run().await?.expect_success("the Python environment could not be made")?;
        stack(&venv, distribution, user.uid)?;
        let gateway = self.start_gateway(user, &hosts, progress).await?;
        let program = files
            .iter()
            .fold(pip::install_without_settings(venv.join("bin/python")), |program, (path, _)| program.arg("--requirement").arg(path));
        let finished = gateway
            .told(program.arg("--no-warn-script-location").cwd(&tree))
            .of_build(user, vec![gid])
            .env("HOME", &home)
            .env("TMPDIR", &scratch)
            .lines(gateway.sink(&progress.log))
            .cancel(progress.cancel.clone())
            .time_limit(INSTALL_TIME)
            .run()
            .await?;
        let refused = gateway.refused();
        for place in &refused {
            progress.log.line(&format!(
                "A build reaches package indexes and the public hosts that the requirements name, and not {place}; an operator can allow it (builds.allow)."
            ));
        }
        if finished.status.success() {
            return Ok(());
        }
        if let Some(reason) = gateway.unreachable(&hosts) {
            return Err(unreachable(&reason));
        }
        let output = gateway.shown(&format!("{}\n{}", finished.stdout_text(), finished.stderr_text()));
        Err(explain(&output, &names, &tree, &refused))
    }
}

/// Takes away what only the build needed, and makes the rest root's.
async fn finish(place: &Path, owner: u32) -> Result<()> {
    let place = place.to_owned();
    blocking(move || {
        for directory in ["home", SCRATCH, TREE] {
            durable::remove_tree(&place.join(directory))?;
        }
        seal(&place.join("venv"), owner, Kind::Environment)?;
        let synced = fs::File::open(&place).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
        synced.map_err(|error| HostError::machine_from("the Python environment could not be written to the disk", error))
    })
    .await
}

/// Removes attempts that a crash has broken off; young ones may be at work.
pub(super) async fn remove_leftovers(directory: &Path) -> Result<()> {
    let Some(record) = durable::read_json::<Record>(&directory.join(RECORD))? else { return Ok(()) };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != record.attempt.as_str() && !super::is_young(&path) {
            copy::remove(&path).await?;
        }
    }
    Ok(())
}

/// Puts the distribution's packages behind the environment's own. `addsitedir` also reads their `.pth` files, which a plain line would not.
fn stack(venv: &Path, distribution: &InstalledDistribution, owner: u32) -> Result<()> {
    let library = venv.join("lib");
    let write = || -> std::io::Result<()> {
        let site_packages = fs::read_dir(&library)?.flatten().map(|entry| entry.path().join("site-packages")).find(|path| path.is_dir());
        let site_packages = site_packages.ok_or_else(|| std::io::Error::other("it has no site-packages"))?;
        let lines = distribution.packages.iter().map(|path| {
            // A JSON string without exotic characters is a Python string.
            Ok(format!(
                "import site; site.addsitedir({})
",
                serde_json::to_string(path)?
            ))
        });
        let text: String = lines.collect::<serde_json::Result<_>>()?;
        let file = site_packages.join("odoo-distribution.pth");
        fs::write(&file, text)?;
        // As all of it, until it is sealed.
        lchown(&file, Some(owner), Some(owner))
    };
    write().map_err(|error| {
        HostError::machine_from(format!("the Python environment in {} could not be set up: {error}", venv.display()), error)
    })
}

fn own(path: &Path, uid: u32) -> Result<()> {
    chown(path, Some(uid), Some(uid))
        .map_err(|error| HostError::machine_from(format!("the owner of {} could not be set", path.display()), error))
}

/// Another file in the place of one that is linked to a sealed one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let replaced = fs::remove_file(path).and_then(|()| fs::write(path, text));
    replaced
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(|error| HostError::machine_from(format!("{} could not be written", path.display()), error))
}

fn unreachable(reason: &str) -> HostError {
    HostError::machine(format!(
        "an index of Python packages could not be reached from this server ({reason}); check its network, proxy or pip configuration"
    ))
}

/// Why pip failed, in the developer's words.
fn explain(output: &str, names: &[&str], tree: &Path, refused: &[String]) -> HostError {
    let output = output.replace(&format!("{}/", tree.display()), "");
    if output.contains("No space left on device") {
        return HostError::machine("the disk of the storage pool is full; make room or enlarge the pool");
    }
    if pip::could_not_reach_index(&output) {
        return unreachable("pip's requests were not answered");
    }
    if output.contains("No module named pip") {
        return HostError::machine("the Python environment of the Odoo distribution has no pip; install it there");
    }
    let mut lines = pip::decisive_lines(&output);
    if output.contains("exit code: -9") {
        lines.insert(0, "a program of the build was ended by SIGKILL; it has probably taken more memory than a build may".to_owned());
    }
    // pip says what it looked for first, and in the last line what it did not find; a failed build ends with where it failed.
    let reason = lines.iter().rev().find(|line| {
        line.starts_with("No matching distribution") || line.starts_with("Cannot install") || line.starts_with("Failed building")
    });
    let reason = reason.or(lines.last()).map_or("pip did not say why", |reason| reason.trim_end_matches('.'));
    let conflicts = output.lines().skip_while(|line| !line.starts_with("The conflict is caused by")).take(12);
    let refused: Vec<String> = refused.iter().map(|place| format!("not reached from a build: {place}")).collect();
    let excerpt: Vec<&str> = lines.iter().map(String::as_str).chain(conflicts).chain(refused.iter().map(String::as_str)).collect();
    HostError::Rejected {
        summary: format!("the requirements in {} cannot be met: {reason}", names.join(", ")),
        excerpt: excerpt.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_that_cannot_be_met_is_named() {
        let output = "ERROR: Could not find a version that satisfies the requirement nope==9 (from versions: none)\nERROR: No matching distribution found for nope==9\n";
        let error = explain(output, &["requirements.txt"], Path::new("/x"), &[]);
        assert_eq!(error.to_string(), "the requirements in requirements.txt cannot be met: No matching distribution found for nope==9");
        assert_eq!(error.excerpt().lines().count(), 2);
        let offline = "WARNING: Retrying after connection broken by 'NewConnectionError(…)'\nERROR: No matching distribution found for a\n";
        assert!(matches!(explain(offline, &["requirements.txt"], Path::new("/x"), &[]), HostError::Machine { .. }));
    }
}
