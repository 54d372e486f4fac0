//! Snapshots: asked for, taken, kept by rules, removed; on a machine in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt};
use ocore_control::{
    Error,
    authorization::{Grant, Right, Scope, ViewOrganization},
    events,
    operations::OperationKind,
    reconcilers,
    snapshots::{self, Page, SettingsPatch, Snapshot, SnapshotPatch, SnapshotSettings},
    space,
};
use ocore_model::{
    deployment::DeploymentStatus,
    ids::SnapshotId,
    snapshot::{FailurePolicy, SnapshotKind, SnapshotStatus},
};

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

const PAGE: Page = Page { limit: 20, offset: 0 };

fn code(error: &Error) -> &'static str {
    match error {
        Error::Conflict { code, .. } | Error::Forbidden { code, .. } => code,
        Error::NotFound { .. } => "not_found",
        Error::Invalid { .. } => "invalid",
        _ => "another",
    }
}

/// A scene with something live, and how its snapshots are used.
struct Kept {
    scene: Scene,
    place: Place,
}

impl Kept {
    async fn new() -> Self {
        let scene = Scene::new().await;
        let place = scene.place("main").await;
        scene.live(place, &[("shop", "one")]).await;
        Self { scene, place }
    }

    fn grant<R: Right>(&self) -> Grant<R> {
        self.scene.scope.grant().unwrap()
    }

    async fn ask(&self, name: &str) -> SnapshotId {
        snapshots::create(self.scene.control(), &self.grant(), self.place.environment, Some(name)).await.unwrap().id
    }

    async fn find(&self, id: SnapshotId) -> Snapshot {
        snapshots::find(self.scene.control(), &self.grant(), id).await.unwrap()
    }

    async fn is_gone(&self, id: SnapshotId) -> bool {
        matches!(snapshots::find(self.scene.control(), &self.grant(), id).await, Err(Error::NotFound { .. }))
    }

    async fn reconcile(&self) {
        reconcilers::run_all(self.scene.control()).await.unwrap();
    }

    async fn taken(&self, name: &str) -> SnapshotId {
        let id = self.ask(name).await;
        self.reconcile().await;
        assert_eq!(self.find(id).await.status, SnapshotStatus::Ready, "{:?}", self.find(id).await.message);
        id
    }

    /// One as a deployment makes it, so many days ago.
    async fn made(&self, kind: SnapshotKind, days: i64) -> SnapshotId {
        let id = self.taken(&format!("{kind} {days}")).await;
        let taken_at = self.scene.store.control.clock.now() - TimeDelta::days(days);
        sqlx::query("update snapshots set kind = $2, taken_at = $3, created_at = $3 where id = $1")
            .bind(id.as_uuid())
            .bind(kind.as_str())
            .bind(taken_at)
            .execute(&self.scene.control().pool)
            .await
            .unwrap();
        id
    }

    async fn pin(&self, id: SnapshotId, pinned: bool) -> Result<Snapshot, Error> {
        let patch = SnapshotPatch { name: None, pinned: Some(pinned) };
        snapshots::update(self.scene.control(), &self.grant(), id, patch).await
    }

    async fn delete(&self, id: SnapshotId) -> Result<(), Error> {
        snapshots::delete(self.scene.control(), &self.grant(), id).await
    }

    async fn settings(&self, patch: SettingsPatch) -> SnapshotSettings {
        snapshots::set_settings(self.scene.control(), &self.grant(), self.place.environment, patch).await.unwrap()
    }

    /// Has a run of the reconcilers go on until a call of the host is held, and the process die there.
    async fn killed_in(&self, call: &'static str, trouble: Trouble) {
        self.scene.world.trouble(call, trouble);
        let control = self.scene.control().clone();
        let run = tokio::spawn(async move { reconcilers::run_all(&control).await });
        self.scene.world.held(call).await;
        run.abort();
        let _ = run.await;
        self.scene.world.relieve(call);
    }
}

