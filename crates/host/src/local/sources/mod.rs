//! Source trees: a commit with its submodules, unpacked once, read, and never changed again.
//!
//! ```text
//! <pool>/sources/<source id>/tree/         the files, read-only
//! <pool>/sources/<source id>/source.json   written last: with it, the tree is sealed
//! ```
//!
//! Whoever unpacks the same source at the same time writes the same content, each file in one piece.
//!
//! A tree is not synced when it is sealed, since a push waits for it. The seal names the boot; under another one the tree's fingerprint is
//! compared first, and what a power cut has damaged counts as never unpacked.

mod archive;
mod describe;
mod scan;
mod settings;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ocore_model::names::ModuleName;
use serde::{Deserialize, Serialize};
use tokio_util::io::SyncIoBridge;

use self::scan::{Candidate, Scan};
pub(super) use self::settings::{odoo_options, read_inside};
use super::{
    LocalHost,
    durable::{self, blocking},
    exec::Program,
    process,
};
use crate::{
    api::{Progress, Source, SourceId, SourceModule, TarStream},
    error::{HostError, Result},
};

const READ_MANIFESTS: &str = include_str!("read_manifests.py");
/// Reading manifests is a matter of milliseconds; one that was made to take longer is ended.
const READ_TIME: Duration = Duration::from_secs(30);
const SYSTEM_PYTHON: &str = "/usr/bin/python3";

/// What is written down of a sealed tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seal {
    source: Source,
    fingerprint: String,
    boot_id: String,
}

/// One answer of `read_manifests.py`.
#[derive(Debug, Deserialize)]
struct ManifestAnswer {
    path: String,
    manifest: Option<Manifest>,
    line: Option<u32>,
    error: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Manifest {
    installable: bool,
    auto_install: bool,
    triggers: Option<Vec<String>>,
    version: String,
    depends: Vec<String>,
}

impl LocalHost {
    pub(super) async fn unpack(&self, source: &SourceId, prefix: &str, tar: TarStream) -> Result<()> {
        let prefix = archive::prefix_path(prefix)?;
        if self.sealed(source).await?.is_some() {
            return Ok(());
        }
        // The first thing that a deployment writes: on a full pool it ends here, with a sentence, whatever else is out of order by then.
        self.pool.require(0, "a commit").await?;
        let (sources, directory, tree) = (self.layout.sources(), self.source_directory(source)?, self.source_tree(source)?);
        let reader = SyncIoBridge::new(tar);
        blocking(move || {
            durable::make_directory(&sources, 0o700)?;
            durable::make_directory(&directory, 0o700)?;
            durable::make_directory(&tree, 0o755)?;
            let staging = tempfile::Builder::new().prefix("unpacking-").tempdir_in(&directory);
            let staging =
                staging.map_err(|error| HostError::machine_from(format!("{} could not be written", directory.display()), error))?;
            archive::unpack(reader, &tree, &prefix, staging.path(), archive::Limits::default())
        })
        .await
    }

    pub(super) async fn seal(&self, source: &SourceId, submodules: &[String], progress: &Progress) -> Result<Source> {
        if let Some(sealed) = self.sealed(source).await? {
            return Ok(sealed);
        }
        let tree = self.source_tree(source)?;
        if !tree.is_dir() {
            return Err(HostError::NotFound { what: "source", id: source.to_string() });
        }
        let scan = blocking(move || scan::scan(&tree)).await?;
        for link in &scan.dangling {
            progress.log.line(&format!("The link {link} leads to nothing and is left out."));
        }
        let manifests = self.read_manifests(&scan.candidates, progress).await?;
        let modules = modules(&scan.candidates, &manifests, submodules, progress)?;
        progress.log.line(&describe(&modules, &scan));
        let settings = settings::of_tree(&self.source_tree(source)?)?;
        for note in &settings.notes {
            progress.log.line(note);
        }
        let sealed = Source {
            id: source.clone(),
            modules,
            requirements: scan.requirements,
            requirements_digest: scan.requirements_digest,
            deploy: settings.deploy,
            odoo: settings.odoo,
            renamed: settings.renamed,
            notes: settings.notes,
            bytes: scan.bytes,
        };
        let seal = Seal { source: sealed.clone(), fingerprint: scan.fingerprint, boot_id: process::boot_id().to_owned() };
        durable::write_json(&self.source_directory(source)?.join("source.json"), &seal)?;
        Ok(sealed)
    }

    /// The sealed source of that name; `None` when there is none, or when a power cut has damaged it.
    pub(super) async fn sealed(&self, source: &SourceId) -> Result<Option<Source>> {
        let directory = self.source_directory(source)?;
        let tree = self.source_tree(source)?;
        blocking(move || {
            let path = directory.join("source.json");
            let Some(mut seal) = durable::read_json::<Seal>(&path)? else { return Ok(None) };
            if seal.boot_id != process::boot_id() {
                if !scan::scan(&tree).is_ok_and(|scan| scan.fingerprint == seal.fingerprint) {
                    tracing::warn!(source = %seal.source.id, "a source tree is not what it was; it will be unpacked again");
                    durable::remove_tree(&directory)?;
                    return Ok(None);
                }
                process::boot_id().clone_into(&mut seal.boot_id);
                durable::write_json(&path, &seal)?;
            }
            Ok(Some(seal.source))
        })
        .await
    }

