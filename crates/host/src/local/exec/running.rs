//! A program that runs: fed, read, waited for, and ended with its whole group when nobody waits any more.

use std::{io, process::ExitStatus, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin},
};
use tokio_util::sync::CancellationToken;

use super::{ExecError, Finished, LINE_LIMIT, OUTPUT_GRACE, Program};
use crate::{
    api::LogSink,
    local::{
        forked::{Forked, group_is_left},
        process::Identity,
    },
};

/// A process of ours, or one that was forked for us.
pub(in crate::local) enum Running {
    Own(Box<Child>),
    Forked(Box<Forked>),
}

impl Running {
    /// `None` when it has ended already.
    pub(in crate::local) fn identity(&self) -> Option<Identity> {
        match self {
            Self::Own(child) => child.id().and_then(|id| Identity::of(id.cast_signed())),
            Self::Forked(forked) => Some(forked.identity().clone()),
        }
    }

    pub(super) async fn go(&mut self) -> io::Result<()> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Forked(forked) => forked.go().await,
        }
    }

    /// How it ended; `None` when nobody knows.
    pub(in crate::local) async fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match self {
            Self::Own(child) => child.wait().await.map(Some),
            Self::Forked(forked) => forked.wait().await,
        }
    }
}

/// How much of one stream the sink is given, in bytes: some programs run what a tenant has written, and whoever keeps the lines keeps all of them.
const SINK_LIMIT: usize = 64 * 1024 * 1024;
const LEAST_LINE: usize = 64;

pub(super) type Output = Option<Box<dyn AsyncRead + Send + Unpin>>;

/// A program that runs and is waited for.
pub struct Started {
    pub(super) program: Program,
    pub(super) child: Running,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    pub(super) group: GroupGuard,
}

impl Started {
    /// `None` when it has ended already.
    pub fn identity(&self) -> Option<Identity> {
        self.child.identity()
    }

    /// Waits until it ends, its time is up, or it is cancelled; in the last two cases its whole group has been ended.
    pub async fn finish(mut self) -> Result<Finished, ExecError> {
        let name = self.program.name();
        let output_error = |source| ExecError::Output { program: name.clone(), source };
        let limit = self.program.output_limit;
        let mut stdin = self.stdin.take();
        let input = std::mem::take(&mut self.program.stdin);
        let feed = async {
            if let Some(stdin) = stdin.as_mut() {
                // A program that does not read its input to the end is free to do so.
                let _ = stdin.write_all(&input).await;
            }
            drop(stdin);
        };
        let stdout = self.stdout.take();
        let stderr = self.stderr.take();
        let sink = self.program.lines.clone();
        let mut kept_stdout = Kept::first(limit);
        let mut kept_stderr = Kept::last(limit);
        let outcome = {
            let read = async {
                tokio::try_join!(collect(stdout, &mut kept_stdout, sink.as_deref()), collect(stderr, &mut kept_stderr, sink.as_deref()))
            };
            let child = &mut self.child;
            let group = &self.group;
            let work = async {
                tokio::pin!(read);
                tokio::pin!(feed);
                let wait = child.wait();
                tokio::pin!(wait);
                let mut read_done = false;
                let mut fed = false;
                let status = loop {
                    tokio::select! {
                        result = &mut read, if !read_done => { result.map_err(output_error)?; read_done = true; }
                        () = &mut feed, if !fed => fed = true,
                        status = &mut wait => break status.map_err(output_error)?,
                    }
                };
                if !read_done && let Ok(result) = tokio::time::timeout(OUTPUT_GRACE, &mut read).await {
                    result.map_err(output_error)?;
                    read_done = true;
                }
                if !read_done {
                    group.kill();
                    let _ = tokio::time::timeout(OUTPUT_GRACE, &mut read).await;
                }
                status.ok_or_else(|| ExecError::Lost { program: name.clone() })
            };
            let time_limit = self.program.time_limit;
            tokio::select! {
                status = work => status,
                () = any_cancelled(&self.program.cancel) => Err(ExecError::Cancelled { program: name.clone() }),
                limit = sleep_for(time_limit) => Err(ExecError::TimedOut { program: name.clone(), limit }),
            }
        };
        match outcome {
            Ok(status) => {
                self.group.disarm();
                Ok(Finished { program: name, status, stdout: kept_stdout.bytes, stderr: kept_stderr.bytes })
            }
            Err(error) => {
                self.group.kill();
                let _ = self.child.wait().await;
                self.group.disarm();
                Err(error)
            }
        }
    }
}

/// Ends the process group when whoever waits for it goes away.
pub(super) struct GroupGuard {
    /// Whose number the group has. Once it has been reaped, the number may soon mean another group.
    pub(super) leader: Option<Identity>,
}

impl GroupGuard {
    fn kill(&self) {
        if let Some(leader) = self.leader.as_ref().filter(|leader| group_is_left(leader))
            && let Some(group) = Pid::from_raw(leader.pid).filter(|group| !group.is_init())
        {
            // It may be gone already, which is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn disarm(&mut self) {
        self.leader = None;
    }
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn sleep_for(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

async fn any_cancelled(tokens: &[CancellationToken]) {
    if tokens.is_empty() {
        std::future::pending::<()>().await;
    }
    futures::future::select_all(tokens.iter().map(|token| Box::pin(token.cancelled()))).await;
}

/// The part of a stream that is kept.
struct Kept {
    bytes: Vec<u8>,
    limit: usize,
    end: bool,
}

impl Kept {
    fn first(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, end: false }
    }

    fn last(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, end: true }
    }

    fn push(&mut self, more: &[u8]) {
        if self.end {
            self.bytes.extend_from_slice(more);
            // Cut rarely, so that a long stream does not move its end at each line.
            if self.bytes.len() > self.limit.saturating_mul(2).max(LINE_LIMIT as usize) {
                self.trim();
            }
        } else {
            let room = self.limit.saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(&more[..more.len().min(room)]);
        }
    }

    fn trim(&mut self) {
        let excess = self.bytes.len().saturating_sub(self.limit);
        self.bytes.drain(..excess);
    }
}

async fn collect(stream: Option<impl AsyncRead + Unpin>, kept: &mut Kept, sink: Option<&dyn LogSink>) -> io::Result<()> {
    let Some(stream) = stream else { return Ok(()) };
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let mut told = 0;
    loop {
        line.clear();
        if (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).await? == 0 {
            break;
        }
        kept.push(&line);
        if let Some(sink) = sink
            && told <= SINK_LIMIT
        {
            // Also of a line without a letter whoever keeps it keeps something.
            told += line.len().max(LEAST_LINE);
            if told > SINK_LIMIT {
                sink.line(&format!("There is more than {} MiB of output; the rest is not shown.", SINK_LIMIT >> 20));
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            sink.line(text.trim_end_matches(['\n', '\r']));
        }
    }
    if kept.end {
        kept.trim();
    }
    Ok(())
}
