//! The instance in which an export is written is of no environment: it goes with the export, and what the store does not know stays.

use ocore_control::{
    authorization::ManageSnapshots,
    exports::{self, ExportRequest},
    reconcilers,
};
use ocore_host::{Fence, Host};
use ocore_model::{
    export::ExportFormat,
    ids::{InstanceId, OperationId},
};

use crate::scene::{Place, Scene};

/// An export whose row says so, with the instance in which it is written.
async fn export(scene: &Scene, place: Place, assignment: &'static str) -> InstanceId {
    let request = ExportRequest { format: ExportFormat::Custom, neutralized: false, with_file_store: false };
    let grant = scene.scope.grant::<ManageSnapshots>().expect("an owner may");
    let export = exports::create(scene.control(), &grant, place.environment, request).await.expect("it is live");
    let statement = sqlx::AssertSqlSafe(format!("update exports set {assignment} where id = $1"));
    sqlx::query(statement).bind(export.id.as_uuid()).execute(&scene.control().pool).await.expect("a row");
    made(scene, export.scratch_instance_id).await
}

async fn made(scene: &Scene, instance: InstanceId) -> InstanceId {
    let fence = Fence { operation: OperationId::new(), generation: 1 };
    scene.world.create_instance(instance, fence).await.expect("a machine in memory");
    instance
}

#[tokio::test]
async fn what_an_export_leaves_behind_goes_and_what_nobody_knows_stays() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    scene.live(place, &[("shop", "one")]).await;
    let given_up = export(&scene, place, "status = 'expired', started_at = now()").await;
    let failed = export(&scene, place, "status = 'failed', started_at = now(), completed_at = now()").await;
    let unknown = made(&scene, InstanceId::new()).await;

    reconcilers::run_all(scene.control()).await.expect("nothing fails");
    let there: Vec<InstanceId> = scene.world.observe().await.expect("a machine in memory").iter().map(|seen| seen.instance).collect();
    assert!(there.contains(&place.instance) && there.contains(&unknown), "{there:?}");
    assert!(!there.contains(&given_up) && !there.contains(&failed), "{there:?}");
    let open: i64 = sqlx::query_scalar("select count(*) from exports where completed_at is null")
        .fetch_one(&scene.control().pool)
        .await
        .expect("a number");
    assert_eq!(open, 0);
}
