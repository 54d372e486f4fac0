//! Network policies, from the store to the machine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use ocore_control::{
    Error, audit,
    egress::{self, EgressPatch},
    reconcilers,
    store::deployments::Page,
};
use ocore_host::Egress;
use ocore_model::deployment::DeploymentStatus;
use serde_json::json;

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

const PAGE: Page = Page { limit: 10, offset: 0 };

fn open() -> EgressPatch {
    EgressPatch { closed: Some(false), allow: None }
}

fn close() -> EgressPatch {
    EgressPatch { closed: Some(true), allow: None }
}

fn allow(places: &[&str]) -> EgressPatch {
    EgressPatch { closed: None, allow: Some(places.iter().map(|place| (*place).to_owned()).collect()) }
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what the machine has, which may be nothing")]
fn closed_but(places: &[&str]) -> Option<Egress> {
    Some(Egress::Closed { allow: places.iter().map(|place| place.parse().unwrap()).collect(), resolve_names: false })
}

async fn staged(scene: &Scene, branch: &str, stage: &str) -> Place {
    let place = scene.place(branch).await;
    sqlx::query("update environments set stage = $2 where id = $1")
        .bind(place.environment.as_uuid())
        .bind(stage)
        .execute(&scene.control().pool)
        .await
        .unwrap();
    place
}

async fn change(scene: &Scene, place: Place, patch: EgressPatch) -> ocore_control::Result<egress::EnvironmentEgress> {
    egress::update(scene.control(), &scene.scope.grant().unwrap(), place.environment, patch).await
}

async fn actions(scene: &Scene) -> Vec<String> {
    let (entries, total) =
        audit::list(scene.control(), &scene.scope.grant().unwrap(), &ocore_control::audit::AuditFilter::default(), PAGE).await.unwrap();
    assert_eq!(total as usize, entries.len());
    assert!(entries.iter().all(|entry| entry.user_id == scene.scope.user_id && entry.api_key_id.is_none()));
    entries.into_iter().map(|entry| entry.action).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_goes_live_closed_and_production_open() {
    let scene = Scene::new().await;
    let development = staged(&scene, "feature", "development").await;
    let production = staged(&scene, "main", "production").await;
    for place in [development, production] {
        scene.live(place, &[("a", "1")]).await;
    }
    assert_eq!(scene.world.instance(development.instance).egress, closed_but(&[]));
    assert_eq!(scene.world.instance(production.instance).egress, Some(Egress::Open));
    let shown = egress::show(scene.control(), &scene.scope.grant().unwrap(), production.environment).await.unwrap();
    assert!(shown.production && !shown.closed);
    let refused = change(&scene, production, close()).await;
    assert!(matches!(refused, Err(Error::Conflict { code: "production_open", .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_machine_at_once_and_is_audited_with_what_was_before() {
    let scene = Scene::new().await;
    let place = staged(&scene, "feature", "staging").await;
    scene.live(place, &[("a", "1")]).await;
    let shown = change(&scene, place, allow(&["192.0.2.1:443", "[2001:db8::1]:25", "192.0.2.1:443"])).await.unwrap();
    assert_eq!((shown.closed, shown.allow.len()), (true, 2));
    assert_eq!(scene.world.instance(place.instance).egress, closed_but(&["192.0.2.1:443", "[2001:db8::1]:25"]));
    change(&scene, place, open()).await.unwrap();
    assert_eq!(scene.world.instance(place.instance).egress, Some(Egress::Open));
    change(&scene, place, open()).await.unwrap();
    change(&scene, place, close()).await.unwrap();
    assert_eq!(scene.world.instance(place.instance).egress, closed_but(&["192.0.2.1:443", "[2001:db8::1]:25"]), "what was allowed stays");
    assert_eq!(actions(&scene).await, ["egress.closed", "egress.opened", "egress.changed"], "what changes nothing is no change");
    let (entries, _) =
        audit::list(scene.control(), &scene.scope.grant().unwrap(), &ocore_control::audit::AuditFilter::default(), PAGE).await.unwrap();
    assert_eq!(entries[1].subject, format!("environment:{}", place.environment));
    assert_eq!((&entries[1].detail["before"]["mode"], &entries[1].detail["after"]["mode"]), (&json!("closed"), &json!("open")));

    for places in [&["127.0.0.1:8700"][..], &["nonsense"], &["192.0.2.1:443", "does-not-exist.invalid:443"]] {
        let refused = change(&scene, place, allow(places)).await;
        let Err(Error::Invalid { fields }) = refused else { panic!("{refused:?}") };
        assert_eq!(fields[0].field, format!("allow[{}]", places.len() - 1));
    }
    assert_eq!(actions(&scene).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_did_not_take_is_brought_again() {
    let scene = Scene::new().await;
    let place = staged(&scene, "feature", "development").await;
    scene.live(place, &[("a", "1")]).await;
    change(&scene, place, open()).await.unwrap();
    scene.world.trouble("set_egress", Trouble::Break("the network cannot be closed"));
    let shown = change(&scene, place, close()).await.unwrap();
    assert!(shown.closed, "what is wanted is written down");
    assert_eq!(scene.world.instance(place.instance).egress, Some(Egress::Open));
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(scene.world.instance(place.instance).egress, Some(Egress::Open));
    scene.world.relieve("set_egress");
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(scene.world.instance(place.instance).egress, closed_but(&[]));
    let calls = scene.world.calls("set_egress");
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(scene.world.calls("set_egress"), calls, "what it has is not brought again");

    sqlx::query("update environments set stage = 'production' where id = $1")
        .bind(place.environment.as_uuid())
        .execute(&scene.control().pool)
        .await
        .unwrap();
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(scene.world.instance(place.instance).egress, Some(Egress::Open), "another stage is another policy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_close_makes_the_deployment_fail_with_its_words() {
    let scene = Scene::new().await;
    let place = staged(&scene, "feature", "development").await;
    let commit = scene.commit(&[("a", "1")]).await;
    scene.world.trouble("set_egress", Trouble::Break("install the package `nftables`"));
    let deployment = scene.deploy(place, &commit, "fresh").await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed);
    engine.stop().await;
    assert!(scene.message(deployment).await.unwrap().contains("install the package `nftables`"));
    assert!(scene.world.instance(place.instance).data_sets.is_empty());
}
