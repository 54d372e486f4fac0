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
    missing,
    requirements::{Call, Requirements},
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
const LIST_TIME: Duration = Duration::from_mins(1);

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
        let names = requirements.names();
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
        let written: Vec<(PathBuf, String)> = requirements.texts().into_iter().map(|(path, text)| (tree.join(path), text)).collect();
        let (target, owner) = (tree.clone(), user.uid);
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
        let python = venv.join("bin/python");
        let calls = requirements.calls();
        for (number, call) in calls.iter().enumerate() {
            let mut program = pip::install_without_settings(&python).arg("--no-warn-script-location");
            for path in &call.files {
                program = program.arg("--requirement").arg(tree.join(path));
            }
            if number > 0 && !call.has_hashes {
                // Which a later call may not change.
                program = program.arg("--constraint").arg(installed(place, &python, user, gid).await?);
            }
            let finished = gateway
                .told(program.cwd(&tree))
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
                continue;
            }
            if let Some(reason) = gateway.unreachable(&hosts) {
                return Err(unreachable(&reason));
            }
            let output = gateway.shown(&format!("{}\n{}", finished.stdout_text(), finished.stderr_text()));
            return Err(explain(&output, &failed(&calls, number), &tree, &refused));
        }
        Ok(())
    }
}

/// Which files an error is about.
fn failed(calls: &[Call], number: usize) -> String {
    let names = calls[number].files.join(", ");
    let before: Vec<&str> = calls[..number].iter().flat_map(|call| &call.files).map(String::as_str).collect();
    if before.is_empty() {
        return names;
    }
    format!("{names} (beside what {} has installed, which has hashes or options of its own)", before.join(", "))
}

/// A file that says what is installed until now, without what Odoo's distribution has.
async fn installed(place: &Path, python: &Path, user: &BuildUser, gid: u32) -> Result<PathBuf> {
    let script = "import sysconfig; from importlib.metadata import distributions\n\
                  for found in distributions(path=[sysconfig.get_path('purelib')]): print(found.metadata['Name'], found.version, sep='==')";
    let program = Program::new(python).args(["-I", "-c", script]).without_network().of_build(user, vec![gid]).time_limit(LIST_TIME);
    let finished = program.run().await?.expect_success("what is installed could not be listed")?;
    let is_name = |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=.-_+!".contains(&byte));
    let text: String = finished.stdout_text().lines().filter(is_name).flat_map(|line| [line, "\n"]).collect();
    let file = place.join("installed.txt");
    fs::write(&file, text).map_err(|error| HostError::machine_from(format!("{} could not be written", file.display()), error))?;
    Ok(file)
}

/// Takes away what only the build needed, and makes the rest root's.
async fn finish(place: &Path, owner: u32) -> Result<()> {
    let place = place.to_owned();
    blocking(move || {
        for directory in ["home", SCRATCH, TREE] {
            durable::remove_tree(&place.join(directory))?;
        }
        let _ = fs::remove_file(place.join("installed.txt"));
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
fn explain(output: &str, names: &str, tree: &Path, refused: &[String]) -> HostError {
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
    let compiler = missing::decisive_lines(&output);
    // pip says what it looked for first, and in the last line what it did not find; a failed build ends with where it failed.
    let reason = lines.iter().rev().find(|line| {
        line.starts_with("No matching distribution") || line.starts_with("Cannot install") || line.starts_with("Failed building")
    });
    let said = reason.or(lines.last()).map_or("pip did not say why", |reason| reason.trim_end_matches('.'));
    let reason = match (missing::of_the_system(&compiler), compiler.first()) {
        (Some(missing), _) => format!("{said}: {missing}"),
        // What pip says is that a build has failed; why stands in what it built.
        (None, Some(first)) if reason.is_none_or(|said| said.starts_with("Failed building")) => format!("{said}: {first}"),
        _ => said.to_owned(),
    };
    let conflicts = output.lines().skip_while(|line| !line.starts_with("The conflict is caused by")).take(12);
    let refused: Vec<String> = refused.iter().map(|place| format!("not reached from a build: {place}")).collect();
    let compiler = compiler.iter().map(String::as_str);
    let excerpt: Vec<&str> =
        compiler.chain(lines.iter().map(String::as_str)).chain(conflicts).chain(refused.iter().map(String::as_str)).collect();
    HostError::Rejected { summary: format!("the requirements in {names} cannot be met: {reason}"), excerpt: excerpt.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_that_cannot_be_met_is_named() {
        let output = "ERROR: Could not find a version that satisfies the requirement nope==9 (from versions: none)\nERROR: No matching distribution found for nope==9\n";
        let error = explain(output, "requirements.txt", Path::new("/x"), &[]);
        assert_eq!(error.to_string(), "the requirements in requirements.txt cannot be met: No matching distribution found for nope==9");
        assert_eq!(error.excerpt().lines().count(), 2);
        let offline = "WARNING: Retrying after connection broken by 'NewConnectionError(…)'\nERROR: No matching distribution found for a\n";
        // The lines of pip 25 about python-ldap, shortened.
        let output = "  Building wheel for python-ldap (pyproject.toml): finished with status 'error'\n  error: subprocess-exited-with-error\n  \n  × Building wheel for python-ldap (pyproject.toml) did not run successfully.\n  │ exit code: 1\n  ╰─> [30 lines of output]\n      creating build\n      In file included from Modules/LDAPObject.c:3:\n      Modules/common.h:15:10: fatal error: lber.h: No such file or directory\n         15 | #include <lber.h>\n      compilation terminated.\n      error: command '/usr/bin/gcc' failed with exit code 1\n      [end of output]\n  \n  note: This error originates from a subprocess, and is likely not a problem with pip.\n  ERROR: Failed building wheel for python-ldap\nERROR: Could not build wheels for python-ldap, which is required to install pyproject.toml-based projects\n";
        let error = explain(output, "requirements.txt", Path::new("/x"), &[]);
        assert_eq!(
            error.to_string(),
            "the requirements in requirements.txt cannot be met: Failed building wheel for python-ldap: `lber.h` is missing, which belongs to a library of the \
             system; ask the operator of this server to install Debian's package `libldap-dev`"
        );
        assert!(error.excerpt().starts_with("Modules/common.h:15:10: fatal error: lber.h: No such file"), "{}", error.excerpt());
        assert!(matches!(explain(offline, "requirements.txt", Path::new("/x"), &[]), HostError::Machine { .. }));
    }
}
