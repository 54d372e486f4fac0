//! The one way in which the git program is run: fixed environment, argument list, time-out, bounded output.
//!
//! Repositories hold what strangers wrote. So nothing of the machine's or a user's Git configuration counts, hooks never run, only the
//! protocols that a call names can be spoken, and a ref or path never stands where an option could. Credentials reach Git through its
//! environment (`GIT_CONFIG_COUNT` and friends), never through an argument, which every user of the machine can read.

use std::{
    ffi::OsStr,
    fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ocore_host::HostError;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};
use tokio_util::sync::CancellationToken;

use crate::Settings;

/// Git's whole configuration. It is a file, and not arguments, since Git takes the configuration of its environment away from programs that
/// it starts on other repositories (`upload-pack` of a `file://` address), and since it is where `safe.directory` counts.
const CONFIGURATION: &str = "\
# Written by oCore; what is changed here is overwritten.
[safe]
	directory = *
[init]
	defaultBranch = main
[core]
	hooksPath = /dev/null
	fsmonitor = false
	logAllRefUpdates = false
[gc]
	auto = 0
[maintenance]
	auto = false
[receive]
	autogc = false
	advertisePushOptions = true
	advertiseAtomic = true
	denyDeleteCurrent = ignore
	unpackLimit = 100
[transfer]
	fsckObjects = true
	bundleURI = false
	hideRefs = refs/
	hideRefs = !refs/heads/
	hideRefs = !refs/tags/
	advertiseSID = false
[uploadpack]
	allowFilter = true
	allowAnySHA1InWant = false
[fetch]
	writeCommitGraph = false
	recurseSubmodules = false
[protocol]
	version = 2
[promisor]
	acceptFromServer = none
[credential]
	helper =
[http]
	followRedirects = false
	lowSpeedLimit = 1000
	lowSpeedTime = 60
[i18n]
	logOutputEncoding = UTF-8
[log]
	mailmap = false
	showSignature = false
[submodule]
	recurse = false
