//! What nobody uses sleeps, what somebody asks for wakes, and neither gets in the way of a deployment.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use chrono::{Duration, Utc};
use ocore_control::{operations::OperationKind, reconcilers::run_all};
use ocore_host::ScheduledActions;
use ocore_model::{
    deployment::DeploymentStatus,
    edge::InstanceTraffic,
    ids::InstanceId,
    instance::{ControlAction, InstanceStatus},
    operation::OperationStatus,
    route::RouteState,
};

use crate::scene::{Place, Scene};

fn traffic(instance: InstanceId, minutes_ago: i64) -> InstanceTraffic {
    InstanceTraffic {
        instance_id: instance,
        requests_in_flight: 0,
        websockets: 1,
        requests_total: 1,
        errors_total: 0,
        websockets_total: 1,
        held: 0,
        held_total: 0,
        last_request_at: Some(Utc::now() - Duration::minutes(minutes_ago)),
        wanted: false,
        upstreams: Vec::new(),
    }
}

/// It has run, and nothing was deployed, for so long; the edge is older still.
async fn long_ago(scene: &Scene, place: Place, minutes: i32) {
    let pool = &scene.control().pool;
    for statement in [
        "update instances set awake_since = now() - make_interval(mins => $2) where id = $1",
        "update deployments set created_at = now() - make_interval(mins => $2), completed_at = now() - make_interval(mins => $2) where instance_id = $1",
    ] {
        sqlx::query(statement).bind(place.instance.as_uuid()).bind(minutes).execute(pool).await.unwrap();
    }
}

async fn asleep(scene: &Scene, place: Place) {
    becomes(scene, place, InstanceStatus::Asleep).await;
}

/// And nobody works on it any more.
async fn becomes(scene: &Scene, place: Place, status: InstanceStatus) {
    scene.eventually(async || scene.instance_status(place).await == status && scene.instance(place).await.operation_id.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_asked_for_falls_asleep_whole_and_wakes_when_somebody_asks() {
    let scene = Scene::new().await;
    let place = scene.place("feature").await;
    scene.live(place, &[("a", "1")]).await;
    let engine = scene.engine().await;
    long_ago(&scene, place, 600).await;

    // Used ten minutes ago, or a request is under way: it stays awake. The edge's start counts as use: it remembers nothing from before.
    for busy in [traffic(place.instance, 10), InstanceTraffic { requests_in_flight: 1, ..traffic(place.instance, 400) }] {
        scene.world.set_traffic(vec![busy]);
        run_all(scene.control()).await.unwrap();
        assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
    }
    scene.world.set_traffic(vec![traffic(place.instance, 400)]);
    run_all(scene.control()).await.unwrap();
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);

    scene.world.set_edge_started(Utc::now() - Duration::minutes(700));
    run_all(scene.control()).await.unwrap();
    asleep(&scene, place).await;
    let world = scene.world.instance(place.instance);
    assert!(world.slots.is_empty() && world.clusters.is_empty() && world.data_sets.len() == 1);
    assert_eq!(scene.world.route(place.instance), Some(RouteState::Asleep { seconds: 60 }));
    assert!(scene.column::<i64>("select freed_bytes from instances where id = $1", place.instance.as_uuid()).await > 0);
    run_all(scene.control()).await.unwrap();
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Asleep, "nobody starts a sleeper unasked");

    scene.world.set_traffic(vec![InstanceTraffic { wanted: true, held: 1, ..traffic(place.instance, 0) }]);
    run_all(scene.control()).await.unwrap();
    scene.eventually(async || scene.instance_status(place).await == InstanceStatus::Running).await;
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })));
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_wakes_a_sleeper_and_one_that_fails_leaves_it_asleep() {
    let scene = Scene::new().await;
    let place = scene.place("feature").await;
    scene.live(place, &[("a", "1")]).await;
    let engine = scene.engine().await;
    let sleep = scene.ask(place, OperationKind::Control { action: ControlAction::Sleep }).await;
    assert_eq!(scene.operation_ended(sleep).await, OperationStatus::Succeeded);

    scene.world.trouble("run_modules", crate::world::Trouble::Reject("the view is invalid"));
    let commit = scene.commit(&[("a", "2")]).await;
    let failed = scene.deploy(place, &commit, "live").await;
    assert_eq!(scene.ended(failed).await, DeploymentStatus::Failed);
    asleep(&scene, place).await;
    assert!(scene.world.instance(place.instance).slots.is_empty());
    scene.world.relieve("run_modules");

    let deployment = scene.deploy(place, &commit, "live").await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
    let since = "select asleep_since from instances where id = $1";
    assert_eq!(scene.column::<Option<chrono::DateTime<Utc>>>(since, place.instance.as_uuid()).await, None);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_action_that_is_due_wakes_who_wants_it_and_one_at_work_keeps_it_awake() {
    let scene = Scene::new().await;
    let place = scene.place("feature").await;
    scene.live(place, &[("a", "1")]).await;
    let engine = scene.engine().await;
    scene.world.set_edge_started(Utc::now() - Duration::minutes(700));
    scene.world.set_traffic(vec![traffic(place.instance, 400)]);
    long_ago(&scene, place, 600).await;
    let due = Utc::now() + Duration::hours(1);

    scene.world.set_scheduled_actions(ScheduledActions { running: true, next: Some(due) });
    run_all(scene.control()).await.unwrap();
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running, "one at work is not cut off");

    scene.world.set_scheduled_actions(ScheduledActions { running: false, next: Some(due) });
    run_all(scene.control()).await.unwrap();
    asleep(&scene, place).await;
    let wake_at = "select wake_at from instances where id = $1";
    let noted = scene.column::<Option<chrono::DateTime<Utc>>>(wake_at, place.instance.as_uuid()).await.unwrap();
    assert!((noted - due).num_milliseconds().abs() < 1);

    // Due, but nobody has asked for that.
    let pool = &scene.control().pool;
    let overdue = "update instances set wake_at = now() - interval '1 hour' where id = $1";
    sqlx::query(overdue).bind(place.instance.as_uuid()).execute(pool).await.unwrap();
    run_all(scene.control()).await.unwrap();
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Asleep);

    let wakes = "update environments set wakes_for_actions = true where instance_id = $1";
    sqlx::query(wakes).bind(place.instance.as_uuid()).execute(pool).await.unwrap();
    run_all(scene.control()).await.unwrap();
    becomes(&scene, place, InstanceStatus::Running).await;
    assert_eq!(scene.column::<Option<chrono::DateTime<Utc>>>(wake_at, place.instance.as_uuid()).await, None);

    // Nobody came: five minutes are enough. What could not run meanwhile does not wake it at once.
    long_ago(&scene, place, 4).await;
    run_all(scene.control()).await.unwrap();
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
    scene.world.set_scheduled_actions(ScheduledActions { running: false, next: Some(due - Duration::hours(2)) });
    long_ago(&scene, place, 6).await;
    run_all(scene.control()).await.unwrap();
    asleep(&scene, place).await;
    let noted = scene.column::<Option<chrono::DateTime<Utc>>>(wake_at, place.instance.as_uuid()).await.unwrap();
    assert!(noted > Utc::now() + Duration::minutes(4));
    engine.stop().await;
}
