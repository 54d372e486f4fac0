//! The engine itself: who runs what when, what happens to a worker that is cut off, and the operations beside deployments.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use ocore_control::operations::{Injection, OperationKind};
use ocore_model::{
    deployment::DeploymentStatus,
    instance::{Color, ControlAction, InstanceStatus},
    operation::OperationStatus,
    route::RouteState,
};

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

#[tokio::test(flavor = "multi_thread")]
async fn operations_of_one_instance_run_one_after_the_other_in_the_order_they_were_asked_for() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let commit = scene.commit(&[("a", "1")]).await;
    scene.world.trouble("build_release", Trouble::Hold);
    let engine = scene.engine().await;
    let mut deployments = Vec::new();
    for _ in 0..3 {
        deployments.push(scene.deploy(place, &commit, "fresh").await);
    }
    scene.world.held("build_release").await;
    let statuses = [scene.status(deployments[0]).await, scene.status(deployments[1]).await, scene.status(deployments[2]).await];
    assert_eq!(statuses, [DeploymentStatus::Running, DeploymentStatus::Queued, DeploymentStatus::Queued]);
    scene.world.relieve("build_release");
    for deployment in &deployments {
        assert_eq!(scene.ended(*deployment).await, DeploymentStatus::Succeeded);
    }
    engine.stop().await;
    let overlapping: i64 = sqlx::query_scalar(
        "select count(*) from operations as one join operations as other
         on one.instance_id = other.instance_id and one.id < other.id and one.generation >= other.generation",
    )
    .fetch_one(&scene.control().pool)
    .await
    .unwrap();
    assert_eq!(overlapping, 0, "each was claimed after the one before it had ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_deployed_side_by_side_up_to_what_the_machine_may_and_controls_do_not_wait_for_it() {
    let scene = Scene::new().await;
    let live = scene.place("live").await;
    scene.live(live, &[("a", "1")]).await;
    let commit = scene.commit(&[("a", "2")]).await;
    scene.world.trouble("build_release", Trouble::Hold);
    let engine = scene.engine().await;
    let mut deployments = Vec::new();
    for branch in ["one", "two", "three"] {
        let place = scene.place(branch).await;
        deployments.push(scene.deploy(place, &commit, "fresh").await);
    }
    let limit = scene.control().settings.parallel_operations;
    assert!(limit < deployments.len());
    let running = async || {
        sqlx::query_scalar::<_, i64>("select count(*) from deployments where status = 'running'")
            .fetch_one(&scene.control().pool)
            .await
            .unwrap()
    };
    scene.eventually(async || running().await == limit as i64).await;
    let stop = scene.ask(live, OperationKind::Control { action: ControlAction::Stop }).await;
    assert_eq!(scene.operation_ended(stop).await, OperationStatus::Succeeded);
    assert_eq!(running().await, limit as i64);
    scene.world.relieve("build_release");
    for deployment in deployments {
        assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_cut_off_is_taken_over_at_once_and_can_do_no_harm_afterwards() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let commit = scene.commit(&[("a", "2")]).await;
    scene.world.trouble("run_modules", Trouble::Hold);
    let deployment = scene.deploy(place, &commit, "live").await;
    let cut_off = scene.engine().await;
    scene.world.held("run_modules").await;
    // The process stalls: its connection is gone, its step is still under way.
    sqlx::query("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())")
        .execute(&scene.control().pool)
        .await
        .unwrap();
    let generation: i64 = scene.column("select generation from instances where id = $1", place.instance.as_uuid()).await;
    let other = scene.engine().await;
    scene
        .eventually(async || {
            scene.column::<i64>("select generation from instances where id = $1", place.instance.as_uuid()).await > generation
        })
        .await;
    scene.world.relieve("run_modules");
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    other.stop().await;
    cut_off.stop().await;
    let row = scene.instance(place).await;
    let world = scene.world.instance(place.instance);
    assert_eq!(world.data_sets[&row.live()], ["installed a", "updated a"], "one of the two has updated what is live");
    assert_eq!((world.data_sets.len(), world.slots.len(), row.operation_id), (1, 1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_stops_starts_and_restarts_an_instance() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let engine = scene.engine().await;
    assert_eq!(control(&scene, place, ControlAction::Stop).await, OperationStatus::Succeeded);
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Stopped);
    assert_eq!(scene.world.route(place.instance), Some(RouteState::Stopped));
    let world = scene.world.instance(place.instance);
    assert!(world.slots.is_empty() && world.clusters.is_empty() && world.data_sets.len() == 1);
    assert!(tidy(&scene).await.is_empty(), "what is stopped stays stopped");

    assert_eq!(control(&scene, place, ControlAction::Start).await, OperationStatus::Succeeded);
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })));

    assert_eq!(control(&scene, place, ControlAction::Restart).await, OperationStatus::Succeeded);
    assert_eq!(scene.world.instance(place.instance).slots.len(), 1);

    scene.world.trouble("start_slot", Trouble::Break("the port is taken by another program"));
    assert_eq!(control(&scene, place, ControlAction::Restart).await, OperationStatus::Failed);
    let row = scene.instance(place).await;
    assert_eq!(row.status, "failed");
    assert!(row.status_message.contains("the port is taken"), "{}", row.status_message);
    scene.world.relieve("start_slot");
    assert_eq!(tidy(&scene).await.len(), 1, "the reconciler tries on");
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_of_an_instance_that_has_nothing_says_so() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let engine = scene.engine().await;
    assert_eq!(control(&scene, place, ControlAction::Start).await, OperationStatus::Failed);
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Creating);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_stops_what_runs_drops_what_waits_and_leaves_nothing() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    let commit = scene.commit(&[("a", "2")]).await;
    scene.world.trouble("run_modules", Trouble::Hold);
    let engine = scene.engine().await;
    let running = scene.deploy(place, &commit, "live").await;
    scene.world.held("run_modules").await;
    let queued = scene.deploy(place, &commit, "live").await;
    let destroy = scene.ask(place, OperationKind::Destroy).await;
    assert_eq!(scene.operation_ended(destroy).await, OperationStatus::Succeeded);
    assert_eq!(scene.status(running).await, DeploymentStatus::Cancelled);
    assert_eq!(scene.status(queued).await, DeploymentStatus::Cancelled);
    engine.stop().await;
    assert!(!scene.world.knows(place.instance));
    assert_eq!(scene.world.route(place.instance), None);
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Deleted);
    let environment: String = scene.column("select status from environments where id = $1", place.environment.as_uuid()).await;
    assert_eq!(environment, "deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_fails_is_asked_for_again_and_may_run_twice() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    scene.world.trouble("destroy_instance", Trouble::Break("the disk does not answer"));
    let engine = scene.engine().await;
    let destroy = scene.ask(place, OperationKind::Destroy).await;
    assert_eq!(scene.operation_ended(destroy).await, OperationStatus::Failed);
    engine.stop().await;
    let row = scene.instance(place).await;
    assert_eq!(row.status, "removing");
    assert!(row.status_message.contains("the disk does not answer"), "{}", row.status_message);
    scene.world.relieve("destroy_instance");
    assert_eq!(tidy(&scene).await.len(), 1);
    assert!(tidy(&scene).await.is_empty(), "it is asked for once");
    let engine = scene.engine_with(vec![Injection::Repeat("destroy::unroute"), Injection::Repeat("destroy::remove")]).await;
    scene.eventually(async || scene.instance_status(place).await == InstanceStatus::Deleted).await;
    engine.stop().await;
    assert!(!scene.world.knows(place.instance));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_deployment_is_stuck_can_still_be_destroyed() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let commit = scene.commit(&[("a", "1")]).await;
    let deployment = scene.deploy(place, &commit, "fresh").await;
    let engine = scene.engine_with(vec![Injection::Fail("deploy::start"), Injection::FailUndo("deploy::undo_copy")]).await;
    let stuck = scene.operation_of(deployment).await;
    assert_eq!(scene.operation_ended(stuck).await, OperationStatus::Stuck);
    let destroy = scene.ask(place, OperationKind::Destroy).await;
    assert_eq!(scene.operation_ended(destroy).await, OperationStatus::Succeeded);
    engine.stop().await;
    assert!(!scene.world.knows(place.instance));
    assert_eq!(scene.operation_status(stuck).await, OperationStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_in_the_table_alone_is_found_at_the_start() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let commit = scene.commit(&[("a", "1")]).await;
    let deployment = scene.deploy(place, &commit, "fresh").await;
    sqlx::query("delete from apalis.jobs").execute(&scene.control().pool).await.unwrap();
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcilers_start_what_died_and_remove_what_nobody_needs() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    assert!(tidy(&scene).await.is_empty(), "a healthy world stays as it is");

    scene.world.kill_slot(place.instance, Color::Blue);
    scene.world.litter(place.instance);
    assert_eq!(tidy(&scene).await.len(), 2);
    let world = scene.world.instance(place.instance);
    assert_eq!((world.slots.len(), world.data_sets.len()), (1, 1));

    scene.store.clock.advance(chrono::TimeDelta::seconds(120));
    scene.world.restart_machine();
    scene.world.forget_routes();
    assert!(!tidy(&scene).await.is_empty());
    assert_eq!(scene.world.instance(place.instance).slots.len(), 1);
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })));
    let restarts: i32 = scene.column("select restart_count from instances where id = $1", place.instance.as_uuid()).await;
    assert_eq!(restarts, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odoo_that_does_not_stay_up_is_tried_at_growing_distances_and_then_called_failed() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    scene.world.trouble("start_slot", Trouble::Break("Odoo ends at once"));
    scene.world.kill_slot(place.instance, Color::Blue);
    let before = scene.world.calls("start_slot");
    for _ in 0..3 {
        tidy(&scene).await;
    }
    assert_eq!(scene.world.calls("start_slot") - before, 1, "the second try waits");
    for _ in 0..4 {
        scene.store.clock.advance(chrono::TimeDelta::seconds(300));
        tidy(&scene).await;
    }
    let row = scene.instance(place).await;
    assert_eq!(row.status, "failed");
    assert!(row.status_message.contains("does not stay up") && row.status_message.contains("Odoo ends at once"), "{}", row.status_message);
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Failed { .. })));
    scene.world.relieve("start_slot");
    scene.store.clock.advance(chrono::TimeDelta::seconds(300));
    tidy(&scene).await;
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odoo_that_starts_well_and_dies_each_time_is_called_failed_until_it_stays_up() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "1")]).await;
    for _ in 0..5 {
        scene.world.kill_slot(place.instance, Color::Blue);
        scene.store.clock.advance(chrono::TimeDelta::seconds(35));
        tidy(&scene).await;
        assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
    }
    scene.world.kill_slot(place.instance, Color::Blue);
    tidy(&scene).await;
    let row = scene.instance(place).await;
    assert_eq!(row.status, "failed");
    assert!(row.status_message.contains("its last 5 starts"), "{}", row.status_message);
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Failed { .. })));
    scene.store.clock.advance(chrono::TimeDelta::seconds(35));
    tidy(&scene).await;
    assert_eq!(scene.instance_status(place).await, InstanceStatus::Running);
}

async fn control(scene: &Scene, place: Place, action: ControlAction) -> OperationStatus {
    let operation = scene.ask(place, OperationKind::Control { action }).await;
    scene.operation_ended(operation).await
}

/// One run of every reconciler; what they changed, but for the template that they make after a first build.
async fn tidy(scene: &Scene) -> Vec<String> {
    let mut changes = ocore_control::reconcilers::run_all(scene.control()).await.unwrap();
    changes.retain(|change| !change.starts_with("made a template"));
    changes
}