#[tokio::test]
async fn one_by_hand_is_answered_at_once_and_taken_soon_after() {
    let kept = Kept::new().await;
    let control = kept.scene.control();
    let (_, stream) = events::follow(control, &kept.grant::<ViewOrganization>(), None).await.unwrap();
    let asked = snapshots::create(control, &kept.grant(), kept.place.environment, None).await.unwrap();
    assert_eq!((asked.status, asked.kind, asked.pinned), (SnapshotStatus::Creating, SnapshotKind::Manual, false));
    assert!(asked.name.starts_with("main 20") && kept.scene.world.snapshot(asked.id).is_none(), "{}", asked.name);
    kept.reconcile().await;

    let taken = kept.find(asked.id).await;
    let live = kept.scene.instance(kept.place).await;
    assert_eq!((taken.status, taken.data_set_id, taken.release), (SnapshotStatus::Ready, live.live(), live.active_release.clone()));
    assert_eq!(taken.deployment_id.map(uuid::Uuid::from), live.active_deployment_id);
    assert_eq!((taken.standing.as_deref(), taken.modules_count, taken.live), (Some("own"), Some(1), Some(true)));
    assert_eq!(taken.admin_password, live.admin_password);
    assert!(taken.commit_sha.is_some() && taken.database_bytes.is_some_and(|bytes| bytes > 0) && taken.taken_at.is_some());
    assert_eq!(kept.scene.world.snapshot(asked.id).unwrap().1, ["installed shop"]);
    assert_eq!(kept.scene.instance(kept.place).await, live, "the instance is as it was");

    let seen = stream.try_filter(|event| futures::future::ready(event.kind == "snapshot.status")).take(2).try_collect::<Vec<_>>();
    let seen = tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap().unwrap();
    let statuses: Vec<_> = seen.iter().map(|event| event.body["payload"]["status"].as_str().unwrap_or_default()).collect();
    assert_eq!(statuses, ["creating", "ready"]);
    assert_eq!(seen[0].body["payload"]["snapshotId"], asked.id.to_string());
}

#[tokio::test]
async fn before_the_first_deployment_there_is_nothing_to_keep() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let asked = snapshots::create(scene.control(), &scene.scope.grant().unwrap(), place.environment, None).await;
    assert_eq!(code(&asked.unwrap_err()), "nothing_live");
    let estimate = snapshots::estimate(scene.control(), &scene.scope.grant().unwrap(), place.environment).await;
    assert_eq!(code(&estimate.unwrap_err()), "nothing_live");
}

#[tokio::test]
async fn a_crash_while_one_is_taken_is_made_good_by_the_next_run() {
    let kept = Kept::new().await;
    // Before the server has it, and after that but before the row says so.
    for trouble in [Trouble::Hold, Trouble::HoldAfter] {
        let whole = matches!(trouble, Trouble::HoldAfter);
        let id = kept.ask("x").await;
        kept.killed_in("take_snapshot", trouble).await;
        assert_eq!((kept.find(id).await.status, kept.scene.world.snapshot(id).is_some()), (SnapshotStatus::Creating, whole));
        let calls = kept.scene.world.calls("take_snapshot");
        kept.reconcile().await;
        assert_eq!(kept.find(id).await.status, SnapshotStatus::Ready);
        assert_eq!(kept.scene.world.calls("take_snapshot") == calls, whole, "what is whole is not taken again");
    }
}

