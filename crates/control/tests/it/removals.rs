//! What is removed goes with everything that lies on a server, but for the last snapshot of a production, which stays for 30 days and can be brought
//! live again; on a machine in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use chrono::TimeDelta;
use ocore_control::{
    Error,
    environments::{self, KEPT},
    instances,
    operations::Injection,
    organizations::{self, OrganizationPatch, Removed},
    projects::{self, ProjectPatch},
    reconcilers,
    rollbacks::{self, RollbackRequest},
    snapshots::{self, Page, SnapshotPatch},
};
use ocore_model::{
    environment::{EnvironmentStatus, Stage},
    ids::SnapshotId,
    instance::InstanceStatus,
    snapshot::SnapshotStatus,
};

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

const PAGE: Page = Page { limit: 20, offset: 0 };
/// The slug that the scene gives to the instance of `main`.
const NAME: &str = "shop-main";

/// A scene with a production that serves.
async fn production() -> (Scene, Place) {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    sqlx::query("update environments set stage = 'production' where id = $1")
        .bind(place.environment.as_uuid())
        .execute(&scene.control().pool)
        .await
        .unwrap();
    scene.live(place, &[("shop", "one")]).await;
    (scene, place)
}

async fn remove(scene: &Scene, place: Place, confirmation: Option<&str>) -> ocore_control::Result<EnvironmentStatus> {
    environments::delete(scene.control(), &scene.scope.grant().unwrap(), place.environment, confirmation).await
}

async fn is_gone(scene: &Scene, place: Place) -> bool {
    scene.instance_status(place).await == InstanceStatus::Deleted
}

/// The last snapshot, as its project shows it when the environment is gone.
async fn kept(scene: &Scene) -> Vec<snapshots::Snapshot> {
    snapshots::list_of_project(scene.control(), &scene.scope.grant().unwrap(), scene.project, PAGE).await.unwrap().0
}

