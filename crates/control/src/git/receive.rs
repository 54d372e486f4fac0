//! A push to the built-in remote.
//!
//! What it asks for is read and judged before Git sees any of it: refused, nothing is written, and the client gets the sentence in its
//! terminal and as the reason of each ref. Accepted, Git checks the objects in quarantine and moves the refs; then the store takes note, and
//! the terminal follows the deployments that began. From the moment in which the whole push is here, a client that goes away changes nothing.
//!
//! Rights: a push needs `manage:deployments`; a branch without an environment, where the project makes one on push, and deleting the branch
//! of the production environment need `manage:environments` as well, the latter also `manage:production`. In a project that protects its production, a
//! push of somebody without `manage:production` to that branch is kept and waits for somebody who may deploy it.

use std::{
    collections::HashMap,
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ocore_model::{
    deployment::Trigger,
    names::{BranchName, CommitSha},
    permission::{Permission, Resource},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Commit, commits,
    pkt_line::{self, Band, FLUSH, Packet},
    program::{Running, read_tail},
    serve::{self, ByteStream, Served, Service},
    terminal::Terminal,
};
use crate::{
    Control, Error, Result,
    authorization::System,
    branches::{self, BranchUpdate, PushOutcome},
    deployments::Starter,
    store::repositories,
};

const MOST_COMMANDS: usize = 5000;
const COMMANDS_LIMIT: usize = 4 * 1024 * 1024;
/// No file system takes a longer one.
const LONGEST_REFERENCE: usize = 4096;
/// A proxy cuts a connection on which nothing comes; most wait a minute.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);

/// What a push asks of one ref.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Command {
    /// `None`: create.
    old: Option<CommitSha>,
    /// `None`: delete.
    new: Option<CommitSha>,
    reference: String,
}

impl Command {
    fn branch(&self) -> Option<BranchName> {
        self.reference.strip_prefix("refs/heads/")?.parse().ok()
    }
}

/// The part of a push before its pack.
#[derive(Debug, Default)]
struct Request {
    /// As it came; Git gets the same.
    raw: BytesMut,
    commands: Vec<Command>,
    capabilities: Vec<String>,
    options: Vec<String>,
}

impl Request {
    fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|known| known == capability)
    }

    fn reports(&self) -> bool {
        self.can("report-status") || self.can("report-status-v2")
    }

    /// `git push -o no-wait`.
    fn waits(&self) -> bool {
        !self.options.iter().any(|option| option == "no-wait" || option == "ocore.no-wait")
    }
}

