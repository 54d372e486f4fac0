//! What fresh databases begin with, on a machine in memory.

use std::sync::Arc;

use ocore_control::{Control, Settings, reconcilers};
use ocore_model::{deployment::DeploymentStatus, ids::DeploymentId};

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

/// The first deployment of another environment.
async fn fresh(scene: &Scene, branch: &str, modules: &[(&str, &str)]) -> (Place, DeploymentId) {
    let place = scene.place(branch).await;
    (place, scene.live(place, modules).await)
}

async fn said(scene: &Scene, deployment: DeploymentId, text: &str) -> bool {
    scene.lines(deployment).await.iter().any(|line| line.contains(text))
}

async fn installed(scene: &Scene, place: Place) -> Vec<String> {
    let live = scene.instance(place).await.live();
    scene.world.instance(place.instance).data_sets[&live].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_build_installs_only_what_no_template_has() {
    let scene = Scene::new().await;
    let (_, first) = fresh(&scene, "one", &[("a", "1"), ("b", "1")]).await;
    assert!(said(&scene, first, "begins with nothing").await && said(&scene, first, "kept as template").await);
    let [kept] = scene.world.templates_kept().try_into().unwrap();
    assert_eq!(kept.content.isolation_key, Some(scene.project.to_string()));

    let (place, second) = fresh(&scene, "two", &[("a", "1"), ("b", "1")]).await;
    assert!(said(&scene, second, &format!("begins with template {}, which has 2 modules", kept.id)).await);
    assert!(said(&scene, second, "the template has every module").await && !said(&scene, second, "kept as template").await);
    assert_eq!(installed(&scene, place).await, ["installed a", "installed b"]);

    // One more module: the rest is installed, and kept for the next one.
    let (place, third) = fresh(&scene, "three", &[("a", "1"), ("b", "1"), ("c", "1")]).await;
    assert!(said(&scene, third, "1 module to install").await && said(&scene, third, "kept as template").await);
    assert_eq!(installed(&scene, place).await, ["installed a", "installed b", "installed c"]);

    // One that has changed is in no template as it is now.
    let (place, fourth) = fresh(&scene, "four", &[("a", "1"), ("b", "2")]).await;
    assert!(said(&scene, fourth, "begins with nothing").await);
    assert_eq!(installed(&scene, place).await, ["installed a", "installed b"]);

    // Production's own database comes from nothing.
    let place = scene.place("live").await;
    sqlx::query("update environments set stage = 'production' where id = $1")
        .bind(place.environment.as_uuid())
        .execute(&scene.control().pool)
        .await
        .unwrap();
    let production = scene.live(place, &[("a", "1"), ("b", "1")]).await;
    assert!(!said(&scene, production, "template").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_template_fails_a_deployment() {
    let scene = Scene::new().await;
    scene.world.trouble("keep_template", Trouble::Break("the disk does not answer"));
    let (_, first) = fresh(&scene, "one", &[("a", "1")]).await;
    assert!(said(&scene, first, "could not be kept as a template: the disk does not answer").await);
    scene.world.relieve("keep_template");

    fresh(&scene, "two", &[("a", "1")]).await;
    let [kept] = scene.world.templates_kept().try_into().unwrap();
    scene.world.damage_template(kept.id);
    let (place, third) = fresh(&scene, "three", &[("a", "1")]).await;
    assert!(said(&scene, third, "the template cannot be used").await && said(&scene, third, "begins with nothing").await);
    assert_eq!(installed(&scene, place).await, ["installed a"]);

    scene.world.trouble("templates", Trouble::Break("the directory is gone"));
    let (_, fourth) = fresh(&scene, "four", &[("a", "1")]).await;
    assert!(said(&scene, fourth, "the templates could not be read: the directory is gone").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_was_interrupted_while_it_was_kept_goes_on() {
    let scene = Scene::new().await;
    let place = scene.place("one").await;
    let commit = scene.commit(&[("a", "1")]).await;
    scene.world.trouble("keep_template", Trouble::Hold);
    let deployment = scene.deploy(place, &commit, "fresh").await;
    let engine = scene.engine().await;
    scene.world.held("keep_template").await;
    engine.stop().await;
    scene.world.relieve("keep_template");
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    assert_eq!(scene.world.templates_kept().len(), 1);
    assert_eq!(installed(&scene, place).await, ["installed a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_build_needed_of_odoo_is_made_for_all_projects_and_an_archived_ones_go() {
    let scene = Scene::new().await;
    fresh(&scene, "one", &[("a", "1")]).await;
    let shared = || scene.world.templates_kept().into_iter().filter(|template| template.content.isolation_key.is_none()).count();
    assert_eq!(shared(), 0);
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(shared(), 1);
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!((shared(), scene.world.calls("make_template")), (1, 1));

    // Another commit finds it.
    let (_, second) = fresh(&scene, "two", &[("a", "2")]).await;
    assert!(said(&scene, second, "which has 1 module").await);
    assert_eq!(scene.world.templates_kept().len(), 3);
    sqlx::query("update projects set archived_at = now()").execute(&scene.control().pool).await.unwrap();
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!((scene.world.templates_kept().len(), shared()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_stops_the_making_of_a_template() {
    let scene = Scene::new().await;
    fresh(&scene, "one", &[("a", "1")]).await;
    scene.world.trouble("make_template", Trouble::Hold);
    let place = scene.place("two").await;
    let commit = scene.commit(&[("a", "2")]).await;
    let (ran, ()) = tokio::join!(reconcilers::run_all(scene.control()), async {
        scene.world.held("make_template").await;
        // Queued is enough.
        scene.deploy(place, &commit, "fresh").await;
    });
    ran.unwrap();
    assert_eq!((scene.world.templates_kept().len(), scene.world.calls("make_template")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_wants_no_templates_for_all_projects_gets_none_made_and_none_used() {
    let mut scene = Scene::new().await;
    fresh(&scene, "one", &[("a", "1")]).await;
    let shared = || scene.world.templates_kept().into_iter().filter(|template| template.content.isolation_key.is_none()).count();
    let wanted = Arc::clone(&scene.control().settings);
    let unwanted = Arc::new(Settings { shared_templates: false, ..(*wanted).clone() });
    let operator = Control { settings: Arc::clone(&unwanted), ..scene.control().clone() };
    reconcilers::run_all(&operator).await.unwrap();
    assert_eq!((shared(), scene.world.calls("make_template")), (0, 0));

    // One that is there from before is not begun with; the project's own is.
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(shared(), 1);
    scene.store.control.settings = unwanted;
    let (_, second) = fresh(&scene, "two", &[("a", "2")]).await;
    assert!(said(&scene, second, "begins with nothing").await);
    let (_, third) = fresh(&scene, "three", &[("a", "2")]).await;
    assert!(said(&scene, third, "the template has every module").await);
}
