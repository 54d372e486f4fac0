//! Updates on a throw-away copy of data that are in use.

use ocore_host::{DataSource, Host, HostError, OdooSettings, ServableDataSet, SlotSpec, testing::progress};
use ocore_model::{ids::DataSetId, instance::Color, rehearsal::SchemaChangeKind};

use crate::project::{Project, changed, page, parcels, run_modules};

#[tokio::test]
async fn an_update_of_live_data_is_rehearsed_beside_them() {
    let (project, good, live) = Project::with_parcels(&parcels()).await;
    let slot = project.start(Color::Blue, live, &good).await.unwrap();
    let cluster = project.host.run_cluster(project.instance, live).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    sqlx::query("insert into parcels_parcel (name) values ('a'), ('b')").execute(&mut connection).await.unwrap();

    // What adds, what tightens, and code that would reach out.
    let mut files = changed(
        parcels(),
        "parcels/models/parcel.py",
        "fields.Char()",
        "fields.Char()\n    colour = fields.Char()\n    carrier = fields.Char(required=True, default='post')\n    _named = models.Constraint(\"check(name <> '')\", 'Named.')",
    );
    files = changed(
        files,
        "parcels/__init__.py",
        "from",
        "import logging, socket\ntry:\n    socket.create_connection(('127.0.0.1', 1), timeout=1)\nexcept OSError as error:\n    logging.getLogger(__name__).warning('no way out: %s', error.errno)\nfrom",
    );
    let release = project.release(&files).await.unwrap();
    let copy = project.data_set(DataSource::Rehearsal { of: live }).await;
    let request = run_modules(copy, &release, &[], &["parcels"]);
    let seen = project.host.rehearse_modules(project.instance, request.clone(), project.fence(), progress().0).await.unwrap();
    let told: Vec<String> = seen.schema.iter().filter(|change| change.table == "parcels_parcel").map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "new column parcels_parcel.carrier, character varying, required (stricter)",
            "new column parcels_parcel.colour, character varying",
            "new constraint on parcels_parcel: CHECK (((name)::text <> ''::text)) (stricter)",
        ]
    );
    assert!(seen.needs_held_writes() && seen.seconds > 0.0);
    assert!(!seen.schema.iter().any(|change| change.kind == SchemaChangeKind::TableDropped), "{:?}", seen.schema);
    // ENETUNREACH: not even the machine itself is there.
    assert!(seen.warnings.iter().any(|warning| warning == "odoo.addons.parcels: no way out: #"), "{:?}", seen.warnings);

    // Nobody has noticed, and nobody can mistake it for anything else.
    assert_eq!(page(slot.http, "/web/login").await.0, 200);
    let columns: i64 = sqlx::query_scalar(
        "select count(*) from information_schema.columns where table_name = 'parcels_parcel' and column_name = 'carrier'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(columns, 0);
    let spec = SlotSpec {
        color: Color::Green,
        data_set: ServableDataSet::proven(copy),
        release: release.id.clone(),
        settings: OdooSettings::default(),
    };
    let refused = project.host.start_slot(project.instance, spec, project.fence(), progress().0).await.unwrap_err();
    assert!(matches!(refused, HostError::Rejected { .. }), "{refused}");
    let on_live = run_modules(live, &release, &[], &["parcels"]);
    assert!(project.host.rehearse_modules(project.instance, on_live, project.fence(), progress().0).await.is_err(), "never on live data");

    // A failure of the update is one of the rehearsal, with its sentence.
    let failing =
        changed(parcels(), "parcels/models/parcel.py", "fields.Char()", "fields.Char()\n    carrier = fields.Char(required=True)");
    let failing = project.release(&failing).await.unwrap();
    let copy = DataSetId::new();
    let source = DataSource::Rehearsal { of: live };
    project.host.create_data_set(project.instance, copy, source, project.fence(), progress().0).await.unwrap();
    let request = run_modules(copy, &failing, &[], &["parcels"]);
    let failure = project.host.rehearse_modules(project.instance, request, project.fence(), progress().0).await.unwrap_err();
    assert!(failure.to_string().contains("`parcels.parcel.carrier` is required"), "{failure}");
    // Data that rest are copied as they are.
    project.host.stop_slot(project.instance, Color::Blue, project.fence()).await.unwrap();
    drop(connection);
    project.host.stop_cluster(project.instance, live, project.fence()).await.unwrap();
    let copy = project.data_set(source).await;
    let request = run_modules(copy, &good, &[], &["parcels"]);
    let seen = project.host.rehearse_modules(project.instance, request, project.fence(), progress().0).await.unwrap();
    assert!(seen.schema.is_empty(), "{:?}", seen.schema);
}

#[tokio::test]
async fn a_slot_is_asked_for_pages_before_anybody_is_sent_there() {
    let project = Project::new().await;
    let controller = "from odoo import http\n\n\nclass Page(http.Controller):\n    @http.route('/fine', auth='public')\n    def fine(self):\n        return 'fine'\n\n    @http.route('/away', auth='public')\n    def away(self):\n        return http.request.redirect('/fine')\n\n    @http.route('/broken', auth='public')\n    def broken(self):\n        return 1 / 0\n";
    let mut files = changed(parcels(), "parcels/__init__.py", "from", "from . import pages\nfrom");
    files.insert("parcels/pages.py".to_owned(), controller.to_owned());
    let release = project.release(&files).await.unwrap();
    let data_set = project.data_set(DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    project.start(Color::Blue, data_set, &release).await.unwrap();
    let probe = async |paths: &[&str]| {
        let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
        project.host.probe_slot(project.instance, Color::Blue, &paths, progress().0).await
    };
    let bundles = ["/web/assets/0000000/web.assets_frontend.min.js", "/fine", "/away"];
    let answered: Vec<u16> = probe(&bundles).await.unwrap().into_iter().map(|page| page.status).collect();
    assert_eq!(answered, [200, 200, 200]);
    let refused = probe(&["/fine", "/broken"]).await.unwrap_err();
    assert_eq!(refused.to_string(), "the new Odoo started, but answers /broken with 500 Internal Server Error");
    assert!(refused.excerpt().contains("ZeroDivisionError"), "{}", refused.excerpt());
    assert!(probe(&["/nowhere"]).await.unwrap_err().to_string().contains("404"));
}
