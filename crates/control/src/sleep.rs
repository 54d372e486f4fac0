//! Environments that nobody uses sleep whole, Odoo and its cluster; the first request, a push or an injected mail wakes them, and where that is
//! wanted a scheduled action that is due. Production never sleeps.
//!
//! Falling asleep is a reconciler's decision and an operation like a stop, so it stands in one line with deployments. Whoever comes meanwhile
//! waits at the edge, which says who is wanted.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use chrono::{DateTime, Utc};
use ocore_model::{
    environment::Stage,
    ids::{EnvironmentId, InstanceId},
    instance::{ControlAction, InstanceStatus},
};

use crate::{
    Control, Error, Result,
    authorization::{Grant, ManageEnvironments, ViewEnvironments},
    operations::{self, OperationKind},
    store::{self, sleep::SleepRow},
};

/// A week; who wants longer wants never.
const MOST_MINUTES: i32 = 7 * 24 * 60;
/// Until whoever needs a sleeper gives up.
const WAKING: Duration = Duration::from_mins(1);

/// After how long environments without a rule of their own sleep; `None`: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleepSettings {
    pub development: Option<Duration>,
    pub staging: Option<Duration>,
}

impl Default for SleepSettings {
    fn default() -> Self {
        Self { development: Some(Duration::from_mins(30)), staging: Some(Duration::from_hours(4)) }
    }
}

impl SleepSettings {
    /// After how long without a request an environment of that stage with that rule sleeps; `None`: never.
    pub(crate) fn after(&self, stage: Stage, minutes: Option<i32>) -> Option<Duration> {
        match (stage, minutes) {
            (Stage::Production, _) | (_, Some(0)) => None,
            (_, Some(minutes)) => Some(Duration::from_mins(minutes.unsigned_abs().into())),
            (Stage::Staging, None) => self.staging,
            (Stage::Development, None) => self.development,
        }
    }
}

/// When an environment sleeps, and whether it does.
#[derive(Debug, Clone)]
pub struct EnvironmentSleep {
    /// Its own rule, in minutes; 0: never; `None`: as its stage does.
    pub own_minutes: Option<i32>,
    /// What holds for it, in minutes; `None`: it never sleeps.
    pub after_minutes: Option<u64>,
    /// Whether a scheduled action that is due wakes it.
    pub wakes_for_actions: bool,
    pub asleep_since: Option<DateTime<Utc>>,
    /// Of a sleeper: when its next scheduled action is due, whether that wakes it or not.
    pub next_action_at: Option<DateTime<Utc>>,
    /// The memory that its sleep frees, in bytes.
    pub freed_bytes: Option<i64>,
}

pub async fn show(control: &Control, grant: &Grant<ViewEnvironments>, id: EnvironmentId) -> Result<EnvironmentSleep> {
    let row = store::sleep::find(&mut *control.pool.acquire().await?, grant, id).await?;
    Ok(describe(control, &row.ok_or(Error::NotFound { what: "environment" })?))
}

/// Changes what is given. Gives an environment a rule of its own, in minutes (0: never), or with `None` that of its stage; and says whether scheduled actions wake it,
/// with `None` as before. May run twice.
pub async fn update(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    id: EnvironmentId,
    minutes: Option<Option<i32>>,
    wakes_for_actions: Option<bool>,
) -> Result<EnvironmentSleep> {
    let mut transaction = control.pool.begin().await?;
    let row = store::sleep::find(&mut transaction, grant, id).await?.ok_or(Error::NotFound { what: "environment" })?;
    let minutes = minutes.unwrap_or(row.after_minutes);
    if row.stage == Stage::Production && minutes.is_some_and(|minutes| minutes > 0) {
        return Err(Error::conflict("production_awake", "a production environment never sleeps"));
    }
    if minutes.is_some_and(|minutes| !(0..=MOST_MINUTES).contains(&minutes)) {
        return Err(Error::invalid("ownMinutes", format!("use 1 to {MOST_MINUTES} minutes, 0 for never, or null for what its stage does")));
    }
    let wakes_for_actions = wakes_for_actions.unwrap_or(row.wakes_for_actions);
    store::sleep::set_rule(&mut transaction, grant, id, minutes, wakes_for_actions).await?;
    transaction.commit().await?;
    Ok(describe(control, &SleepRow { after_minutes: minutes, wakes_for_actions, ..row }))
}

fn describe(control: &Control, row: &SleepRow) -> EnvironmentSleep {
    EnvironmentSleep {
        own_minutes: row.after_minutes,
        after_minutes: control.settings.sleep.after(row.stage, row.after_minutes).map(|after| after.as_secs() / 60),
        wakes_for_actions: row.wakes_for_actions,
        asleep_since: row.asleep_since,
        next_action_at: row.wake_at,
        freed_bytes: row.freed_bytes,
    }
}

/// Starts a sleeper; whether there was one to start. One that is started already is left alone, so this may run twice and at once.
pub(crate) async fn wake(control: &Control, instance: InstanceId) -> Result<bool> {
    start(control, instance, false).await
}

/// The same because a scheduled action is due: it goes back to sleep sooner.
pub(crate) async fn wake_by_clock(control: &Control, instance: InstanceId) -> Result<bool> {
    start(control, instance, true).await
}

async fn start(control: &Control, instance: InstanceId, by_clock: bool) -> Result<bool> {
    let mut transaction = control.pool.begin().await?;
    let Some(organization) = store::sleep::lock_sleeper(&mut transaction, instance).await? else { return Ok(false) };
    if by_clock {
        store::sleep::set_woken_by_clock(&mut transaction, instance).await?;
    }
    operations::enqueue(&mut transaction, organization, instance, OperationKind::Control { action: ControlAction::Start }).await?;
    transaction.commit().await?;
    operations::wake(control, instance).await;
    Ok(true)
}

/// Starts a sleeper and waits until it runs. One that does not sleep is left as it is.
pub(crate) async fn wake_and_wait(control: &Control, instance: InstanceId) -> Result<()> {
    wake(control, instance).await?;
    let awake = || async {
        match store::sleep::status(&mut *control.pool.acquire().await?, instance).await? {
            Some(InstanceStatus::Asleep) => {
                Err(Error::conflict("still_asleep", "the environment did not wake up within a minute; its log says why"))
            }
            _ => Ok(()),
        }
    };
    let patience = ExponentialBuilder::default().with_min_delay(Duration::from_millis(50)).with_max_delay(Duration::from_millis(500));
    awake
        .retry(patience.without_max_times().with_total_delay(Some(WAKING)))
        .when(|error| matches!(error, Error::Conflict { code, .. } if *code == "still_asleep"))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_s_own_rule_goes_before_that_of_its_stage_and_production_never_sleeps() {
        let settings = SleepSettings::default();
        let minutes = |stage, own| settings.after(stage, own).map(|after| after.as_secs() / 60);
        assert_eq!(minutes(Stage::Development, None), Some(30));
        assert_eq!(minutes(Stage::Staging, None), Some(240));
        assert_eq!(minutes(Stage::Staging, Some(5)), Some(5));
        assert_eq!(minutes(Stage::Development, Some(0)), None);
        assert_eq!(minutes(Stage::Production, None), None);
        assert_eq!(minutes(Stage::Production, Some(5)), None);
    }
}
