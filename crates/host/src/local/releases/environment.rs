//! Python environments on top of a distribution's: what a project's `requirements.txt` asks for, installed once and shared by its releases.
//!
//! ```text
//! <pool>/environments/<id>/environment.json    written last: names the attempt that is whole
//! <pool>/environments/<id>/<attempt>/venv      at its final place from the start, since its scripts name it
//! ```
//!
//! pip runs code of the packages that it builds: as a user of its own that owns nothing else.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

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

/// The requirements files of a source, with their text.
pub(super) struct Requirements {
    pub(super) files: Vec<(String, String)>,
}

impl Requirements {
    /// `None` when the source asks for nothing.
    pub(super) fn read(source: &Source, tree: &Path) -> Result<Option<Self>> {
        let mut files = Vec::new();
        for path in &source.requirements {
            let bytes = fs::read(tree.join(path)).map_err(|error| HostError::machine_from(format!("{path} could not be read"), error))?;
            let text = String::from_utf8(bytes).map_err(|_| HostError::rejected(format!("{path} is not UTF-8 text")))?;
            if text.lines().any(|line| !is_blank(line)) {
                files.push((path.clone(), text));
            }
        }
        Ok((!files.is_empty()).then_some(Self { files }))
    }

    /// Names the environment. Requirements that name files of the repository depend on the whole source.
    pub(super) fn id(&self, isolation_key: &str, distribution: &str, source: &Source) -> String {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        };
        for text in ["environment 1", isolation_key, distribution] {
            add(text);
        }
        for (path, text) in &self.files {
            add(path);
            add(text);
        }
        if self.files.iter().any(|(_, text)| text.lines().any(names_a_file)) {
            add(&source.id.0);
        }
        hex::encode(digest.finalize())
    }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// pip's requirements file format: options that read another file, and requirements that are paths.
fn names_a_file(line: &str) -> bool {
    let line = line.trim();
    let option = ["-r", "--requirement", "-c", "--constraint", "-e", "--editable"].iter().any(|option| line.starts_with(option));
    option || line.starts_with(['.', '/']) || line.contains("file:")
}

impl LocalHost {
    /// The environment for these requirements, made when it is not there. `tree` is where pip runs; `user` may read it.
    pub(super) async fn environment(
        &self,
        id: &str,
        requirements: &Requirements,
        distribution: &InstalledDistribution,
        tree: &Path,
        user: &BuildUser,
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
        let made = self.make_environment(&place, gid, requirements, distribution, tree, user, progress).await;
        if made.is_err() {
            copy::remove(&place).await?;
            self.ledger.forget_release(&ReleaseId(id.to_owned())).await?;
        }
        made?;
        durable::write_json(&directory.join(RECORD), &Record { attempt: attempt.clone() })?;
        Ok(at(&attempt))
    }

    #[expect(clippy::too_many_arguments, reason = "each is a part of one build")]
    async fn make_environment(
        &self,
        place: &Path,
        gid: u32,
        requirements: &Requirements,
        distribution: &InstalledDistribution,
        tree: &Path,
        user: &BuildUser,
        progress: &Progress,
    ) -> Result<()> {
        let names: Vec<&str> = requirements.files.iter().map(|(path, _)| path.as_str()).collect();
        progress.log.line(&format!("Installing the Python packages of {}.", names.join(", ")));
        let (venv, home) = (place.join("venv"), place.join("home"));
        for directory in [place, &venv, &home] {
            durable::make_directory(directory, 0o755)?;
        }
        for directory in [&venv, &home] {
            own(directory, user.uid)?;
        }
        let groups = vec![gid, gid_of(tree)?];
        let program = Program::new(&distribution.python).args(["-I", "-m", "venv", "--without-pip"]).arg(&venv).yields();
        let program = program.of_build(user, groups.clone()).env("HOME", &home).cancel(progress.cancel.clone()).time_limit(INSTALL_TIME);
        program.run().await?.expect_success("the Python environment could not be made")?;
        stack(&venv, distribution)?;
        let program = requirements
            .files
            .iter()
            .fold(pip::install(venv.join("bin/python")), |program, (path, _)| program.arg("--requirement").arg(tree.join(path)));
        let finished = program
            .arg("--no-warn-script-location")
            .cwd(tree)
            .env("HOME", &home)
            .of_build(user, groups)
            .progress(progress)
            .time_limit(INSTALL_TIME)
            .run()
            .await?;
        if !finished.status.success() {
            return Err(explain(&format!("{}\n{}", finished.stdout_text(), finished.stderr_text()), &names, tree));
        }
        let place = place.to_owned();
        blocking(move || {
            durable::remove_tree(&home)?;
            close(&place)
        })
        .await
    }
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
fn stack(venv: &Path, distribution: &InstalledDistribution) -> Result<()> {
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
        fs::write(site_packages.join("odoo-distribution.pth"), text)
    };
    write().map_err(|error| {
        HostError::machine_from(format!("the Python environment in {} could not be set up: {error}", venv.display()), error)
    })
}

