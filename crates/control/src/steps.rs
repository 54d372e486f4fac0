//! The log of a step while it runs: lines are gathered and written in batches, in order, and are all there when the step ends.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ocore_host::LogSink;
use ocore_model::ids::{DeploymentId, StepId};
use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};

use crate::store;

/// A longer line is cut.
const LINE_LIMIT: usize = 4_000;
/// What goes beyond these is counted, not kept.
const STEP_LINES: usize = 20_000;
const STEP_BYTES: usize = 4 << 20;
/// A batch is written when it has this many lines, or this long after its first line.
const BATCH_LINES: usize = 200;
const BATCH_DELAY: Duration = Duration::from_millis(150);
/// How often a batch is tried while the store is away.
const TRIES: u32 = 20;
const RETRY: Duration = Duration::from_millis(500);

enum Message {
    Line(String),
    Flush(oneshot::Sender<()>),
}

/// Where a step's output goes.
pub struct StepLog {
    sender: mpsc::UnboundedSender<Message>,
    lines: AtomicUsize,
    bytes: AtomicUsize,
    dropped: AtomicUsize,
}

impl StepLog {
    /// Begins to gather. The writer ends by itself when the log is dropped.
    pub fn start(pool: PgPool, deployment: DeploymentId, step: StepId) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(write(pool, deployment, step, receiver));
        Self { sender, lines: AtomicUsize::new(0), bytes: AtomicUsize::new(0), dropped: AtomicUsize::new(0) }
    }

    /// Returns when everything so far is in the store, with a note of what was too much.
    pub async fn flush(&self) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _ = self
                .sender
                .send(Message::Line(format!("… {dropped} more lines are not kept: a step's log ends at {STEP_LINES} lines or 4 MiB")));
        }
        let (done, flushed) = oneshot::channel();
        if self.sender.send(Message::Flush(done)).is_ok() {
            let _ = flushed.await;
        }
    }
}

impl LogSink for StepLog {
    fn line(&self, text: &str) {
        let text = storable(text);
        let bytes = self.bytes.fetch_add(text.len(), Ordering::Relaxed);
        if self.lines.fetch_add(1, Ordering::Relaxed) >= STEP_LINES || bytes >= STEP_BYTES {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let _ = self.sender.send(Message::Line(text));
    }
}

/// A line as the store can keep it: without NUL, without the ends of lines, cut to its limit.
fn storable(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']).replace('\0', "\u{fffd}");
    if text.len() <= LINE_LIMIT {
        return text;
    }
    let mut end = LINE_LIMIT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… ({} more bytes)", &text[..end], text.len() - end)
}

async fn write(pool: PgPool, deployment: DeploymentId, step: StepId, mut receiver: mpsc::UnboundedReceiver<Message>) {
    let mut batch = Vec::new();
    while let Some(message) = receiver.recv().await {
        let mut waiting = Vec::new();
        match message {
            Message::Line(text) => batch.push(text),
            Message::Flush(done) => waiting.push(done),
        }
        let delay = tokio::time::sleep(BATCH_DELAY);
        tokio::pin!(delay);
        while batch.len() < BATCH_LINES && waiting.is_empty() {
            tokio::select! {
                message = receiver.recv() => match message {
                    Some(Message::Line(text)) => batch.push(text),
                    Some(Message::Flush(done)) => waiting.push(done),
                    None => break,
                },
                () = &mut delay => break,
            }
        }
        append(&pool, deployment, step, &batch).await;
        batch.clear();
        for done in waiting {
            let _ = done.send(());
        }
    }
}

async fn append(pool: &PgPool, deployment: DeploymentId, step: StepId, batch: &[String]) {
    if batch.is_empty() {
        return;
    }
    for _ in 0..TRIES {
        let written = async { store::steps::append_lines(&mut *pool.acquire().await?, deployment, step, batch).await };
        match written.await {
            Ok(()) => return,
            Err(crate::Error::Unavailable { .. }) => tokio::time::sleep(RETRY).await,
            Err(error) => {
                tracing::warn!(%error, %deployment, lines = batch.len(), "lines of a step's log cannot be written");
                return;
            }
        }
    }
    tracing::warn!(%deployment, lines = batch.len(), "lines of a step's log are lost: the store was away for too long");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_between_characters_and_holds_nothing_that_the_store_refuses() {
        assert_eq!(storable("a\0b\r\n"), "a\u{fffd}b");
        let long = "ä".repeat(3_000);
        let kept = storable(&long);
        assert!(kept.starts_with('ä') && kept.ends_with("(2000 more bytes)"), "{}", &kept[kept.len() - 30..]);
    }
}
