//! The mirrors: one bare repository a project, at `<repositories>/<project id>.git`.
//!
//! A mirror is made when it is first needed and is whole or absent. Its branches and tags are what was pushed or fetched; nothing of it is
//! checked out. Two locks keep concurrent work apart, both of the file system, since the mirrors are of this machine as well.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use ocore_model::{
    ids::ProjectId,
    names::{BranchName, CommitSha},
};

use super::program::{Git, GitError};
use crate::Settings;

/// Attributes of a repository that would make an export differ from what was committed are switched off: here they win over every
/// `.gitattributes` file. (gitattributes(5): `$GIT_DIR/info/attributes` has the highest precedence.)
const ATTRIBUTES: &str = "* -export-ignore -export-subst -text -eol -crlf -ident -filter -working-tree-encoding\n";

/// A bare repository that oCore made.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    path: PathBuf,
}

impl Mirror {
    /// The project's mirror; made when it is not there. May run twice and at once.
    pub(crate) async fn of_project(settings: &Settings, project: ProjectId) -> Result<Self, GitError> {
        Self::at(settings, settings.repositories.join(format!("{project}.git"))).await
    }

    /// The project's mirror, if there is one.
    pub(crate) fn existing(settings: &Settings, project: ProjectId) -> Option<Self> {
        let path = settings.repositories.join(format!("{project}.git"));
        path.join("info/attributes").exists().then_some(Self { path })
    }

    /// The mirror at a path of ours; made when it is not there.
    pub(super) async fn at(settings: &Settings, path: PathBuf) -> Result<Self, GitError> {
        if path.join("info/attributes").exists() {
            return Ok(Self { path });
        }
        let parent = path.parent().unwrap_or(&settings.repositories).to_owned();
        let failed = |source| GitError::Directory { path: parent.clone(), source };
        fs::create_dir_all(&parent).map_err(failed)?;
        let making = tempfile::Builder::new().prefix(".making-").tempdir_in(&parent).map_err(failed)?;
        Git::new(settings, None, "init")?.args(["--bare", "--quiet", "--template=", "--"]).arg(making.path()).run().await?;
        fs::create_dir_all(making.path().join("info")).map_err(failed)?;
        fs::write(making.path().join("info/attributes"), ATTRIBUTES).map_err(failed)?;
        match fs::rename(making.path(), &path) {
            Ok(()) => drop(making.keep()),
            // Somebody else was faster: a directory is not renamed over one that holds something.
            Err(_) if path.join("info/attributes").exists() => {}
            Err(source) => return Err(GitError::Directory { path, source }),
        }
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A call of git in this mirror.
    pub(crate) fn git(&self, settings: &Settings, name: &str) -> Result<Git, GitError> {
        Git::new(settings, Some(&self.path), name)
    }

    /// Every branch with its head. A name that [`BranchName`] refuses (only a fetch can bring one) is given as its error.
    pub(crate) async fn heads(&self, settings: &Settings) -> Result<Heads, GitError> {
        let output =
            self.git(settings, "for-each-ref")?.args(["--format=%(objectname) %(refname:lstrip=2)", "--", "refs/heads/"]).run().await?;
        let mut heads = Heads::default();
        for line in String::from_utf8_lossy(&output).lines() {
            let unreadable = || GitError::Unreadable { command: "for-each-ref" };
            let (sha, name) = line.split_once(' ').ok_or_else(unreadable)?;
            match name.parse() {
                Ok(name) => heads.named.push((name, sha.parse().map_err(|_| unreadable())?)),
                Err(refused) => heads.refused.push(refused),
            }
        }
        Ok(heads)
    }

    /// Lets `HEAD` name a branch that exists, so that a clone checks something out: `preferred`, `main`, `master`, or the first.
    pub(crate) async fn point_head(&self, settings: &Settings, preferred: Option<&str>) -> Result<(), GitError> {
        let current = fs::read_to_string(self.path.join("HEAD")).unwrap_or_default();
        let current = current.trim().strip_prefix("ref: refs/heads/").unwrap_or_default();
        let heads = self.heads(settings).await?.named;
        let exists = |name: &str| heads.iter().any(|(head, _)| head.as_str() == name);
        if preferred.is_none_or(|preferred| preferred == current || !exists(preferred)) && exists(current) {
            return Ok(());
        }
        let wanted = preferred.into_iter().chain(["main", "master"]).find(|name| exists(name));
        if let Some(name) = wanted.or_else(|| heads.first().map(|(name, _)| name.as_str())) {
            self.git(settings, "symbolic-ref")?.args(["HEAD", &format!("refs/heads/{name}")]).run().await?;
        }
        Ok(())
    }

    /// The commit is there with all that it needs.
    pub(crate) async fn has(&self, settings: &Settings, commit: &CommitSha) -> Result<bool, GitError> {
        self.git(settings, "cat-file")?.arg("-e").arg(format!("{commit}^{{commit}}")).succeeds().await
    }

    /// Packs what has piled up and forgets what no branch, tag or `keep` has reached for three months. Runs beside everything else.
    pub(crate) async fn maintain(&self, settings: &Settings, keep: &[CommitSha]) -> Result<(), GitError> {
        let mut pins = Vec::new();
        for commit in keep {
            if self.has(settings, commit).await? {
                pins.push(format!("update refs/ocore/live/{commit} {commit}\n"));
            }
        }
        self.git(settings, "update-ref")?.arg("--stdin").input(pins.concat()).run().await?;
        let hour = std::time::Duration::from_hours(1);
        self.git(settings, "gc")?.args(["--quiet", "--prune=90.days.ago"]).timeout(hour).run().await?;
        Ok(())
    }

    /// Held while commits are fetched: two fetches of one repository at once would only get in each other's way.
    pub(crate) async fn lock_fetching(&self) -> Result<Lock, GitError> {
        self.lock("ocore-fetching.lock").await
    }

    async fn lock(&self, name: &str) -> Result<Lock, GitError> {
        let path = self.path.join(name);
        let locked = tokio::task::spawn_blocking({
            let path = path.clone();
            move || {
                let file = open_lock(&path)?;
                file.lock()?;
                Ok(file)
            }
        });
        let file =
            locked.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|source| GitError::Directory { path, source })?;
        Ok(Lock { file })
    }

    /// Held from the moment in which a push may move branches until what it moved is recorded. Pushes share it.
    pub(crate) fn mark_pushing(&self) -> Result<Lock, GitError> {
        let path = self.path.join("ocore-pushing.lock");
        let file = open_lock(&path).and_then(|file| file.lock_shared().map(|()| file));
        Ok(Lock { file: file.map_err(|source| GitError::Directory { path, source })? })
    }

    /// No push is between moving branches and recording them, and none begins while the lock is held.
    pub(crate) fn try_lock_out_pushes(&self) -> Result<Option<Lock>, GitError> {
        let path = self.path.join("ocore-pushing.lock");
        let tried = open_lock(&path).and_then(|file| match file.try_lock() {
            Ok(()) => Ok(Some(Lock { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        });
        tried.map_err(|source| GitError::Directory { path, source })
    }
}

/// The branches of a mirror.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    pub(crate) named: Vec<(BranchName, CommitSha)>,
    pub(crate) refused: Vec<ocore_model::names::InvalidName>,
}

/// Let go when it is dropped, and when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would not do: a program that is being started holds a copy of the descriptor until it has become itself.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a lock of a mirror is let go by closing its file");
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// Removes a project's mirror. Absent is done.
pub(crate) fn remove(settings: &Settings, project: ProjectId) -> io::Result<()> {
    match fs::remove_dir_all(settings.repositories.join(format!("{project}.git"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
