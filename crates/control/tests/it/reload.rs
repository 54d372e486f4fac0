//! Deployments of other code on the same data: the new slot starts beside the live one, and nobody waits.

use ocore_control::operations::Injection;
use ocore_model::{deployment::DeploymentStatus, instance::Color, operation::OperationStatus, route::RouteState};

use crate::{
    deploy::{NODES, fail_at, update},
    scene::Scene,
    world::Trouble,
};

#[tokio::test(flavor = "multi_thread")]
async fn code_alone_takes_over_beside_the_live_slot_on_the_same_data() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "code 1")]).await;
    let first = scene.instance(place).await;
    let commit = scene.commit(&[("a", "code 2")]).await;
    scene.world.trouble("start_slot", Trouble::HoldAfter);
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    scene.world.held("start_slot").await;
    let world = scene.world.instance(place.instance);
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Blue, &Color::Green], "both at once");
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })), "nobody is held");
    scene.world.relieve("start_slot");
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;

    let row = scene.instance(place).await;
    assert_eq!((row.active_color.as_deref(), row.active_data_set_id), (Some("green"), first.active_data_set_id));
    assert_ne!(row.active_release, first.active_release);
    assert_eq!(row.admin_password, first.admin_password);
    let world = scene.world.instance(place.instance);
    assert_eq!(world.slots.keys().collect::<Vec<_>>(), [&Color::Green]);
    assert_eq!(world.data_sets[&first.live()], ["installed a"], "nothing was updated");
    assert_eq!((world.data_sets.len(), world.clusters.len()), (1, 1));
    assert!(scene.snapshots(place).await.is_empty(), "data that go on being live become no snapshot");
    let lines = scene.lines(deployment).await;
    assert!(lines.iter().any(|line| line == "[reload] a/__init__.py: the function `it` has changed"), "{lines:?}");
    ocore_control::reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(scene.world.instance(place.instance).slots.len(), 1, "the reconcilers leave what is live");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_the_same_files_starts_nothing_and_whichever_node_fails_what_runs_goes_on() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "code 1")]).await;
    let before = scene.instance(place).await;
    let (starts, stops) = (scene.world.calls("start_slot"), scene.world.calls("stop_slot"));
    let commit = scene.commit(&[("a", "code 1")]).await;
    for node in NODES {
        let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
        fail_at(&scene, place, &commit, "live", node, true).await;
        let mut after = scene.world.instance(place.instance);
        after.generation = world.generation;
        assert_eq!((after, scene.instance(place).await), (world, row), "{node}");
    }
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    let row = scene.instance(place).await;
    assert_eq!((row.active_color, row.active_release, row.active_http), (before.active_color, before.active_release, before.active_http));
    assert_eq!((scene.world.calls("start_slot"), scene.world.calls("stop_slot")), (starts, stops));
    let live: String = scene.column("select live_commit_sha from environments where id = $1", place.environment.as_uuid()).await;
    assert_eq!(live, commit);
    assert!(scene.lines(deployment).await.iter().any(|line| line.contains("nothing is started")));
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_node_of_a_reload_fails_the_live_slot_has_never_rested() {
    for repeat_undo in [false, true] {
        let scene = Scene::new().await;
        let place = scene.place("main").await;
        scene.live(place, &[("a", "code 1")]).await;
        let commit = scene.commit(&[("a", "code 2")]).await;
        for node in NODES {
            let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
            let (route, stops) = (scene.world.route(place.instance), scene.world.calls("create_data_set"));
            fail_at(&scene, place, &commit, "live", node, repeat_undo).await;
            let mut after = scene.world.instance(place.instance);
            after.generation = world.generation;
            assert_eq!((after, scene.instance(place).await, scene.world.route(place.instance)), (world, row, route), "{node}");
            assert_eq!(scene.world.calls("create_data_set"), stops, "{node}: nothing is copied");
        }
        assert_eq!(update(&scene, place, &[("a", "code 2")]).await, DeploymentStatus::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_a_reload_may_run_twice() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "code 1")]).await;
    let first = scene.instance(place).await;
    let commit = scene.commit(&[("a", "code 2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine_with(NODES.iter().map(|node| Injection::Repeat(node)).collect()).await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
    assert_eq!((row.active_color.as_deref(), row.active_data_set_id), (Some("green"), first.active_data_set_id));
    assert_eq!((world.data_sets.len(), world.slots.len(), world.clusters.len()), (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_was_interrupted_in_any_call_goes_on_at_the_next_start() {
    for trouble in [Trouble::Hold, Trouble::HoldAfter] {
        let scene = Scene::new().await;
        let place = scene.place("main").await;
        scene.live(place, &[("a", "code 0")]).await;
        let first = scene.instance(place).await;
        let calls: &[&str] = match trouble {
            Trouble::HoldAfter => &["build_release", "start_slot"],
            _ => &[
                "seal_source",
                "installed_modules",
                "build_release",
                "create_instance",
                "start_slot",
                "apply_routes",
                "edge_status",
                "stop_slot",
            ],
        };
        for (number, call) in calls.iter().enumerate() {
            let commit = scene.commit(&[("a", &format!("code {}", number + 1))]).await;
            scene.world.trouble(call, trouble.clone());
            let deployment = scene.deploy(place, &commit, "live").await;
            let engine = scene.engine().await;
            scene.world.held(call).await;
            let stopping = tokio::spawn(engine.stop());
            scene.world.relieve(call);
            stopping.await.unwrap();
            let engine = scene.engine().await;
            assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{call}: {:?}", scene.message(deployment).await);
            engine.stop().await;
            let operation = scene.operation_of(deployment).await;
            assert_eq!(scene.operation_status(operation).await, OperationStatus::Succeeded, "{call}");
            let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
            assert_eq!(row.active_data_set_id, first.active_data_set_id, "{call}");
            assert_eq!((world.data_sets.len(), world.slots.len(), world.clusters.len()), (1, 1, 1), "{call}: {world:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_stopped_is_not_started_beside_itself() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("a", "code 1")]).await;
    let first = scene.instance(place).await;
    sqlx::query("update instances set status = 'stopped' where id = $1")
        .bind(place.instance.as_uuid())
        .execute(&scene.control().pool)
        .await
        .unwrap();
    assert_eq!(update(&scene, place, &[("a", "code 2")]).await, DeploymentStatus::Succeeded);
    assert_ne!(scene.instance(place).await.active_data_set_id, first.active_data_set_id, "its data were copied as ever");
}