    /// Where the files of a source are.
    pub(super) fn source_tree(&self, source: &SourceId) -> Result<PathBuf> {
        Ok(self.source_directory(source)?.join("tree"))
    }

    fn source_directory(&self, source: &SourceId) -> Result<PathBuf> {
        check_digest("source", &source.0)?;
        Ok(self.layout.sources().join(&source.0))
    }

    /// All manifests in one run of Python, as a user that may do nothing: the text goes in by standard input.
    async fn read_manifests(&self, candidates: &[Candidate], progress: &Progress) -> Result<BTreeMap<String, ManifestAnswer>> {
        let texts: Vec<serde_json::Value> = candidates
            .iter()
            .filter_map(|candidate| {
                Some(serde_json::json!({ "path": candidate.manifest_path(), "text": candidate.manifest.as_ref().ok()? }))
            })
            .collect();
        if texts.is_empty() {
            return Ok(BTreeMap::new());
        }
        let input =
            serde_json::to_vec(&texts).map_err(|error| HostError::machine_from("the manifests could not be handed to Python", error))?;
        let user = self.claim_build_user().await?;
        let finished = Program::new(SYSTEM_PYTHON)
            .args(["-I", "-S", "-c", READ_MANIFESTS])
            .of_build(&user, Vec::new())
            .without_network()
            .stdin(input)
            .output_limit(64 * 1024 * 1024)
            .time_limit(READ_TIME)
            .cancel(progress.cancel.clone())
            .run()
            .await;
        user.release().await?;
        let finished = finished?;
        if !finished.status.success() {
            return Err(HostError::Rejected {
                summary: "a manifest of the repository made Python fail; a manifest is a plain dictionary".to_owned(),
                excerpt: finished.stderr_text(),
            });
        }
        let answers: Vec<ManifestAnswer> = serde_json::from_slice(&finished.stdout)
            .map_err(|error| HostError::machine_from("the answer of the manifests' reader could not be read", error))?;
        Ok(answers.into_iter().map(|answer| (answer.path.clone(), answer)).collect())
    }
}

/// Names that come as hashes are put into paths only when they are such.
pub(super) fn check_digest(what: &'static str, name: &str) -> Result<()> {
    let is_digest = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_digest { Ok(()) } else { Err(HostError::NotFound { what, id: name.escape_debug().to_string() }) }
}

/// The modules of the tree, by path. Broken manifests, names that Odoo would not take and names that two modules share are refused, all at once.
fn modules(
    candidates: &[Candidate],
    manifests: &BTreeMap<String, ManifestAnswer>,
    submodules: &[String],
    progress: &Progress,
) -> Result<Vec<SourceModule>> {
    let mut modules = Vec::new();
    let mut broken = Vec::new();
    let mut misnamed = Vec::new();
    for candidate in candidates {
        let place = candidate.manifest_path();
        let manifest = match (&candidate.manifest, manifests.get(&place)) {
            (Err(reason), _) => Err(format!("{place}: {reason}")),
            (_, Some(ManifestAnswer { manifest: Some(manifest), .. })) => Ok(manifest),
            (_, answer) => {
                let line = answer.and_then(|answer| answer.line).map_or_else(String::new, |line| format!(", line {line}"));
                let reason = answer.and_then(|answer| answer.error.as_deref()).unwrap_or("it could not be read");
                Err(format!("{place}{line}: {reason}"))
            }
        };
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(reason) => {
                broken.push(reason);
                continue;
            }
        };
        match candidate.name().parse::<ModuleName>() {
            Ok(name) => modules.push(SourceModule {
                name,
                path: candidate.path.clone(),
                in_submodule: submodules.iter().any(|prefix| is_below(&candidate.path, prefix)),
                installable: manifest.installable,
                auto_install: manifest.auto_install,
                triggers: manifest.triggers.clone(),
                version: manifest.version.clone(),
                depends: manifest.depends.clone(),
                digest: candidate.digest.clone(),
            }),
            Err(_) if !manifest.installable => {
                progress.log.line(&format!("{} is not installable and its name is none of a module; it is left out.", candidate.path));
            }
            Err(error) => misnamed.push(format!("{}: {error}", candidate.path)),
        }
    }
    refuse("a manifest cannot be read", broken)?;
    refuse("a directory with a manifest has a name that Odoo does not take for a module", misnamed)?;
    refuse("two modules have the same name", shared_names(&modules))?;
    Ok(modules)
}

