//! Databases with modules installed, kept for the next build.

use std::{collections::BTreeMap, io::Write, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use ocore_host::{
    DataSource, Host, HostError, KeepTemplate, LogSink, MakeTemplate, OdooSettings, Progress, ReleaseId, RunModules, Template,
    TemplateContent, TemplateLimits,
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId, TemplateId},
    instance::Color,
    names::ModuleName,
};
use tokio::sync::Notify;
use walkdir::WalkDir;

use crate::{
    project::{Project, names, page, parcels},
    snapshots::MIB,
};

fn limits(keys: &[&str]) -> TemplateLimits {
    TemplateLimits { bytes: u64::MAX, unused_days: 30, keys: keys.iter().map(|key| (*key).to_owned()).collect() }
}

/// Says when Odoo begins to install.
#[derive(Default)]
struct Installing(Notify);

impl LogSink for Installing {
    fn line(&self, text: &str) {
        if text.contains("Installing base") {
            self.0.notify_one();
        }
    }
}

/// Secret and number.
#[expect(clippy::unwrap_used, reason = "a test that cannot look fails")]
async fn identity(project: &Project, data_set: DataSetId) -> Vec<String> {
    let cluster = project.host.run_cluster(project.instance, data_set).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    let query = "select value from public.ir_config_parameter where key in ('database.secret', 'database.uuid') order by key";
    sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap()
}

/// Odoo's base alone.
#[expect(clippy::unwrap_used, reason = "a test without an Odoo fails")]
fn make() -> MakeTemplate {
    MakeTemplate { odoo_version: "19.0".parse().unwrap(), modules: names(&["base"]), with_demo: false, from: None }
}

#[expect(clippy::unwrap_used, reason = "a test that cannot write fails")]
fn flip_byte(path: &Path, offset: usize) {
    let mut content = std::fs::read(path).unwrap();
    content[offset] ^= 0xff;
    std::fs::OpenOptions::new().write(true).truncate(true).open(path).unwrap().write_all(&content).unwrap();
}

#[expect(clippy::unwrap_used, reason = "a test without a largest table fails")]
fn largest_table(template: &Path) -> std::path::PathBuf {
    let files = WalkDir::new(template.join("pgdata/base")).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    files.max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).unwrap().into_path()
}

async fn take(project: &Project, template: TemplateId) -> Result<(DataSetId, Vec<String>), (HostError, Vec<String>)> {
    let (data_set, (progress, lines)) = (DataSetId::new(), progress());
    let source = DataSource::Template { template };
    match project.host.create_data_set(project.instance, data_set, source, project.fence(), progress).await {
        Ok(_) => Ok((data_set, lines.all())),
        Err(error) => Err((error, lines.all())),
    }
}

