//! Streams: what a follower sees is everything, once, in order.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use ocore_control::{
    authorization::ViewOrganization,
    deployments::{self, Cursor, Progress, ProgressEvent},
    events,
};
use ocore_model::{
    deployment::{DeploymentStatus, StepName, StepStatus},
    ids::DeploymentId,
};
use sqlx::PgPool;

use ocore_testkit::Scenario;

/// Far beyond what the streams need; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_mins(1);

async fn step_of(pool: &PgPool, deployment: DeploymentId, step: StepName) -> Result<uuid::Uuid> {
    Ok(sqlx::query_scalar("select id from deployment_steps where deployment_id = $1 and name = $2")
        .bind(deployment.as_uuid())
        .bind(step.as_str())
        .fetch_one(pool)
        .await?)
}

async fn write_lines(pool: &PgPool, deployment: DeploymentId, step: uuid::Uuid, lines: &[String]) -> Result<()> {
    sqlx::query("insert into step_log_lines (deployment_id, step_id, text) select $1, $2, unnest($3::text[])")
        .bind(deployment.as_uuid())
        .bind(step)
        .bind(lines)
        .execute(pool)
        .await?;
    Ok(())
}

async fn set_step(pool: &PgPool, step: uuid::Uuid, status: StepStatus) -> Result<()> {
    sqlx::query("update deployment_steps set status = $2, started_at = coalesce(started_at, now()), completed_at = now() where id = $1")
        .bind(step)
        .bind(status.as_str())
        .execute(pool)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_follower_sees_status_steps_and_lines_until_the_end() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    scenario.commit("first")?;
    let id = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    let follower = tokio::spawn(deployments::follow(control, id, Cursor::default()).try_collect::<Vec<ProgressEvent>>());
    let step = step_of(&control.pool, id, StepName::Checkout).await?;
    scenario.set(id, "status = 'running'").await?;
    set_step(&control.pool, step, StepStatus::Running).await?;
    write_lines(&control.pool, id, step, &["one".to_owned(), "two".to_owned()]).await?;
    set_step(&control.pool, step, StepStatus::Failed).await?;
    scenario.set(id, "status = 'failed', error_message = 'no', error_excerpt = 'Traceback'").await?;
    let events = tokio::time::timeout(PATIENCE, follower).await???;
    let story: Vec<String> = events
        .iter()
        .map(|event| match &event.progress {
            Progress::Status { status, message, excerpt } => format!("{status} {message:?} {excerpt:?}"),
            Progress::Step { name, status, duration_ms, .. } => format!("{name} {status} {}", duration_ms.is_some()),
            Progress::Line { step, text } => format!("{step}: {text}"),
        })
        .collect();
    assert_eq!(
        story,
        [
            "queued None None",
            "running None None",
            "checkout running true",
            "checkout: one",
            "checkout: two",
            "checkout failed true",
            r#"failed Some("no") Some("Traceback")"#,
        ]
    );
    // From the middle on, and from the end.
    let rest: Vec<ProgressEvent> = deployments::follow(control, id, events[2].cursor).try_collect().await?;
    assert_eq!(rest, events[3..]);
    let nothing: Vec<ProgressEvent> = deployments::follow(control, id, events[6].cursor).try_collect().await?;
    assert_eq!(nothing, []);
    assert!(deployments::has_ended_by(control, id, events[6].cursor).await?);
    assert!(!deployments::has_ended_by(control, id, events[5].cursor).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_follower_that_comes_back_loses_and_repeats_nothing_while_many_write() -> Result<()> {
    const WRITERS: usize = 6;
    const BATCHES: usize = 40;
    let scenario = Scenario::new().await?;
    let control = scenario.store.control.clone();
    scenario.commit("first")?;
    let id = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    scenario.set(id, "status = 'running'").await?;
    let steps = [StepName::Build, StepName::Update, StepName::Start];
    let writers = (0..WRITERS).map(|writer| {
        let pool = control.pool.clone();
        let step = steps[writer % steps.len()];
        tokio::spawn(async move {
            let step = step_of(&pool, id, step).await?;
            for batch in 0..BATCHES {
                // Transactions that stay open for different times end in another order than they wrote.
                let mut transaction = pool.begin().await?;
                for part in 0..2 {
                    sqlx::query("insert into step_log_lines (deployment_id, step_id, text) values ($1, $2, $3)")
                        .bind(id.as_uuid())
                        .bind(step)
                        .bind(format!("{writer} {batch} {part}"))
                        .execute(&mut *transaction)
                        .await?;
                    if batch % 3 == writer % 3 {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
                transaction.commit().await?;
            }
            anyhow::Ok(())
        })
    });
    let writing = futures::future::try_join_all(writers);
    // One follower stays; the others hang up after a few events each and come back with the last cursor.
    let steady = tokio::spawn(deployments::follow(&control, id, Cursor::default()).try_collect::<Vec<ProgressEvent>>());
    let returning = tokio::spawn({
        let control = control.clone();
        async move {
            let mut seen: Vec<ProgressEvent> = Vec::new();
            for visit in 0.. {
                let after = seen.last().map_or(Cursor::default(), |event| event.cursor);
                let some: Vec<ProgressEvent> = deployments::follow(&control, id, after).take(1 + visit % 13).try_collect().await?;
                if some.is_empty() {
                    break;
                }
                seen.extend(some);
            }
            anyhow::Ok(seen)
        }
    });
    for written in tokio::time::timeout(PATIENCE, writing).await?? {
        written?;
    }
    scenario.set(id, "status = 'succeeded'").await?;
    let steady = tokio::time::timeout(PATIENCE, steady).await???;
    let returning = tokio::time::timeout(PATIENCE, returning).await???;
    assert_eq!(steady, returning, "both have seen the same");
    let mut lines: Vec<&str> = steady
        .iter()
        .filter_map(|event| match &event.progress {
            Progress::Line { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let total = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!((total, lines.len()), (WRITERS * BATCHES * 2, WRITERS * BATCHES * 2), "none lost, none twice");
    assert!(steady.windows(2).all(|pair| pair[0].cursor < pair[1].cursor));
    let last = &steady.last().context("there are events")?.progress;
    assert!(matches!(last, Progress::Status { status: DeploymentStatus::Succeeded, .. }), "{last:?}");
    Ok(())
}

#[tokio::test]
async fn followers_go_on_when_the_store_cuts_the_listener() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    scenario.commit("first")?;
    let id = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    let mut follower = deployments::follow(control, id, Cursor::default());
    let first = tokio::time::timeout(PATIENCE, follower.next()).await?.context("it has an event")??;
    assert!(matches!(first.progress, Progress::Status { status: DeploymentStatus::Queued, .. }));
    // The listener is the backend whose last statement was the LISTEN.
    let cut: i64 = loop {
        let cut = sqlx::query_scalar(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid() and query like 'LISTEN%'",
        )
        .fetch_one(&control.pool)
        .await?;
        if cut > 0 {
            break cut;
        }
        tokio::task::yield_now().await;
    };
    ensure!(cut == 1, "{cut} listeners in one process");
    scenario.set(id, "status = 'failed', error_message = 'no'").await?;
    let last = tokio::time::timeout(PATIENCE, follower.next()).await?.context("it has an event")??;
    assert!(matches!(last.progress, Progress::Status { status: DeploymentStatus::Failed, .. }));
    assert!(follower.next().await.is_none(), "it ends with the deployment");
    Ok(())
}

#[tokio::test]
async fn an_organization_sees_its_own_events_and_in_no_order_that_hides_one() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    let other = scenario.store.organization("other").await?;
    let grant = scenario.grant::<ViewOrganization>()?;
    let (begin, mut mine) = events::follow(control, &grant, None).await?;
    let (_, mut theirs) = events::follow(control, &other.scope.grant()?, None).await?;
    let next = async |stream: &mut std::pin::Pin<
        Box<dyn futures::Stream<Item = ocore_control::Result<events::OrganizationEvent>> + Send>,
    >| { anyhow::Ok(tokio::time::timeout(PATIENCE, stream.next()).await?.context("it does not end")??) };
    scenario.commit("first")?;
    let id = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    let mut kinds = Vec::new();
    let mut cursors = Vec::new();
    for _ in 0..4 {
        let event = next(&mut mine).await?;
        kinds.push(event.kind);
        cursors.push(event.cursor);
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["deployment.status", "environment.status", "environment.status", "instance.status"]);
    // An older transaction that ends later is seen before a younger one that ended first.
    let mut older = control.pool.begin().await?;
    sqlx::query("update instances set status_message = 'older'").execute(&mut *older).await?;
    scenario.set(id, "status = 'running'").await?;
    let (_, mut held_back) = events::follow(control, &grant, cursors.last().copied()).await?;
    let held_back = tokio::time::timeout(Duration::from_millis(300), held_back.next()).await;
    assert!(held_back.is_err(), "an event that could hide an older one is shown");
    older.commit().await?;
    let mut events = Vec::new();
    for _ in 0..2 {
        events.push(next(&mut mine).await?.kind);
    }
    assert_eq!(events, ["instance.status", "deployment.status"]);
    // Who comes back without having seen one begins where they began.
    let (_, mut again) = events::follow(control, &grant, Some(begin)).await?;
    assert_eq!(next(&mut again).await?.cursor, cursors[0]);
    // The other organization has seen nothing of it.
    assert!(futures::poll!(theirs.next()).is_pending());
    Ok(())
}
