//! What users get is counted at the moments of a deployment, and watched for a while after the switch: when it is worse than before, the deployment is
//! taken back.

use std::time::Duration;

use ocore_host::InstanceObservation;
use ocore_model::{
    deployment::{DataOrigin, StepName},
    edge::RouteTraffic,
    report::{Mark, Marks, Moment, Phase},
};
use tokio::time::Instant;

use super::{Parameters, step::Step};
use crate::{Control, Result, operations::saga::Failure, store};

/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Requests that waited at the edge are answered within this time after the switch.
const RELEASE: Duration = Duration::from_secs(3);
/// When the new slot has answered so many for so long, and none of it is worse, it will not become so.
const ENOUGH: u64 = 200;
const SHORTEST: Duration = Duration::from_secs(5);
/// So many that wait for an answer, and for so long none at all: nobody is answered any more. Such requests are no failures yet.
const WAITING: u64 = 5;
const SILENCE: Duration = Duration::from_secs(6);
/// Where answers took long before, so many times as long.
const TIMES_SILENT: u32 = 3;
/// A deployment that so few asked for meanwhile (oCore itself does) is not waited for.
const NOBODY: u64 = 3;

/// Notes what the edge has counted until now. A deployment is as good without it.
pub(super) async fn mark(control: &Control, parameters: &Parameters, moment: Moment) {
    if let Err(error) = try_to_mark(control, parameters, moment).await {
        tracing::warn!(deployment = %parameters.deployment, %moment, %error, "what users got could not be noted");
    }
}

async fn try_to_mark(control: &Control, parameters: &Parameters, moment: Moment) -> Result<()> {
    // A first deployment has no users.
    if parameters.live.is_none() {
        return Ok(());
    }
    let Some(traffic) = control.host.traffic(parameters.instance).await? else { return Ok(()) };
    let marks = store::marks::of_deployment(&mut *control.pool.acquire().await?, parameters.deployment).await?;
    let since = match moment {
        Moment::Changing => marks.get(&Moment::Begun),
        Moment::Ended => marks.get(&Moment::Switched),
        Moment::Begun | Moment::Switched | Moment::Undone => None,
    };
    let logged_errors = match since {
        Some(earlier) => control.host.logged_errors(parameters.instance, earlier.traffic.taken_at).await.ok(),
        None => None,
    };
    store::marks::set(&mut *control.pool.acquire().await?, parameters.deployment, moment, &Mark { traffic, logged_errors }).await
}

/// Compares what users get with what they got. An error says what is worse.
pub(super) async fn watch(step: &Step) -> Result<(), Failure> {
    let (parameters, control) = (&step.parameters, step.control());
    let begun = observed(control, parameters).await;
    released(step).await;
    mark(control, parameters, Moment::Switched).await;
    let watched = compare(step).await;
    mark(control, parameters, Moment::Ended).await;
    let ended = ended(begun.as_ref(), observed(control, parameters).await.as_ref(), parameters);
    let worse = match (watched?, ended) {
        (Some(worse), Some(ended)) => format!("{worse}: {ended}"),
        (Some(worse), None) => worse,
        (None, Some(ended)) => ended,
        (None, None) => return Ok(()),
    };
    let kept = if step.beside { "" } else { ", and what was written since the switch is kept as a snapshot" };
    Err(Failure::rejected(format!("{worse}; what was live before is live again{kept}")))
}

/// Those who waited have their answer.
async fn released(step: &Step) {
    let waiting = async {
        while let Ok(Some(traffic)) = step.control().host.traffic(step.parameters.instance).await
            && traffic.held.now > 0
        {
            tokio::time::sleep(LOOK_INTERVAL / 5).await;
        }
    };
    // Who still waits has a slow request.
    let _ = tokio::time::timeout(RELEASE, waiting).await;
}

/// The instance on its server; `None` when that does not say.
pub(super) async fn observed(control: &Control, parameters: &Parameters) -> Option<InstanceObservation> {
    let all = control.host.observe().await.ok()?;
    all.into_iter().find(|observation| observation.instance == parameters.instance)
}

/// What has ended in the new slot since the switch, whether anybody has noticed or not.
fn ended(begun: Option<&InstanceObservation>, now: Option<&InstanceObservation>, parameters: &Parameters) -> Option<String> {
    // Without anything that could serve instead, it is started again.
    parameters.live.as_ref()?;
    let (begun, now) = (begun?, now?);
    if now.memory_kills > begun.memory_kills {
        return Some(
            "the memory of the instance was used up and the kernel ended a part of it; make the modules take less at once, or raise \
             limits.instance_memory_bytes"
                .to_owned(),
        );
    }
    let pid = |observation: &InstanceObservation| observation.slots.iter().find(|slot| slot.color == parameters.color).map(|slot| slot.pid);
    (pid(begun).is_some() && pid(begun) != pid(now)).then(|| "the new Odoo ended by itself, and its log says why".to_owned())
}