/// Takes a push and answers with Git's report and what follows from it. `Invalid` when it is no push at all.
pub async fn receive_pack(
    control: &Control,
    served: &Served,
    protocol: Option<&str>,
    mut body: impl AsyncRead + Send + Unpin + 'static,
) -> Result<ByteStream> {
    served.for_push()?;
    let request = timeout(serve::PATIENCE, read_request(&mut body)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let request = request.map_err(|error| Error::invalid("body", format!("this is not a push: {error}")))?;
    let (sender, receiver) = mpsc::channel(64);
    let answer =
        Answer { sender, banded: request.can("side-band-64k"), is_watched: !request.can("quiet"), stalled: AtomicBool::new(false) };
    if request.commands.is_empty() {
        // A client with a large pack asks first whether it may, with nothing but a flush.
        return Ok(Box::pin(ReceiverStream::new(receiver)));
    }
    let refusals = judge(control, served, &request).await?;
    let (control, served) = (control.clone(), served.clone());
    if refusals.is_empty() {
        let git = serve::command(&control, &served, serve::version(Service::ReceivePack, protocol))?;
        let git = git.config("receive.maxInputSize", control.settings.push_limit.to_string());
        let running = git.arg("--stateless-rpc").arg(served.mirror.path()).start()?;
        tokio::spawn(async move { Push { control, served, request, answer }.run(running, body).await });
    } else {
        tokio::spawn(async move {
            // Some clients read the answer only when they have sent all.
            drain(&mut body, control.settings.push_limit).await;
            refuse(&request, &refusals, &answer).await;
        });
    }
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn read_request(body: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
    let malformed = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let mut request = Request::default();
    while let Some(Packet::Data(data)) = pkt_line::read(body, &mut request.raw).await? {
        if request.commands.len() == MOST_COMMANDS || request.raw.len() > COMMANDS_LIMIT {
            return Err(malformed(&format!("it names more than {MOST_COMMANDS} refs; push in parts")));
        }
        let line = String::from_utf8_lossy(Packet::line(&data)).into_owned();
        if line.starts_with("shallow ") {
            continue;
        }
        let (command, capabilities) = line.split_once('\0').unwrap_or((&line, ""));
        request.capabilities.extend(capabilities.split_whitespace().map(str::to_owned));
        let mut words = command.splitn(3, ' ');
        let (Some(old), Some(new), Some(reference)) = (words.next(), words.next(), words.next()) else {
            return Err(malformed("it has a command that is none"));
        };
        if reference.len() > LONGEST_REFERENCE {
            return Err(malformed("it names a ref that is too long"));
        }
        let id = |text: &str| if text.bytes().all(|byte| byte == b'0') { Ok(None) } else { text.parse().map(Some) };
        request.commands.push(Command {
            old: id(old).map_err(|_| malformed("it names something that is no commit id"))?,
            new: id(new).map_err(|_| malformed("it names something that is no commit id"))?,
            reference: reference.to_owned(),
        });
    }
    if !request.commands.is_empty() && request.can("push-options") {
        while let Some(Packet::Data(data)) = pkt_line::read(body, &mut request.raw).await? {
            if request.raw.len() > COMMANDS_LIMIT {
                return Err(malformed("its options are too long"));
            }
            request.options.push(String::from_utf8_lossy(Packet::line(&data)).into_owned());
        }
    }
    Ok(request)
}

/// Why refs may not be what the push wants, by ref name. Empty: all may.
async fn judge(control: &Control, served: &Served, request: &Request) -> Result<HashMap<String, String>> {
    let mut connection = control.pool.acquire().await?;
    let followed = repositories::followed_branches(&mut connection, System, served.repository.project_id).await?;
    drop(connection);
    let followed: HashMap<String, bool> = followed.into_iter().collect();
    let may = |resource| served.scope.permissions.allows(Permission::manage(resource));
    let rights = Rights { environments: may(Resource::Environments), production: may(Resource::Production) };
    let makes_environments = served.repository.create_environment_on_push;
    let refusal = |command: &Command| judge_command(command, &followed, rights, makes_environments);
    Ok(request.commands.iter().filter_map(|command| Some((command.reference.clone(), refusal(command)?))).collect())
}

/// What a pusher may do besides pushing.
#[derive(Debug, Clone, Copy)]
struct Rights {
    environments: bool,
    production: bool,
}

fn judge_command(command: &Command, followed: &HashMap<String, bool>, rights: Rights, makes_environments: bool) -> Option<String> {
    let Some((kind, name)) = ["heads", "tags"]
        .into_iter()
        .find_map(|kind| Some((kind, command.reference.strip_prefix("refs/")?.strip_prefix(kind)?.strip_prefix('/')?)))
    else {
        return Some("only branches and tags can be pushed here".to_owned());
    };
    let branch: BranchName = match name.parse() {
        Ok(name) => name,
        Err(error) if kind == "heads" => return Some(error.to_string()),
        Err(error) => return Some(format!("not a name for a tag: {}", error.rule)),
    };
    if kind == "tags" {
        return None;
    }
    match (followed.get(branch.as_str()), &command.new) {
        (Some(true), None) if !(rights.environments && rights.production) => Some(
            "it is the branch of the production environment; deleting it needs the permissions manage:environments and manage:production"
                .to_owned(),
        ),
        (None, Some(_)) if makes_environments && !rights.environments => {
            Some("a push to a branch without an environment makes one, which needs the permission manage:environments".to_owned())
        }
        _ => None,
    }
}

/// Reads a body that nobody wants to its end, within reason.
async fn drain(body: &mut (impl AsyncRead + Unpin), limit: u64) {
    let mut body = body.take(limit.saturating_mul(4));
    let mut chunk = BytesMut::with_capacity(64 * 1024);
    while let Ok(1..) = serve::read_on(&mut body, &mut chunk).await {
        chunk.clear();
    }
}

async fn refuse(request: &Request, refusals: &HashMap<String, String>, answer: &Answer) {
    let mut report = BytesMut::new();
    pkt_line::write(&mut report, b"unpack ok\n");
    for command in &request.commands {
        let reference = &command.reference;
        let reason = refusals.get(reference).map_or("not pushed, since another ref was refused", String::as_str);
        pkt_line::write(&mut report, format!("ng {reference} {reason}\n").as_bytes());
        if let Some(reason) = refusals.get(reference) {
            answer.words(&format!("✘ {}: {reason}\n", reference.escape_debug())).await;
        }
    }
    report.extend_from_slice(FLUSH);
    if request.reports() {
        answer.data(&report).await;
    }
    answer.end().await;
}

/// The way back to the client. A client that has gone is no error: the work goes on.
#[derive(Debug)]
pub(super) struct Answer {
    sender: mpsc::Sender<io::Result<Bytes>>,
    banded: bool,
    /// The client has read nothing for so long that nobody waits for it any more.
    stalled: AtomicBool,
    /// At a terminal: git says `quiet` when it has none, and when it was asked to.
    pub(super) is_watched: bool,
}

impl Answer {
    /// Whether the terminal can be spoken to.
    pub(super) fn speaks(&self) -> bool {
        self.banded && !self.sender.is_closed() && !self.stalled.load(Relaxed)
    }

    /// Text for the terminal; each line gets `remote: ` before it. Nothing without bands.
    pub(super) async fn words(&self, text: &str) {
        if self.banded {
            self.raw(pkt_line::banded(Band::Words, text.as_bytes())).await;
        }
    }

    /// Waits until the client has gone.
    pub(super) async fn gone(&self) {
        self.sender.closed().await;
    }

    async fn data(&self, report: &[u8]) {
        self.raw(if self.banded { pkt_line::banded(Band::Data, report) } else { Bytes::copy_from_slice(report) }).await;
    }

    /// An empty packet, as Git's own programs send it: the client drops it, what is in between stays open.
    pub(super) async fn keep_alive(&self) {
        if self.banded {
            self.raw(pkt_line::banded(Band::Data, b"")).await;
        }
    }

    async fn raw(&self, bytes: Bytes) {
        if !self.stalled.load(Relaxed) && timeout(serve::PATIENCE, self.sender.send(Ok(bytes))).await.is_err() {
            self.stalled.store(true, Relaxed);
        }
    }

    /// The flush that tells a client with bands that all is said.
    async fn end(&self) {
        if self.banded {
            self.raw(Bytes::from_static(FLUSH)).await;
        }
    }
}

struct Push {
    control: Control,
    served: Served,
    request: Request,
    answer: Answer,
}

impl Push {
    async fn run(self, running: Running, body: impl AsyncRead + Send + Unpin) {
        let began = Instant::now();
        let marked = self.served.mirror.mark_pushing();
        let outcome = match marked {
            Ok(_marked) => self.receive(running, body).await,
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(outcomes) => {
                let terminal = Terminal { control: &self.control, answer: &self.answer, began };
                terminal.tell(&outcomes, self.request.waits()).await;
            }
            Err(error) => {
                tracing::error!(project = %self.served.repository.project_id, error = &error as &dyn std::error::Error, "a push was received and not recorded");
                self.answer.words("✘ oCore has the push and could not take note of it yet; it does so within a minute\n").await;
            }
        }
        self.answer.end().await;
    }

    /// Lets Git take the pack and move the refs, sends its report, and takes note of what moved.
    async fn receive(&self, mut running: Running, mut body: impl AsyncRead + Send + Unpin) -> Result<Vec<PushOutcome>> {
        let (stdin, stdout, stderr) = (running.stdin.take(), running.stdout.take(), running.stderr.take());
        let feed = async {
            let Some(mut stdin) = stdin else { return };
            if !serve::still_reads(&mut stdin, &self.request.raw).await {
                return drain(&mut body, self.control.settings.push_limit).await;
            }
            let mut chunk = BytesMut::with_capacity(256 * 1024);
            loop {
                chunk.clear();
                match serve::read_on(&mut body, &mut chunk).await {
                    Ok(0) => return,
                    // A client that goes away in the middle: the pack ends too early, Git says so and throws the quarantine away.
                    Err(error) => return tracing::info!(%error, "a push ended early"),
                    Ok(_) if serve::still_reads(&mut stdin, &chunk).await => {}
                    Ok(_) => {
                        drop(stdin);
                        return drain(&mut body, self.control.settings.push_limit).await;
                    }
                }
            }
        };
        let answer = async {
            let Some(stdout) = stdout else { return Ok(BytesMut::new()) };
            self.relay(stdout).await
        };
        let ((), report, words) = tokio::join!(feed, answer, read_tail(stderr));
        let report = report.map_err(|error| Error::internal("reading what git receive-pack says", error))?;
        if let Err(error) = running.wait(&words).await {
            // Its report, if there was one, has told the client; a ref that it names as done is done.
            tracing::info!(%error, "git receive-pack did not end well");
        }
        self.record(&self.accepted(&report)).await
    }

    /// Passes Git's output on as it comes, but for the flush at its very end, and keeps the report.
    async fn relay(&self, mut stdout: impl AsyncRead + Unpin) -> io::Result<BytesMut> {
        let (mut buffer, mut report) = (BytesMut::with_capacity(64 * 1024), BytesMut::new());
        while stdout.read_buf(&mut buffer).await? > 0 {
            if !self.answer.banded {
                report.extend_from_slice(&buffer);
                self.answer.raw(buffer.split().freeze()).await;
                continue;
            }
            while let Some(packet) = pkt_line::take(&mut buffer)? {
                let Packet::Data(data) = packet else { continue };
                match data.split_first() {
                    Some((&band, payload)) if band == Band::Data as u8 => {
                        report.extend_from_slice(payload);
                        self.answer.data(payload).await;
                    }
                    Some((_, payload)) => {
                        self.answer.raw(pkt_line::banded(Band::Words, payload)).await;
                        if payload.windows(32).any(|window| window == b"pack exceeds maximum allowed siz") {
                            self.answer.words(&self.too_large()).await;
                        }
                    }
                    None => {}
                }
            }
        }
        Ok(report)
    }

    fn too_large(&self) -> String {
        let limit = self.control.settings.push_limit;
        format!(
            "✘ the push brings more than this installation takes ({}); push the history in parts, or leave large files out\n",
            if limit >= 1024 * 1024 { format!("{} MiB", limit / 1024 / 1024) } else { format!("{limit} bytes") }
        )
    }

    /// The commands that Git says it has carried out. A client that wants no report gets none, so the store looks for itself.
    fn accepted(&self, report: &BytesMut) -> Vec<Command> {
        if !self.request.reports() {
            return self.request.commands.clone();
        }
        let mut report = report.clone();
        let mut done = Vec::new();
        while let Ok(Some(Packet::Data(line))) = pkt_line::take(&mut report) {
            if let Some(reference) = Packet::line(&line).strip_prefix(b"ok ") {
                done.push(String::from_utf8_lossy(reference).into_owned());
            }
        }
        self.request.commands.iter().filter(|command| done.contains(&command.reference)).cloned().collect()
    }

    /// Takes note of the branches that moved.
    async fn record(&self, accepted: &[Command]) -> Result<Vec<PushOutcome>> {
        let (settings, mirror, project) = (&self.control.settings, &self.served.mirror, self.served.repository.project_id);
        let moved: Vec<(BranchName, &Command)> = accepted.iter().filter_map(|command| Some((command.branch()?, command))).collect();
        if moved.is_empty() {
            return Ok(Vec::new());
        }
        fail::fail_point!("push_before_record");
        let names: Vec<String> = moved.iter().filter_map(|(_, command)| command.new.as_ref()).map(ToString::to_string).collect();
        let found: HashMap<CommitSha, Commit> =
            commits::named(mirror, settings, &names).await?.into_iter().map(|commit| (commit.sha.clone(), commit)).collect();
        let updates = moved.into_iter().map(|(branch, command)| {
            let new = command.new.as_ref().and_then(|sha| found.get(sha)).cloned();
            BranchUpdate { branch, old: command.old.clone(), new }
        });
        let outcomes = branches::record(&self.control, project, updates.collect(), Starter::new(Trigger::Push, &self.served.scope)).await?;
        mirror.point_head(settings, None).await?;
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "0123456789012345678901234567890123456789";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    fn command(old: &str, new: &str, reference: &str) -> Command {
        let id = |text: &str| text.parse().ok().filter(|_| text != ZERO);
        Command { old: id(old), new: id(new), reference: reference.to_owned() }
    }

    #[tokio::test]
    async fn a_request_is_read_up_to_its_pack() {
        let mut wire = BytesMut::new();
        pkt_line::write(&mut wire, format!("shallow {SHA}").as_bytes());
        pkt_line::write(
            &mut wire,
            format!("{ZERO} {SHA} refs/heads/a b\0 report-status side-band-64k push-options agent=git/2").as_bytes(),
        );
        pkt_line::write(&mut wire, format!("{SHA} {ZERO} refs/heads/c\n").as_bytes());
        wire.extend_from_slice(FLUSH);
        pkt_line::write(&mut wire, b"no-wait");
        wire.extend_from_slice(FLUSH);
        let before_pack = wire.clone();
        wire.extend_from_slice(b"PACK....");
        let mut reader = &wire[..];
        let request = read_request(&mut reader).await.unwrap();
        assert_eq!(request.commands, [command(ZERO, SHA, "refs/heads/a b"), command(SHA, ZERO, "refs/heads/c")]);
        assert!(request.reports() && request.can("side-band-64k") && !request.waits());
        assert_eq!(request.raw, before_pack);
        assert_eq!(reader, b"PACK....");
    }

    #[tokio::test]
    async fn what_is_no_push_is_an_error_and_a_flush_alone_is_not() {
        for bad in ["zzzz", "0003", "0009hello0000", "0012short refs/x0000", "0032"] {
            assert!(read_request(&mut bad.as_bytes()).await.is_err(), "{bad}");
        }
        assert!(read_request(&mut &b"0000"[..]).await.unwrap().commands.is_empty());
    }

    #[test]
    fn refs_are_judged_by_name_and_right() {
        let followed: HashMap<String, bool> = [("main".to_owned(), true), ("dev".to_owned(), false)].into();
        let judge = |old, new, reference, may| {
            judge_command(&command(old, new, reference), &followed, Rights { environments: may, production: may }, true)
        };
        for bad in ["refs/heads/-x", "refs/heads/a b", "refs/notes/x", "refs/heads/", "HEAD", "refs/tags/-x", "refs/heads/refs/x"] {
            assert!(judge(ZERO, SHA, bad, true).is_some(), "{bad}");
        }
        for good in ["refs/heads/feature/x", "refs/heads/a;b", "refs/tags/1.0"] {
            assert_eq!(judge(ZERO, SHA, good, true), None, "{good}");
        }
        assert_eq!(judge(SHA, ZERO, "refs/heads/main", true), None);
        assert!(judge(SHA, ZERO, "refs/heads/main", false).is_some());
        let developer = Rights { environments: true, production: false };
        assert!(judge_command(&command(SHA, ZERO, "refs/heads/main"), &followed, developer, true).is_some());
        assert_eq!(judge_command(&command(SHA, ZERO, "refs/heads/dev"), &followed, developer, true), None);
        assert_eq!(judge(SHA, SHA, "refs/heads/main", false), None);
        assert_eq!(judge(SHA, ZERO, "refs/heads/dev", false), None);
        assert!(judge(ZERO, SHA, "refs/heads/new", false).is_some());
    }
}
