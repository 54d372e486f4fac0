//! What the terminal that pushed sees: what its branches mean, the steps of the deployments with their times, and how they ended.

use std::{pin::pin, time::Duration};

use futures::{StreamExt as _, stream};
use ocore_model::{
    deployment::{DeploymentStatus, StepName, StepStatus},
    ids::DeploymentId,
};
use tokio::time::{Instant, MissedTickBehavior};

use super::receive::{Answer, KEEPALIVE};
use crate::{
    Control,
    authorization::System,
    branches::PushOutcome,
    deployments::{self, Cursor, Progress},
    store::repositories,
};

/// So many lines of a plan are shown.
const PLAN_LINES: usize = 15;

pub(super) struct Terminal<'a> {
    pub(super) control: &'a Control,
    pub(super) answer: &'a Answer,
    pub(super) began: Instant,
}

/// A deployment that the terminal follows.
struct Followed {
    id: DeploymentId,
    /// Before each line, when there is more than one deployment.
    label: String,
    running: Option<(StepName, Instant)>,
    /// Lines of its plan so far.
    planned: usize,
    ended: bool,
}

impl Terminal<'_> {
    /// Says what the push means and, if the client waits, follows the deployments to their ends. Ends early only when the client goes.
    pub(super) async fn tell(&self, outcomes: &[PushOutcome], waits: bool) {
        let mut followed = Vec::new();
        for outcome in outcomes {
            self.line("", &format!("{}: {}", outcome.branch, outcome.message)).await;
            if let Some(id) = outcome.deployment_id {
                followed.push(Followed { id, label: format!("{}: ", outcome.branch), running: None, planned: 0, ended: false });
            }
        }
        if !waits || !self.answer.speaks() {
            for one in &followed {
                self.line("", &format!("  {}", self.deployment_address(one.id))).await;
            }
            return;
        }
        if let [only] = followed.as_mut_slice() {
            only.label.clear();
        }
        self.follow(&mut followed).await;
    }

    async fn follow(&self, followed: &mut [Followed]) {
        let streams: Vec<_> = followed
            .iter()
            .enumerate()
            .map(|(index, one)| deployments::follow(self.control, one.id, Cursor::default()).map(move |event| (index, event)))
            .collect();
        let mut events = stream::select_all(streams);
        let mut gone = pin!(self.answer.gone());
        let mut alive = tokio::time::interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut gone => return,
                _ = alive.tick() => self.still_running(followed).await,
                event = events.next() => match event {
                    None => break,
                    Some((index, Ok(event))) => {
                        let Some(one) = followed.get_mut(index) else { continue };
                        self.show(one, event.progress).await;
                        alive.reset();
                    }
                    Some((index, Err(error))) => {
                        tracing::warn!(%error, deployment = followed.get(index).map(|one| one.id.to_string()), "a push cannot follow its deployment");
                    }
                },
            }
        }
        for one in followed.iter().filter(|one| !one.ended) {
            self.line(&one.label, &format!("the deployment goes on: {}", self.deployment_address(one.id))).await;
        }
    }

    async fn show(&self, one: &mut Followed, progress: Progress) {
        match progress {
            Progress::Step { name, status: StepStatus::Running, .. } => one.running = Some((name, Instant::now())),
            Progress::Step { name, status, summary, duration_ms } => {
                if one.running.is_some_and(|(running, _)| running == name) {
                    one.running = None;
                }
                let took =
                    duration_ms.map(|duration| format!(" {}", seconds(Duration::from_millis(duration.unsigned_abs())))).unwrap_or_default();
                match status {
                    StepStatus::Succeeded if summary.is_empty() => self.line(&one.label, &format!("▸ {name} …{took}")).await,
                    StepStatus::Succeeded => self.line(&one.label, &format!("▸ {name} …{took}  {summary}")).await,
                    StepStatus::Failed => self.line(&one.label, &format!("▸ {name} …{took}  failed")).await,
                    StepStatus::Undone => self.line(&one.label, &format!("  {name} taken back")).await,
                    StepStatus::Pending | StepStatus::Running | StepStatus::Skipped => {}
                }
            }
            // Why something is updated or left.
            Progress::Line { step: StepName::Plan, text } => {
                one.planned += 1;
                if one.planned <= PLAN_LINES {
                    self.line(&one.label, &format!("  │ {text}")).await;
                } else if one.planned == PLAN_LINES + 1 {
                    self.line(&one.label, &format!("  │ … and more: ocore deployment logs {}", one.id)).await;
                }
            }
            // A log is for whoever looks for it; the part that matters comes with a failure.
            Progress::Line { .. } => {}
            Progress::Status { status, message, excerpt } => {
                if !status.is_end() || one.ended {
                    return;
                }
                one.ended = true;
                one.running = None;
                let message = message.filter(|message| !message.is_empty());
                for line in excerpt.as_deref().unwrap_or_default().lines().filter(|_| status == DeploymentStatus::Failed) {
                    self.line(&one.label, &format!("  │ {line}")).await;
                }
                let sentence = match status {
                    DeploymentStatus::Succeeded => {
                        format!("✔ live at {} in {}", self.address(one.id).await, seconds(self.began.elapsed()))
                    }
                    DeploymentStatus::Failed => format!("✘ failed: {}", message.as_deref().unwrap_or("see its steps")),
                    DeploymentStatus::Cancelled => "✘ cancelled".to_owned(),
                    _ => message.unwrap_or_else(|| "a later push has taken its place".to_owned()),
                };
                self.line(&one.label, &sentence).await;
            }
        }
    }

    /// Keeps the connection, and tells a person what takes so long; the line is overwritten by the next.
    async fn still_running(&self, followed: &[Followed]) {
        match followed.iter().find_map(|one| Some((one, one.running?))) {
            Some((one, (step, since))) => {
                self.answer.words(&format!("{}▸ {step} … {}\r", one.label, seconds(since.elapsed()))).await;
            }
            None => self.answer.keep_alive().await,
        }
    }

    fn deployment_address(&self, deployment: DeploymentId) -> String {
        format!("{}/api/deployments/{deployment}", self.control.settings.public_url)
    }

    async fn address(&self, deployment: DeploymentId) -> String {
        let slug = async {
            let mut connection = self.control.pool.acquire().await?;
            repositories::instance_slug(&mut connection, System, deployment).await
        };
        match slug.await {
            Ok(Some(slug)) => self.control.settings.instance_url(&slug),
            _ => "its address".to_owned(),
        }
    }

    /// One line. What comes from logs and messages may not steer the terminal.
    async fn line(&self, label: &str, text: &str) {
        for part in text.lines() {
            let clean: String = part.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
            self.answer.words(&format!("{label}{clean}\n")).await;
        }
    }
}

fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 { format!("{seconds:.1} s") } else { format!("{} min {:02} s", duration.as_secs() / 60, duration.as_secs() % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
