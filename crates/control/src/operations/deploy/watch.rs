//! What users get is counted at the moments of a deployment, and watched for a while after the switch: when it is worse than before, the deployment is
//! taken back.

use std::time::Duration;

use ocore_model::{
    deployment::{DataOrigin, StepName},
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
    released(step).await;
    mark(control, parameters, Moment::Switched).await;
    let watched = compare(step).await;
    mark(control, parameters, Moment::Ended).await;
    let Some(worse) = watched? else { return Ok(()) };
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
            if after.requests >= ENOUGH && begun.elapsed() >= SHORTEST {
                return Ok(None);
            }
        }
        if begun.elapsed() >= patience {
            return Ok(None);
        }
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
