//! What users get after a switch is compared with what they got before; worse takes the deployment back, and what they wrote is kept.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use chrono::{DateTime, Utc};
use ocore_model::{
    deployment::DeploymentStatus,
    edge::{HeldTraffic, RouteTraffic, WebsocketTraffic},
    histogram::Histogram,
    ids::{DeploymentId, SnapshotId},
    instance::Color,
    report::DeployReport,
};

use crate::scene::{Place, Scene};

fn traffic(place: Place, second: i64, requests: u64, failed: u64) -> RouteTraffic {
    let at = |second| DateTime::<Utc>::from_timestamp(1_700_000_000 + second, 0).unwrap();
    RouteTraffic {
        instance_id: place.instance,
        counted_since: at(0),
        taken_at: at(second),
        generation: 1,
        requests,
        answers: [0, requests - failed, 0, 0, failed],
        edge_errors: 0,
        abandoned: 0,
        latency: Histogram::default(),
        held: HeldTraffic::default(),
        websockets: WebsocketTraffic::default(),
        slots: Vec::new(),
    }
}

/// At its begin, before the change, when nobody waits any more, at the switch, and then.
fn script(place: Place, after: (u64, u64)) -> Vec<RouteTraffic> {
    let (requests, failed) = after;
    vec![
        traffic(place, 0, 1000, 1),
        traffic(place, 10, 1400, 1),
        traffic(place, 20, 1500, 1),
        traffic(place, 20, 1500, 1),
        traffic(place, 30, 1500 + requests, 1 + failed),
    ]
}

async fn deploy(scene: &Scene, place: Place, modules: &[(&str, &str)]) -> (DeploymentId, DeploymentStatus) {
    let commit = scene.commit(modules).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    let status = scene.ended(deployment).await;
    engine.stop().await;
    (deployment, status)
}

async fn report(scene: &Scene, deployment: DeploymentId) -> DeployReport {
    ocore_control::reports::report(scene.control(), &scene.scope.grant().unwrap(), deployment).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_after_which_requests_fail_is_taken_back_and_what_was_written_is_kept() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "data 1")]).await;
    let before = scene.instance(place).await;
    scene.world.script_traffic(script(place, (100, 40)));
    let (deployment, status) = deploy(&scene, place, &[("a", "data 2")]).await;
    assert_eq!(status, DeploymentStatus::Failed);
    let message = scene.message(deployment).await.unwrap();
    assert_eq!(
        message,
        "40 of 100 requests failed within 10 s after the switch (0 of 400 before); what was live before is live again, and what was written since \
         the switch is kept as a snapshot"
    );
    let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
    assert_eq!((row.active_data_set_id, row.active_color.as_deref()), (before.active_data_set_id, Some("blue")));
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Blue], "the old slot serves again");
    assert_eq!(world.data_sets.len(), 1);
    let kept = scene.snapshots(place).await;
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].kind.as_str(), kept[0].status.as_str()), ("safety", "ready"));
    let (_, content) = scene.world.snapshot(SnapshotId(kept[0].id)).unwrap();
    assert_eq!(content, ["installed a", "updated a"], "the data that were live for a while");
    let report = report(&scene, deployment).await;
    assert_eq!(report.kept_snapshot_id, Some(kept[0].id));
    assert_eq!(report.undone.as_deref(), Some(&*message));
    assert_eq!(report.after.as_ref().map(|after| (after.requests, after.failed)), Some((100, 40)));
    // Once more, and better.
    scene.world.script_traffic(script(place, (300, 0)));
    let (_, status) = deploy(&scene, place, &[("a", "data 3")]).await;
    assert_eq!(status, DeploymentStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_logs_errors_gives_way_to_the_slot_that_still_runs() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "code 1")]).await;
    let before = scene.instance(place).await;
    scene.world.script_traffic(script(place, (100, 0)));
    let starts = scene.world.calls("start_slot");
    scene.world.set_logged_errors(0);
    let commit = scene.commit(&[("a", "code 2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    scene.world.trouble("start_slot", crate::world::Trouble::HoldAfter);
    let engine = scene.engine().await;
    scene.world.held("start_slot").await;
    scene.world.set_logged_errors(30);
    scene.world.relieve("start_slot");
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed);
    engine.stop().await;
    let message = scene.message(deployment).await.unwrap();
    assert_eq!(message, "Odoo logged 30 errors within 10 s after the switch (0 within 10 s before); what was live before is live again");
    let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
    assert_eq!((row.active_data_set_id, row.active_color.as_deref()), (before.active_data_set_id, Some("blue")));
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Blue]);
    assert_eq!(scene.world.calls("start_slot"), starts + 1, "the old slot was never stopped");
    assert!(scene.snapshots(place).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_users_is_not_watched_and_one_with_them_is_told_about() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "data 1")]).await;
    scene.world.script_traffic([traffic(place, 0, 2, 0)]);
    let (deployment, status) = deploy(&scene, place, &[("a", "data 2")]).await;
    assert_eq!(status, DeploymentStatus::Succeeded);
    assert!(!scene.lines(deployment).await.iter().any(|line| line.starts_with("comparing")));
    scene.world.script_traffic(script(place, (300, 1)));
    let (deployment, status) = deploy(&scene, place, &[("a", "data 3")]).await;
    assert_eq!(status, DeploymentStatus::Succeeded);
    let lines = report(&scene, deployment).await.lines();
    assert!(lines.iter().any(|line| line == "before: 400 requests in 10.0 s, 0 failed"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "after: 300 requests in 10.0 s, 1 failed"), "{lines:?}");
}
