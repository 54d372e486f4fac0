//! Every way in which Odoo was seen to fail (reference: odoo19.md, section 4): each is a rejection with a sentence that names the place.

use ocore_host::{DataSource, HostError};
use ocore_model::instance::Color;

use crate::project::{Files, Project, changed, page, parcels};

/// The summary of a rejection.
fn rejected<T: std::fmt::Debug>(result: Result<T, HostError>) -> String {
    match result {
        Err(HostError::Rejected { summary, .. }) => summary,
        other => panic!("not rejected: {other:?}"),
    }
}

fn model_with(from: &str, to: &str) -> Files {
    changed(parcels(), "parcels/models/parcel.py", from, to)
}

#[tokio::test]
async fn each_failure_of_an_install_or_update_is_rejected_with_its_place() {
    let project = Project::new().await;
    let good = project.release(&parcels()).await.unwrap();
    let base = project.data_set(DataSource::Fresh).await;
    project.run(base, &good, &["base"], &[]).await.unwrap();
    let installed = project.data_set(DataSource::CopyOf(base)).await;
    project.run(installed, &good, &["parcels", "parcels_labels"], &[]).await.unwrap();
    {
        let cluster = project.host.run_cluster(project.instance, installed).await.unwrap();
        let mut connection = cluster.connect_as_owner().await.unwrap();
        sqlx::query("insert into parcels_parcel (name) values ('a'), ('a')").execute(&mut connection).await.unwrap();
    }

    // Before anything is touched.
    let error = rejected(project.release(&model_with("fields.Float()", "fields.Float(")).await);
    assert_eq!(error, "syntax error in parcels/models/parcel.py, line 9: '(' was never closed");

    let mut sentences = Vec::new();
    let installs: Vec<(&str, Files, &[&str])> = vec![
        ("failed import", changed(parcels(), "parcels/__init__.py", "models", "models, wizards"), &["parcels"]),
        ("missing Python dependency", model_with("from odoo", "import barcode_writer_xyz\nfrom odoo"), &["parcels"]),
        ("missing module dependency", changed(parcels(), "parcels/__manifest__.py", "'base'", "'base', 'unheard_of'"), &["parcels"]),
        ("invalid view", changed(parcels(), "parcels/views/parcel.xml", "\"weight\"", "\"wieght\""), &["parcels"]),
        ("unknown module", parcels(), &["parcles"]),
        ("not installable", changed(parcels(), "parcels/__manifest__.py", "'author'", "'installable': False, 'author'"), &["parcels"]),
        (
            "an error in the log",
            changed(parcels(), "parcels/__init__.py", "from", "import logging\nlogging.getLogger(__name__).error('no carrier')\nfrom"),
            &["parcels"],
        ),
    ];
    for (what, files, install) in installs {
        let release = project.release(&files).await.unwrap();
        let copy = project.data_set(DataSource::CopyOf(base)).await;
        sentences.push(format!("{what}: {}", rejected(project.run(copy, &release, install, &[]).await)));
    }
    let mut migration = changed(parcels(), "parcels/__manifest__.py", "19.0.1.0.0", "19.0.1.1.0");
    migration.insert(
        "parcels/migrations/19.0.1.1.0/pre-weights.py".to_owned(),
        "def migrate(cr, version):\n    raise ValueError('parcels without a weight: 2')\n".to_owned(),
    );
    let mut gone = parcels();
    gone.retain(|path, _| !path.starts_with("parcels_labels/"));
    let updates: Vec<(&str, Files)> = vec![
        ("failing migration", migration),
        ("required field without values", model_with("fields.Char()", "fields.Char()\n    carrier = fields.Char(required=True)")),
        (
            "constraint that records break",
            model_with("fields.Float()", "fields.Float()\n    _once = models.Constraint('unique(name)', 'Once.')"),
        ),
        ("half an update", changed(parcels(), "parcels/views/parcel.xml", "\"weight\"", "\"create_uid\"")),
        ("a module's directory is gone", gone),
    ];
    for (what, files) in updates {
        let release = project.release(&files).await.unwrap();
        let copy = project.data_set(DataSource::CopyOf(installed)).await;
        sentences.push(format!("{what}: {}", rejected(project.run(copy, &release, &[], &["parcels"]).await)));
    }
    insta::assert_snapshot!(sentences.join("\n"));

    // What was there before still serves.
    let slot = project.start(Color::Blue, installed, &good).await.unwrap();
    assert_eq!(page(slot.http, "/web/login").await.0, 200);
}

#[tokio::test]
async fn a_start_that_fails_says_why() {
    let (project, _, data_set) = Project::with_parcels(&parcels()).await;
    let broken = project.release(&changed(parcels(), "parcels/__init__.py", "models", "models, wizards")).await.unwrap();
    let error = rejected(project.start(Color::Blue, data_set, &broken).await);
    assert_eq!(
        error,
        "Odoo does not start: failed import in parcels/__init__.py, line 1: `parcels` has no `wizards`; was the file committed?"
    );
    let dying = project.release(&changed(parcels(), "parcels/__init__.py", "from", "import os\nos._exit(3)\nfrom")).await.unwrap();
    let error = rejected(project.start(Color::Blue, data_set, &dying).await);
    assert_eq!(error, "Odoo ended while it started");
    assert!(ocore_host::Host::observe(&*project.host).await.unwrap()[0].slots.is_empty());
}
