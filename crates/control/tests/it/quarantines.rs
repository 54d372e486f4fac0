//! Copies that could not be made harmless: which of them stay, who may look at them, and when they go.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use chrono::TimeDelta;
use ocore_control::{
    Error,
    authorization::Scope,
    clones::{self, CloneRequest},
    environments::{self, Environment},
    operations,
    quarantines::{self, Quarantine},
    reconcilers::run_all,
    rollbacks::{self, RollbackRequest},
};
use ocore_model::{
    deployment::{DeploymentStatus, StepName},
    environment::Stage,
    ids::{DataSetId, DeploymentId, SnapshotId},
    operation::OperationStatus,
    quarantine::QuarantineStatus,
};

use crate::{
    scene::{Place, Scene},
    world::Trouble,
};

const REASON: &str = "an outgoing mail server other than the catcher is active";

/// A live source and a scene to clone it in.
async fn scene() -> (Scene, Place) {
    let scene = Scene::new().await;
    let source = scene.place("main").await;
    scene.live(source, &[("a", "1")]).await;
    (scene, source)
}

async fn clone(scene: &Scene, source: Place, branch: &str) -> (Environment, DeploymentId) {
    let request = CloneRequest { branch: Some(branch.parse().unwrap()), stage: Stage::Development, auto_destroy: false };
    let clone = clones::clone(scene.control(), &scene.scope.grant().unwrap(), source.environment, request).await.unwrap();
    let newest = "select id from deployments where environment_id = $1 order by created_at desc limit 1";
    let deployment = DeploymentId(scene.column(newest, clone.id.as_uuid()).await);
    (clone, deployment)
}

/// A clone whose copy is refused in that call.
async fn refused(scene: &Scene, source: Place, branch: &str, call: &'static str) -> (Environment, DeploymentId) {
    let (clone, deployment) = clone(scene, source, branch).await;
    fail(scene, deployment, call, Trouble::Reject(REASON)).await;
    (clone, deployment)
}

async fn fail(scene: &Scene, deployment: DeploymentId, call: &'static str, trouble: Trouble) {
    scene.world.trouble(call, trouble);
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    scene.world.relieve(call);
}

async fn again(scene: &Scene, environment: &Environment) -> DeploymentId {
    let query = "select commit_sha from deployments where environment_id = $1 limit 1";
    let commit: String = scene.column(query, environment.id.as_uuid()).await;
    scene.deploy(place_of(environment), &commit, "live").await
}

fn place_of(environment: &Environment) -> Place {
    Place { environment: environment.id, instance: environment.instance_id }
}

async fn show(scene: &Scene, environment: &Environment) -> Result<Quarantine, Error> {
    quarantines::show(scene.control(), &scene.scope.grant().unwrap(), environment.id).await
}

/// The data sets that were set aside on the machine.
fn aside(scene: &Scene, environment: &Environment) -> Vec<DataSetId> {
    scene.world.instance(environment.instance_id).quarantined.into_keys().collect()
}

async fn rows(scene: &Scene, environment: &Environment) -> i64 {
    scene.column("select count(*) from quarantines where environment_id = $1", environment.id.as_uuid()).await
}

