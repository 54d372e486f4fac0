//! Deployments on the engine: what goes live, what is taken back, what a crash leaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use ocore_control::operations::{self, Cancellation, Injection};
use ocore_model::{
    deployment::{DataOrigin, DeploymentStatus, StepName, StepStatus},
    environment::Stage,
    ids::{DeploymentId, SnapshotId},
    instance::Color,
    operation::OperationStatus,
    route::RouteState,
};

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

/// In the order of the graph.
pub(crate) const NODES: &[&str] = &[
    "deploy::checkout",
    "deploy::plan",
    "deploy::build",
    "deploy::undo_rehearse",
    "deploy::rehearse",
    "deploy::undo_copy",
    "deploy::copy",
    "deploy::update",
    "deploy::undo_start",
    "deploy::start",
    "deploy::undo_switch",
    "deploy::switch",
    "deploy::verify",
    "deploy::let_go",
];
/// Of a deployment without data to keep.
fn nodes_without_rehearsal() -> impl Iterator<Item = &'static str> {
    NODES.iter().copied().filter(|node| !node.ends_with("rehearse"))
}

/// The calls of the host in which a deployment with kept data can be interrupted.
const CALLS: &[&str] = &[
    "seal_source",
    "distribution",
    "installed_modules",
    "build_release",
    "create_instance",
    "prepare_copy",
    "create_data_set",
    "run_modules",
    "start_slot",
    "apply_routes",
    "edge_status",
    "retire_data_set",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_first_deployment_goes_live_with_all_its_steps_and_their_logs() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let commit = scene.commit(&[("a", "1"), ("b", "1")]).await;
    let engine = scene.engine().await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let drawn: Vec<StepName> = scene.steps(deployment).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(drawn, DataOrigin::Live.steps(place.instance, Stage::Development), "the steps can be drawn before they run");
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;

    assert!(scene.steps(deployment).await.iter().all(|(_, status)| *status == StepStatus::Succeeded));
    assert!(scene.lines(deployment).await.iter().any(|line| line == "odoo runs"));
    let row = scene.instance(place).await;
    assert_eq!((row.status.as_str(), row.active_color.as_deref(), row.operation_id), ("running", Some("blue"), None));
    assert!(row.admin_password.is_some(), "the password of a fresh database is kept");
    let world = scene.world.instance(place.instance);
    assert_eq!(world.data_sets.values().collect::<Vec<_>>(), [&["installed a", "installed b"]]);
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Blue]);
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })));
    let live: Option<String> = scene.column("select live_commit_sha from environments where id = $1", place.environment.as_uuid()).await;
    assert_eq!(live, Some(commit));
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_data_are_updated_in_a_copy_and_those_before_become_a_snapshot() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1"), ("b", "1")]).await;
    let first = scene.instance(place).await;
    let commit = scene.commit(&[("a", "2"), ("b", "1"), ("c", "1")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;

    let row = scene.instance(place).await;
    assert_eq!((row.active_color.as_deref(), row.previous_data_set_id), (Some("green"), None));
    assert_eq!(row.admin_password, first.admin_password);
    let world = scene.world.instance(place.instance);
    let updated = done(&["installed a", "installed b", "installed c", "updated a"]);
    assert_eq!(world.data_sets.iter().collect::<Vec<_>>(), [(&row.live(), &updated)]);
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Green]);
    assert_eq!(world.clusters.iter().collect::<Vec<_>>(), [&row.live()]);
    let [snapshot] = scene.snapshots(place).await.try_into().unwrap();
    assert_eq!((snapshot.kind.as_str(), snapshot.status.as_str(), snapshot.data_set_id), ("automatic", "ready", first.live().as_uuid()));
    assert_eq!(snapshot.release, first.active_release, "the release that ran on them is kept with them");
    let (manifest, content) = scene.world.snapshot(SnapshotId(snapshot.id)).unwrap();
    assert_eq!((manifest.data_set, content), (first.live(), done(&["installed a", "installed b"])));
    let kept: Option<uuid::Uuid> = scene.column("select snapshot_id from deployments where id = $1", deployment.as_uuid()).await;
    assert_eq!(kept, Some(snapshot.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_automatic_snapshots_the_data_before_are_removed() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    sqlx::query(
        "insert into snapshot_settings (environment_id, auto_enabled, failure_policy, max_pinned, retention_days, timeout_seconds)
         values ($1, false, 'fail', 5, 7, 600)",
    )
    .bind(place.environment.as_uuid())
    .execute(&scene.control().pool)
    .await
    .unwrap();
    assert_eq!(update(&scene, place, &[("a", "2")]).await, DeploymentStatus::Succeeded);
    assert_eq!(scene.world.instance(place.instance).data_sets.len(), 1);
    assert!(scene.snapshots(place).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_cannot_be_retired_now_stay_until_they_can() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let first = scene.instance(place).await;
    scene.world.trouble("retire_data_set", Trouble::Break("the disk does not answer"));
    assert_eq!(update(&scene, place, &[("a", "2")]).await, DeploymentStatus::Succeeded, "what is live is live");
    scene.world.relieve("retire_data_set");
    let [snapshot] = scene.snapshots(place).await.try_into().unwrap();
    assert_eq!((snapshot.status.as_str(), snapshot.data_set_id), ("creating", first.live().as_uuid()));
    ocore_control::reconcilers::run_all(scene.control()).await.unwrap();
    let world = scene.world.instance(place.instance);
    let kept = world.data_sets.contains_key(&first.live()) || scene.world.snapshot(SnapshotId(snapshot.id)).is_some();
    assert!(kept, "no reconciler throws away what is to become a snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_earlier_data_cannot_be_kept_the_policy_says_whether_the_next_deployment_goes_on() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    scene.world.trouble("retire_data_set", Trouble::Break("the disk does not answer"));
    assert_eq!(update(&scene, place, &[("a", "2")]).await, DeploymentStatus::Succeeded);
    let message: String = scene.column("select message from snapshots where environment_id = $1", place.environment.as_uuid()).await;
    assert!(message.contains("the disk does not answer") && message.contains("tried again"), "{message}");

    // `fail`, as every environment begins: before anything is changed.
    let (before, world) = (scene.instance(place).await, scene.world.instance(place.instance).data_sets);
    assert_eq!(update(&scene, place, &[("a", "3")]).await, DeploymentStatus::Failed);
    let sentence: String = scene
        .column(
            "select error_message from deployments where environment_id = $1 order by created_at desc limit 1",
            place.environment.as_uuid(),
        )
        .await;
    assert!(sentence.contains("the disk does not answer") && sentence.contains("failurePolicy"), "{sentence}");
    let after = scene.instance(place).await;
    assert_eq!(
        (after.live(), after.active_color, scene.world.instance(place.instance).data_sets),
        (before.live(), before.active_color, world)
    );

    // `continue`: nothing that was not kept is lost by it.
    sqlx::query(
        "insert into snapshot_settings (environment_id, auto_enabled, failure_policy, max_pinned, retention_days, timeout_seconds)
         values ($1, true, 'continue', 5, 7, 600) on conflict (environment_id) do update set failure_policy = 'continue'",
    )
    .bind(place.environment.as_uuid())
    .execute(&scene.control().pool)
    .await
    .unwrap();
    assert_eq!(update(&scene, place, &[("a", "3")]).await, DeploymentStatus::Succeeded);
    assert_eq!(scene.world.instance(place.instance).data_sets.len(), 3, "what is live and both before");

    // When the trouble is over, the next one keeps what is owed.
    scene.world.relieve("retire_data_set");
    assert_eq!(update(&scene, place, &[("a", "4")]).await, DeploymentStatus::Succeeded);
    let statuses: Vec<String> = scene.snapshots(place).await.into_iter().map(|snapshot| snapshot.status).collect();
    assert_eq!(statuses, ["ready"; 3]);
    assert_eq!(scene.world.instance(place.instance).data_sets.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_database_beside_the_live_one_lets_the_old_serve_until_the_new_is_good() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let before = scene.instance(place).await;
    let commit = scene.commit(&[("a", "2")]).await;
    scene.world.trouble("run_modules", Trouble::Hold);
    let engine = scene.engine().await;
    let deployment = scene.deploy(place, &commit, "fresh").await;
    scene.world.held("run_modules").await;
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })));
    assert!(scene.world.instance(place.instance).slots.contains_key(&Color::Blue));
    scene.world.relieve("run_modules");
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    let row = scene.instance(place).await;
    let world = scene.world.instance(place.instance);
    assert_eq!(world.data_sets[&row.live()], ["installed a"]);
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Green]);
    assert_ne!(row.admin_password, before.admin_password);
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_node_fails_the_world_is_as_before_and_the_next_deployment_goes_live() {
    for repeat_undo in [false, true] {
        let scene = Scene::new().await;
        let place = scene.place("main").await;
        // The first deployment: nothing is there before, nothing is there after.
        let commit = scene.commit(&[("a", "1")]).await;
        for node in nodes_without_rehearsal() {
            let deployment = fail_at(&scene, place, &commit, "live", node, repeat_undo).await;
            let world = scene.world.instance(place.instance);
            assert!(world.data_sets.is_empty() && world.slots.is_empty() && world.clusters.is_empty(), "{node}: {world:?}");
            let row = scene.instance(place).await;
            assert_eq!((row.status.as_str(), row.active_color), ("failed", None), "{node}");
            assert!(!matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })), "{node}");
            assert!(scene.steps(deployment).await.iter().all(|(_, status)| !matches!(status, StepStatus::Pending | StepStatus::Running)));
        }
        // A later one: what was live is live again.
        scene.live(place, &[("a", "1")]).await;
        let commit = scene.commit(&[("a", "2")]).await;
        for data in ["live", "fresh"] {
            for node in NODES.iter().copied().filter(|node| data == "live" || nodes_without_rehearsal().any(|other| other == *node)) {
                let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
                let route = scene.world.route(place.instance);
                fail_at(&scene, place, &commit, data, node, repeat_undo).await;
                let mut after = scene.world.instance(place.instance);
                after.generation = world.generation;
                assert_eq!(
                    (after, scene.instance(place).await, scene.world.route(place.instance)),
                    (world, row, route),
                    "{node} with {data} data"
                );
            }
        }
        assert_eq!(update(&scene, place, &[("a", "2")]).await, DeploymentStatus::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_may_run_twice() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let first = scene.instance(place).await;
    let commit = scene.commit(&[("a", "2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine_with(NODES.iter().map(|node| Injection::Repeat(node)).collect()).await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    let row = scene.instance(place).await;
    let world = scene.world.instance(place.instance);
    assert_eq!(world.data_sets[&row.live()], ["installed a", "updated a"], "the update ran once on what is live");
    assert_eq!((world.data_sets.len(), world.slots.len(), world.clusters.len()), (1, 1, 1));
    let [snapshot] = scene.snapshots(place).await.try_into().unwrap();
    assert_eq!((snapshot.status.as_str(), Some(snapshot.data_set_id)), ("ready", first.active_data_set_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_was_interrupted_in_any_call_goes_on_at_the_next_start() {
    for trouble in [Trouble::Hold, Trouble::HoldAfter] {
        let scene = Scene::new().await;
        let place = scene.place("main").await;
        scene.live(place, &[("a", "0")]).await;
        let mut deployments = 0;
        for (number, call) in CALLS.iter().enumerate() {
            if matches!(trouble, Trouble::HoldAfter)
                && !matches!(*call, "build_release" | "create_data_set" | "run_modules" | "start_slot" | "retire_data_set")
            {
                continue;
            }
            let commit = scene.commit(&[("a", &format!("{}", number + 1))]).await;
            scene.world.trouble(call, trouble.clone());
            let deployment = scene.deploy(place, &commit, "live").await;
            let engine = scene.engine().await;
            scene.world.held(call).await;
            // The process goes while the call is under way.
            let stopping = engine.stop();
            tokio::pin!(stopping);
            tokio::select! {
                () = &mut stopping => {}
                // A call that cannot be cancelled ends when the machine lets it.
                () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
            }
            scene.world.relieve(call);
            if !matches!(scene.operation_status(scene.operation_of(deployment).await).await, OperationStatus::Succeeded) {
                assert_eq!(scene.status(deployment).await, DeploymentStatus::Running, "{call}");
            }
            let builds = scene.world.calls("build_release");
            let engine = scene.engine().await;
            assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{call}: {:?}", scene.message(deployment).await);
            engine.stop().await;
            let again = scene.world.calls("build_release") - builds;
            let expected = usize::from(matches!(*call, "seal_source" | "distribution" | "installed_modules" | "build_release"));
            assert_eq!(again, expected, "{call}: finished nodes are not repeated, the interrupted one is");
            let row = scene.instance(place).await;
            let world = scene.world.instance(place.instance);
            assert_eq!((world.data_sets.len(), world.slots.len(), world.clusters.len()), (1, 1, 1), "{call}: {world:?}");
            deployments += 1;
            let updates = world.data_sets[&row.live()].iter().filter(|done| *done == "updated a").count();
            assert_eq!(updates, deployments, "{call}: the update ran once on what is live");
            let snapshots = scene.snapshots(place).await;
            assert_eq!(snapshots.len(), deployments, "{call}: each has kept what was before it, once");
            assert!(snapshots.iter().all(|snapshot| snapshot.status == "ready"), "{call}: {snapshots:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_says_is_the_deployments_message_and_the_old_one_serves_on() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let (row, route) = (scene.instance(place).await, scene.world.route(place.instance));
    scene.world.trouble("run_modules", Trouble::Reject("the view of a is wrong"));
    assert_eq!(update(&scene, place, &[("a", "2")]).await, DeploymentStatus::Failed);
    scene.world.relieve("run_modules");
    assert_eq!((scene.instance(place).await, scene.world.route(place.instance)), (row, route));
    let message: Option<String> = sqlx::query_scalar("select error_message from deployments order by id desc limit 1")
        .fetch_one(&scene.control().pool)
        .await
        .unwrap();
    assert_eq!(message.as_deref(), Some("the view of a is wrong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_deployment_stops_inside_its_step_and_takes_back_what_it_did() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let (row, mut world) = (scene.instance(place).await, scene.world.instance(place.instance));
    let commit = scene.commit(&[("a", "2")]).await;
    scene.world.trouble("run_modules", Trouble::Hold);
    let engine = scene.engine().await;
    let running = scene.deploy(place, &commit, "live").await;
    let queued = scene.deploy(place, &commit, "live").await;
    scene.world.held("run_modules").await;
    assert_eq!(cancel(&scene, queued).await, Cancellation::Done);
    assert_eq!(scene.status(queued).await, DeploymentStatus::Cancelled);
    assert_eq!(cancel(&scene, running).await, Cancellation::Asked);
    assert_eq!(scene.ended(running).await, DeploymentStatus::Cancelled);
    scene.world.relieve("run_modules");
    assert_eq!(cancel(&scene, running).await, Cancellation::TooLate);
    engine.stop().await;
    let after = scene.world.instance(place.instance);
    world.generation = after.generation;
    assert_eq!((scene.instance(place).await, after), (row, world));
    let skipped = scene.steps(queued).await;
    assert!(skipped.iter().all(|(_, status)| *status == StepStatus::Skipped), "{skipped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_in_any_call_leaves_what_served_or_comes_too_late() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "0")]).await;
    for (number, call) in CALLS.iter().enumerate() {
        let (row, world, route) = (scene.instance(place).await, scene.world.instance(place.instance), scene.world.route(place.instance));
        let commit = scene.commit(&[("a", &format!("{}", number + 1))]).await;
        scene.world.trouble(call, Trouble::Hold);
        let deployment = scene.deploy(place, &commit, "live").await;
        let engine = scene.engine().await;
        scene.world.held(call).await;
        let asked = cancel(&scene, deployment).await;
        if *call == "retire_data_set" {
            // It is heard while the call is under way.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        scene.world.relieve(call);
        let status = scene.ended(deployment).await;
        engine.stop().await;
        let mut after = scene.world.instance(place.instance);
        after.generation = world.generation;
        // From the switch on nothing is cancelled.
        if matches!(*call, "apply_routes" | "edge_status" | "retire_data_set") && status == DeploymentStatus::Succeeded {
            assert_eq!((after.data_sets.len(), after.slots.len(), after.clusters.len()), (1, 1, 1), "{call}: {after:?}");
            continue;
        }
        assert_eq!((asked, status), (Cancellation::Asked, DeploymentStatus::Cancelled), "{call}");
        assert_eq!((after, scene.instance(place).await, scene.world.route(place.instance)), (world, row, route), "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_push_supersedes_what_has_changed_nothing_and_waits_for_what_has() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let commit = scene.commit(&[("a", "2")]).await;
    scene.world.trouble("build_release", Trouble::Hold);
    let engine = scene.engine().await;
    let building = scene.deploy(place, &commit, "live").await;
    scene.world.held("build_release").await;
    let queued = scene.deploy(place, &commit, "live").await;
    let newest = scene.deploy(place, &commit, "live").await;
    assert_eq!(supersede(&scene, place, newest).await.len(), 2);
    assert_eq!(scene.ended(building).await, DeploymentStatus::Superseded);
    assert_eq!(scene.ended(queued).await, DeploymentStatus::Superseded);
    scene.world.trouble("run_modules", Trouble::Hold);
    scene.world.relieve("build_release");
    scene.world.held("run_modules").await;
    let later = scene.deploy(place, &commit, "live").await;
    assert!(supersede(&scene, place, later).await.is_empty(), "what changes something is not superseded");
    scene.world.relieve("run_modules");
    assert_eq!(scene.ended(newest).await, DeploymentStatus::Succeeded);
    assert_eq!(scene.ended(later).await, DeploymentStatus::Succeeded);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_fails_leaves_the_operation_stuck_until_the_next_start_undoes_it() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let mut before = scene.world.instance(place.instance);
    let row = scene.instance(place).await;
    let commit = scene.commit(&[("a", "2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine_with(vec![Injection::Fail("deploy::start"), Injection::FailUndo("deploy::undo_copy")]).await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed);
    engine.stop().await;
    let operation = scene.operation_of(deployment).await;
    assert_eq!(scene.operation_status(operation).await, OperationStatus::Stuck);
    let held = scene.instance(place).await;
    assert_eq!(held.operation_id, Some(operation.as_uuid()), "nobody else touches the instance");
    assert!(held.status_message.contains("attention"), "{}", held.status_message);
    let waiting = scene.deploy(place, &commit, "live").await;

    let engine = scene.engine().await;
    assert_eq!(scene.operation_ended(operation).await, OperationStatus::Failed);
    assert_eq!(scene.ended(waiting).await, DeploymentStatus::Succeeded, "what waited goes on");
    engine.stop().await;
    let after = scene.world.instance(place.instance);
    before.generation = after.generation;
    assert_eq!(after.data_sets.len(), 1);
    let snapshots = scene.snapshots(place).await;
    assert_eq!(snapshots.iter().map(|snapshot| snapshot.data_set_id).collect::<Vec<_>>(), [row.live().as_uuid()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_of_another_version_is_taken_back_and_not_resumed() {
    for call in ["build_release", "run_modules", "edge_status"] {
        let scene = Scene::new().await;
        let place = scene.place("main").await;
        scene.live(place, &[("a", "1")]).await;
        let (row, mut world) = (scene.instance(place).await, scene.world.instance(place.instance));
        let commit = scene.commit(&[("a", "2")]).await;
        scene.world.trouble(call, Trouble::Hold);
        let deployment = scene.deploy(place, &commit, "live").await;
        let engine = scene.engine().await;
        scene.world.held(call).await;
        let stopping = tokio::spawn(engine.stop());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        sqlx::query("update operations set schema_version = 0 where deployment_id = $1")
            .bind(deployment.as_uuid())
            .execute(&scene.control().pool)
            .await
            .unwrap();
        scene.world.relieve(call);
        stopping.await.unwrap();
        let engine = scene.engine().await;
        assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed, "{call}");
        engine.stop().await;
        assert!(scene.message(deployment).await.unwrap().contains("upgraded"), "{call}");
        let after = scene.world.instance(place.instance);
        world.generation = after.generation;
        assert_eq!((scene.instance(place).await, after), (row, world), "{call}");
    }
}

fn done(done: &[&str]) -> Vec<String> {
    done.iter().map(|done| (*done).to_owned()).collect()
}

pub(crate) async fn update(scene: &Scene, place: Place, modules: &[(&str, &str)]) -> DeploymentStatus {
    let commit = scene.commit(modules).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    let status = scene.ended(deployment).await;
    engine.stop().await;
    status
}

/// Deploys with one node that fails, and with every undo run twice when asked.
pub(crate) async fn fail_at(scene: &Scene, place: Place, commit: &str, data: &str, node: &'static str, repeat_undo: bool) -> DeploymentId {
    let deployment = scene.deploy(place, commit, data).await;
    let mut injections = vec![Injection::Fail(node)];
    if repeat_undo {
        injections.extend(NODES.iter().filter(|other| **other != node).map(|node| Injection::Repeat(node)));
    }
    let engine = scene.engine_with(injections).await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed, "{node}");
    engine.stop().await;
    assert_eq!(scene.operation_status(scene.operation_of(deployment).await).await, OperationStatus::Failed, "{node}");
    deployment
}

async fn cancel(scene: &Scene, deployment: DeploymentId) -> Cancellation {
    let mut transaction = scene.control().pool.begin().await.unwrap();
    let cancellation = operations::cancel(&mut transaction, deployment).await.unwrap();
    transaction.commit().await.unwrap();
    cancellation
}

async fn supersede(scene: &Scene, place: Place, newer: DeploymentId) -> Vec<DeploymentId> {
    let mut transaction = scene.control().pool.begin().await.unwrap();
    let superseded = operations::supersede(&mut transaction, place.environment, newer).await.unwrap();
    transaction.commit().await.unwrap();
    superseded
}
