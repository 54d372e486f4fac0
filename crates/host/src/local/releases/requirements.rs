//! What a source's `requirements.txt` files ask for.

use std::{collections::BTreeSet, fs, path::Path};

use sha2::{Digest, Sha256};
use url::Url;

use super::gateway::NamedHost;
use crate::{
    api::Source,
    error::Result,
    local::sources::required::{EDITABLE, Named, Required, lines, option},
};

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
/// Options that a file with them says for all that pip is asked for at once: which hashes there must be, where to look, what to build.
const BINDING: [&str; 13] = [
    "--index-url",
    "-i",
    "--extra-index-url",
    "--no-index",
    "--find-links",
    "-f",
    "--no-binary",
    "--only-binary",
    "--prefer-binary",
    "--pre",
    "--trusted-host",
    "--use-feature",
    "--require-hashes",
];

/// The requirements files of a source, with their text.
pub(super) struct Requirements {
    required: Required,
    /// Over all that they say and name.
    digest: String,
}

/// Files that pip is given in one call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) files: Vec<String>,
    /// Nothing is installed whose hash they do not have.
    pub(super) has_hashes: bool,
}

impl Requirements {
    /// `None` when the source asks for nothing.
    pub(super) fn read(source: &Source, tree: &Path) -> Result<Option<Self>> {
        let mut required = Required::read(tree, &source.requirements)?;
        let digest = required.digest(tree)?;
        required.roots.retain(|(_, text)| !lines(text).is_empty());
        Ok((!required.roots.is_empty()).then_some(Self { required, digest }))
    }

    /// The files that are installed.
    pub(super) fn names(&self) -> Vec<&str> {
        self.required.roots.iter().map(|(path, _)| path.as_str()).collect()
    }

    /// All of them and what they name, as pip is to read them: in UTF-8, and with what is to be installed as a link to its source installed like everything else,
    /// since the source does not stay where it is built.
    pub(super) fn texts(&self) -> Vec<(String, String)> {
        self.required.files().map(|(path, text)| (path.clone(), without_links(text))).collect()
    }

    /// In which calls of pip they are installed, one after the other. What binds all of a call is in a call of its own; the others are together, so that their
    /// versions fit each other.
    pub(super) fn calls(&self) -> Vec<Call> {
        let mut calls: Vec<Call> = Vec::new();
        let mut plain = Vec::new();
        let mut bound = Vec::new();
        let mut hashed = Vec::new();
        for (path, text) in &self.required.roots {
            let all = self.with_included(path, text);
            if all.iter().any(|line| line.contains("--hash")) {
                hashed.push(path.clone());
            } else if all.iter().any(|line| option(line, &BINDING).is_some() || BINDING.contains(&line.as_str())) {
                bound.push(path.clone());
            } else {
                plain.push(path.clone());
            }
        }
        calls.extend((!hashed.is_empty()).then_some(Call { files: hashed, has_hashes: true }));
        calls.extend(bound.into_iter().map(|path| Call { files: vec![path], has_hashes: false }));
        calls.extend((!plain.is_empty()).then_some(Call { files: plain, has_hashes: false }));
        calls
    }

    /// The lines of a file and of those that it names.
    fn with_included(&self, path: &str, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        let mut seen = BTreeSet::from([path.to_owned()]);
        let mut next = vec![(path.to_owned(), text.to_owned())];
        while let Some((path, text)) = next.pop() {
            let directory = Path::new(&path).parent().unwrap_or(Path::new("")).to_owned();
            for line in lines(&text) {
                if let Some(Named::File(name)) = Named::of(&line) {
                    let place = plain_path(&directory.join(name));
                    if let Some(text) = self.required.included.get(&place).filter(|_| seen.insert(place.clone())) {
                        next.push((place, text.clone()));
                    }
                }
                all.push(line);
            }
        }
        all
    }

