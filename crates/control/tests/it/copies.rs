//! Clones and rollbacks on the engine: where the data come from, what is neutralized, what is kept, what a crash leaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use ocore_control::{
    Error,
    clones::{self, CloneRequest},
    deployments::Starter,
    environments::Environment,
    operations::Injection,
    rollbacks::{self, RollbackRequest},
};
use ocore_host::Standing;
use ocore_model::{
    deployment::{DeploymentStatus, StepName, StepStatus},
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::{DeploymentId, SnapshotId},
    instance::{Color, ControlAction},
    operation::OperationStatus,
    route::RouteState,
};

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

/// The nodes of a clone, in their order.
const CLONE: &[&str] = &[
    "deploy::checkout",
    "deploy::undo_snapshot",
    "deploy::snapshot",
    "deploy::plan",
    "deploy::build",
    "deploy::undo_copy",
    "deploy::copy",
    "deploy::update",
    "deploy::neutralize",
    "deploy::undo_start",
    "deploy::start",
    "deploy::undo_switch",
    "deploy::switch",
    "deploy::verify",
];
/// Those of a rollback.
const ROLLBACK: &[&str] = &[
    "deploy::build",
    "deploy::undo_copy",
    "deploy::copy",
    "deploy::undo_start",
    "deploy::start",
    "deploy::undo_switch",
    "deploy::switch",
    "deploy::verify",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_serves_a_harmless_copy_and_its_source_never_notices() {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    scene.live(source, &[("a", "1")]).await;
    let (before, world) = (scene.instance(source).await, scene.world.instance(source.instance));
    let clone = clone(&scene, source, None).await.unwrap();
    assert_eq!(
        (clone.branch.as_str(), clone.stage, clone.commit_behavior),
        ("main-clone", Stage::Development, CommitBehavior::UpdatePreviousBuild)
    );
    assert_eq!(clone.cloned_from_id, Some(source.environment));
    assert!(!clone.is_neutralized, "nothing is live yet");
    let place = place_of(&clone);
    let deployment = newest(&scene, place).await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;

    let steps = scene.steps(deployment).await;
    // What a clone is made from is not changed by it, so nothing is rehearsed.
    let expected: Vec<StepName> = StepName::ALL.iter().copied().filter(|name| *name != StepName::Rehearse).collect();
    assert_eq!(steps.iter().map(|(name, _)| *name).collect::<Vec<_>>(), expected);
    assert!(steps.iter().all(|(_, status)| *status == StepStatus::Succeeded));
    let row = scene.instance(place).await;
    let copy = scene.world.instance(place.instance);
    assert_eq!(copy.data_sets[&row.live()], ["installed a", "neutralized"]);
    assert_eq!(copy.standing(row.live()), Standing::Neutralized);
    assert!(is_neutralized(&scene, place).await);
    assert_ne!(row.admin_password, before.admin_password);
    assert!(row.admin_password.is_some());
    assert_eq!((scene.instance(source).await, scene.world.instance(source.instance)), (before, world), "the source is as it was");
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })));
    assert!(scene.world.snapshots_taken().is_empty() && scene.snapshots(source).await.is_empty(), "what was taken for it is gone");
    let reports: i64 = scene.column("select count(*) from neutralizations where environment_id = $1", place.environment.as_uuid()).await;
    assert_eq!(reports, 1);

    // What is deployed to it later keeps its standing, and its own data are what is kept before.
    let commit = scene.commit(&[("a", "2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    assert!(is_neutralized(&scene, place).await);
    let snapshots = scene.snapshots(place).await;
    assert_eq!((snapshots.len(), snapshots[0].standing.as_deref()), (1, Some("neutralized")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_clone_a_stopped_source_and_a_deleted_one() {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    scene.live(source, &[("a", "1")]).await;
    let engine = scene.engine().await;
    let stop = scene.ask(source, ocore_control::operations::OperationKind::Control { action: ControlAction::Stop }).await;
    assert_eq!(scene.operation_ended(stop).await, OperationStatus::Succeeded);
    let first = clone(&scene, source, Some("first")).await.unwrap();
    assert_eq!(scene.ended(newest(&scene, place_of(&first)).await).await, DeploymentStatus::Succeeded);
    let second = clone(&scene, place_of(&first), Some("second")).await.unwrap();
    assert_eq!(scene.ended(newest(&scene, place_of(&second)).await).await, DeploymentStatus::Succeeded);
    assert!(is_neutralized(&scene, place_of(&second)).await);
    let deleted = ocore_control::environments::delete(scene.control(), &scene.scope.grant().unwrap(), first.id, None).await.unwrap();
    assert_eq!(deleted, EnvironmentStatus::Removing);
    scene.eventually(async || !scene.world.knows(first.instance_id)).await;
    let commit = scene.commit(&[("a", "2")]).await;
    let deployment = scene.deploy(place_of(&second), &commit, "live").await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_cloned_while_it_is_deployed_and_as_it_is_when_that_was_faster() {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    scene.live(source, &[("a", "1")]).await;
    let engine = scene.engine().await;

    // In the middle of the source's deployment: what is live until then is cloned.
    let before = clone(&scene, source, Some("before")).await.unwrap();
    assert_eq!(scene.ended(newest(&scene, place_of(&before)).await).await, DeploymentStatus::Succeeded);
    scene.world.trouble("run_modules", Trouble::Hold);
    let commit = scene.commit(&[("a", "2")]).await;
    let deployment = scene.deploy(source, &commit, "live").await;
    scene.world.held("run_modules").await;
    let during = clone(&scene, source, Some("during")).await.unwrap();
    assert_eq!(scene.ended(newest(&scene, place_of(&during)).await).await, DeploymentStatus::Succeeded);
    let live = scene.instance(place_of(&during)).await.live();
    assert_eq!(scene.world.instance(during.instance_id).data_sets[&live], ["installed a", "neutralized"]);
    scene.world.relieve("run_modules");
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "the clone has not disturbed it");

    // The data that were to be cloned are replaced before they are read.
    scene.world.trouble("take_snapshot", Trouble::Hold);
    let overtaken = clone(&scene, source, Some("overtaken")).await.unwrap();
    scene.world.held("take_snapshot").await;
    let commit = scene.commit(&[("a", "3")]).await;
    let deployment = scene.deploy(source, &commit, "live").await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    scene.world.relieve("take_snapshot");
    let cloning = newest(&scene, place_of(&overtaken)).await;
    assert_eq!(scene.ended(cloning).await, DeploymentStatus::Succeeded, "{:?}", scene.message(cloning).await);
    engine.stop().await;
    let live = scene.instance(place_of(&overtaken)).await.live();
    let done = scene.world.instance(overtaken.instance_id).data_sets[&live].clone();
    assert_eq!(done[..3], ["installed a", "updated a", "updated a"], "{done:?}");
    assert_eq!(done.last().map(String::as_str), Some("neutralized"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_cloned_is_said_with_what_to_do() {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    let code = |result: Result<Environment, Error>| match result.unwrap_err() {
        Error::Conflict { code, .. } => code.to_owned(),
        other => format!("{other:?}"),
    };
    scene.commit(&[("a", "1")]).await;
    assert_eq!(code(clone(&scene, source, None).await), "nothing_live");
    scene.live(source, &[("a", "1")]).await;
    assert_eq!(code(clone(&scene, source, Some("main")).await), "branch_taken");
    assert_eq!(code(clone(&scene, source, Some("main/below")).await), "branch_clashes");
    let request = CloneRequest { branch: None, stage: Stage::Production, auto_destroy: false };
    let refused = clones::clone(scene.control(), &scene.scope.grant().unwrap(), source.environment, request).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid { .. }), "{refused:?}");
    sqlx::query("update projects set repository_kind = 'external'").execute(&scene.control().pool).await.unwrap();
    assert_eq!(code(clone(&scene, source, Some("absent")).await), "branch_missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_fails_leaves_nothing_and_the_next_push_clones_again() {
    for repeat_undo in [false, true] {
        let scene = Scene::new().await;
        let source = scene.place("main").await;
        scene.live(source, &[("a", "1")]).await;
        let (row, world) = (scene.instance(source).await, scene.world.instance(source.instance));
        let clone = clone(&scene, source, Some("copy")).await.unwrap();
        let place = place_of(&clone);
        let commit =
            scene.column::<String>("select head_sha from branches where project_id = $1 and name = 'copy'", scene.project.as_uuid()).await;
        let mut deployment = newest(&scene, place).await;
        for node in CLONE {
            let mut injections = vec![Injection::Fail(node)];
            if repeat_undo {
                injections.extend(CLONE.iter().filter(|other| *other != node).map(|node| Injection::Repeat(node)));
            }
            let engine = scene.engine_with(injections).await;
            assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed, "{node}");
            engine.stop().await;
            assert_eq!(scene.operation_status(scene.operation_of(deployment).await).await, OperationStatus::Failed, "{node}");
            let copy = scene.world.instance(place.instance);
            assert!(copy.data_sets.is_empty() && copy.slots.is_empty() && copy.clusters.is_empty(), "{node}: {copy:?}");
            assert!(scene.world.snapshots_taken().is_empty() && scene.snapshots(source).await.is_empty(), "{node}");
            assert!(!is_neutralized(&scene, place).await, "{node}");
            deployment = scene.deploy(place, &commit, "live").await;
        }
        let engine = scene.engine().await;
        assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
        engine.stop().await;
        let copy = scene.world.instance(place.instance);
        assert_eq!(copy.data_sets[&scene.instance(place).await.live()], ["installed a", "neutralized"]);
        assert_eq!((scene.instance(source).await, scene.world.instance(source.instance)), (row, world));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_a_clone_may_run_twice_and_every_call_may_be_cut_off() {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    scene.live(source, &[("a", "1")]).await;
    let twice = clone(&scene, source, Some("twice")).await.unwrap();
    let engine = scene.engine_with(CLONE.iter().map(|node| Injection::Repeat(node)).collect()).await;
    assert_eq!(scene.ended(newest(&scene, place_of(&twice)).await).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    for trouble in [Trouble::Hold, Trouble::HoldAfter] {
        for call in ["take_snapshot", "create_data_set", "neutralize", "start_slot"] {
            let name = format!("{}-{}", call.replace('_', "-"), matches!(trouble, Trouble::Hold));
            let clone = clone(&scene, source, Some(&name)).await.unwrap();
            let (place, deployment) = (place_of(&clone), newest(&scene, place_of(&clone)).await);
            scene.world.trouble(call, trouble.clone());
            let engine = scene.engine().await;
            scene.world.held(call).await;
            engine.stop().await;
            scene.world.relieve(call);
            let engine = scene.engine().await;
            assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{call}: {:?}", scene.message(deployment).await);
            engine.stop().await;
            let copy = scene.world.instance(place.instance);
            assert_eq!((copy.data_sets.len(), copy.slots.len()), (1, 1), "{call}");
            assert_eq!(copy.data_sets[&scene.instance(place).await.live()], ["installed a", "neutralized"], "{call}");
            assert!(scene.world.snapshots_taken().is_empty(), "{call}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_not_harmless_is_never_started() {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    scene.live(source, &[("a", "1")]).await;
    let clone = clone(&scene, source, None).await.unwrap();
    let place = place_of(&clone);
    scene.world.trouble("neutralize", Trouble::Reject("an outgoing mail server other than the catcher is active"));
    let starts = scene.world.calls("start_slot");
    let deployment = newest(&scene, place).await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed);
    engine.stop().await;
    scene.world.relieve("neutralize");
    assert_eq!(scene.message(deployment).await.as_deref(), Some("an outgoing mail server other than the catcher is active"));
    assert_eq!(scene.world.calls("start_slot"), starts);
    assert!(!is_neutralized(&scene, place).await);
    assert!(scene.world.instance(place.instance).data_sets.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_brings_data_and_release_back_and_keeps_what_was_written_since() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let (first, snapshot) = updated(&scene, place).await;
    let before = scene.instance(place).await;
    let rollback = roll_back(&scene, place, snapshot, None, true).await.unwrap();
    let engine = scene.engine().await;
    assert_eq!(scene.ended(rollback).await, DeploymentStatus::Succeeded, "{:?}", scene.message(rollback).await);
    engine.stop().await;

    let names: Vec<StepName> = scene.steps(rollback).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [StepName::Build, StepName::Copy, StepName::Start, StepName::Switch, StepName::Verify]);
    let row = scene.instance(place).await;
    let world = scene.world.instance(place.instance);
    assert_eq!(world.data_sets.iter().collect::<Vec<_>>(), [(&row.live(), &vec!["installed a".to_owned()])]);
    assert_eq!(row.active_release, first.active_release, "the release of that moment");
    assert_eq!(row.admin_password, first.admin_password);
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Blue]);
    let snapshots = scene.snapshots(place).await;
    let kinds: Vec<(&str, &str)> = snapshots.iter().map(|snapshot| (snapshot.kind.as_str(), snapshot.status.as_str())).collect();
    assert_eq!(kinds, [("automatic", "ready"), ("safety", "ready")]);
    assert_eq!(Some(snapshots[1].data_set_id), before.active_data_set_id);
    let (_, kept) = scene.world.snapshot(SnapshotId(snapshots[1].id)).unwrap();
    assert_eq!(kept, ["installed a", "updated a"]);
    let logs = rollbacks::logs(scene.control(), &scene.scope.grant().unwrap(), place.environment).await.unwrap();
    assert_eq!((logs[0].snapshot_id, logs[0].safety_snapshot_id), (Some(snapshot), Some(SnapshotId(snapshots[1].id))));

    // And forward again.
    let forward = roll_back(&scene, place, SnapshotId(snapshots[1].id), None, false).await.unwrap();
    let engine = scene.engine().await;
    assert_eq!(scene.ended(forward).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    let world = scene.world.instance(place.instance);
    assert_eq!(world.data_sets.values().collect::<Vec<_>>(), [&vec!["installed a".to_owned(), "updated a".to_owned()]]);
    assert_eq!(scene.snapshots(place).await.len(), 2, "nobody wanted another safety snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_fails_leaves_what_served_serving() {
    for repeat_undo in [false, true] {
        let scene = Scene::new().await;
        let place = scene.place("main").await;
        let (_, snapshot) = updated(&scene, place).await;
        for node in ROLLBACK {
            let (row, world, route) =
                (scene.instance(place).await, scene.world.instance(place.instance), scene.world.route(place.instance));
            let snapshots = scene.snapshots(place).await;
            let rollback = roll_back(&scene, place, snapshot, None, true).await.unwrap();
            let mut injections = vec![Injection::Fail(node)];
            if repeat_undo {
                injections.extend(ROLLBACK.iter().filter(|other| *other != node).map(|node| Injection::Repeat(node)));
            }
            let engine = scene.engine_with(injections).await;
            assert_eq!(scene.ended(rollback).await, DeploymentStatus::Failed, "{node}");
            engine.stop().await;
            let mut after = scene.world.instance(place.instance);
            after.generation = world.generation;
            assert_eq!((after, scene.instance(place).await, scene.world.route(place.instance)), (world, row, route), "{node}");
            // What was live for a while may hold what users wrote.
            let was_live = matches!(*node, "deploy::verify" | "deploy::let_go");
            let left = scene.snapshots(place).await;
            assert_eq!(left.len(), snapshots.len() + usize::from(was_live), "{node}");
            assert!(left.starts_with(&snapshots), "{node}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_is_cut_off_goes_on_and_a_push_waits_for_it() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let (_, mut snapshot) = updated(&scene, place).await;
    for call in ["create_data_set", "pause_slot", "stop_slot", "start_slot", "apply_routes", "retire_data_set"] {
        let rollback = roll_back(&scene, place, snapshot, None, true).await.unwrap();
        scene.world.trouble(call, Trouble::Hold);
        let engine = scene.engine().await;
        scene.world.held(call).await;
        let stopping = engine.stop();
        tokio::pin!(stopping);
        tokio::select! {
            () = &mut stopping => {}
            // A call that cannot be cancelled ends when the machine lets it.
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
        }
        scene.world.relieve(call);
        let engine = scene.engine().await;
        assert_eq!(scene.ended(rollback).await, DeploymentStatus::Succeeded, "{call}: {:?}", scene.message(rollback).await);
        engine.stop().await;
        let world = scene.world.instance(place.instance);
        assert_eq!((world.data_sets.len(), world.slots.len(), world.clusters.len()), (1, 1, 1), "{call}: {world:?}");
        let snapshots = scene.snapshots(place).await;
        assert!(snapshots.iter().all(|snapshot| snapshot.status == "ready"), "{call}: {snapshots:?}");
        snapshot = SnapshotId(snapshots.last().unwrap().id);
    }
    // A push does not take the place of a rollback that waits.
    let rollback = roll_back(&scene, place, snapshot, None, true).await.unwrap();
    let commit = scene.commit(&[("a", "9")]).await;
    let push = scene.deploy(place, &commit, "live").await;
    let mut transaction = scene.control().pool.begin().await.unwrap();
    assert!(ocore_control::operations::supersede(&mut transaction, place.environment, push).await.unwrap().is_empty());
    transaction.commit().await.unwrap();
    let engine = scene.engine().await;
    assert_eq!(scene.ended(rollback).await, DeploymentStatus::Succeeded);
    assert_eq!(scene.ended(push).await, DeploymentStatus::Succeeded);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_environment_gets_a_neutralized_copy_and_production_the_data_as_they_are() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let (_, snapshot) = updated(&scene, place).await;
    let (staging, production) = (scene.place("staging").await, scene.place("production").await);
    sqlx::query("update environments set stage = branch where branch in ('staging', 'production')")
        .execute(&scene.control().pool)
        .await
        .unwrap();
    let engine = scene.engine().await;
    for (target, standing) in [(staging, Standing::Neutralized), (production, Standing::Own)] {
        let rollback = roll_back(&scene, place, snapshot, Some(target), true).await.unwrap();
        assert_eq!(scene.ended(rollback).await, DeploymentStatus::Succeeded, "{:?}", scene.message(rollback).await);
        let row = scene.instance(target).await;
        assert_eq!(scene.world.instance(target.instance).standing(row.live()), standing);
        assert_eq!(is_neutralized(&scene, target).await, standing == Standing::Neutralized);
    }
    engine.stop().await;
    // A neutralized copy of another environment never becomes production.
    let commit = scene.commit(&[("a", "3")]).await;
    let deployment = scene.deploy(staging, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    let neutralized = SnapshotId(scene.snapshots(staging).await.last().unwrap().id);
    let refused = roll_back(&scene, staging, neutralized, Some(production), true).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { code: "snapshot_neutralized", .. }), "{refused:?}");
}

/// Live, then updated; what was live first, and its snapshot.
async fn updated(scene: &Scene, place: Place) -> (crate::scene::InstanceRow, SnapshotId) {
    scene.live(place, &[("a", "1")]).await;
    let first = scene.instance(place).await;
    let commit = scene.commit(&[("a", "2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    let [snapshot] = scene.snapshots(place).await.try_into().unwrap();
    (first, SnapshotId(snapshot.id))
}

async fn clone(scene: &Scene, source: Place, branch: Option<&str>) -> Result<Environment, Error> {
    let branch = branch.map(|branch| branch.parse().unwrap());
    let request = CloneRequest { branch, stage: Stage::Development, auto_destroy: false };
    clones::clone(scene.control(), &scene.scope.grant().unwrap(), source.environment, request).await
}

async fn roll_back(
    scene: &Scene,
    place: Place,
    snapshot: SnapshotId,
    target: Option<Place>,
    create_safety_snapshot: bool,
) -> Result<DeploymentId, Error> {
    let request = RollbackRequest { snapshot, create_safety_snapshot, target: target.map(|target| target.environment) };
    let rollback = rollbacks::rollback(scene.control(), &scene.scope.grant().unwrap(), place.environment, request).await?;
    Ok(rollback.deployment)
}

fn place_of(environment: &Environment) -> Place {
    Place { environment: environment.id, instance: environment.instance_id }
}

async fn newest(scene: &Scene, place: Place) -> DeploymentId {
    let query = "select id from deployments where environment_id = $1 order by created_at desc limit 1";
    DeploymentId(scene.column(query, place.environment.as_uuid()).await)
}

async fn is_neutralized(scene: &Scene, place: Place) -> bool {
    scene.column("select is_neutralized from environments where id = $1", place.environment.as_uuid()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_goes_with_its_branch_goes_when_it_is_merged_or_deleted_and_not_before() {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    scene.live(source, &[("a", "1")]).await;
    let engine = scene.engine().await;
    let mut clones = Vec::new();
    for branch in ["merged", "deleted"] {
        let request = CloneRequest { branch: Some(branch.parse().unwrap()), stage: Stage::Development, auto_destroy: true };
        let clone = clones::clone(scene.control(), &scene.scope.grant().unwrap(), source.environment, request).await.unwrap();
        assert_eq!(scene.ended(newest(&scene, place_of(&clone)).await).await, DeploymentStatus::Succeeded);
        clones.push(clone);
    }
    let status =
        async |clone: &Environment| scene.column::<String>("select status from environments where id = $1", clone.id.as_uuid()).await;

    // A push to the source's branch that has nothing of them leaves both.
    push(&scene, &[("a", "2")], "main").await;
    assert_eq!((status(&clones[0]).await.as_str(), status(&clones[1]).await.as_str()), ("active", "active"));
    // One gets commits of its own, on top of the source's; then the source gets them.
    push(&scene, &[("a", "3")], "merged").await;
    assert_eq!(status(&clones[0]).await, "active");
    let message = push(&scene, &[("a", "3")], "main").await;
    assert!(message.contains("merged is merged, and its environment goes"), "{message}");
    scene.eventually(async || status(&clones[0]).await == "deleted").await;
    assert_eq!(status(&clones[1]).await, "active");
    // The other's branch is deleted.
    let mirror = scene.control().settings.repositories.join(format!("{}.git", scene.project));
    scene.repository.git(&["push", "--quiet", mirror.to_str().unwrap(), ":refs/heads/deleted"]).unwrap();
    let message = record(&scene, "deleted").await;
    assert!(message.contains("made to go with it"), "{message}");
    scene.eventually(async || status(&clones[1]).await == "deleted").await;
    assert!(!scene.world.knows(clones[1].instance_id) && scene.world.knows(source.instance));
    engine.stop().await;
}

/// Commits, unless the same is committed already, and pushes to a branch as the built-in remote would; what the person is told.
async fn push(scene: &Scene, modules: &[(&str, &str)], branch: &str) -> String {
    let content = serde_json::to_string(modules).unwrap();
    let committed = std::fs::read_to_string(scene.repository.path().join("modules.json")).unwrap_or_default();
    if committed != content {
        scene.repository.write("modules.json", &content).unwrap();
        scene.repository.commit("a change").unwrap();
    }
    let mirror = scene.control().settings.repositories.join(format!("{}.git", scene.project));
    scene.repository.git(&["push", "--quiet", "--force", mirror.to_str().unwrap(), &format!("HEAD:refs/heads/{branch}")]).unwrap();
    record(scene, branch).await
}

async fn record(scene: &Scene, branch: &str) -> String {
    let branch: ocore_model::names::BranchName = branch.parse().unwrap();
    let new = ocore_control::git::branch_head(scene.control(), scene.project, &branch).await.unwrap();
    let update = ocore_control::branches::BranchUpdate { branch, old: None, new };
    let trigger = ocore_model::deployment::Trigger::Push;
    let outcomes = ocore_control::branches::record(scene.control(), scene.project, vec![update], Starter::nobody(trigger)).await.unwrap();
    outcomes.into_iter().map(|outcome| outcome.message).collect()
}
