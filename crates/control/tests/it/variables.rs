//! The environment variables of an instance lie nowhere in the store as they are: not in its row, not in what an operation keeps, not in the audit log.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use ocore_control::{
    authorization::{Grant, ManageInstances, System},
    instances::{self, InstancePatch, SettingsPatch},
    operations::OperationKind,
    variables,
};
use ocore_model::{instance::ControlAction, operation::OperationStatus};

use crate::scene::{Place, Scene};

const VALUE: &str = "sk_live_4242424242";

/// Every row of every table as text that has the value in it.
async fn found(scene: &Scene) -> Vec<String> {
    let pool = &scene.control().pool;
    let tables: Vec<(String, String)> = sqlx::query_as(
        "select table_schema, table_name from information_schema.tables
         where table_schema not in ('pg_catalog', 'information_schema') and table_type = 'BASE TABLE'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(tables.len() > 20, "{tables:?}");
    let mut found = Vec::new();
    for (schema, table) in tables {
        // `bytea` is shown in hexadecimal: a value that was written there as it is would hide, so it is looked for in both ways.
        let query = format!(r#"select count(*) from "{schema}"."{table}" as row where row::text like $1 or row::text like $2"#);
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
            .bind(format!("%{VALUE}%"))
            .bind(format!("%{}%", hex::encode(VALUE)))
            .fetch_one(pool)
            .await
            .unwrap();
        if count > 0 {
            found.push(format!("{schema}.{table}: {count}"));
        }
    }
    found
}

async fn set(scene: &Scene, place: Place) -> instances::Instance {
    let grant: Grant<ManageInstances> = scene.scope.grant().unwrap();
    let settings = SettingsPatch { env_vars: Some([("STRIPE_KEY".to_owned(), VALUE.to_owned())].into()), ..SettingsPatch::default() };
    instances::update(scene.control(), &grant, place.instance, InstancePatch { name: None, settings }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_reaches_odoo_and_stands_nowhere_in_the_store() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let shown = set(&scene, place).await;
    assert_eq!(shown.settings.env_vars["STRIPE_KEY"], VALUE);
    scene.live(place, &[("shop", "one")]).await;
    // While one runs, and when it has ended.
    let engine = scene.engine().await;
    let restart = scene.ask(place, OperationKind::Control { action: ControlAction::Restart }).await;
    assert_eq!(scene.operation_ended(restart).await, OperationStatus::Succeeded);
    engine.stop().await;
    let started = scene.world.started(place.instance);
    assert!(started.iter().all(|settings| settings.env_vars["STRIPE_KEY"] == VALUE) && !started.is_empty(), "{started:?}");
    assert_eq!(found(&scene).await, Vec::<String>::new());
    let dags: i64 =
        sqlx::query_scalar("select count(*) from operations where dag is not null").fetch_one(&scene.control().pool).await.unwrap();
    assert!(dags >= 2, "what operations keep was looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_wrote_is_sealed_at_the_start_and_works_until_then() {
    let scene = Scene::new().await;
    let place = scene.place("main").await;
    let pool = &scene.control().pool;
    sqlx::query("update instances set settings = $2 where id = $1")
        .bind(place.instance.as_uuid())
        .bind(serde_json::json!({ "workers": 2, "envVars": { "STRIPE_KEY": VALUE } }))
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(found(&scene).await, ["public.instances: 1"]);
    let shown = || async { instances::find(scene.control(), &scene.scope.grant().unwrap(), place.instance).await.unwrap() };
    assert_eq!(shown().await.settings.env_vars["STRIPE_KEY"], VALUE);
    assert_eq!(variables::seal_all(System, scene.control()).await.unwrap(), 1);
    assert_eq!(variables::seal_all(System, scene.control()).await.unwrap(), 0, "the second time finds nothing");
    assert_eq!(found(&scene).await, Vec::<String>::new());
    let sealed = shown().await;
    assert_eq!((sealed.settings.env_vars["STRIPE_KEY"].as_str(), sealed.settings.workers), (VALUE, 2));
}