    /// Names the environment. What is built from the repository depends on the whole source.
    pub(super) fn id(&self, isolation_key: &str, distribution: &str, source: &Source) -> String {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        };
        for text in ["environment 3", isolation_key, distribution, &self.digest] {
            add(text);
        }
        if self.required.builds {
            add(&source.id.0);
        }
        hex::encode(digest.finalize())
    }

    /// Hosts that they name by URL, in themselves, in the files of the tree that they name, and in what packages of the tree say of themselves: repositories,
    /// archives, indexes.
    pub(super) fn hosts(&self, tree: &Path) -> BTreeSet<NamedHost> {
        let mut hosts = BTreeSet::new();
        let Ok(root) = fs::canonicalize(tree) else { return hosts };
        for (_, text) in self.required.files() {
            for line in lines(text) {
                hosts.extend(hosts_in(&line));
                let Some(Named::Path(package)) = Named::of(&line) else { continue };
                for description in DESCRIPTIONS.map(|file| root.join(package).join(file)) {
                    let path = fs::canonicalize(description).ok().filter(|path| path.starts_with(&root));
                    let text = path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
                    hosts.extend(text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(hosts_in));
                }
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

fn without_links(text: &str) -> String {
    let mut changed: String = text.lines().map(|line| option(line, &EDITABLE).unwrap_or(line)).collect::<Vec<_>>().join("\n");
    changed.push('\n');
    changed
}

/// The path without `.` and `..`.
fn plain_path(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().unwrap_or_default().split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a tree with these files beside its `requirements.txt`.
    fn requirements(directory: &Path, text: &str) -> Requirements {
        fs::write(directory.join("requirements.txt"), text).unwrap();
        Requirements::read(&Source { requirements: vec!["requirements.txt".to_owned()], ..source("one") }, directory).unwrap().unwrap()
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
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("more.txt"), "a").unwrap();
        fs::create_dir(directory.path().join("lib")).unwrap();
        let id = |text: &str, key: &str, commit: &str| requirements(directory.path(), text).id(key, "19.0-1", &source(commit));
        assert_eq!(id("a==1", "key", "one"), id("a==1", "key", "two"));
        assert_ne!(id("a==1", "key", "one"), id("a==1", "other", "one"));
        assert_ne!(id("a==1", "key", "one"), id("a==2", "key", "one"));
        assert_eq!(id("-r more.txt", "key", "one"), id("-r more.txt", "key", "two"));
        let before = id("-r more.txt", "key", "one");
        fs::write(directory.path().join("more.txt"), "b").unwrap();
        assert_ne!(before, id("-r more.txt", "key", "one"));
        for line in ["./lib", "lib/", "-e lib/."] {
            assert_ne!(id(line, "key", "one"), id(line, "key", "two"), "{line}");
        }
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
        fs::write(
            directory.path().join("more/other.txt"),
            "--constraint=../../../etc/passwd\n--extra-index-url http://Three.example/simple\n-r other.txt\n",
        )
        .unwrap();
        fs::create_dir(directory.path().join("lib")).unwrap();
        fs::write(directory.path().join("lib/pyproject.toml"), "dependencies = ['b @ git+https://github.com/b/b']\n").unwrap();
        let hosts: Vec<NamedHost> = requirements(directory.path(), text).hosts(directory.path()).into_iter().collect();
        assert!(hosts.contains(&("codeload.github.com".to_owned(), 443)));
        let hosts: Vec<NamedHost> = hosts.into_iter().filter(|(host, _)| !host.contains("github")).collect();
        assert_eq!(hosts, [("one.example".to_owned(), 443), ("three.example".to_owned(), 80), ("two.example".to_owned(), 8443)]);
    }

    #[test]
    fn what_would_be_a_link_to_its_source_is_installed() {
        assert_eq!(without_links("-e ./a[x]\n--editable=./b\nrequests\n-epackages/c\n"), "./a[x]\n./b\nrequests\npackages/c\n");
    }

    #[test]
    fn what_binds_all_of_a_call_has_one_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            ("a.txt", "a==1\n"),
            ("b.txt", "b==1 \\\n    --hash=sha256:00\n"),
            ("c.txt", "--index-url https://host.example/simple\nc\n"),
            ("d.txt", "-r more/d.txt\n"),
            ("more/d.txt", "--pre\nd\n"),
            ("e.txt", "e\n"),
        ];
        fs::create_dir(directory.path().join("more")).unwrap();
        for (path, text) in files {
            fs::write(directory.path().join(path), text).unwrap();
        }
        let paths = ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"].map(str::to_owned).to_vec();
        let requirements = Requirements::read(&Source { requirements: paths, ..source("one") }, directory.path()).unwrap().unwrap();
        let calls: Vec<String> = requirements.calls().into_iter().map(|call| call.files.join(" ")).collect();
        assert_eq!(calls, ["b.txt", "c.txt", "d.txt", "a.txt e.txt"]);
    }
}
