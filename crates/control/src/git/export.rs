//! From a commit to a source tree: everything that it consists of, streamed to the host, named by what is in it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use ocore_host::{HostError, Progress, Source, SourceId};
use ocore_model::{ids::ProjectId, names::CommitSha, project::RepositoryKind};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, ReadBuf},
    process::ChildStdout,
    sync::oneshot,
};

use super::{
    commits, external,
    mirror::Mirror,
    program::read_tail,
    submodules::{self, Part, internal},
};
use crate::{
    Control,
    authorization::System,
    store::repositories::{self, Repository},
};

/// The commit with its submodules as a sealed source tree on the server. Runs again without effect. A submodule that cannot be had is
/// `HostError::Rejected`, with its address and Git's own words.
///
/// The tree holds what was committed: attributes that would leave files out, rewrite them or convert their line ends do not count.
pub async fn export(control: &Control, project: ProjectId, commit: &CommitSha, progress: Progress) -> Result<Source, HostError> {
    let settings = &control.settings;
    let mut connection = control.pool.acquire().await.map_err(|error| internal(error.into()))?;
    let repository = repositories::find_any(&mut connection, System, project).await.map_err(internal)?;
    drop(connection);
    let repository = repository.ok_or_else(|| HostError::NotFound { what: "project", id: project.to_string() })?;
    let mirror = Mirror::of_project(settings, project).await?;
    ensure_commit(control, &repository, &mirror, commit, &progress).await?;
    if let Some(found) = commits::named(&mirror, settings, &[commit.to_string()]).await?.pop() {
        let subject = found.message.lines().next().unwrap_or_default();
        progress.log.line(&format!("commit {commit:.12} by {}: {subject}", found.author));
    }

    let id = source_id(control, &mirror, project, commit).await?;
    if let Some(source) = control.host.find_source(&id).await? {
        progress.log.line("the source tree is here already");
        return Ok(source);
    }
    let parts = submodules::gather(control, &repository, submodules::root(&repository, mirror, commit)?, &progress).await?;
    for part in &parts {
        unpack(control, &id, part, &progress).await?;
    }
    let submodules: Vec<String> = parts.iter().skip(1).map(|part| part.prefix.clone()).collect();
    control.host.seal_source(&id, &submodules, progress).await
}

/// A hash over the owner and the root tree. The tree names every file's content and every submodule's commit, so it names all of them.
async fn source_id(control: &Control, mirror: &Mirror, project: ProjectId, commit: &CommitSha) -> Result<SourceId, HostError> {
    let git = mirror.git(&control.settings, "rev-parse")?.args(["--verify", "--quiet", "--end-of-options"]);
    let output = git.arg(format!("{commit}^{{tree}}")).run().await?;
    let tree = String::from_utf8_lossy(&output);
    let digest = Sha256::digest(format!("ocore source 1\nproject {project}\ntree {}\n", tree.trim()));
    Ok(SourceId(hex::encode(digest)))
}

async fn ensure_commit(
    control: &Control,
    repository: &Repository,
    mirror: &Mirror,
    commit: &CommitSha,
    progress: &Progress,
) -> Result<(), HostError> {
    if mirror.has(&control.settings, commit).await? {
        return Ok(());
    }
    if repository.kind == RepositoryKind::External {
        progress.log.line("the commit is not here yet; fetching the repository");
        external::fetch_commits(control, repository, mirror, &progress.cancel).await?;
        if mirror.has(&control.settings, commit).await? {
            return Ok(());
        }
    }
    Err(HostError::rejected(format!("the commit {commit} is not in the repository; push it, or deploy another one")))
}

/// Streams one repository's tree to the host; nothing of it is held in memory.
async fn unpack(control: &Control, id: &SourceId, part: &Part, progress: &Progress) -> Result<(), HostError> {
    let git = part.mirror.git(&control.settings, "archive")?.args(["--format=tar", "--end-of-options"]).arg(part.commit.as_str());
    let mut running = git.start()?;
    running.stdin = None;
    let stderr = running.stderr.take();
    let Some(stdout) = running.stdout.take() else { return Err(HostError::machine("git archive has no output")) };
    let (back, unread) = oneshot::channel();
    let stream = Lent { stdout: Some(stdout), back: Some(back) };
    let unpack = async {
        control.host.unpack_source(id, &part.prefix, Box::new(stream)).await?;
        // A tar stream goes on after its end, with zeros. Git has ended well only if somebody reads them.
        if let Ok(mut stdout) = unread.await {
            let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
        }
        Ok::<(), HostError>(())
    };
    let both = async { tokio::join!(unpack, read_tail(stderr)) };
    let (unpacked, words) = tokio::select! {
        () = progress.cancel.cancelled() => {
            running.end().await;
            return Err(HostError::Cancelled);
        }
        both = both => both,
    };
    unpacked?;
    Ok(running.wait(&words).await?)
}

/// A stream that comes back when its reader has had enough of it.
struct Lent {
    stdout: Option<ChildStdout>,
    back: Option<oneshot::Sender<ChildStdout>>,
}

impl AsyncRead for Lent {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdout {
            Some(stdout) => Pin::new(stdout).poll_read(context, buffer),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(stdout), Some(back)) = (self.stdout.take(), self.back.take()) {
            // Nobody waits for it after a failure; then it closes here.
            let _ = back.send(stdout);
        }
    }
}
