//! What a commit consists of: its own tree and, at any depth, those of its submodules, each in a mirror where it can be read.
//!
//! A submodule's address comes from whoever pushed. It may be another project of the same organization, an https or an ssh repository; never
//! a path of this machine, never a remote helper. What was fetched with a project's key is kept apart by project: another tenant who writes
//! the same address does not get it from our cache.

use std::collections::{BTreeMap, HashMap};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use ocore_host::{HostError, Progress};
use ocore_model::{names::CommitSha, project::RepositoryKind};
use sha2::{Digest as _, Sha256};

use super::{
    address::{Address, Transport, is_relative, join_path},
    external,
    mirror::Mirror,
    program::GitError,
    remote::{Credentials, Remote, RemoteError},
};
use crate::{
    Control,
    store::repositories::{self, Repository},
};

/// More are a mistake, or somebody who wants to keep us busy.
const MOST: usize = 200;
const DEEPEST: usize = 8;
const AT_ONCE: usize = 4;
/// A pointer of Git LFS is smaller than this. (git-lfs-spec: "must be less than 1024 bytes".)
const POINTER_BYTES: u64 = 1024;
const POINTER_START: &[u8] = b"version https://git-lfs.github.com/spec/";

/// One repository's share of a source tree.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Where its tree goes, relative; empty for the project itself.
    pub(super) prefix: String,
    pub(super) mirror: Mirror,
    pub(super) commit: CommitSha,
    origin: Origin,
}

/// What relative submodule addresses are relative to.
#[derive(Debug, Clone)]
enum Origin {
    /// `<organization>/<project>.git` of the built-in remote.
    BuiltIn(String),
    External(Address),
}

/// The project's own part.
pub(super) fn root(repository: &Repository, mirror: Mirror, commit: &CommitSha) -> Result<Part, HostError> {
    let origin = match (&repository.kind, &repository.url) {
        (RepositoryKind::External, Some(url)) => Origin::External(Address::parse(url).map_err(HostError::rejected)?),
        _ => Origin::BuiltIn(format!("{}/{}.git", repository.organization_slug, repository.project_slug)),
    };
    Ok(Part { prefix: String::new(), mirror, commit: commit.clone(), origin })
}

/// The part and all that is below it, parents before children. Fetches what is not there.
pub(super) async fn gather(control: &Control, repository: &Repository, root: Part, progress: &Progress) -> Result<Vec<Part>, HostError> {
    let credentials = external::credentials(control, repository).map_err(internal)?;
    let mut all = vec![root.clone()];
    let mut level = vec![root];
    for depth in 0.. {
        let mut wanted = Vec::new();
        for part in &level {
            for link in links(control, part).await? {
                wanted.push((part.clone(), link));
            }
        }
        if wanted.is_empty() {
            break;
        }
        if depth == DEEPEST || all.len() + wanted.len() > MOST {
            return Err(HostError::rejected(format!(
                "the repository has more submodules than oCore follows ({MOST} in all, {DEEPEST} levels deep); remove some"
            )));
        }
        let fetches = stream::iter(wanted)
            .map(|(parent, link)| {
                let credentials = &credentials;
                async move { obtain(control, repository, &parent, link, credentials, progress).await }
            })
            .buffered(AT_ONCE);
        level = fetches.try_collect().await?;
        all.extend(level.iter().cloned());
    }
    Ok(all)
}

/// A submodule as its parent's tree has it.
struct Link {
    path: String,
    commit: String,
    address: Option<String>,
}

impl Link {
    fn failed(&self, sentence: &str) -> HostError {
        let address = self.address.as_deref().unwrap_or("no address");
        HostError::rejected(format!("the submodule {} ({address}) cannot be had: {sentence}", self.path))
    }
}

struct Entry {
    mode: String,
    sha: String,
    bytes: u64,
    path: String,
}