; Flaws of old commits that every large public history has and that harm nobody.
[receive \"fsck\"]
	badTimezone = ignore
	missingSpaceBeforeDate = ignore
	zeroPaddedFilemode = ignore
	missingSpaceBeforeEmail = ignore
	badName = ignore
	missingNameBeforeEmail = ignore
[fetch \"fsck\"]
	badTimezone = ignore
	missingSpaceBeforeDate = ignore
	zeroPaddedFilemode = ignore
	missingSpaceBeforeEmail = ignore
	badName = ignore
	missingNameBeforeEmail = ignore
";

/// What the program's own environment may say to Git: how to find programs and how to reach the world.
const PASSED_THROUGH: &[&str] = &[
    "PATH",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

/// Reading what is there takes milliseconds; this is for a machine on its knees.
const LOCAL_TIMEOUT: Duration = Duration::from_mins(2);
const OUTPUT_LIMIT: usize = 64 * 1024 * 1024;
const WORDS_LIMIT: usize = 16 * 1024;
/// Between asking a process that has run out of time to end (Git then removes its temporary files) and ending it.
const GRACE: Duration = Duration::from_secs(2);

/// A call of the git program that did not end well. `Display` is one sentence; what Git wrote is in [`GitError::words`].
#[derive(Debug, Error)]
pub(crate) enum GitError {
    #[error("cannot run the git program; install it (Debian: apt-get install git)")]
    Start(#[source] io::Error),
    #[error("cannot talk to the git program")]
    Pipe(#[source] io::Error),
    #[error("cannot prepare the directory {}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("git {command} failed: {}", last_line(.words))]
    Failed { command: String, words: String },
    #[error("git {command} did not end within {} s", .after.as_secs())]
    TimedOut { command: String, after: Duration },
    #[error("git {command} wrote more than {limit} bytes")]
    TooMuch { command: String, limit: usize },
    #[error("git {command} wrote what oCore does not understand")]
    Unreadable { command: &'static str },
    #[error("cancelled")]
    Cancelled,
}

/// Git's own sentence without its prefix: the last `fatal:` or `error:` line, or the last line.
fn last_line(words: &str) -> &str {
    let lines = || words.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines().rev().find_map(|line| line.strip_prefix("fatal: ").or_else(|| line.strip_prefix("error: ")));
    said.or_else(|| lines().next_back()).unwrap_or("it gave no reason")
}

impl From<GitError> for crate::Error {
    fn from(error: GitError) -> Self {
        Self::internal("a call of the git program", error)
    }
}

impl From<GitError> for HostError {
    fn from(error: GitError) -> Self {
        match error {
            GitError::Cancelled => Self::Cancelled,
            other => Self::machine_from(other.to_string(), other),
        }
    }
}

/// One call of git, not yet made.
pub(crate) struct Git {
    command: Command,
    name: String,
    configuration: Vec<(String, String)>,
    input: Vec<u8>,
    timeout: Duration,
    output_limit: usize,
    /// Of each file that it writes.
    file_limit: Option<u64>,
    cancel: CancellationToken,
}

impl Git {
    /// A call of `git <name>` in a repository (or in none, for `init`). It may not speak any protocol until [`Git::protocols`] says so.
    pub(crate) fn new(settings: &Settings, repository: Option<&Path>, name: &str) -> Result<Self, GitError> {
        let home = settings.repositories.join(".home");
        let configuration = home.join("gitconfig");
        write_configuration(&home, &configuration).map_err(|source| GitError::Directory { path: home.clone(), source })?;
        let mut command = Command::new("git");
        command.env_clear();
        for name in PASSED_THROUGH {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", &home)
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", &configuration)
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "")
            .env("GIT_ALLOW_PROTOCOL", "none")
            .env("GIT_PROTOCOL_FROM_USER", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_ADVICE", "0")
            .current_dir(&home)
            .process_group(0);
        if let Some(repository) = repository {
            command.env("GIT_DIR", repository);
        }
        command.arg(name);
        Ok(Self {
            command,
            name: name.to_owned(),
            configuration: Vec::new(),
            input: Vec::new(),
            timeout: LOCAL_TIMEOUT,
            output_limit: OUTPUT_LIMIT,
            file_limit: None,
            cancel: CancellationToken::new(),
        })
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Configuration for this call only, hidden from other users of the machine: credentials belong here.
    pub(crate) fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.configuration.push((key.into(), value.into()));
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The transports that this call, and all that it starts, may use.
    pub(crate) fn protocols(self, protocols: &[&str]) -> Self {
        self.environment("GIT_ALLOW_PROTOCOL", protocols.join(":"))
    }

    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// For answers that are known to be shorter than what is allowed otherwise.
    pub(crate) fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// The largest file that it, or what it starts, may write: it is ended at that byte.
    pub(crate) fn file_limit(mut self, bytes: u64) -> Self {
        self.file_limit = Some(bytes);
        self
    }

    pub(crate) fn cancelled_by(mut self, cancel: &CancellationToken) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Starts it with all three pipes open, for calls whose data does not fit into memory.
    pub(crate) fn start(mut self) -> Result<Running, GitError> {
        self.command.env("GIT_CONFIG_COUNT", self.configuration.len().to_string());
        for (index, (key, value)) in self.configuration.iter().enumerate() {
            self.command.env(format!("GIT_CONFIG_KEY_{index}"), key).env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(GitError::Start)?;
        let running =
            Running { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take(), child, name: self.name };
        if let Some((limit, pid)) = self.file_limit.zip(running.pid()) {
            // Whatever it starts later has the same limit; until then it has written nothing of what comes from outside.
            prlimit(Some(pid), Resource::Fsize, Rlimit { current: Some(limit), maximum: Some(limit) })
                .map_err(|error| GitError::Pipe(error.into()))?;
        }
        Ok(running)
    }

    /// Runs it to its end and gives what it wrote to its output. An exit status other than 0 is [`GitError::Failed`] with Git's words.
    pub(crate) async fn run(mut self) -> Result<Vec<u8>, GitError> {
        let input = std::mem::take(&mut self.input);
        let (timeout, limit, cancel, command) = (self.timeout, self.output_limit, self.cancel.clone(), self.name.clone());
        let mut running = self.start()?;
        let (stdin, stdout, stderr) = (running.stdin.take(), running.stdout.take(), running.stderr.take());
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A program that has read enough may close its input; its exit status says whether that was well.
                let _ = stdin.write_all(&input).await;
            }
        };
        let talk = async {
            let ((), stdout, stderr) = tokio::join!(write, read_bounded(stdout, limit), read_tail(stderr));
            Ok::<_, GitError>((stdout.map_err(GitError::Pipe)?, stderr))
        };
        let ended = tokio::select! {
            () = cancel.cancelled() => Err(GitError::Cancelled),
            ended = tokio::time::timeout(timeout, talk) => ended.unwrap_or_else(|_| Err(GitError::TimedOut { command: command.clone(), after: timeout })),
        };
        let (stdout, stderr) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                running.end().await;
                return Err(error);
            }
        };
        let Some(stdout) = stdout else {
            running.end().await;
            return Err(GitError::TooMuch { command, limit });
        };
        running.wait(&stderr).await?;
        Ok(stdout)
    }

    /// Runs it and says whether it exited with 0; for questions that Git answers by its exit status.
    pub(crate) async fn succeeds(self) -> Result<bool, GitError> {
        match self.run().await {
            Ok(_) => Ok(true),
            Err(GitError::Failed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A git that runs. Dropped before its end, it and what it started are asked to end, so that they remove their temporary files.
pub(crate) struct Running {
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
    child: Child,
    name: String,
}

impl Running {
    /// Waits for the end; `words` is what it wrote to its error output.
    pub(crate) async fn wait(mut self, words: &str) -> Result<(), GitError> {
        let status = self.child.wait().await.map_err(GitError::Pipe)?;
        if status.success() { Ok(()) } else { Err(GitError::Failed { command: self.name.clone(), words: words.to_owned() }) }
    }

    /// Asks it to end, and ends it if it does not.
    pub(crate) async fn end(mut self) {
        self.stdin = None;
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = self.child.wait().await;
        }
    }

    /// None: it has been waited for, and the number may be somebody else's by now.
    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.pid() {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "git {} ({:?})", self.name, self.child.id())
    }
}

/// All of it, or `None` when there is more than `limit`.
async fn read_bounded(reader: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if let Some(reader) = reader {
        reader.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok((bytes.len() <= limit).then_some(bytes))
}

/// The end of an error output; progress that overwrites itself (`\r`) is left out.
pub(crate) async fn read_tail(reader: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    let Some(mut reader) = reader else { return String::new() };
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = reader.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        if kept.len() > 2 * WORDS_LIMIT {
            kept.drain(..kept.len() - WORDS_LIMIT);
        }
    }
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<&str> = text.lines().map(|line| line.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap_or("")).collect();
    lines.join("\n")
}

fn write_configuration(home: &Path, path: &Path) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|found| found == CONFIGURATION.as_bytes()) {
        return Ok(());
    }
    std::fs::create_dir_all(home)?;
    let mut file = tempfile::NamedTempFile::new_in(home)?;
    file.write_all(CONFIGURATION.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_is_what_git_said_last() {
        assert_eq!(last_line("remote: hello\nfatal: no such repository\n\nand so on"), "no such repository");
        assert_eq!(last_line(""), "it gave no reason");
    }

    #[tokio::test]
    async fn progress_that_overwrites_itself_is_left_out() {
        let text = "Receiving:   1%\rReceiving: 100%, done.\nfatal: x\n";
        assert_eq!(read_tail(Some(text.as_bytes())).await, "Receiving: 100%, done.\nfatal: x");
    }
}