#[tokio::test]
async fn a_build_begins_with_what_an_earlier_one_installed_and_gets_an_identity_of_its_own() {
    let project = Project::new().await;
    let shared = project.host.make_template(make(), progress().0).await.unwrap();
    assert_eq!(shared.content.isolation_key, None);
    assert!(shared.installed.contains(&"base".to_owned()) && shared.content.modules.is_empty());
    // Nothing of the workshop stays, and nobody sees it.
    assert_eq!(project.host.observe().await.unwrap().len(), 1);
    assert_eq!(project.host.ledger.instances().await.unwrap(), [project.instance]);
    let directory = project.host.layout.template(shared.id);
    assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    let again = project.host.make_template(make(), progress().0).await.unwrap();
    assert_eq!((again.id, again.created_at), (shared.id, shared.created_at), "made already is done");
    let foreign = MakeTemplate { modules: names(&["parcels"]), ..make() };
    let refused = project.host.make_template(foreign, progress().0).await.unwrap_err();
    assert!(matches!(refused, HostError::Rejected { .. }) && refused.to_string().contains("parcels"), "{refused:?}");

    let release = project.release(&parcels()).await.unwrap();
    let (first, _) = take(&project, shared.id).await.unwrap();
    let refused = project.start(Color::Blue, first, &release).await.unwrap_err();
    assert!(refused.to_string().contains("no password of its own"), "{refused:?}");
    let run = |data_set, install: &[&str], password: &str| RunModules {
        data_set,
        release: release.id.clone(),
        install: names(install),
        update: Vec::new(),
        renames: Vec::new(),
        corrections: Vec::new(),
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
        standard: names(&["base"]),
        with_demo: false,
    };
    // While the first Odoo starts on it.
    let (started, kept) =
        tokio::join!(project.start(Color::Blue, first, &release), project.host.keep_template(project.instance, keep.clone(), progress().0));
    let (slot, kept): (_, Template) = (started.unwrap(), kept.unwrap());
    assert_eq!(page(slot.http, "/web/login").await.0, 200);
    assert_eq!(kept.content.isolation_key.as_deref(), Some("project"));
    let modules: Vec<ModuleName> = kept.content.modules.keys().cloned().collect();
    assert_eq!(modules, names(&["parcels"]), "and no module of the commit that is not installed in it");
    let again = project.host.keep_template(project.instance, keep, progress().0).await.unwrap();
    assert_eq!((again.id, again.created_at), (kept.id, kept.created_at), "kept already is done");

    // Other Python packages may have made another database of the same modules.
    let other = parcels().into_iter().chain([("requirements.txt".to_owned(), "Werkzeug\n".to_owned())]).collect();
    let other = project.release(&other).await.unwrap();
    let for_release = async |release: &ReleaseId| -> Vec<TemplateId> {
        project.host.templates(Some(release)).await.unwrap().into_iter().map(|template| template.id).collect()
    };
    assert!(for_release(&release.id).await.contains(&kept.id));
    assert_eq!(for_release(&other.id).await, [shared.id]);

    // Everything is there; nothing runs but a new identity and a new password.
    let (second, _) = take(&project, kept.id).await.unwrap();
    let lines = project.run_request(run(second, &[], "second")).await.unwrap().all();
    assert!(!lines.iter().any(|line| line.contains("Installing")), "{lines:#?}");
    let (of_first, of_second) = (identity(&project, first).await, identity(&project, second).await);
    assert_eq!((of_first.len(), of_second.len()), (2, 2));
    assert!(of_first.iter().zip(&of_second).all(|(one, other)| one != other), "{of_first:?} {of_second:?}");
    let slot = project.start(Color::Green, second, &release).await.unwrap();
    assert_eq!(page(slot.http, "/web/login").await.0, 200);

    // Another instance's users own its copy.
    let other = InstanceId::new();
    project.host.create_instance(other, fence(1)).await.unwrap();
    let source = DataSource::Template { template: shared.id };
    project.host.create_data_set(other, DataSetId::new(), source, fence(1), progress().0).await.unwrap();

    // A page that is not as it was written: the copy is refused, and the template goes.
    flip_byte(&largest_table(&project.host.layout.template(kept.id)), 100);
    let (error, lines) = take(&project, kept.id).await.unwrap_err();
    assert!(matches!(error, HostError::NotFound { what: "template", .. }), "{error:?}");
    assert!(lines.iter().any(|line| line.contains("is damaged and is removed") && line.contains("checksums")), "{lines:#?}");
    assert!(project.host.templates(None).await.unwrap().iter().all(|template| template.id != kept.id));

    // A file that is missing, and a description that is none.
    let table = largest_table(&directory);
    std::fs::remove_file(&table).unwrap();
    let (error, lines) = take(&project, shared.id).await.unwrap_err();
    assert!(matches!(error, HostError::NotFound { what: "template", .. }), "{error:?}");
    assert!(lines.iter().any(|line| line.contains("was kept with")), "{lines:#?}");
    assert!(!directory.exists());
    let (error, _) = take(&project, shared.id).await.unwrap_err();
    assert!(matches!(error, HostError::NotFound { what: "template", .. }), "{error:?}");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("template.json"), "{").unwrap();
    assert!(project.host.templates(None).await.unwrap().is_empty());
    assert_eq!(project.host.prune_templates(limits(&[])).await.unwrap(), [shared.id]);
    assert!(!directory.exists());
    // Nothing half-made lies about: data sets in the making, templates in removal.
    let hidden = WalkDir::new(project.host.layout.templates()).max_depth(1).into_iter().flatten();
    assert!(hidden.map(|entry| entry.file_name().to_string_lossy().into_owned()).all(|name| !name.starts_with('.')));
}

