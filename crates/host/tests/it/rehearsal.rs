//! Updates on a throw-away copy of data that are in use.

use ocore_host::{DataSource, Host, HostError, OdooSettings, Proof, ServableDataSet, SlotSpec, testing::progress};
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
        let proof = Proof { pages: paths.iter().map(|&path| path.to_owned()).collect(), nobody_waits: false };
        project.host.probe_slot(project.instance, Color::Blue, &proof, progress().0).await
    };
    let bundles = ["/web/assets/0000000/web.assets_frontend.min.js", "/fine", "/away"];
    let answered: Vec<u16> = probe(&bundles).await.unwrap().into_iter().map(|page| page.status).collect();
    assert_eq!(answered, [200, 200, 200]);
    let refused = probe(&["/fine", "/broken"]).await.unwrap_err();
    assert_eq!(refused.to_string(), "the new Odoo started, but answers /broken with 500 Internal Server Error");
    assert!(refused.excerpt().contains("ZeroDivisionError"), "{}", refused.excerpt());
    assert!(probe(&["/nowhere"]).await.unwrap_err().to_string().contains("404"));
}

/// A page of the frontend, styles and scripts of it and of the backend.
fn painted() -> crate::project::Files {
    let manifest = "'depends': ['web'], 'assets': {'web.assets_frontend': ['parcels/static/src/front.scss'], 'web.assets_backend': ['parcels/static/src/back.js', 'parcels/static/src/back.xml']}";
    let mut files = changed(parcels(), "parcels/__manifest__.py", "'depends': ['base']", manifest);
    files = changed(files, "parcels/__init__.py", "from", "from . import pages\nfrom");
    for (path, text) in [
        ("parcels/static/src/front.scss", "$hull: #0a5078;\n.o_parcel { color: $hull; float: left; margin-left: 13px; }\n"),
        (
            "parcels/static/src/back.js",
            "import { registry } from \"@web/core/registry\";\n\nexport const parcels = registry.category(\"parcels\");\n",
        ),
        ("parcels/static/src/back.xml", "<templates>\n  <t t-name=\"parcels.Box\">\n    <div>box</div>\n  </t>\n</templates>\n"),
        (
            "parcels/pages.py",
            "from odoo import http\n\n\nclass Page(http.Controller):\n    @http.route('/fine', auth='public')\n    def fine(self):\n        return 'fine'\n",
        ),
    ] {
        files.insert(path.to_owned(), text.to_owned());
    }
    files
}

#[tokio::test]
async fn styles_scripts_templates_and_errors_of_the_new_odoo_are_looked_at_before_anybody_is_sent_there() {
    let (project, good, live) = Project::with_parcels(&painted()).await;
    let blue = project.start(Color::Blue, live, &good).await.unwrap();
    let cluster = project.host.run_cluster(project.instance, live).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    sqlx::query("update res_lang set active = true where code = 'ar_001'").execute(&mut connection).await.unwrap();
    let prove = async |color: Color| {
        let proof = Proof { pages: vec!["/fine".to_owned()], nobody_waits: true };
        project.host.probe_slot(project.instance, color, &proof, progress().0).await
    };
    let proven = prove(Color::Blue).await.unwrap();
    let paths: Vec<&str> = proven.iter().map(|page| page.path.rsplit('/').next().unwrap()).collect();
    for bundle in [
        "web.assets_frontend.min.css",
        "web.assets_frontend.rtl.min.css",
        "web.assets_frontend_lazy.min.js",
        "web.assets_web.min.css",
        "web.assets_web.min.js",
    ] {
        assert!(paths.contains(&bundle), "{paths:?}");
    }

    let mut styles = changed(painted(), "parcels/static/src/front.scss", "color: $hull", "color: $hul");
    styles = changed(styles, "parcels/static/src/back.xml", "</div>", "");
    let lost = "'parcels/static/src/front.scss', 'parcels/static/src/lost.css'";
    let mut scripts = changed(painted(), "parcels/__manifest__.py", "'parcels/static/src/front.scss'", lost);
    scripts = changed(scripts, "parcels/static/src/back.js", "category(\"parcels\")", "category(\"parcels\"");
    let logs = "import logging\n        logging.getLogger('odoo.addons.parcels').error('no parcels in %s', 12)\n        return 'fine'";
    let mut errors = changed(painted(), "parcels/pages.py", "return 'fine'", logs);
    errors = changed(errors, "parcels/static/src/back.js", "@web/core/registry", "@parcels/lost");
    let all = [
        (
            styles,
            [
                "cannot be built: parcels/static/src/front.scss, line 2: Undefined variable: \"$hul\"",
                "the scripts `web.assets_web` are not whole: parcels/static/src/back.xml: Invalid XML template: Opening and ending tag mismatch: div line 3 and t, line 4",
            ],
        ),
        (
            scripts,
            [
                "cannot be built: parcels/__manifest__.py, line 1: Could not ",
                "the scripts `web.assets_web` cannot be read: parcels/static/src/back.js, line 3: missing ) after argument list",
            ],
        ),
        (
            errors,
            [
                "parcels/static/src/back.js, line 1 imports `@parcels/lost`, which no script of the page defines",
                "it logs an error when its pages are asked for: no parcels in 12 (logged by `odoo.addons.parcels`)",
            ],
        ),
    ];
    for (files, words) in all {
        let release = project.release(&files).await.unwrap();
        project.start(Color::Green, live, &release).await.unwrap();
        let refused = prove(Color::Green).await.expect_err(words[0]);
        let summary = refused.to_string();
        assert!(summary.starts_with("the new Odoo started, but ") && words.iter().any(|words| summary.contains(words)), "{summary}");
        for words in words {
            assert!(refused.excerpt().contains(words), "{words}: {}", refused.excerpt());
        }
        project.host.stop_slot(project.instance, Color::Green, project.fence()).await.unwrap();
        // What serves has its own styles and scripts.
        for bundle in ["web.assets_frontend.min.css", "web.assets_web.min.js"] {
            let (status, text) = page(blue.http, &format!("/web/assets/any/{bundle}")).await;
            assert!(status == 200 && !text.contains("css_error_message {") && !text.contains("Invalid XML template: Opening"), "{bundle}");
        }
        prove(Color::Blue).await.unwrap();
    }
}
