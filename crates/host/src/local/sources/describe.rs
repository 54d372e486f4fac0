//! What the modules of a source tree declare, for the plan of a deployment. Nothing of a project is run: its texts are parsed by Python's own
//! parser, in a program that runs as a user who may do nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    time::Duration,
};

use ocore_model::{
    names::ModuleName,
    plan::{Content, FileDescription, ModuleDescription},
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::{SYSTEM_PYTHON, scan::behind};
use crate::{
    api::{Progress, SourceId},
    error::{HostError, Result},
    local::{
        LocalHost,
        durable::blocking,
        exec::{ExecError, Program},
    },
};

const DESCRIBE_MODULES: &str = include_str!("describe_modules.py");
/// The largest of Odoo's own modules takes a second or two.
const TIME: Duration = Duration::from_mins(2);
const MANIFEST: &str = "__manifest__.py";
/// Larger ones are not taken apart, in bytes.
const TEXT_LIMIT: u64 = 16 * 1024 * 1024;

/// A module as it lies on the disk.
#[derive(Debug)]
struct Files {
    manifest: String,
    /// What Python is given to read.
    texts: BTreeMap<String, String>,
    all: BTreeMap<String, FileDescription>,
}

/// One answer of `describe_modules.py`.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    manifest: Option<BTreeMap<String, Value>>,
    files: BTreeMap<String, Content>,
    packages: Vec<String>,
    hook_words: Vec<String>,
}

impl LocalHost {
    /// Modules that the source does not have are left out. What cannot be read is described as such.
    pub(in crate::local) async fn read_declarations(
        &self,
        source: &SourceId,
        modules: &[ModuleName],
        progress: &Progress,
    ) -> Result<BTreeMap<ModuleName, ModuleDescription>> {
        let sealed = self.sealed(source).await?.ok_or_else(|| HostError::NotFound { what: "source", id: source.to_string() })?;
        let wanted: BTreeSet<&ModuleName> = modules.iter().collect();
        let tree = self.source_tree(source)?;
        let found: Vec<(ModuleName, String)> = sealed
            .modules
            .into_iter()
            .filter(|module| module.installable && wanted.contains(&module.name))
            .map(|module| (module.name, module.path))
            .collect();
        if found.is_empty() {
            return Ok(BTreeMap::new());
        }
        let modules = blocking(move || {
            let root = fs::canonicalize(&tree).map_err(at(&tree))?;
            found.into_iter().map(|(name, path)| Ok((name, gather(&root, &root.join(path))?))).collect::<Result<Vec<_>>>()
        })
        .await?;
        let input = serde_json::to_vec(&request(&modules))
            .map_err(|error| HostError::machine_from("modules could not be handed to Python", error))?;
        let user = self.claim_build_user().await?;
        let finished = Program::new(SYSTEM_PYTHON)
            .args(["-I", "-S", "-c", DESCRIBE_MODULES])
            .yields()
            .of_build(&user, Vec::new())
            .without_network()
            .stdin(input)
            .output_limit(512 * 1024 * 1024)
            .time_limit(TIME)
            .cancel(progress.cancel.clone())
            .run()
            .await;
        user.release().await?;
        let answers = match finished {
            Err(ExecError::TimedOut { .. }) => None,
            Err(error) => return Err(error.into()),
            // A text may be made so that Python's parser itself breaks. Then nothing is known, which is an answer, too.
            Ok(finished) => finished.status.success().then(|| serde_json::from_slice(&finished.stdout).ok()).flatten(),
        };
        Ok(put_together(modules, answers))
    }
}

fn request(modules: &[(ModuleName, Files)]) -> Vec<Value> {
    let entry = |(name, files): &(ModuleName, Files)| serde_json::json!({ "name": name, "manifest": files.manifest, "files": files.texts });
    modules.iter().map(entry).collect()
}

/// Without answers, everything that was to be read is unreadable.
fn put_together(modules: Vec<(ModuleName, Files)>, answers: Option<Vec<Answer>>) -> BTreeMap<ModuleName, ModuleDescription> {
    let mut answers = answers.unwrap_or_default().into_iter();
    let unknown = || Content::Unreadable { line: None, reason: "Python could not take it apart".to_owned() };
    let mut descriptions = BTreeMap::new();
    for (name, files) in modules {
        let mut answer = answers.next().unwrap_or_default();
        let mut all = files.all;
        for path in files.texts.keys() {
            if let Some(file) = all.get_mut(path) {
                file.content = answer.files.remove(path).unwrap_or_else(unknown);
            }
        }
        let Answer { manifest, packages, hook_words, .. } = answer;
        descriptions.insert(name, ModuleDescription { manifest, files: all, packages, hook_words });
    }
    descriptions
}

/// Reads a module once.
fn gather(root: &Path, module: &Path) -> Result<Files> {
    let mut files = Files { manifest: String::new(), texts: BTreeMap::new(), all: BTreeMap::new() };
    for entry in WalkDir::new(module).sort_by_file_name() {
        let entry = entry.map_err(|error| HostError::machine_from(format!("{} could not be read", module.display()), error))?;
        if entry.file_type().is_dir() {
            continue;
        }
        let inside = entry.path().strip_prefix(module).unwrap_or(entry.path());
        let Some(path) = inside.to_str().map(str::to_owned) else {
            return Err(HostError::rejected(format!("the path {} is not UTF-8 text", inside.display())));
        };
        if entry.file_type().is_symlink() {
            let mut hasher = Sha256::new();
            hasher.update(fs::read_link(entry.path()).map_err(at(entry.path()))?.as_os_str().as_encoded_bytes());
            hasher.update(behind(root, module, entry.path())?);
            files.all.insert(path, FileDescription { digest: hex::encode(hasher.finalize()), content: Content::Link });
            continue;
        }
        let bytes = fs::read(entry.path()).map_err(at(entry.path()))?;
        let digest = hex::encode(Sha256::digest(&bytes));
        if path == MANIFEST {
            files.manifest = String::from_utf8_lossy(&bytes).into_owned();
            continue;
        }
        let mut content = Content::Opaque;
        if is_read(&path) {
            let unreadable = |reason: &str| Content::Unreadable { line: None, reason: reason.to_owned() };
            match String::from_utf8(bytes) {
                Ok(text) if text.len() as u64 <= TEXT_LIMIT => {
                    files.texts.insert(path.clone(), text);
                }
                Ok(_) => content = unreadable("it is very large"),
                Err(_) => content = unreadable("it is not UTF-8 text"),
            }
        }
        files.all.insert(path, FileDescription { digest, content });
    }
    Ok(files)
}

/// What can declare something. Static files are only served; tests are only run in tests.
fn is_read(path: &str) -> bool {
    let is_apart = path.starts_with("static/") || path.split('/').any(|part| part == "tests");
    let ending = Path::new(path).extension();
    let is_translation = ["i18n/", "i18n_extra/"].iter().any(|place| path.starts_with(place))
        && ending.is_some_and(|ending| ["po", "pot"].iter().any(|known| ending == *known));
    is_translation || !is_apart && ending.is_some_and(|ending| ["py", "xml", "csv"].iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HostError + '_ {
    move |error| HostError::machine_from(format!("{} could not be read: {error}", path.display()), error)
}

#[cfg(test)]
mod tests;
