//! Databases with modules installed, kept for the next build.

use std::os::unix::fs::PermissionsExt;

use ocore_host::{
    DataSource, Host, HostError, KeepTemplate, MakeTemplate, OdooSettings, RunModules, TemplateLimits,
    testing::{fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::Color,
};

use crate::project::{Project, names, page, parcels};

const LIMITS: TemplateLimits = TemplateLimits { bytes: u64::MAX, unused_days: 30 };

#[expect(clippy::unwrap_used, reason = "a test that cannot look fails")]
async fn parameters(project: &Project, data_set: DataSetId) -> Vec<String> {
    let cluster = project.host.run_cluster(project.instance, data_set).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    let query = "select value from public.ir_config_parameter where key in ('database.secret', 'database.uuid') order by key";
    sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap()
}

#[tokio::test]
async fn a_build_begins_with_what_an_earlier_one_installed_and_gets_an_identity_of_its_own() {
    let project = Project::new().await;
    let make = MakeTemplate { odoo_version: "19.0".parse().unwrap(), modules: names(&["base"]), with_demo: false };
    let shared = project.host.make_template(make.clone(), progress().0).await.unwrap();
    assert_eq!(shared.content.isolation_key, None);
    assert!(shared.installed.contains(&"base".to_owned()) && shared.content.modules.is_empty());
    // Nothing of the workshop stays, and nobody sees it.
    assert_eq!(project.host.observe().await.unwrap().len(), 1);
    assert_eq!(project.host.ledger.instances().await.unwrap(), [project.instance]);
    let directory = project.host.layout.template(shared.id);
    assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    let again = project.host.make_template(make.clone(), progress().0).await.unwrap();
    assert_eq!((again.id, again.created_at), (shared.id, shared.created_at), "made already is done");
    let foreign = MakeTemplate { modules: names(&["parcels"]), ..make };
    let refused = project.host.make_template(foreign, progress().0).await.unwrap_err();
    assert!(matches!(refused, HostError::Rejected { .. }) && refused.to_string().contains("parcels"), "{refused:?}");

    let release = project.release(&parcels()).await.unwrap();
    let first = project.data_set(DataSource::Template { template: shared.id }).await;
    let refused = project.start(Color::Blue, first, &release).await.unwrap_err();
    assert!(refused.to_string().contains("no identity of its own"), "{refused:?}");
    let run = |data_set, install: &[&str], password: &str| RunModules {
        data_set,
        release: release.id.clone(),
        install: names(install),
        update: Vec::new(),
        with_demo: false,
        admin_password: Some(password.to_owned()),
        settings: OdooSettings::default(),
    };
    let lines = project.run_request(run(first, &["parcels"], "first")).await.unwrap().all();
    assert!(lines.iter().any(|line| line.contains("Installing parcels")), "{lines:#?}");
    let keep = KeepTemplate {
        data_set: first,
        release: release.id.clone(),
        isolation_key: "project".to_owned(),
        requested: names(&["parcels"]),
        with_demo: false,
    };
    let kept = project.host.keep_template(project.instance, keep.clone(), project.fence(), progress().0).await.unwrap();
    assert_eq!(kept.content.isolation_key.as_deref(), Some("project"));
    assert_eq!(kept.content.modules, release.modules);
    let again = project.host.keep_template(project.instance, keep, project.fence(), progress().0).await.unwrap();
    assert_eq!((again.id, again.created_at), (kept.id, kept.created_at), "kept already is done");

    // Everything is there; nothing runs but a new identity and a new password.
    let second = project.data_set(DataSource::Template { template: kept.id }).await;
    let lines = project.run_request(run(second, &[], "second")).await.unwrap().all();
    assert!(!lines.iter().any(|line| line.contains("Installing")), "{lines:#?}");
    let (of_first, of_second) = (parameters(&project, first).await, parameters(&project, second).await);
    assert_eq!((of_first.len(), of_second.len()), (2, 2));
    assert!(of_first.iter().zip(&of_second).all(|(one, other)| one != other), "{of_first:?} {of_second:?}");
    let slot = project.start(Color::Blue, second, &release).await.unwrap();
    assert_eq!(page(slot.http, "/web/login").await.0, 200);

    // Another instance's users own its copy.
    let other = InstanceId::new();
    project.host.create_instance(other, fence(1)).await.unwrap();
    project
        .host
        .create_data_set(other, DataSetId::new(), DataSource::Template { template: shared.id }, fence(1), progress().0)
        .await
        .unwrap();

    assert!(project.host.prune_templates(LIMITS).await.unwrap().is_empty());
    let gone = project.host.prune_templates(TemplateLimits { unused_days: 0, ..LIMITS }).await.unwrap();
    assert_eq!(gone.len(), 2);
    assert!(project.host.templates().await.unwrap().is_empty() && !directory.exists());
    let missing = project
        .host
        .create_data_set(project.instance, DataSetId::new(), DataSource::Template { template: shared.id }, project.fence(), progress().0)
        .await;
    assert!(matches!(missing, Err(HostError::NotFound { what: "template", .. })), "{missing:?}");
}