#[tokio::test]
async fn data_that_a_deployment_replaces_meanwhile_are_followed_to_the_new_ones() {
    let kept = Kept::new().await;
    let id = kept.ask("x").await;
    let asked_of = kept.find(id).await.data_set_id;
    // What was live is two deployments old, and gone.
    let engine = kept.scene.engine().await;
    for digest in ["two", "three"] {
        let commit = kept.scene.commit(&[("shop", digest)]).await;
        let deployment = kept.scene.deploy(kept.place, &commit, "live").await;
        assert_eq!(kept.scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", kept.scene.message(deployment).await);
    }
    engine.stop().await;
    assert!(!kept.scene.world.instance(kept.place.instance).data_sets.contains_key(&asked_of));
    kept.reconcile().await;
    let (taken, live) = (kept.find(id).await, kept.scene.instance(kept.place).await);
    assert_eq!((taken.status, taken.data_set_id, taken.message.as_str()), (SnapshotStatus::Ready, live.live(), ""));
    assert_eq!(taken.deployment_id.map(uuid::Uuid::from), live.active_deployment_id);
}

#[tokio::test]
async fn what_the_machine_says_is_on_a_snapshot_that_it_could_not_take() {
    let kept = Kept::new().await;
    let id = kept.ask("x").await;
    let sentence = "a copy needs 3.1 GB and the pool has 1.2 GB free; remove snapshots, or give it more space";
    kept.scene.world.trouble("take_snapshot", Trouble::Break(sentence));
    kept.reconcile().await;
    let failed = kept.find(id).await;
    assert_eq!((failed.status, failed.message.as_str()), (SnapshotStatus::Failed, sentence));
    assert_eq!(code(&kept.pin(id, true).await.unwrap_err()), "snapshot_failed");
    kept.delete(id).await.unwrap();
    kept.reconcile().await;
    assert!(kept.is_gone(id).await);
}

#[tokio::test]
async fn one_that_takes_too_long_fails_with_the_limit_that_it_hit() {
    let kept = Kept::new().await;
    kept.settings(SettingsPatch { timeout_seconds: Some(10), ..SettingsPatch::default() }).await;
    // Shorter than anybody may set it.
    sqlx::query("update snapshot_settings set timeout_seconds = 0").execute(&kept.scene.control().pool).await.unwrap();
    kept.scene.world.trouble("take_snapshot", Trouble::Hold);
    let id = kept.ask("x").await;
    kept.reconcile().await;
    let failed = kept.find(id).await;
    assert_eq!(failed.status, SnapshotStatus::Failed);
    assert!(failed.message.contains("0 s") && failed.message.contains("timeoutSeconds"), "{}", failed.message);
}

#[tokio::test]
async fn one_that_is_being_taken_can_be_removed() {
    let kept = Kept::new().await;
    let id = kept.ask("x").await;
    kept.scene.world.trouble("take_snapshot", Trouble::Hold);
    let control = kept.scene.control().clone();
    let run = tokio::spawn(async move { reconcilers::run_all(&control).await });
    kept.scene.world.held("take_snapshot").await;
    kept.delete(id).await.unwrap();
    run.await.unwrap().unwrap();
    assert!(kept.is_gone(id).await && kept.scene.world.snapshot(id).is_none());
}

#[tokio::test]
async fn no_more_are_pinned_than_the_settings_allow_also_by_two_at_once() {
    let kept = Kept::new().await;
    kept.settings(SettingsPatch { max_pinned: Some(1), ..SettingsPatch::default() }).await;
    let (one, two) = (kept.taken("one").await, kept.taken("two").await);
    let pinned = [kept.pin(one, true), kept.pin(two, true)];
    let pinned = futures::future::join_all(pinned).await;
    let refused: Vec<_> = pinned.iter().filter_map(|pinned| pinned.as_ref().err()).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(code(refused[0]), "too_many_pinned");
    assert!(refused[0].to_string().starts_with("1 snapshots of main are pinned"), "{}", refused[0]);
    let (first, second) = if pinned[0].is_ok() { (one, two) } else { (two, one) };
    // Once more is no more.
    assert!(kept.pin(first, true).await.unwrap().pinned);
    assert_eq!(code(&kept.delete(first).await.unwrap_err()), "snapshot_pinned");
    assert!(!kept.pin(first, false).await.unwrap().pinned);
    assert!(kept.pin(second, true).await.unwrap().pinned);
}

#[tokio::test]
async fn automatic_ones_go_with_time_but_not_the_newest_and_nothing_that_a_person_wants() {
    let kept = Kept::new().await;
    let old = kept.made(SnapshotKind::Automatic, 3).await;
    let safety = kept.made(SnapshotKind::Safety, 3).await;
    let pinned = kept.made(SnapshotKind::Automatic, 3).await;
    kept.pin(pinned, true).await.unwrap();
    let newest = kept.made(SnapshotKind::Automatic, 1).await;
    let by_hand = kept.taken("by hand").await;
    kept.reconcile().await;
    assert!(!kept.is_gone(old).await, "seven days are not over");
    kept.scene.store.clock.advance(TimeDelta::days(8));
    kept.reconcile().await;
    for gone in [old, safety] {
        assert!(kept.is_gone(gone).await && kept.scene.world.snapshot(gone).is_none());
    }
    for stays in [pinned, newest, by_hand] {
        assert_eq!(kept.find(stays).await.status, SnapshotStatus::Ready);
        assert!(kept.scene.world.snapshot(stays).is_some());
    }
    kept.pin(pinned, false).await.unwrap();
    kept.reconcile().await;
    assert!(kept.is_gone(pinned).await);
}

#[tokio::test]
async fn what_an_open_deployment_brings_to_life_is_not_removed_under_it() {
    let kept = Kept::new().await;
    let id = kept.made(SnapshotKind::Automatic, 30).await;
    kept.made(SnapshotKind::Automatic, 0).await;
    let commit = kept.scene.commit(&[("shop", "two")]).await;
    let deployment = kept.scene.deploy(kept.place, &commit, "live").await;
    sqlx::query("update deployments set source_snapshot_id = $2 where id = $1")
        .bind(deployment.as_uuid())
        .bind(id.as_uuid())
        .execute(&kept.scene.control().pool)
        .await
        .unwrap();
    assert!(kept.find(id).await.in_use);
    assert_eq!(code(&kept.delete(id).await.unwrap_err()), "snapshot_in_use");
    kept.reconcile().await;
    assert_eq!(kept.find(id).await.status, SnapshotStatus::Ready);
    sqlx::query("update deployments set status = 'failed' where id = $1")
        .bind(deployment.as_uuid())
        .execute(&kept.scene.control().pool)
        .await
        .unwrap();
    kept.reconcile().await;
    assert!(kept.is_gone(id).await);
}

#[tokio::test]
async fn with_its_environment_go_all_but_the_pinned() {
    let kept = Kept::new().await;
    let (goes, stays) = (kept.taken("goes").await, kept.taken("stays").await);
    kept.pin(stays, true).await.unwrap();
    let waits = kept.ask("never taken").await;
    let engine = kept.scene.engine().await;
    let destroy = kept.scene.ask(kept.place, OperationKind::Destroy).await;
    kept.scene.operation_ended(destroy).await;
    engine.stop().await;
    kept.reconcile().await;
    kept.reconcile().await;
    assert!(kept.is_gone(goes).await && kept.is_gone(waits).await && kept.scene.world.snapshot(goes).is_none());
    let (listed, total) = snapshots::list_of_environment(kept.scene.control(), &kept.grant(), kept.place.environment, PAGE).await.unwrap();
    assert_eq!((listed.len(), total, listed[0].id), (1, 1, stays));
    let (listed, _) = snapshots::list_of_project(kept.scene.control(), &kept.grant(), kept.scene.project, PAGE).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(kept.scene.world.snapshot(stays).is_some());
    // Whoever unpins it lets it go.
    kept.pin(stays, false).await.unwrap();
    kept.reconcile().await;
    assert!(kept.is_gone(stays).await);
}

#[tokio::test]
async fn rows_and_server_are_brought_together_and_unknown_data_are_left_alone() {
    let kept = Kept::new().await;
    let lost = kept.taken("lost").await;
    kept.scene.world.lose_snapshot(lost);
    let forgotten = kept.taken("forgotten").await;
    sqlx::query("delete from snapshots where id = $1").bind(forgotten.as_uuid()).execute(&kept.scene.control().pool).await.unwrap();
    let removed = kept.taken("removed").await;
    kept.delete(removed).await.unwrap();
    kept.scene.world.trouble("remove_snapshot", Trouble::Break("the pool is read-only"));
    kept.reconcile().await;
    let message = kept.find(removed).await.message;
    assert!(message.contains("the pool is read-only"), "{message}");
    kept.scene.world.relieve("remove_snapshot");
    kept.reconcile().await;
    assert!(kept.is_gone(removed).await && kept.scene.world.snapshot(removed).is_none());
    let row = kept.find(lost).await;
    assert_eq!((row.status, row.message.as_str()), (SnapshotStatus::Failed, "the server does not have it any more"));
    assert!(kept.scene.world.snapshot(forgotten).is_some(), "it may be all that is left");
}

#[tokio::test]
async fn a_data_set_that_its_deployment_could_not_retire_becomes_its_snapshot_later() {
    let kept = Kept::new().await;
    let before = kept.scene.instance(kept.place).await.live();
    let commit = kept.scene.commit(&[("shop", "two")]).await;
    let deployment = kept.scene.deploy(kept.place, &commit, "live").await;
    kept.scene.world.trouble("retire_data_set", Trouble::Break("the pool is read-only"));
    let engine = kept.scene.engine().await;
    assert_eq!(kept.scene.ended(deployment).await, DeploymentStatus::Succeeded);
    engine.stop().await;
    assert_ne!(kept.scene.instance(kept.place).await.live(), before);
    let listed = snapshots::list_of_environment(kept.scene.control(), &kept.grant(), kept.place.environment, PAGE).await.unwrap().0;
    assert_eq!(listed.iter().map(|row| (row.kind, row.status)).collect::<Vec<_>>(), [(SnapshotKind::Automatic, SnapshotStatus::Creating)]);
    let id = listed[0].id;
    let refused = reconcilers::run_all(kept.scene.control()).await;
    assert!(refused.is_err() && kept.scene.world.instance(kept.place.instance).data_sets.contains_key(&before));
    kept.scene.world.relieve("retire_data_set");
    kept.reconcile().await;
    let row = kept.find(id).await;
    assert_eq!((row.status, row.message.as_str()), (SnapshotStatus::Ready, ""));
    assert_eq!(kept.scene.world.snapshot(id).unwrap().1, ["installed shop"], "the data before the update");
    assert!(!kept.scene.world.instance(kept.place.instance).data_sets.contains_key(&before), "renamed, not copied");
}

#[tokio::test]
async fn a_check_says_what_it_found_and_survives_a_crash() {
    let kept = Kept::new().await;
    let id = kept.taken("x").await;
    let asked = snapshots::verify(kept.scene.control(), &kept.grant(), id).await.unwrap();
    assert!(asked.verify_requested_at.is_some() && asked.verified_at.is_none());
    kept.killed_in("verify_snapshot", Trouble::Hold).await;
    kept.reconcile().await;
    let checked = kept.find(id).await;
    assert!(checked.verified_at >= checked.verify_requested_at);
    assert_eq!(checked.verification.unwrap()["checkedFiles"], 3);
    kept.scene.store.clock.advance(TimeDelta::seconds(1));
    snapshots::verify(kept.scene.control(), &kept.grant(), id).await.unwrap();
    kept.scene.world.trouble("verify_snapshot", Trouble::Break("the disk does not answer"));
    kept.reconcile().await;
    assert_eq!(kept.find(id).await.verification.unwrap()["error"], "the disk does not answer");
}

#[tokio::test]
async fn settings_begin_with_the_defaults_of_their_stage_and_are_checked() {
    let kept = Kept::new().await;
    let (control, environment) = (kept.scene.control(), kept.place.environment);
    let defaults = SnapshotSettings {
        auto_enabled: true,
        failure_policy: FailurePolicy::Fail,
        max_pinned: 5,
        retention_days: 7,
        timeout_seconds: 600,
    };
    assert_eq!(snapshots::settings(control, &kept.grant(), environment).await.unwrap(), defaults);
    let changed = kept.settings(SettingsPatch { retention_days: Some(3), auto_enabled: Some(false), ..SettingsPatch::default() }).await;
    assert_eq!(changed, SnapshotSettings { retention_days: 3, auto_enabled: false, ..defaults });
    assert_eq!(snapshots::settings(control, &kept.grant(), environment).await.unwrap(), changed);
    let wrong = SettingsPatch { max_pinned: Some(-1), retention_days: Some(0), timeout_seconds: Some(1), ..SettingsPatch::default() };
    let Err(Error::Invalid { fields }) = snapshots::set_settings(control, &kept.grant(), environment, wrong).await else {
        panic!("nothing of it is right")
    };
    let fields: Vec<_> = fields.into_iter().map(|field| field.field).collect();
    assert_eq!(fields, ["maxPinned", "retentionDays", "timeoutSeconds"]);

    let production = kept.scene.place("production").await;
    sqlx::query("update environments set stage = 'production' where id = $1")
        .bind(production.environment.as_uuid())
        .execute(&control.pool)
        .await
        .unwrap();
    assert_eq!(snapshots::settings(control, &kept.grant(), production.environment).await.unwrap().retention_days, 14);
}

async fn member(kept: &Kept, role: &str) -> Scope {
    kept.scene.store.member(&kept.scene.scope, &format!("{role}@example.com"), role).await.unwrap().scope
}

#[tokio::test]
async fn developers_take_them_everywhere_and_decide_about_them_outside_production() {
    let kept = Kept::new().await;
    let control = kept.scene.control();
    let (developer, admin) = (member(&kept, "Developer").await, member(&kept, "Admin").await);
    let patch = || SnapshotPatch { name: Some("mine".to_owned()), pinned: Some(true) };
    let settings = SettingsPatch { retention_days: Some(1), ..SettingsPatch::default() };
    let environment = kept.place.environment;

    let id = snapshots::create(control, &developer.grant().unwrap(), environment, None).await.unwrap().id;
    kept.reconcile().await;
    assert_eq!(snapshots::update(control, &developer.grant().unwrap(), id, patch()).await.unwrap().name, "mine");
    snapshots::set_settings(control, &developer.grant().unwrap(), environment, settings).await.unwrap();

    sqlx::query("update environments set stage = 'production'").execute(&control.pool).await.unwrap();
    let in_production = snapshots::create(control, &developer.grant().unwrap(), environment, None).await.unwrap();
    assert_eq!(in_production.created_by_name.as_deref(), Some("Developer@example.com"));
    kept.reconcile().await;
    for id in [id, in_production.id] {
        let refused = [
            snapshots::update(control, &developer.grant().unwrap(), id, patch()).await.map(|_| ()).unwrap_err(),
            snapshots::delete(control, &developer.grant().unwrap(), id).await.unwrap_err(),
            snapshots::set_settings(control, &developer.grant().unwrap(), environment, settings).await.map(|_| ()).unwrap_err(),
        ];
        assert_eq!(refused.each_ref().map(code), ["permission_missing"; 3]);
        assert!(refused[0].to_string().contains("manage:production"), "{}", refused[0]);
    }
    snapshots::update(control, &admin.grant().unwrap(), in_production.id, patch()).await.unwrap();
    // One that was production's when it was taken stays so.
    sqlx::query("update environments set stage = 'staging'").execute(&control.pool).await.unwrap();
    let refused = snapshots::delete(control, &developer.grant().unwrap(), in_production.id).await.unwrap_err();
    assert_eq!(code(&refused), "permission_missing");
}

#[tokio::test]
async fn another_organization_finds_none_of_them_and_sees_none_of_their_space() {
    let kept = Kept::new().await;
    let control = kept.scene.control();
    let id = kept.taken("x").await;
    let stranger = kept.scene.store.organization("globex").await.unwrap().scope;
    let found = [
        snapshots::find(control, &stranger.grant().unwrap(), id).await.map(|_| ()).unwrap_err(),
        snapshots::delete(control, &stranger.grant().unwrap(), id).await.unwrap_err(),
        snapshots::verify(control, &stranger.grant().unwrap(), id).await.map(|_| ()).unwrap_err(),
        snapshots::create(control, &stranger.grant().unwrap(), kept.place.environment, None).await.map(|_| ()).unwrap_err(),
        snapshots::settings(control, &stranger.grant().unwrap(), kept.place.environment).await.map(|_| ()).unwrap_err(),
        snapshots::estimate(control, &stranger.grant().unwrap(), kept.place.environment).await.map(|_| ()).unwrap_err(),
    ];
    assert_eq!(found.each_ref().map(code), ["not_found"; 6]);

    let own = space::of_organization(control, &kept.grant()).await.unwrap();
    assert_eq!((own.environments.len(), own.snapshots.len()), (1, 1));
    assert_eq!((own.snapshots[0].id, own.exclusive_bytes), (id, 8192));
    let theirs = space::of_organization(control, &stranger.grant().unwrap()).await.unwrap();
    assert!(theirs.environments.is_empty() && theirs.snapshots.is_empty() && theirs.exclusive_bytes == 0);
    let estimate = snapshots::estimate(control, &kept.grant(), kept.place.environment).await.unwrap();
    assert!(estimate.needed_bytes < estimate.database_bytes);
}

#[tokio::test]
async fn they_come_in_pages_the_newest_first() {
    let kept = Kept::new().await;
    let mut made: Vec<SnapshotId> = Vec::new();
    for number in 0..5 {
        kept.scene.store.clock.advance(TimeDelta::seconds(1));
        made.push(kept.ask(&number.to_string()).await);
    }
    made.reverse();
    let page = Page { limit: 2, offset: 2 };
    let (listed, total) = snapshots::list_of_environment(kept.scene.control(), &kept.grant(), kept.place.environment, page).await.unwrap();
    assert_eq!((total, listed.iter().map(|one| one.id).collect::<Vec<_>>()), (5, made[2..4].to_vec()));
    let times: Vec<DateTime<Utc>> = listed.iter().map(|one| one.created_at).collect();
    assert!(times[0] > times[1]);
}