/// All of it belongs to root and can be read by whoever gets past the directory above; nothing in it raises privileges.
fn close(place: &Path) -> Result<()> {
    for entry in WalkDir::new(place) {
        let entry = entry.map_err(|error| HostError::machine_from("the Python environment could not be read", error))?;
        let failed = |error| HostError::machine_from(format!("the rights of {} could not be set", entry.path().display()), error);
        std::os::unix::fs::lchown(entry.path(), Some(0), Some(0)).map_err(failed)?;
        if entry.file_type().is_symlink() {
            continue;
        }
        let metadata = entry.metadata().map_err(|error| HostError::machine_from("the Python environment could not be read", error))?;
        let executable = metadata.is_dir() || metadata.permissions().mode() & 0o100 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    let synced = fs::File::open(place).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
    synced.map_err(|error| HostError::machine_from("the Python environment could not be written to the disk", error))
}

fn own(path: &Path, uid: u32) -> Result<()> {
    chown(path, Some(uid), Some(uid))
        .map_err(|error| HostError::machine_from(format!("the owner of {} could not be set", path.display()), error))
}

/// The group that may pass into the directory above the tree.
fn gid_of(tree: &Path) -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    let above = tree.parent().unwrap_or(tree);
    let metadata =
        fs::metadata(above).map_err(|error| HostError::machine_from(format!("{} could not be looked at", above.display()), error))?;
    Ok(metadata.gid())
}

/// Why pip failed, in the developer's words.
fn explain(output: &str, names: &[&str], tree: &Path) -> HostError {
    let output = output.replace(&format!("{}/", tree.display()), "");
    if output.contains("No space left on device") {
        return HostError::machine("the disk of the storage pool is full; make room or enlarge the pool");
    }
    if pip::could_not_reach_index(&output) {
        return HostError::machine(
            "the index of Python packages could not be reached from this server; check its network, proxy or pip configuration",
        );
    }
    if output.contains("No module named pip") {
        return HostError::machine("the Python environment of the Odoo distribution has no pip; install it there");
    }
    let lines = pip::decisive_lines(&output);
    // pip says what it looked for first, and in the last line what it did not find; a failed build ends with where it failed.
    let reason = lines.iter().rev().find(|line| {
        line.starts_with("No matching distribution") || line.starts_with("Cannot install") || line.starts_with("Failed building")
    });
    let reason = reason.or(lines.last()).map_or("pip did not say why", |reason| reason.trim_end_matches('.'));
    let conflicts = output.lines().skip_while(|line| !line.starts_with("The conflict is caused by")).take(12);
    let excerpt: Vec<&str> = lines.iter().map(String::as_str).chain(conflicts).collect();
    HostError::Rejected {
        summary: format!("the requirements in {} cannot be met: {reason}", names.join(", ")),
        excerpt: excerpt.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirements(text: &str) -> Requirements {
        Requirements { files: vec![("requirements.txt".to_owned(), text.to_owned())] }
    }

    fn source(id: &str) -> Source {
        Source {
            id: crate::api::SourceId(id.to_owned()),
            modules: Vec::new(),
            requirements: Vec::new(),
            requirements_digest: String::new(),
            deploy: ocore_model::project::DeploySettings::default(),
            bytes: 0,
        }
    }

    #[test]
    fn an_environment_is_shared_by_equal_requirements_of_one_owner_only() {
        let id = |text: &str, key: &str, commit: &str| requirements(text).id(key, "19.0-1", &source(commit));
        assert_eq!(id("a==1", "key", "one"), id("a==1", "key", "two"));
        assert_ne!(id("a==1", "key", "one"), id("a==1", "other", "one"));
        assert_ne!(id("a==1", "key", "one"), id("a==2", "key", "one"));
        assert_ne!(id("-r more.txt", "key", "one"), id("-r more.txt", "key", "two"));
        assert_ne!(id("./lib", "key", "one"), id("./lib", "key", "two"));
    }

    #[test]
    fn comments_alone_ask_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("requirements.txt"), "# none\n\n").unwrap();
        let source = Source { requirements: vec!["requirements.txt".to_owned()], ..source("one") };
        assert!(Requirements::read(&source, directory.path()).unwrap().is_none());
    }

    #[test]
    fn a_requirement_that_cannot_be_met_is_named() {
        let output = "ERROR: Could not find a version that satisfies the requirement nope==9 (from versions: none)\nERROR: No matching distribution found for nope==9\n";
        let error = explain(output, &["requirements.txt"], Path::new("/x"));
        assert_eq!(error.to_string(), "the requirements in requirements.txt cannot be met: No matching distribution found for nope==9");
        assert_eq!(error.excerpt().lines().count(), 2);
        let offline = "WARNING: Retrying after connection broken by 'NewConnectionError(…)'\nERROR: No matching distribution found for a\n";
        assert!(matches!(explain(offline, &["requirements.txt"], Path::new("/x")), HostError::Machine { .. }));
    }
}
