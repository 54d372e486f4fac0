//! One Odoo that updates modules and serves afterwards.

use ocore_host::{
    DataSource, Host, HostError, OdooSettings, Release, RunModules, RunningSlot, ServableDataSet, SlotSpec, testing::progress,
};
use ocore_model::{ids::DataSetId, instance::Color};

use crate::project::{Files, Project, changed, page, parcels, run_modules};

fn slot(data_set: DataSetId, release: &Release, settings: &OdooSettings) -> SlotSpec {
    let data_set = ServableDataSet::proven(data_set);
    SlotSpec { color: Color::Green, data_set, release: release.id.clone(), settings: settings.clone() }
}

async fn update(project: &Project, data_set: DataSetId, release: &Release, workers: u16) -> Result<(RunningSlot, Vec<String>), HostError> {
    let settings = OdooSettings { workers, ..OdooSettings::default() };
    let request = RunModules { settings: settings.clone(), ..run_modules(data_set, release, &[], &["parcels"]) };
    let (progress, lines) = progress();
    let slot = slot(data_set, release, &settings);
    let running = project.host.update_and_serve(project.instance, request, slot, project.fence(), progress).await?;
    Ok((running, lines.all()))
}

#[tokio::test]
async fn it_serves_what_it_has_updated_or_nothing_runs() {
    let project = Project::new().await;
    let good = project.release(&parcels()).await.unwrap();
    let live = project.data_set(DataSource::Fresh).await;
    project.run(live, &good, &["parcels", "parcels_labels"], &[]).await.unwrap();
    {
        let cluster = project.host.run_cluster(project.instance, live).await.unwrap();
        let mut connection = cluster.connect_as_owner().await.unwrap();
        sqlx::query("insert into parcels_parcel (name) values ('a'), ('a')").execute(&mut connection).await.unwrap();
    }

    let more = project
        .release(&changed(parcels(), "parcels/models/parcel.py", "fields.Char()", "fields.Char()\n    colour = fields.Char()"))
        .await
        .unwrap();
    for workers in [0, 2] {
        let copy = project.data_set(DataSource::CopyOf(live)).await;
        let (running, lines) = update(&project, copy, &more, workers).await.unwrap();
        assert_eq!(page(running.http, "/web/login").await.0, 200);
        assert!(lines.iter().any(|line| line.contains("odoo.modules.loading")), "its log is shown: {lines:?}");
        let cluster = project.host.run_cluster(project.instance, copy).await.unwrap();
        let columns: i64 = sqlx::query_scalar(
            "select count(*) from information_schema.columns where table_name = 'parcels_parcel' and column_name = 'colour'",
        )
        .fetch_one(&mut cluster.connect_as_owner().await.unwrap())
        .await
        .unwrap();
        assert_eq!(columns, 1);
        // The next step of a deployment finds it.
        let settings = OdooSettings { workers, ..OdooSettings::default() };
        let found = project.host.start_slot(project.instance, slot(copy, &more, &settings), project.fence(), progress().0).await.unwrap();
        assert_eq!((found.pid, found.http), (running.pid, running.http));
        project.host.remove_data_set(project.instance, copy, project.fence()).await.unwrap();
        assert!(project.host.observe().await.unwrap()[0].slots.is_empty(), "what serves a data set ends with it");
    }

    let model = |to: &str| changed(parcels(), "parcels/models/parcel.py", "fields.Char()", to);
    let mut migration = changed(parcels(), "parcels/__manifest__.py", "19.0.1.0.0", "19.0.1.1.0");
    migration.insert(
        "parcels/migrations/19.0.1.1.0/pre-weights.py".to_owned(),
        "def migrate(cr, version):\n    raise ValueError('parcels without a weight: 2')\n".to_owned(),
    );
    let failing: Vec<(Files, &str)> = vec![
        (
            model("fields.Char()\n    carrier = fields.Char(required=True)"),
            "`parcels.parcel.carrier` is required, but there are records without a value",
        ),
        (migration, "parcels without a weight: 2"),
        (changed(parcels(), "parcels/views/parcel.xml", "\"weight\"", "\"wieght\""), "wieght"),
        // Its dependant fails after it has been committed.
        (changed(parcels(), "parcels/views/parcel.xml", "\"weight\"", "\"create_uid\""), "parcels_labels"),
        (changed(parcels(), "parcels/__init__.py", "from", "import os\nos._exit(3)\nfrom"), "Odoo ended while it started"),
    ];
    for (files, expected) in failing {
        let release = project.release(&files).await.unwrap();
        let copy = project.data_set(DataSource::CopyOf(live)).await;
        let failure = update(&project, copy, &release, 0).await.unwrap_err();
        assert!(matches!(&failure, HostError::Rejected { summary, .. } if summary.contains(expected)), "{expected}: {failure}");
        assert!(project.host.observe().await.unwrap()[0].slots.is_empty(), "{expected}: nothing of it runs");
        project.host.remove_data_set(project.instance, copy, project.fence()).await.unwrap();
    }
}