async fn actions(scene: &Scene) -> Vec<String> {
    let entries =
        ocore_control::audit::list(scene.control(), &scene.scope.grant().unwrap(), &ocore_control::audit::AuditFilter::default(), PAGE)
            .await
            .unwrap()
            .0;
    entries.into_iter().map(|entry| entry.action).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_production_goes_when_its_name_is_typed_and_its_last_snapshot_stays_for_thirty_days() {
    let (scene, place) = production().await;
    let refused = remove(&scene, place, None).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("/api/environments/{}?confirm={NAME}", place.environment)), "{refused}");
    for wrong in ["main", "Shop-main", ""] {
        assert!(matches!(remove(&scene, place, Some(wrong)).await, Err(Error::Invalid { .. })), "{wrong}");
    }
    let by_instance = instances::delete(scene.control(), &scene.scope.grant().unwrap(), place.instance, None).await;
    assert!(matches!(by_instance, Err(Error::Conflict { code: "production_protected", .. })), "{by_instance:?}");

    let live = scene.instance(place).await.live();
    assert_eq!(remove(&scene, place, Some(NAME)).await.unwrap(), EnvironmentStatus::Removing);
    let engine = scene.engine().await;
    scene.eventually(async || is_gone(&scene, place).await).await;
    engine.stop().await;
    assert!(!scene.world.knows(place.instance));
    let [last] = kept(&scene).await.try_into().unwrap();
    assert_eq!((last.status, last.data_set_id, last.stage), (SnapshotStatus::Ready, live, Stage::Production));
    assert!(last.name.starts_with("last of main "), "{}", last.name);
    assert_eq!(actions(&scene).await, ["environment.removed"]);

    scene.store.clock.advance(KEPT - TimeDelta::hours(1));
    reconcilers::run_all(scene.control()).await.unwrap();
    assert_eq!(scene.world.snapshots_taken(), [last.id]);
    scene.store.clock.advance(TimeDelta::hours(2));
    for _ in 0..2 {
        reconcilers::run_all(scene.control()).await.unwrap();
    }
    assert!(scene.world.snapshots_taken().is_empty() && kept(&scene).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_snapshot_comes_live_again_in_a_new_environment() {
    let (scene, place) = production().await;
    remove(&scene, place, Some(NAME)).await.unwrap();
    let engine = scene.engine().await;
    scene.eventually(async || is_gone(&scene, place).await).await;
    let [last] = kept(&scene).await.try_into().unwrap();
    let again = scene.place("again").await;
    sqlx::query("update environments set stage = 'production' where id = $1")
        .bind(again.environment.as_uuid())
        .execute(&scene.control().pool)
        .await
        .unwrap();
    let request = RollbackRequest { snapshot: last.id, create_safety_snapshot: true, target: None };
    let rollback = rollbacks::rollback(scene.control(), &scene.scope.grant().unwrap(), again.environment, request).await.unwrap();
    assert_eq!(scene.ended(rollback.deployment).await, ocore_model::deployment::DeploymentStatus::Succeeded);
    engine.stop().await;
    let world = scene.world.instance(again.instance);
    let live = scene.instance(again).await.live();
    assert!(world.data_sets.contains_key(&live), "its data are there");
    assert_eq!(world.standing(live), ocore_host::Standing::Own, "as they were: nothing was neutralized");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_last_snapshot_nothing_of_a_production_is_removed_and_it_is_asked_for_again() {
    let (scene, place) = production().await;
    scene.world.trouble("take_snapshot", Trouble::Break("the disk is full"));
    remove(&scene, place, Some(NAME)).await.unwrap();
    let engine = scene.engine().await;
    scene.eventually(async || scene.instance(place).await.status_message.contains("the disk is full")).await;
    engine.stop().await;
    assert!(scene.world.knows(place.instance), "its data are there");
    assert_eq!(scene.world.calls("destroy_instance"), 0);
    scene.world.relieve("take_snapshot");
    reconcilers::run_all(scene.control()).await.unwrap();
    let engine = scene.engine().await;
    scene.eventually(async || is_gone(&scene, place).await).await;
    engine.stop().await;
    let ready: Vec<SnapshotId> =
        kept(&scene).await.into_iter().filter(|snapshot| snapshot.status == SnapshotStatus::Ready).map(|snapshot| snapshot.id).collect();
    assert_eq!((ready.len(), scene.world.snapshots_taken()), (1, ready));
}

/// As a process that ends in the middle of a removal and another that takes it up: before the snapshot is whole, after it, and when the server failed
/// the removal itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_cut_off_goes_on_and_keeps_one_snapshot() {
    for (call, trouble) in [("take_snapshot", Trouble::Hold), ("take_snapshot", Trouble::HoldAfter), ("destroy_instance", Trouble::Hold)] {
        let (scene, place) = production().await;
        scene.world.trouble(call, trouble);
        let engine = scene.engine().await;
        remove(&scene, place, Some(NAME)).await.unwrap();
        scene.world.held(call).await;
        engine.stop().await;
        scene.world.relieve(call);
        let engine = scene.engine_with(vec![Injection::Repeat("destroy::keep"), Injection::Repeat("destroy::remove")]).await;
        scene.eventually(async || is_gone(&scene, place).await).await;
        engine.stop().await;
        assert!(!scene.world.knows(place.instance), "{call}");
        let [last] = kept(&scene).await.try_into().unwrap();
        assert_eq!((last.status, scene.world.snapshots_taken()), (SnapshotStatus::Ready, vec![last.id]), "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_goes_with_all_its_environments_and_can_be_brought_back_while_its_last_snapshot_stays() {
    let (scene, place) = production().await;
    let development = scene.place("dev").await;
    scene.live(development, &[("shop", "two")]).await;
    let (control, grant) = (scene.control(), scene.scope.grant().unwrap());
    // One that somebody pinned goes with the rest.
    let pinned = snapshots::create(control, &scene.scope.grant().unwrap(), development.environment, None).await.unwrap().id;
    reconcilers::run_all(control).await.unwrap();
    let pin = SnapshotPatch { pinned: Some(true), ..SnapshotPatch::default() };
    snapshots::update(control, &scene.scope.grant().unwrap(), pinned, pin).await.unwrap();

    let refused = projects::archive(control, &grant, scene.project).await.unwrap_err().to_string();
    assert!(refused.contains("still has 2 environments") && refused.contains("?confirm=shop"), "{refused}");
    assert!(matches!(projects::remove(control, &grant, scene.project, "Shop").await, Err(Error::Invalid { .. })));
    let engine = scene.engine().await;
    for _ in 0..2 {
        let project = projects::remove(control, &grant, scene.project, "shop").await.unwrap();
        assert!(project.archived_at.is_some() && project.removal_requested_at.is_some());
    }
    scene.eventually(async || is_gone(&scene, place).await && is_gone(&scene, development).await).await;
    engine.stop().await;
    let mirror = control.settings.repositories.join(format!("{}.git", scene.project));
    for _ in 0..2 {
        reconcilers::run_all(control).await.unwrap();
    }
    let [last] = kept(&scene).await.try_into().unwrap();
    assert_eq!(scene.world.snapshots_taken(), [last.id], "the production's last one, and no other");
    assert!(mirror.exists());
    let back = ProjectPatch { archived: Some(false), ..ProjectPatch::default() };
    let back = projects::update(control, &grant, scene.project, back).await.unwrap();
    assert!(back.archived_at.is_none() && back.removal_requested_at.is_none());
    scene.store.clock.advance(KEPT + TimeDelta::hours(1));
    for _ in 0..3 {
        reconcilers::run_all(control).await.unwrap();
    }
    assert!(mirror.exists() && projects::show(control, &scene.scope.grant().unwrap(), scene.project).await.is_ok(), "it was brought back");

    projects::remove(control, &grant, scene.project, "shop").await.unwrap();
    reconcilers::run_all(control).await.unwrap();
    assert!(matches!(projects::show(control, &scene.scope.grant().unwrap(), scene.project).await, Err(Error::NotFound { .. })));
    assert!(!mirror.exists());
    for table in ["instances", "environments", "deployments", "snapshots", "operations", "branches"] {
        let left: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}"))).fetch_one(&control.pool).await.unwrap();
        assert_eq!(left, 0, "{table}");
    }
    assert!(actions(&scene).await.contains(&"project.removed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_goes_with_its_projects_and_its_owner_can_bring_it_back_for_thirty_days() {
    let (scene, place) = production().await;
    let control = scene.control();
    let admin = scene.store.member(&scene.scope, "admin@example.com", "Admin").await.unwrap();
    let refused = organizations::remove(control, &scene.scope.grant().unwrap(), None).await.unwrap_err().to_string();
    assert!(refused.contains("still has a project") && refused.contains("?confirm=acme"), "{refused}");
    assert!(matches!(organizations::remove(control, &scene.scope.grant().unwrap(), Some("globex")).await, Err(Error::Invalid { .. })));
    assert!(admin.scope.grant::<ocore_control::authorization::ManageOrganization>().is_err());
    let engine = scene.engine().await;
    assert_eq!(organizations::remove(control, &scene.scope.grant().unwrap(), Some("acme")).await.unwrap(), Removed::Going);
    scene.eventually(async || is_gone(&scene, place).await).await;
    engine.stop().await;
    let seen = |token: String| async move { ocore_control::accounts::authenticate(control, &token, Some("acme")).await };
    assert!(matches!(seen(admin.token().to_owned()).await, Err(Error::NotFound { .. })), "members lose it");
    let owner = ocore_control::members::list(control, &scene.scope.grant().unwrap()).await.unwrap();
    assert_eq!(owner.len(), 1);

    let back = OrganizationPatch { removed: Some(false), ..OrganizationPatch::default() };
    let back = organizations::update(control, &scene.scope.grant().unwrap(), back).await.unwrap();
    assert!(back.organization.removal_requested_at.is_none());
    assert_eq!(organizations::remove(control, &scene.scope.grant().unwrap(), Some("acme")).await.unwrap(), Removed::Going);
    scene.store.clock.advance(KEPT + TimeDelta::hours(1));
    for _ in 0..3 {
        reconcilers::run_all(control).await.unwrap();
    }
    let left: i64 = sqlx::query_scalar("select count(*) from organizations").fetch_one(&control.pool).await.unwrap();
    assert_eq!((left, scene.world.snapshots_taken()), (0, Vec::new()));
    let mirrors = std::fs::read_dir(&control.settings.repositories).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(
        mirrors.filter(|name| name.to_string_lossy().contains(&scene.project.to_string())).collect::<Vec<_>>(),
        Vec::<std::ffi::OsString>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_production_that_never_was_live_and_an_environment_that_is_none_leave_no_snapshot() {
    let scene = Scene::new().await;
    let (empty, development) = (scene.place("main").await, scene.place("dev").await);
    sqlx::query("update environments set stage = 'production' where id = $1")
        .bind(empty.environment.as_uuid())
        .execute(&scene.control().pool)
        .await
        .unwrap();
    scene.live(development, &[("shop", "one")]).await;
    let engine = scene.engine().await;
    remove(&scene, empty, Some(NAME)).await.unwrap();
    remove(&scene, development, None).await.unwrap();
    scene.eventually(async || is_gone(&scene, empty).await && is_gone(&scene, development).await).await;
    engine.stop().await;
    assert!(scene.world.snapshots_taken().is_empty());
}