#[tokio::test]
async fn templates_go_when_nobody_uses_them_or_their_project_is_gone_and_what_a_crash_left_of_one_is_swept() {
    let project = Project::new().await;
    let host = &project.host;
    // Broken off in the middle, as by a shutdown: the workshop's users and processes are still there.
    let installing = Arc::new(Installing::default());
    tokio::select! {
        made = host.make_template(make(), Progress { log: installing.clone(), ..progress().0 }) => panic!("it was to be broken off: {made:?}"),
        () = installing.0.notified() => {}
    }
    assert_eq!(host.ledger.instances().await.unwrap().len(), 2);
    assert!(host.templates(None).await.unwrap().is_empty());
    assert!(host.prune_templates(limits(&[])).await.unwrap().is_empty());
    assert_eq!(host.ledger.instances().await.unwrap(), [project.instance]);

    let shared = host.make_template(make(), progress().0).await.unwrap();
    let release = project.release(&parcels()).await.unwrap();
    let (first, _) = take(&project, shared.id).await.unwrap();
    let keep = KeepTemplate {
        data_set: first,
        release: release.id.clone(),
        isolation_key: "project".to_owned(),
        requested: names(&["base"]),
        standard: names(&["base"]),
        with_demo: false,
    };
    let kept = host.keep_template(project.instance, keep, progress().0).await.unwrap();
    assert!(host.prune_templates(limits(&["project"])).await.unwrap().is_empty());
    assert_eq!(host.prune_templates(limits(&["another"])).await.unwrap(), [kept.id], "its project is gone");
    let old = TemplateLimits { unused_days: 0, ..limits(&[]) };
    assert_eq!(host.prune_templates(old).await.unwrap(), [shared.id]);
    assert!(host.templates(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn when_the_pool_is_nearly_full_the_least_recently_used_goes_first_and_none_that_was_just_used() {
    let sandbox = Sandbox::with_image(400 * MIB).unwrap();
    let host = sandbox.host().await.unwrap();
    let kept = |number: u128, unused: Duration| {
        let id = TemplateId(uuid::Uuid::from_u128(number));
        let directory = host.layout.template(id);
        std::fs::create_dir_all(&directory).unwrap();
        let content = TemplateContent {
            distribution_id: "19.0-1".to_owned(),
            with_demo: false,
            isolation_key: None,
            requested: names(&["base"]),
            environment: None,
            modules: BTreeMap::new(),
        };
        let template = Template {
            id,
            content,
            odoo_version: "19.0".parse().unwrap(),
            postgres: "15".to_owned(),
            shape: ocore_host::local::cluster::SHAPE,
            standard: names(&["base"]),
            installed: vec!["base".to_owned()],
            created_at: chrono::Utc::now(),
            used_at: chrono::Utc::now(),
            bytes: 40 * MIB,
            entries: 1,
        };
        std::fs::write(directory.join("template.json"), serde_json::to_vec(&template).unwrap()).unwrap();
        std::fs::File::create(directory.join("used")).unwrap().set_modified(std::time::SystemTime::now() - unused).unwrap();
        fill(&directory.join("table"), 40 * MIB);
        id
    };
    let hour = Duration::from_hours(1);
    let (newer, oldest, just_used) = (kept(1, 5 * hour), kept(2, 50 * hour), kept(3, Duration::ZERO));
    assert!(host.prune_templates(limits(&[])).await.unwrap().is_empty(), "there is room");

    let available = host.facts().await.unwrap().pool.available_bytes;
    fill(&host.pool.path().join("ballast"), available - 20 * MIB);
    let gone = host.prune_templates(limits(&[])).await.unwrap();
    // The file system may take its time with what was removed.
    assert!(gone == [oldest] || gone == [oldest, newer], "{gone:?}");
    let available = host.facts().await.unwrap().pool.available_bytes;
    fill(&host.pool.path().join("more"), available.saturating_sub(20 * MIB).max(MIB));
    host.prune_templates(limits(&[])).await.unwrap();
    let left: Vec<TemplateId> = host.templates(None).await.unwrap().into_iter().map(|template| template.id).collect();
    assert_eq!(left, [just_used]);
    assert!(!host.layout.template(oldest).exists() && !host.layout.template(newer).exists());
}

#[expect(clippy::unwrap_used, reason = "a test that cannot write fails")]
fn fill(path: &Path, bytes: u64) {
    let file = std::fs::File::create(path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
}
