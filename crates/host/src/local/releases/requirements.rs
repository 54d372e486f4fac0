//! What a source's `requirements.txt` files ask for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use url::Url;

use super::gateway::NamedHost;
use crate::{
    api::Source,
    error::{HostError, Result},
};

/// Files that name each other.
const DEEPEST: usize = 8;
/// Options with which a file names another one.
const INCLUDES: [&str; 4] = ["--requirement", "--constraint", "-r", "-c"];
/// Where a package of the repository says what it depends on.
const DESCRIPTIONS: [&str; 3] = ["pyproject.toml", "setup.cfg", "setup.py"];
/// Who names the first host is sent on to the others for archives and large files.
const SENT_ON: [(&str, &[&str]); 1] = [(
    "github.com",
    &[
        "codeload.github.com",
        "media.githubusercontent.com",
        "objects.githubusercontent.com",
        "raw.githubusercontent.com",
        "release-assets.githubusercontent.com",
    ],
)];
const EDITABLE: [&str; 2] = ["--editable", "-e"];

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
        for text in ["environment 2", isolation_key, distribution] {
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

    /// Hosts that they name by URL, in themselves, in the files of the tree that they name, and in what packages of the tree say of themselves: repositories,
    /// archives, indexes.
    pub(super) fn hosts(&self, tree: &Path) -> BTreeSet<NamedHost> {
        let mut hosts = BTreeSet::new();
        let Ok(root) = fs::canonicalize(tree) else { return hosts };
        let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
        let mut next: Vec<PathBuf> = self.files.iter().map(|(path, _)| root.join(path)).collect();
        for _ in 0..DEEPEST {
            for path in std::mem::take(&mut next) {
                let Ok(path) = fs::canonicalize(path) else { continue };
                if !path.starts_with(&root) || !seen.insert(path.clone()) {
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap_or_default();
                hosts.extend(text.lines().filter(|line| !is_blank(line)).flat_map(hosts_in));
                let directory = path.parent().unwrap_or(&root);
                next.extend(text.lines().filter_map(|line| option(line, &INCLUDES)).map(|name| directory.join(name)));
                next.extend(
                    text.lines().filter_map(package_of_tree).flat_map(|package| DESCRIPTIONS.map(|file| root.join(package).join(file))),
                );
            }
        }
        for (host, others) in SENT_ON {
            if hosts.contains(&(host.to_owned(), 443)) {
                hosts.extend(others.iter().map(|other| ((*other).to_owned(), 443)));
            }
        }
        hosts
    }
}

/// The text with what is to be installed as a link to its source installed like everything else: the source does not stay where it is built.
pub(super) fn without_links(text: &str) -> String {
    let mut changed: String = text.lines().map(|line| option(line, &EDITABLE).unwrap_or(line)).collect::<Vec<_>>().join("\n");
    changed.push('\n');
    changed
}

/// The directory of a requirement that is one; pip takes it from where it runs, the root of the tree.
fn package_of_tree(line: &str) -> Option<&str> {
    let line = option(line, &EDITABLE).unwrap_or(line).trim();
    let path = line.split([' ', '[', ';', '#']).next()?;
    path.starts_with('.').then_some(path)
}

/// What follows one of these options, with which the line begins.
fn option<'a>(line: &'a str, names: &[&str]) -> Option<&'a str> {
    let line = line.trim_start();
    let rest = names.iter().find_map(|name| line.strip_prefix(name))?;
    let value = rest.strip_prefix('=').unwrap_or(rest);
    (value.starts_with(char::is_whitespace) || value.len() < rest.len()).then(|| value.trim_start())
}

/// Each `scheme://…` of a line; pip writes `git+` and its like before the scheme.
fn hosts_in(line: &str) -> impl Iterator<Item = NamedHost> + '_ {
    line.match_indices("://").filter_map(|(at, _)| {
        let scheme: String =
            line[..at].chars().rev().take_while(char::is_ascii_alphanumeric).collect::<Vec<_>>().into_iter().rev().collect();
        let end = line[at + 3..]
            .find(|character: char| character.is_whitespace() || "\"',;".contains(character))
            .map_or(line.len(), |end| at + 3 + end);
        let url = Url::parse(&format!("{scheme}{}", &line[at..end])).ok()?;
        let host = url.host_str()?.trim_matches(['[', ']']).to_ascii_lowercase();
        matches!(url.scheme(), "http" | "https").then_some((host, url.port_or_known_default()?))
    })
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
            odoo: ocore_model::odoo_options::OdooOptions::default(),
            renamed: std::collections::BTreeMap::new(),
            notes: Vec::new(),
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
    fn hosts_are_found_in_all_files_of_the_tree_that_name_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let text = "-r more/other.txt\n-e ./lib[x] ; python_version > '3'\na @ https://me:p@one.example/a.zip ; python_version > '3'\n-e git+https://two.example:8443/x.git@main#egg=x\n# https://no.example\n";
        fs::create_dir(directory.path().join("more")).unwrap();
        fs::write(directory.path().join("requirements.txt"), text).unwrap();
        fs::write(
            directory.path().join("more/other.txt"),
            "--constraint=../../../etc/passwd\n--extra-index-url http://Three.example/simple\n-r other.txt\n",
        )
        .unwrap();
        fs::create_dir(directory.path().join("lib")).unwrap();
        fs::write(directory.path().join("lib/pyproject.toml"), "dependencies = ['b @ git+https://github.com/b/b']\n").unwrap();
        let hosts: Vec<NamedHost> = requirements(text).hosts(directory.path()).into_iter().collect();
        assert!(hosts.contains(&("codeload.github.com".to_owned(), 443)));
        let hosts: Vec<NamedHost> = hosts.into_iter().filter(|(host, _)| !host.contains("github")).collect();
        assert_eq!(hosts, [("one.example".to_owned(), 443), ("three.example".to_owned(), 80), ("two.example".to_owned(), 8443)]);
    }

    #[test]
    fn what_would_be_a_link_to_its_source_is_installed() {
        assert_eq!(without_links("-e ./a[x]\n--editable=./b\nrequests\n-extra\n"), "./a[x]\n./b\nrequests\n-extra\n");
    }
}