/// The submodules of one part; also refuses what no export can make whole.
async fn links(control: &Control, part: &Part) -> Result<Vec<Link>, HostError> {
    let settings = &control.settings;
    let output = part.mirror.git(settings, "ls-tree")?.args(["-r", "-l", "-z", "--full-tree"]).arg(part.commit.as_str()).run().await?;
    let entries: Vec<Entry> = output.split(|&byte| byte == 0).filter(|line| !line.is_empty()).map(entry).collect::<Result<_, _>>()?;
    refuse_pointers(control, part, &entries).await?;
    let links: Vec<&Entry> = entries.iter().filter(|entry| entry.mode == "160000").collect();
    if links.is_empty() {
        return Ok(Vec::new());
    }
    let addresses = match entries.iter().find(|entry| entry.path == ".gitmodules") {
        Some(file) if file.mode.starts_with("100") => read_gitmodules(control, part, &file.sha).await?,
        _ => HashMap::new(),
    };
    Ok(links
        .into_iter()
        .map(|entry| Link { path: entry.path.clone(), commit: entry.sha.clone(), address: addresses.get(&entry.path).cloned() })
        .collect())
}

/// `<mode> <type> <id> <size>\t<path>`, as `git ls-tree -l -z` writes it.
fn entry(line: &[u8]) -> Result<Entry, HostError> {
    let unreadable = || HostError::from(GitError::Unreadable { command: "ls-tree" });
    let tab = line.iter().position(|&byte| byte == b'\t').ok_or_else(unreadable)?;
    let path = std::str::from_utf8(&line[tab + 1..]).map_err(|_| {
        HostError::rejected(format!(
            "the file name {} is not UTF-8; rename the file",
            String::from_utf8_lossy(&line[tab + 1..]).escape_debug()
        ))
    })?;
    let head = std::str::from_utf8(&line[..tab]).map_err(|_| unreadable())?;
    let mut words = head.split_ascii_whitespace();
    let (Some(mode), Some(_), Some(sha), Some(bytes)) = (words.next(), words.next(), words.next(), words.next()) else {
        return Err(unreadable());
    };
    Ok(Entry { mode: mode.to_owned(), sha: sha.to_owned(), bytes: bytes.parse().unwrap_or(0), path: path.to_owned() })
}

/// Path to address. Git itself reads the file, so what it would not take is not taken.
async fn read_gitmodules(control: &Control, part: &Part, blob: &str) -> Result<HashMap<String, String>, HostError> {
    let git = part.mirror.git(&control.settings, "config")?.args(["--null", "--list", "--no-includes", "--blob", blob]);
    let output = git.run().await.map_err(|error| match error {
        GitError::Failed { words, .. } => {
            HostError::Rejected { summary: format!("{}.gitmodules cannot be read; correct it", directory(&part.prefix)), excerpt: words }
        }
        error => error.into(),
    })?;
    let mut modules: BTreeMap<String, (Option<String>, Option<String>)> = BTreeMap::new();
    for item in String::from_utf8_lossy(&output).split('\0') {
        let Some((key, value)) = item.split_once('\n') else { continue };
        let Some((name, variable)) = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.')) else { continue };
        let module = modules.entry(name.to_owned()).or_default();
        match variable {
            "path" => module.0 = Some(value.to_owned()),
            "url" => module.1 = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(modules.into_values().filter_map(|(path, url)| Some((path?.trim_end_matches('/').to_owned(), url?))).collect())
}

fn directory(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

/// A file that Git LFS keeps elsewhere is in the commit as a pointer of a few lines; Odoo would get those lines instead of an image.
async fn refuse_pointers(control: &Control, part: &Part, entries: &[Entry]) -> Result<(), HostError> {
    let attributes: Vec<&Entry> =
        entries.iter().filter(|entry| entry.path == ".gitattributes" || entry.path.ends_with("/.gitattributes")).collect();
    let uses_lfs = contents(control, part, &attributes).await?.iter().any(|text| text.windows(10).any(|window| window == b"filter=lfs"));
    if !uses_lfs {
        return Ok(());
    }
    let small: Vec<&Entry> =
        entries.iter().filter(|entry| entry.mode.starts_with("100") && (1..POINTER_BYTES).contains(&entry.bytes)).collect();
    let found = contents(control, part, &small).await?;
    let pointers: Vec<&str> =
        small.iter().zip(&found).filter(|(_, text)| text.starts_with(POINTER_START)).map(|(entry, _)| entry.path.as_str()).collect();
    match pointers.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => Err(HostError::Rejected {
            summary: format!(
                "{}{first}{} is stored in Git LFS, which oCore does not fetch; commit the file itself (git lfs migrate export)",
                directory(&part.prefix),
                if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) }
            ),
            excerpt: pointers.iter().take(20).copied().collect::<Vec<_>>().join("\n"),
        }),
    }
}

