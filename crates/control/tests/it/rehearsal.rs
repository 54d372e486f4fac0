//! Updates that run on a throw-away copy of the live data first.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use ocore_model::{
    deployment::{DeploymentStatus, StepName},
    evidence::{Gate, GateStatus},
    ids::DeploymentId,
    rehearsal::{Rehearsal, SchemaChange, SchemaChangeKind},
    route::RouteState,
};

use crate::{
    deploy::update,
    scene::{Place, Scene},
    world::Trouble,
};

/// A production that serves.
async fn production(scene: &Scene) -> Place {
    let place = scene.place("main").await;
    sqlx::query("update environments set stage = 'production' where id = $1")
        .bind(place.environment.as_uuid())
        .execute(&scene.control().pool)
        .await
        .unwrap();
    scene.live(place, &[("a", "data 1")]).await;
    place
}

async fn evidence(scene: &Scene, deployment: DeploymentId) -> Vec<(Gate, GateStatus, String)> {
    let rows: Vec<(String, String, String)> = sqlx::query_as("select gate, status, summary from evidence where deployment_id = $1")
        .bind(deployment.as_uuid())
        .fetch_all(&scene.control().pool)
        .await
        .unwrap();
    rows.into_iter().map(|(gate, status, summary)| (gate.parse().unwrap(), status.parse().unwrap(), summary)).collect()
}

async fn way(scene: &Scene, deployment: DeploymentId) -> String {
    sqlx::query_scalar("select plan ->> 'way' from deployments where id = $1")
        .bind(deployment.as_uuid())
        .fetch_one(&scene.control().pool)
        .await
        .unwrap()
}

fn seen(tightens: bool, warnings: &[&str]) -> Rehearsal {
    let change = SchemaChange {
        kind: SchemaChangeKind::ColumnAdded,
        table: "shop".to_owned(),
        name: Some("size".to_owned()),
        definition: "integer".to_owned(),
        tightens,
    };
    Rehearsal {
        seconds: 2.5,
        schema: vec![change],
        warnings: warnings.iter().map(|&warning| warning.to_owned()).collect(),
        ..Rehearsal::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_production_is_rehearsed_while_it_serves_and_leaves_evidence() {
    let scene = Scene::new().await;
    let place = production(&scene).await;
    scene.world.set_rehearsal(seen(false, &["odoo.x: slow"]));
    let first = scene.instance(place).await;
    scene.world.trouble("rehearse_modules", Trouble::HoldAfter);
    let commit = scene.commit(&[("a", "data 2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    scene.world.held("rehearse_modules").await;
    let world = scene.world.instance(place.instance);
    assert!(matches!(scene.world.route(place.instance), Some(RouteState::Serving { .. })), "users notice nothing");
    assert_eq!((world.slots.len(), world.data_sets.len()), (1, 2));
    assert_eq!(world.data_sets[&first.live()], ["installed a"], "the live data are as they were");
    scene.world.relieve("rehearse_modules");
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    let world = scene.world.instance(place.instance);
    assert_eq!((world.slots.len(), world.data_sets.len(), world.clusters.len()), (1, 1, 1), "the copy is gone: {world:?}");
    let found = evidence(&scene, deployment).await;
    let summary = "the update went well on a copy, in 2.5 s; one change of the schema".to_owned();
    assert_eq!(found, [(Gate::Rehearsal, GateStatus::Passed, summary)]);
    let lines = scene.lines(deployment).await;
    assert!(lines.iter().any(|line| line == "new column shop.size, integer"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "requests are held for about 4 s"), "{lines:?}");

    // The next one is compared with it.
    scene.world.set_rehearsal(seen(false, &["odoo.x: slow", "odoo.y: gone"]));
    let commit = scene.commit(&[("a", "data 3")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    let lines = scene.lines(deployment).await;
    assert!(lines.iter().any(|line| line == "new in the log: odoo.y: gone"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("new in the log: odoo.x")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_becomes_stricter_corrects_the_plan() {
    let scene = Scene::new().await;
    let place = production(&scene).await;
    for (tightens, expected) in [(false, "update"), (true, "update_and_hold_writes")] {
        scene.world.set_rehearsal(seen(tightens, &[]));
        let commit = scene.commit(&[("a", &format!("data {tightens}"))]).await;
        let deployment = scene.deploy(place, &commit, "live").await;
        let engine = scene.engine().await;
        assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
        engine.stop().await;
        assert_eq!(way(&scene, deployment).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_fails_ends_the_deployment_before_anything_is_touched() {
    let scene = Scene::new().await;
    let place = production(&scene).await;
    let (row, world, route) = (scene.instance(place).await, scene.world.instance(place.instance), scene.world.route(place.instance));
    scene.world.trouble("rehearse_modules", Trouble::Reject("field `size` is required, but there are records without a value"));
    let stops = scene.world.calls("stop_slot");
    let commit = scene.commit(&[("a", "data 2")]).await;
    let deployment = scene.deploy(place, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed);
    engine.stop().await;
    let message = scene.message(deployment).await.unwrap();
    assert_eq!(message, "the rehearsal on a copy of the live data failed: field `size` is required, but there are records without a value");
    let mut after = scene.world.instance(place.instance);
    after.generation = world.generation;
    assert_eq!((after, scene.instance(place).await, scene.world.route(place.instance)), (world, row, route));
    assert_eq!(scene.world.calls("stop_slot"), stops, "the live slot has not rested");
    let found = evidence(&scene, deployment).await;
    assert_eq!(found.iter().map(|(gate, status, _)| (*gate, *status)).collect::<Vec<_>>(), [(Gate::Rehearsal, GateStatus::Failed)]);
    scene.world.relieve("rehearse_modules");
    assert_eq!(update(&scene, place, &[("a", "data 3")]).await, DeploymentStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_was_interrupted_begins_again_with_a_new_copy() {
    for trouble in [Trouble::Hold, Trouble::HoldAfter] {
        let scene = Scene::new().await;
        let place = production(&scene).await;
        let commit = scene.commit(&[("a", "data 2")]).await;
        scene.world.trouble("rehearse_modules", trouble);
        let deployment = scene.deploy(place, &commit, "live").await;
        let engine = scene.engine().await;
        scene.world.held("rehearse_modules").await;
        let stopping = tokio::spawn(engine.stop());
        scene.world.relieve("rehearse_modules");
        stopping.await.unwrap();
        let engine = scene.engine().await;
        assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
        engine.stop().await;
        let (row, world) = (scene.instance(place).await, scene.world.instance(place.instance));
        assert_eq!(world.data_sets[&row.live()], ["installed a", "updated a"]);
        assert_eq!((world.data_sets.len(), world.slots.len(), world.clusters.len()), (1, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_no_data_and_what_nobody_asked_for_is_not_rehearsed() {
    let scene = Scene::new().await;
    let place = production(&scene).await;
    assert_eq!(update(&scene, place, &[("a", "data 1")]).await, DeploymentStatus::Succeeded);
    let development = scene.place("dev").await;
    scene.live(development, &[("a", "data 1")]).await;
    let commit = scene.commit(&[("a", "data 2")]).await;
    let deployment = scene.deploy(development, &commit, "live").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    assert_eq!(scene.world.calls("rehearse_modules"), 0);
    assert!(evidence(&scene, deployment).await.is_empty());
    assert!(scene.steps(deployment).await.iter().any(|(name, _)| *name == StepName::Rehearse));
}