async fn compare(step: &Step) -> Result<Option<String>, Failure> {
    let (parameters, control) = (&step.parameters, step.control());
    if parameters.origin != DataOrigin::Live {
        return Ok(None);
    }
    let marks = store::marks::of_deployment(&mut *control.pool.acquire().await?, parameters.deployment).await?;
    let Some((before, switched)) = before(&marks) else { return Ok(None) };
    let patience = Duration::from_secs(watch_seconds(step).await?);
    let seen = marks.get(&Moment::Begun).map_or(0, |begun| switched.traffic.since(&begun.traffic).requests);
    if seen <= NOBODY || patience.is_zero() {
        return Ok(None);
    }
    step.say(&format!("comparing what users get with what they got, for up to {} s", patience.as_secs()));
    let begun = Instant::now();
    let mut silence = Silence::new(before.p99_milliseconds);
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // An edge that is away has nothing to tell; when it is back, it has.
        if let Ok(Some(now)) = control.host.traffic(parameters.instance).await {
            let logged_errors = control.host.logged_errors(parameters.instance, switched.traffic.taken_at).await.ok();
            let after = Phase { logged_errors, ..Phase::between(&switched.traffic, &now) };
            if let Some(worse) = after.worse_than(&before) {
                step.say(&worse);
                return Ok(Some(worse));
            }
            if let Some(silent) = silence.take_in(&now, Instant::now()) {
                step.say(&silent);
                return Ok(Some(silent));
            }
            let answered = now.since(&switched.traffic).answers.iter().sum::<u64>();
            if answered >= ENOUGH && begun.elapsed() >= SHORTEST {
                return Ok(None);
            }
        }
        if begun.elapsed() >= patience {
            return Ok(None);
        }
    }
}

/// For how long nobody was answered.
struct Silence {
    longest: Duration,
    /// The answers that were given, and since when there are no more.
    last: Option<(u64, Instant)>,
}

impl Silence {
    fn new(slowest_milliseconds: Option<f64>) -> Self {
        let slowest = Duration::from_secs_f64(slowest_milliseconds.unwrap_or_default().max(0.0) / 1000.0);
        Self { longest: (slowest * TIMES_SILENT).max(SILENCE), last: None }
    }

    /// Says so when it has lasted too long.
    fn take_in(&mut self, traffic: &RouteTraffic, now: Instant) -> Option<String> {
        let answers = traffic.answers.iter().sum::<u64>();
        let waiting = traffic.requests.saturating_sub(answers + traffic.abandoned);
        let since = match self.last {
            Some((known, since)) if known == answers && waiting >= WAITING => since,
            _ => now,
        };
        self.last = Some((answers, since));
        let silent = now.duration_since(since);
        (silent >= self.longest).then(|| {
            format!("{waiting} requests wait, and none was answered for {} s: the new Odoo does not answer any more", silent.as_secs())
        })
    }
}

/// What users got before, and the moment of the switch.
fn before(marks: &Marks) -> Option<(Phase, &Mark)> {
    let (begun, changing) = (marks.get(&Moment::Begun)?, marks.get(&Moment::Changing)?);
    let before = Phase { logged_errors: changing.logged_errors, ..Phase::between(&begun.traffic, &changing.traffic) };
    Some((before, marks.get(&Moment::Switched)?))
}

async fn watch_seconds(step: &Step) -> Result<u64, Failure> {
    if !step.has(StepName::Checkout) {
        return Ok(0);
    }
    let source = step.context.output("deploy::checkout")?;
    Ok(step.control().host.find_source(&source).await?.map(|source| source.deploy).unwrap_or_default().watch_seconds)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use ocore_model::{
        edge::{HeldTraffic, WebsocketTraffic},
        histogram::Histogram,
        ids::InstanceId,
    };

    use super::*;

    fn traffic(requests: u64, answered: u64, abandoned: u64) -> RouteTraffic {
        RouteTraffic {
            instance_id: InstanceId::new(),
            counted_since: DateTime::UNIX_EPOCH,
            taken_at: DateTime::UNIX_EPOCH,
            generation: 1,
            requests,
            answers: [0, answered, 0, 0, 0],
            edge_errors: 0,
            abandoned,
            latency: Histogram::default(),
            held: HeldTraffic::default(),
            websockets: WebsocketTraffic::default(),
            slots: Vec::new(),
        }
    }

    #[test]
    fn nobody_is_answered_when_several_wait_and_no_answer_comes() {
        let begun = Instant::now();
        let looks = |slowest, looks: &[(u64, RouteTraffic)]| {
            let mut silence = Silence::new(slowest);
            looks.iter().find_map(|(second, traffic)| silence.take_in(traffic, begun + Duration::from_secs(*second)))
        };
        let silent = looks(None, &[(0, traffic(20, 10, 4)), (3, traffic(21, 10, 4)), (6, traffic(22, 10, 4))]);
        assert_eq!(silent.as_deref(), Some("8 requests wait, and none was answered for 6 s: the new Odoo does not answer any more"));
        assert_eq!(looks(None, &[(0, traffic(20, 10, 0)), (5, traffic(21, 11, 0)), (10, traffic(22, 12, 0))]), None, "answers come");
        assert_eq!(looks(None, &[(0, traffic(20, 16, 0)), (10, traffic(20, 16, 0))]), None, "few wait");
        assert_eq!(looks(Some(5000.0), &[(0, traffic(20, 10, 0)), (14, traffic(20, 10, 0))]), None, "it was slow before");
    }
}
