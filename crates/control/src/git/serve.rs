//! The built-in remote, as Git's smart HTTP protocol has it: finding the repository, telling what it holds, sending it. Receiving is in
//! `receive`. (gitprotocol-http(5); git-http-backend(1) is the same in C.)

use std::{io, pin::Pin, time::Duration};

use bytes::Bytes;
use futures::Stream;
use ocore_model::{names::Slug, project::RepositoryKind};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    mirror::Mirror,
    pkt_line,
    program::{Git, read_tail},
};
use crate::{
    Control, Error, Result,
    authorization::{ManageDeployments, Scope, ViewProjects},
    store::repositories::{self, Repository},
};

/// What a fetch may ask with: the commits that it wants and has.
const REQUEST_LIMIT: u64 = 64 * 1024 * 1024;
/// How long a client may pause while it sends, or read nothing of what it is sent. A program of ours waits for it.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);

/// What comes back to the client, as it comes.
pub type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The two things that a client can ask of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Clone and fetch.
    UploadPack,
    /// Push.
    ReceivePack,
}

impl Service {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::UploadPack => "upload-pack",
            Self::ReceivePack => "receive-pack",
        }
    }
}

impl std::str::FromStr for Service {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::UploadPack, Self::ReceivePack]
            .into_iter()
            .find(|service| service.as_str() == text)
            .ok_or(Error::NotFound { what: "Git service" })
    }
}

/// A built-in repository, opened for a caller who may use the service.
#[derive(Debug, Clone)]
pub struct Served {
    pub(super) repository: Repository,
    pub(super) mirror: Mirror,
    pub(super) scope: Scope,
    service: Service,
}

impl Served {
    /// It was opened for a push, so the caller has the right to it.
    pub(super) fn for_push(&self) -> Result<()> {
        if self.service == Service::ReceivePack { Ok(()) } else { Err(Error::broken("a push to a repository that was opened for reading")) }
    }
}

/// Finds the repository at `<organization>/<project>` (a `.git` at its end counts as not there) for one service. Reading needs
/// `view:projects`, pushing `manage:deployments`. Another organization's is `NotFound`; one that is archived or lies elsewhere is `Forbidden`
/// with what to do.
pub async fn open(control: &Control, scope: &Scope, service: Service, organization: &str, project: &str) -> Result<Served> {
    let not_found = Error::NotFound { what: "repository" };
    let slug = project.strip_suffix(".git").unwrap_or(project);
    if organization != scope.organization_slug || slug.parse::<Slug>().is_err() {
        return Err(not_found);
    }
    match service {
        Service::UploadPack => drop(scope.grant::<ViewProjects>()?),
        Service::ReceivePack => drop(scope.grant::<ManageDeployments>()?),
    }
    let mut connection = control.pool.acquire().await?;
    let repository = repositories::find_by_slug(&mut connection, scope.organization_id, slug).await?.ok_or(not_found)?;
    drop(connection);
    if repository.archived {
        return Err(Error::Forbidden {
            code: "project_archived",
            message: format!("the project {slug} is archived; bring it back before you use its repository"),
        });
    }
    if repository.kind == RepositoryKind::External {
        return Err(Error::Forbidden {
            code: "repository_external",
            message: format!(
                "the project {slug} takes its commits from {}; push there, or disconnect that repository first",
                repository.url.as_deref().unwrap_or("another repository")
            ),
        });
    }
    let mirror = Mirror::of_project(&control.settings, repository.project_id).await?;
    Ok(Served { repository, mirror, scope: scope.clone(), service })
}

/// The first answer of a conversation with the service: branches and tags, or what the protocol's version 2 can do. `protocol` is the header `Git-Protocol`.
pub async fn advertise(control: &Control, served: &Served, protocol: Option<&str>) -> Result<Bytes> {
    let service = served.service;
    let version = version(service, protocol);
    let git = command(control, served, version)?.args(["--stateless-rpc", "--http-backend-info-refs"]).arg(served.mirror.path());
    let refs = git.run().await?;
    let mut answer = bytes::BytesMut::with_capacity(refs.len() + 64);
    if version != Some("version=2") {
        pkt_line::write(&mut answer, format!("# service={}\n", service.as_str()).as_bytes());
        answer.extend_from_slice(pkt_line::FLUSH);
    }
    answer.extend_from_slice(&refs);
    Ok(answer.freeze())
}

/// Sends what a clone or fetch asks for. The answer begins at once; a client that goes away ends the work.
pub fn upload_pack(
    control: &Control,
    served: &Served,
    protocol: Option<&str>,
    body: impl AsyncRead + Send + Unpin + 'static,
) -> Result<ByteStream> {
    let mut body = body.take(REQUEST_LIMIT);
    let git = command(control, served, version(Service::UploadPack, protocol))?;
    let mut running = git.arg("--stateless-rpc").arg(served.mirror.path()).start()?;
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let (stdin, stdout, stderr) = (running.stdin.take(), running.stdout.take(), running.stderr.take());
        let feed = async {
            let Some(mut stdin) = stdin else { return };
            let mut chunk = bytes::BytesMut::with_capacity(64 * 1024);
            // Either side may have had enough; Git's exit status tells whether that was well.
            while let Ok(1..) = read_on(&mut body, &mut chunk).await {
                if !still_reads(&mut stdin, &chunk).await {
                    return;
                }
                chunk.clear();
            }
        };
        let answer = async {
            let Some(mut stdout) = stdout else { return false };
            loop {
                let mut chunk = bytes::BytesMut::with_capacity(64 * 1024);
                match stdout.read_buf(&mut chunk).await {
                    Ok(0) => return true,
                    Ok(_) if !matches!(timeout(PATIENCE, sender.send(Ok(chunk.freeze()))).await, Ok(Ok(()))) => return false,
                    Ok(_) => {}
                    Err(error) => return sender.send(Err(error)).await.is_ok(),
                }
            }
        };
        let ((), whole, words) = tokio::join!(feed, answer, read_tail(stderr));
        if !whole {
            running.end().await;
        } else if let Err(error) = running.wait(&words).await {
            tracing::info!(%error, "a fetch did not end well");
            let _ = sender.send(Err(io::Error::other("the fetch did not end well"))).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

pub(super) fn command(control: &Control, served: &Served, version: Option<&'static str>) -> Result<Git> {
    let git = served.mirror.git(&control.settings, served.service.program())?;
    Ok(match version {
        Some(version) => git.environment("GIT_PROTOCOL", version),
        None => git,
    })
}

/// The version that the client asks for, if it is one that the service speaks: a push has no version 2.
pub(super) fn version(service: Service, protocol: Option<&str>) -> Option<&'static str> {
    let asked = |version: &str| protocol.is_some_and(|protocol| protocol.split(':').any(|word| word == version));
    if service == Service::UploadPack && asked("version=2") {
        Some("version=2")
    } else if asked("version=1") {
        Some("version=1")
    } else {
        None
    }
}

/// The next bytes of what a client sends, added to `chunk`; an error when it pauses too long.
pub(super) async fn read_on(body: &mut (impl AsyncRead + Unpin), chunk: &mut bytes::BytesMut) -> io::Result<usize> {
    timeout(PATIENCE, body.read_buf(chunk)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Writes a chunk and says whether the program still reads.
pub(super) async fn still_reads(stdin: &mut (impl tokio::io::AsyncWrite + Unpin), chunk: &[u8]) -> bool {
    stdin.write_all(chunk).await.is_ok()
}