/// The contents of these blobs, in their order, by one call of git.
async fn contents(control: &Control, part: &Part, entries: &[&Entry]) -> Result<Vec<Vec<u8>>, HostError> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let input: String = entries.iter().flat_map(|entry| [entry.sha.as_str(), "\n"]).collect();
    let output = part.mirror.git(&control.settings, "cat-file")?.arg("--batch").input(input).run().await?;
    let unreadable = || HostError::from(GitError::Unreadable { command: "cat-file" });
    let mut rest = output.as_slice();
    let mut contents = Vec::with_capacity(entries.len());
    for _ in entries {
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or_else(unreadable)?;
        let head = std::str::from_utf8(&rest[..end]).map_err(|_| unreadable())?;
        let bytes: usize = head.rsplit(' ').next().and_then(|bytes| bytes.parse().ok()).ok_or_else(unreadable)?;
        contents.push(rest.get(end + 1..end + 1 + bytes).ok_or_else(unreadable)?.to_vec());
        rest = rest.get(end + 2 + bytes..).ok_or_else(unreadable)?;
    }
    Ok(contents)
}

/// Where a submodule is had from.
enum Place {
    /// Another project of the organization, by slug.
    Sibling(String),
    Elsewhere(Address),
}

fn place(control: &Control, repository: &Repository, parent: &Part, address: &str) -> Result<Place, String> {
    let own = format!("{}/git/", control.settings.public_url);
    let path = match &parent.origin {
        Origin::BuiltIn(path) if is_relative(address) => Some(join_path(path, address)?),
        _ => address.strip_prefix(&own).map(str::to_owned),
    };
    let Some(path) = path else {
        let address = match &parent.origin {
            Origin::External(base) => base.join(address)?,
            Origin::BuiltIn(_) => Address::parse(address)?,
        };
        if address.transport == Transport::File {
            return Err("a submodule may not be a path of this machine".to_owned());
        }
        return Ok(Place::Elsewhere(address));
    };
    match path.trim_end_matches('/').split('/').collect::<Vec<_>>().as_slice() {
        [organization, project] if *organization == repository.organization_slug => {
            Ok(Place::Sibling(project.strip_suffix(".git").unwrap_or(project).to_owned()))
        }
        _ => Err("a submodule may be another project of the same organization only".to_owned()),
    }
}

async fn obtain(
    control: &Control,
    repository: &Repository,
    parent: &Part,
    link: Link,
    credentials: &Credentials,
    progress: &Progress,
) -> Result<Part, HostError> {
    let settings = &control.settings;
    let link = Link { path: format!("{}{}", directory(&parent.prefix), link.path), ..link };
    let commit: CommitSha = link.commit.parse().map_err(|_| GitError::Unreadable { command: "ls-tree" })?;
    let Some(address) = &link.address else {
        return Err(link.failed("no entry of .gitmodules has this path; add one, or remove the directory from the commit"));
    };
    let part = |mirror, origin| Part { prefix: link.path.clone(), mirror, commit: commit.clone(), origin };
    match place(control, repository, parent, address).map_err(|sentence| link.failed(&sentence))? {
        Place::Sibling(slug) => {
            let mut connection = control.pool.acquire().await.map_err(|error| internal(error.into()))?;
            let sibling = repositories::find_by_slug(&mut connection, repository.organization_id, &slug).await.map_err(internal)?;
            drop(connection);
            let sibling = sibling.ok_or_else(|| link.failed("there is no such project in this organization"))?;
            let mirror = Mirror::of_project(settings, sibling.project_id).await?;
            if !mirror.has(settings, &commit).await? {
                return Err(link.failed(&format!("the project {slug} does not have the commit {commit}; push it there")));
            }
            progress.log.line(&format!("submodule {} at {:.12} from the project {slug}", link.path, commit));
            Ok(part(mirror, Origin::BuiltIn(format!("{}/{slug}.git", repository.organization_slug))))
        }
        Place::Elsewhere(address) => {
            let is_trusted = has_credentials(repository, &address);
            let mirror =
                Mirror::at(settings, settings.repositories.join("submodules").join(cache_name(repository, &address, is_trusted))).await?;
            if mirror.has(settings, &commit).await? {
                progress.log.line(&format!("submodule {} at {:.12}, which is here already", link.path, commit));
            } else {
                progress.log.line(&format!("submodule {} at {:.12} from {address}", link.path, commit));
                let nobody = Credentials { known_hosts: credentials.known_hosts.clone(), ..Credentials::default() };
                let credentials = if is_trusted { credentials } else { &nobody };
                fetch(control, repository, &mirror, &address, &commit, credentials, progress).await.map_err(|error| match error {
                    RemoteError::Git(GitError::Cancelled) => HostError::Cancelled,
                    error if is_trusted => link.failed(&error.to_string()),
                    error => link.failed(&format!("{error}{}", without_credentials(repository, &address))),
                })?;
            }
            Ok(part(mirror, Origin::External(address)))
        }
    }
}