fn shared_names(modules: &[SourceModule]) -> Vec<String> {
    let mut by_name: BTreeMap<&ModuleName, Vec<&str>> = BTreeMap::new();
    for module in modules.iter().filter(|module| module.installable) {
        by_name.entry(&module.name).or_default().push(&module.path);
    }
    by_name.into_iter().filter(|(_, paths)| paths.len() > 1).map(|(name, paths)| format!("`{name}` in {}", paths.join(" and "))).collect()
}

/// The first reason in the sentence, all of them in the excerpt.
fn refuse(what: &str, reasons: Vec<String>) -> Result<()> {
    let Some(first) = reasons.first() else { return Ok(()) };
    let more = if reasons.len() > 1 { format!(" (and {} more)", reasons.len() - 1) } else { String::new() };
    let excerpt = if reasons.len() > 1 { reasons.join("\n") } else { String::new() };
    Err(HostError::Rejected { summary: format!("{what}: {first}{more}"), excerpt })
}

fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_start_matches("./").trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn describe(modules: &[SourceModule], scan: &Scan) -> String {
    let installable = modules.iter().filter(|module| module.installable).count();
    let size = scan.bytes as f64 / 1_000_000.0;
    match installable {
        0 => format!("There is no installable module in the repository ({size:.1} MB)."),
        1 => format!("One module in the repository ({size:.1} MB)."),
        count => format!("{count} modules in the repository ({size:.1} MB)."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(path: &str) -> Candidate {
        Candidate { path: path.to_owned(), manifest: Ok(String::new()), digest: "d".to_owned() }
    }

    fn progress() -> Progress {
        struct Nowhere;
        impl crate::api::LogSink for Nowhere {
            fn line(&self, _: &str) {}
        }
        Progress { log: std::sync::Arc::new(Nowhere), cancel: tokio_util::sync::CancellationToken::new() }
    }

    fn read(texts: &[(&str, &str)]) -> BTreeMap<String, ManifestAnswer> {
        let input: Vec<_> =
            texts.iter().map(|(path, text)| serde_json::json!({ "path": format!("{path}/__manifest__.py"), "text": text })).collect();
        let mut child = std::process::Command::new(SYSTEM_PYTHON)
            .args(["-I", "-S", "-c", READ_MANIFESTS])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        serde_json::to_writer(child.stdin.take().unwrap(), &input).unwrap();
        let answers: Vec<ManifestAnswer> = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
        answers.into_iter().map(|answer| (answer.path.clone(), answer)).collect()
    }

    fn outcome(texts: &[(&str, &str)]) -> Result<Vec<SourceModule>> {
        let candidates: Vec<Candidate> = texts.iter().map(|(path, _)| candidate(path)).collect();
        modules(&candidates, &read(texts), &["libs/other/".to_owned()], &progress())
    }

    #[test]
    fn manifests_are_read_and_never_run() {
        let found = outcome(&[
            ("a", "# comment\n{'name': 'A', 'depends': ['web'], 'version': '19.0.1', 'auto_install': ['web']}"),
            ("libs/other/b", "{'name': 'B', 'installable': False}"),
        ])
        .unwrap();
        assert_eq!((found[0].depends.as_slice(), found[0].version.as_str()), (["web".to_owned()].as_slice(), "19.0.1"));
        assert!(found[0].installable && found[0].auto_install && !found[0].in_submodule);
        assert!(!found[1].installable && !found[1].auto_install && found[1].in_submodule);
        let error = outcome(&[("a", "__import__('os').system('touch /tmp/x')")]).unwrap_err().to_string();
        assert_eq!(error, "a manifest cannot be read: a/__manifest__.py, line 1: it holds something else than plain values");
    }

    #[test]
    fn all_broken_manifests_are_named() {
        let error = outcome(&[("a", "{'name': "), ("b", "[]"), ("c", "{'depends': 'web'}")]).unwrap_err();
        assert_eq!(error.to_string(), "a manifest cannot be read: a/__manifest__.py, line 1: '{' was never closed (and 2 more)");
        assert_eq!(error.excerpt().lines().count(), 3);
    }

    #[test]
    fn a_module_that_is_no_plain_name_is_refused_unless_it_is_not_installable() {
        let error = outcome(&[("my-module", "{}")]).unwrap_err().to_string();
        assert!(error.contains("my-module: `my-module` is not a valid module name: use letters"), "{error}");
        assert!(outcome(&[("my-module", "{'installable': False}")]).unwrap().is_empty());
    }

    #[test]
    fn two_modules_of_one_name_are_refused_with_both_places() {
        let error = outcome(&[("x/a", "{}"), ("y/a", "{}")]).unwrap_err().to_string();
        assert_eq!(error, "two modules have the same name: `a` in x/a and y/a");
        assert!(outcome(&[("x/a", "{}"), ("y/a", "{'installable': False}")]).is_ok());
    }

    #[test]
    fn only_hashes_become_paths() {
        assert!(check_digest("source", "../../etc").is_err());
        assert!(check_digest("source", &"a1".repeat(32)).is_ok());
    }
}