async fn is_gone(scene: &Scene, environment: &Environment) -> bool {
    let shown = show(scene, environment).await;
    matches!(shown, Err(Error::NotFound { .. })) && aside(scene, environment).is_empty() && rows(scene, environment).await == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_refused_stays_and_is_shown_asked_and_destroyed() {
    let (scene, source) = scene().await;
    let starts = scene.world.calls("start_slot");
    for (call, step) in [("neutralize", StepName::Neutralize), ("run_modules", StepName::Update)] {
        // Something to update.
        let (clone, deployment) = if step == StepName::Update {
            let (clone, deployment) = clone(&scene, source, "updated").await;
            let commit = scene.commit(&[("a", "2")]).await;
            sqlx::query("update deployments set commit_sha = $2 where id = $1")
                .bind(deployment.as_uuid())
                .bind(&commit)
                .execute(&scene.control().pool)
                .await
                .unwrap();
            fail(&scene, deployment, call, Trouble::Reject(REASON)).await;
            (clone, deployment)
        } else {
            refused(&scene, source, "copy", call).await
        };
        assert_eq!(scene.message(deployment).await.as_deref(), Some(REASON));
        let world = scene.world.instance(clone.instance_id);
        assert!(world.data_sets.is_empty() && world.slots.is_empty() && world.clusters.is_empty(), "{call}: {world:?}");
        assert_eq!(scene.world.calls("start_slot"), starts, "{call}");
        assert!(scene.world.snapshots_taken().is_empty(), "{call}");
        let lines = scene.lines(deployment).await;
        assert!(lines.iter().any(|line| line.contains("stays in quarantine for 7 days")), "{call}: {lines:?}");

        let shown = show(&scene, &clone).await.unwrap();
        assert_eq!((shown.deployment_id, shown.step, shown.status), (deployment, step, QuarantineStatus::Kept));
        assert_eq!((shown.message.as_str(), shown.excerpt.as_str()), (REASON, ""));
        assert_eq!((shown.source_environment_id, shown.source_name.as_deref()), (Some(source.environment), Some("main")));
        assert_eq!((shown.of_production, shown.expires_at - shown.created_at), (false, TimeDelta::days(7)));
        assert_eq!((shown.database_bytes, shown.file_store_bytes), (Some(40 << 20), Some(2 << 20)));
        assert_eq!(aside(&scene, &clone), [shown.data_set_id]);

        // No reconciler takes it for a leftover, and it can be asked.
        run_all(scene.control()).await.unwrap();
        assert_eq!(aside(&scene, &clone), [shown.data_set_id]);
        let sql = "select count(*) from res_users";
        let answer = quarantines::inspect(scene.control(), &scene.scope.grant().unwrap(), clone.id, sql.to_owned()).await.unwrap();
        assert_eq!(answer.rows, [[Some(sql.to_owned())]]);
        for nothing in ["  ", &"x".repeat(20_001)] {
            let refused = quarantines::inspect(scene.control(), &scene.scope.grant().unwrap(), clone.id, nothing.to_owned()).await;
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        }

        for _ in 0..2 {
            quarantines::destroy(scene.control(), &scene.scope.grant().unwrap(), clone.id).await.unwrap();
            assert!(matches!(show(&scene, &clone).await, Err(Error::NotFound { .. })), "{call}");
        }
        run_all(scene.control()).await.unwrap();
        assert!(is_gone(&scene, &clone).await, "{call}");
        quarantines::destroy(scene.control(), &scene.scope.grant().unwrap(), clone.id).await.unwrap();
        let audited = "select string_agg(action || ' ' || coalesce(detail ->> 'sql', detail ->> 'reason'), ', ' order by id)
                       from audit_entries where subject = 'environment:' || $1::text";
        let audited: String = scene.column(audited, clone.id.as_uuid()).await;
        assert_eq!(audited, format!("quarantine.inspected {sql}, quarantine.destroyed {REASON}"), "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_failure_takes_its_place_and_a_deployment_that_goes_well_ends_it() {
    let (scene, source) = scene().await;
    let (clone, first) = refused(&scene, source, "copy", "neutralize").await;
    let earlier = aside(&scene, &clone);
    let second = again(&scene, &clone).await;
    fail(&scene, second, "neutralize", Trouble::Reject("another reason")).await;
    let shown = show(&scene, &clone).await.unwrap();
    assert_ne!(first, second);
    assert_eq!((shown.deployment_id, shown.message.as_str()), (second, "another reason"));
    assert!(aside(&scene, &clone) == [shown.data_set_id] && earlier != [shown.data_set_id]);

    // A failure that is the machine's leaves it as it is.
    let third = again(&scene, &clone).await;
    fail(&scene, third, "neutralize", Trouble::Break("the disk does not answer")).await;
    assert_eq!(show(&scene, &clone).await.unwrap().deployment_id, second);
    run_all(scene.control()).await.unwrap();
    assert_eq!(aside(&scene, &clone), [shown.data_set_id]);

    let fourth = again(&scene, &clone).await;
    let engine = scene.engine().await;
    assert_eq!(scene.ended(fourth).await, DeploymentStatus::Succeeded, "{:?}", scene.message(fourth).await);
    engine.stop().await;
    assert!(matches!(show(&scene, &clone).await, Err(Error::NotFound { .. })));
    run_all(scene.control()).await.unwrap();
    assert!(is_gone(&scene, &clone).await);
}

/// What comes into an environment that serves already.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_copy_of_anothers_snapshot_leaves_what_serves_serving() {
    let (scene, source) = scene().await;
    let commit = scene.commit(&[("a", "2")]).await;
    let deployment = scene.deploy(source, &commit, "live").await;
    let target = scene.place("target").await;
    let first = scene.deploy(target, &commit, "fresh").await;
    let engine = scene.engine().await;
    for deployment in [deployment, first] {
        assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    }
    engine.stop().await;
    let snapshot = SnapshotId(scene.snapshots(source).await.last().unwrap().id);
    sqlx::query("update snapshots set stage = 'production'").execute(&scene.control().pool).await.unwrap();
    let before = (scene.instance(target).await, scene.world.instance(target.instance).data_sets, scene.world.route(target.instance));
    let request = RollbackRequest { snapshot, create_safety_snapshot: true, target: Some(target.environment) };
    let rollback = rollbacks::rollback(scene.control(), &scene.scope.grant().unwrap(), source.environment, request).await.unwrap();
    fail(&scene, rollback.deployment, "neutralize", Trouble::Reject(REASON)).await;
    let after = (scene.instance(target).await, scene.world.instance(target.instance).data_sets, scene.world.route(target.instance));
    assert_eq!(after, before);
    let environment = environments::find(scene.control(), &scene.scope.grant().unwrap(), target.environment).await.unwrap();
    let shown = show(&scene, &environment).await.unwrap();
    assert_eq!((shown.deployment_id, shown.source_environment_id), (rollback.deployment, Some(source.environment)));
    assert!(shown.of_production, "as it was when the snapshot was taken");
    assert_eq!(aside(&scene, &environment), [shown.data_set_id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_or_a_person_has_ended_is_not_kept() {
    let (scene, source) = scene().await;
    let (broken, deployment) = clone(&scene, source, "broken").await;
    fail(&scene, deployment, "neutralize", Trouble::Break("the disk does not answer")).await;
    assert!(is_gone(&scene, &broken).await);

    let (cancelled, deployment) = clone(&scene, source, "cancelled").await;
    scene.world.trouble("neutralize", Trouble::Hold);
    let engine = scene.engine().await;
    scene.world.held("neutralize").await;
    let mut transaction = scene.control().pool.begin().await.unwrap();
    operations::cancel(&mut transaction, deployment).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Cancelled);
    engine.stop().await;
    assert!(is_gone(&scene, &cancelled).await && scene.world.instance(cancelled.instance_id).data_sets.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_when_its_time_is_over_with_its_environment_and_when_nobody_knows_it() {
    let (scene, source) = scene().await;
    let (late, _) = refused(&scene, source, "late", "neutralize").await;
    sqlx::query("update quarantines set expires_at = now() - interval '1 hour'").execute(&scene.control().pool).await.unwrap();
    let (lost, _) = refused(&scene, source, "lost", "neutralize").await;
    sqlx::query("delete from quarantines where environment_id = $1").bind(lost.id.as_uuid()).execute(&scene.control().pool).await.unwrap();
    let (deleted, _) = refused(&scene, source, "deleted", "neutralize").await;
    let changes = run_all(scene.control()).await.unwrap().join("\n");
    assert!(changes.contains("its time is over") && changes.contains("that nobody knows"), "{changes}");
    assert!(is_gone(&scene, &late).await && is_gone(&scene, &lost).await);
    assert_eq!(aside(&scene, &deleted).len(), 1);
    environments::delete(scene.control(), &scene.scope.grant().unwrap(), deleted.id, None).await.unwrap();
    let engine = scene.engine().await;
    scene.eventually(async || !scene.world.knows(deleted.instance_id) && rows(&scene, &deleted).await == 0).await;
    engine.stop().await;
    assert!(is_gone(&scene, &deleted).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_off_while_it_is_set_aside_or_removed_it_converges() {
    let (scene, source) = scene().await;
    for (name, trouble) in [("before", Trouble::Hold), ("after", Trouble::HoldAfter)] {
        let (clone, deployment) = clone(&scene, source, name).await;
        scene.world.trouble("neutralize", Trouble::Reject(REASON));
        scene.world.trouble("set_aside", trouble);
        let engine = scene.engine().await;
        scene.world.held("set_aside").await;
        assert_eq!(show(&scene, &clone).await.unwrap().status, QuarantineStatus::SettingAside, "{name}");
        // Neither the machine's leftovers nor a question may meddle with it meanwhile.
        run_all(scene.control()).await.unwrap();
        let asked = quarantines::inspect(scene.control(), &scene.scope.grant().unwrap(), clone.id, "select 1".to_owned()).await;
        assert!(matches!(asked, Err(Error::Conflict { code: "not_ready", .. })), "{name}: {asked:?}");
        let stopping = engine.stop();
        tokio::pin!(stopping);
        tokio::select! {
            () = &mut stopping => {}
            // A call that cannot be cancelled ends when the machine lets it.
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
        }
        scene.world.relieve("set_aside");
        let engine = scene.engine().await;
        assert_eq!(scene.ended(deployment).await, DeploymentStatus::Failed, "{name}");
        engine.stop().await;
        scene.world.relieve("neutralize");
        assert_eq!(scene.operation_status(scene.operation_of(deployment).await).await, OperationStatus::Failed, "{name}");
        let shown = show(&scene, &clone).await.unwrap();
        assert_eq!((shown.status, aside(&scene, &clone)), (QuarantineStatus::Kept, vec![shown.data_set_id]), "{name}");
        assert!(scene.world.instance(clone.instance_id).data_sets.is_empty(), "{name}");

        // A removal that fails is tried again.
        quarantines::destroy(scene.control(), &scene.scope.grant().unwrap(), clone.id).await.unwrap();
        scene.world.trouble("remove_quarantined", Trouble::Break("the disk does not answer"));
        run_all(scene.control()).await.unwrap_err();
        assert_eq!((aside(&scene, &clone).len(), rows(&scene, &clone).await), (1, 1), "{name}");
        scene.world.relieve("remove_quarantined");
        run_all(scene.control()).await.unwrap();
        assert!(is_gone(&scene, &clone).await, "{name}");
    }
}

/// What a run of the step that was cut off has announced does not hold when the next run goes well; and what cannot be set aside is removed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_of_a_copy_that_is_good_after_all_or_that_cannot_be_moved() {
    let (scene, source) = scene().await;
    let (good, deployment) = clone(&scene, source, "good").await;
    scene.world.trouble("neutralize", Trouble::Hold);
    let engine = scene.engine().await;
    scene.world.held("neutralize").await;
    engine.stop().await;
    sqlx::query(
        "insert into quarantines (instance_id, environment_id, deployment_id, data_set_id, status, step, message, of_production, created_at, expires_at)
         select instance_id, environment_id, id, id, 'setting_aside', 'neutralize', 'refused, and then killed', false, now(), now() + interval '7 days'
         from deployments where id = $1",
    )
    .bind(deployment.as_uuid())
    .execute(&scene.control().pool)
    .await
    .unwrap();
    scene.world.relieve("neutralize");
    let engine = scene.engine().await;
    assert_eq!(scene.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", scene.message(deployment).await);
    engine.stop().await;
    assert!(is_gone(&scene, &good).await);

    let (stuck, deployment) = clone(&scene, source, "stuck").await;
    scene.world.trouble("set_aside", Trouble::Break("the disk does not answer"));
    fail(&scene, deployment, "neutralize", Trouble::Reject(REASON)).await;
    scene.world.relieve("set_aside");
    assert_eq!(scene.operation_status(scene.operation_of(deployment).await).await, OperationStatus::Failed);
    assert_eq!(scene.message(deployment).await.as_deref(), Some(REASON));
    assert!(is_gone(&scene, &stuck).await && scene.world.instance(stuck.instance_id).data_sets.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_productions_data_are_shown_to_who_may_export_them_as_they_are() {
    let (scene, source) = scene().await;
    let (clone, _) = refused(&scene, source, "copy", "neutralize").await;
    let member = async |role: &str| scene.store.member(&scene.scope, &format!("{role}@example.com"), role).await.unwrap().scope;
    let (developer, viewer, admin) = (member("Developer").await, member("Viewer").await, member("Admin").await);
    let ask = async |scope: &Scope| match scope.grant() {
        Ok(grant) => quarantines::inspect(scene.control(), &grant, clone.id, "select 1".to_owned()).await.map(drop),
        Err(error) => Err(error),
    };
    ask(&developer).await.unwrap();
    assert!(matches!(ask(&viewer).await, Err(Error::Forbidden { .. })));
    for (change, undo) in [
        ("update quarantines set of_production = true", "update quarantines set of_production = false"),
        ("update environments set stage = 'production' where branch = 'main'", "update environments set stage = 'development'"),
    ] {
        sqlx::query(change).execute(&scene.control().pool).await.unwrap();
        let refused = ask(&developer).await;
        assert!(
            matches!(&refused, Err(Error::Forbidden { message, .. }) if message.contains("manage:production")),
            "{change}: {refused:?}"
        );
        ask(&admin).await.unwrap();
        quarantines::show(scene.control(), &viewer.grant().unwrap(), clone.id).await.unwrap();
        sqlx::query(undo).execute(&scene.control().pool).await.unwrap();
    }
    // A developer made it, and may end it.
    quarantines::destroy(scene.control(), &developer.grant().unwrap(), clone.id).await.unwrap();

    // A clone of a production is known as one.
    sqlx::query("update environments set stage = 'production' where branch = 'main'").execute(&scene.control().pool).await.unwrap();
    let (clone, _) = refused(&scene, source, "of-production", "neutralize").await;
    assert!(show(&scene, &clone).await.unwrap().of_production);
    let stranger = scene.store.organization("globex").await.unwrap().scope;
    let hidden = quarantines::show(scene.control(), &stranger.grant().unwrap(), clone.id).await;
    assert!(matches!(hidden, Err(Error::NotFound { what: "environment" })), "{hidden:?}");
    let hidden = quarantines::destroy(scene.control(), &stranger.grant().unwrap(), clone.id).await;
    assert!(matches!(hidden, Err(Error::NotFound { what: "environment" })), "{hidden:?}");
    assert_eq!(aside(&scene, &clone).len(), 1);
}