/// Whether the project's key and token are for this address as well: whoever may push names it, and would read everything that they open. So they go
/// to the project's own host alone, and there to where its repository lies, or to what the project's settings name beside.
fn has_credentials(repository: &Repository, address: &Address) -> bool {
    let Some(home) = repository.url.as_deref().and_then(|url| Address::parse(url).ok()) else { return false };
    let is_own = home.namespace().is_some_and(|namespace| address.is_below(&home, namespace));
    is_own
        || repository
            .submodule_sources
            .iter()
            .any(|source| external::Source::parse(&home, source).is_ok_and(|source| source.holds(address)))
}

/// For somebody whose submodule is on the project's own host and was asked for without its credentials.
fn without_credentials(repository: &Repository, address: &Address) -> &'static str {
    let home = repository.url.as_deref().and_then(|url| Address::parse(url).ok());
    if home.is_some_and(|home| home.host == address.host) {
        "; the project's own credentials open what lies beside its repository only, and what its settings name (`ocore project submodules`)"
    } else {
        ""
    }
}

/// What was fetched with credentials is not what was fetched without: an address that loses them does not get it from here.
fn cache_name(repository: &Repository, address: &Address, with_credentials: bool) -> String {
    let kind = if with_credentials { "with credentials" } else { "without" };
    format!("{}.git", hex::encode(Sha256::digest(format!("{}\n{kind}\n{address}", repository.project_id))))
}

/// Brings a commit into a mirror of a submodule: the commit alone if the server gives it, else everything.
async fn fetch(
    control: &Control,
    repository: &Repository,
    mirror: &Mirror,
    address: &Address,
    commit: &CommitSha,
    credentials: &Credentials,
    progress: &Progress,
) -> Result<(), RemoteError> {
    let settings = &control.settings;
    let _lock = mirror.lock_fetching().await?;
    if mirror.has(settings, commit).await? {
        return Ok(());
    }
    let remote = Remote::open(settings, address.clone(), credentials).await?;
    let fetched = match remote.fetch_commit(mirror, commit.as_str(), &progress.cancel).await {
        Err(RemoteError::Git(GitError::Cancelled)) => Err(GitError::Cancelled.into()),
        Ok(()) => Ok(()),
        Err(_) => remote.fetch_all(mirror, &progress.cancel).await,
    };
    // A host that was seen is known from now on, also when it did not take the key.
    external::learn_host_keys(control, repository.project_id, &remote).await;
    fetched?;
    if mirror.has(settings, commit).await? {
        return Ok(());
    }
    Err(RemoteError::Refused(format!(
        "the repository is there, the commit {commit} is not; push it there, or let the submodule point to another one"
    )))
}

pub(super) fn internal(error: crate::Error) -> HostError {
    HostError::machine_from("the control plane's store could not be asked", error)
}
