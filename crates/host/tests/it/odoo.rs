//! Odoo from a source tree to a page, and back again.

use std::{sync::Arc, time::Duration};

use ocore_host::{DataSource, Host, HostError, LogSink, OdooSettings, Progress, RunModules, ServableDataSet, SlotSpec, testing::progress};
use ocore_model::instance::Color;
use tokio_util::sync::CancellationToken;

use crate::clusters::as_odoo;
use crate::project::{Project, changed, examples, names, page, parcels};

const PASSWORD: &str = "an-admin-password-that-nobody-logs";

/// What is not told to anybody: neither in the lines of the run nor in a file of the instance's logs nor in a command line.
#[expect(clippy::unwrap_used, reason = "a test that cannot look fails")]
fn assert_unsaid(project: &Project, lines: &[String], secrets: &[&str]) {
    let logs = project.host.layout.logs(project.instance);
    let mut texts: Vec<String> = lines.to_vec();
    texts.extend(
        std::fs::read_dir(logs).unwrap().flatten().map(|entry| String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned()),
    );
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        texts.extend(std::fs::read(process.path().join("cmdline")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    for secret in secrets {
        assert!(!texts.iter().any(|text| text.contains(secret)), "`{secret}` was told");
    }
}

#[tokio::test]
async fn the_example_is_installed_serves_is_updated_beside_and_is_adopted_by_another_host() {
    let project = Project::new().await;
    let release = project.release(&examples()).await.unwrap();
    let again = project.release(&examples()).await.unwrap();
    assert_eq!(release, again);
    let first = project.data_set(DataSource::Fresh).await;
    let lines = project
        .run_request(RunModules {
            data_set: first,
            release: release.id.clone(),
            install: names(&["workshop", "workshop_loan"]),
            update: Vec::new(),
            renames: Vec::new(),
            corrections: Vec::new(),
            with_demo: true,
            admin_password: Some(PASSWORD.to_owned()),
            settings: OdooSettings::default(),
        })
        .await
        .unwrap()
        .all();
    assert!(!lines.iter().any(|line| [" WARNING ", " ERROR ", " CRITICAL "].iter().any(|level| line.contains(level))), "{lines:#?}");
    let secret = "a-secret-of-the-environment";
    let settings = OdooSettings { env_vars: [("SECRET".to_owned(), secret.to_owned())].into(), ..OdooSettings::default() };
    let blue = project.start_with(Color::Blue, first, &release, settings.clone()).await.unwrap();
    assert_eq!(page(blue.http, "/web/login").await.0, 200);
    let (status, text) = page(blue.http, "/workshop").await;
    assert!(status == 200 && text.contains("We repair bicycles") && text.contains("Yearly check"), "{text}");
    assert!(page(blue.http, "/web/database/manager").await.1.contains("manager has been disabled"));
    assert_unsaid(&project, &lines, &[PASSWORD, secret]);
    // Nobody has opened it: it serves all the same, and prints from itself.
    assert!(project.host.egress_report(project.instance).await.unwrap().enforced);
    let reports = "select value from ir_config_parameter where key = 'report.url'";
    assert_eq!(as_odoo(&project.host, project.instance, first, reports).await.unwrap().stdout_text(), format!("http://{}\n", blue.http));

    // Another oCore on the same home finds it, and leaves it as it is.
    let other = project.sandbox.host().await.unwrap();
    let slot =
        SlotSpec { color: Color::Blue, data_set: ServableDataSet::proven(first), release: release.id.clone(), settings: settings.clone() };
    let adopted = other.start_slot(project.instance, slot, project.fence(), progress().0).await.unwrap();
    assert_eq!(adopted, blue);
    assert_eq!(other.observe().await.unwrap()[0].slots, std::slice::from_ref(&blue));

    // A changed view, on a copy; then the other colour serves it and knows the same password.
    let new = changed(examples(), "workshop/views/pages.xml", "We repair bicycles", "We mend bicycles");
    let new = project.release(&new).await.unwrap();
    assert_ne!(new.id, release.id);
    assert_ne!(new.modules["workshop".parse().as_ref().unwrap()], release.modules["workshop".parse().as_ref().unwrap()]);
    assert_eq!(new.modules["workshop_loan".parse().as_ref().unwrap()], release.modules["workshop_loan".parse().as_ref().unwrap()]);
    let second = project.data_set(DataSource::CopyOf(first)).await;
    project.run(second, &new, &[], &["workshop"]).await.unwrap();
    let green = project.start(Color::Green, second, &new).await.unwrap();
    assert!(page(green.http, "/workshop").await.1.contains("We mend bicycles"));
    assert_ne!(green.http, blue.http);
    project.host.stop_slot(project.instance, Color::Green, project.fence()).await.unwrap();
    project.host.stop_slot(project.instance, Color::Green, project.fence()).await.unwrap();
    assert_eq!(page(green.http, "/workshop").await.0, 0);

    // What was before can be started exactly as it was.
    let blue = project.start_with(Color::Blue, first, &release, settings).await.unwrap();
    assert!(page(blue.http, "/workshop").await.1.contains("We repair bicycles"));
    let log = project.host.odoo_log(project.instance, 5, false).await.unwrap();
    assert_eq!(tokio_stream::StreamExt::collect::<Vec<_>>(tokio_stream::wrappers::ReceiverStream::new(log)).await.len(), 5);
}

#[tokio::test]
async fn a_start_survives_a_taken_port_a_killed_odoo_and_workers() {
    let (project, release, data_set) = Project::with_parcels(&parcels()).await;
    let ports = project.host.ledger.find(project.instance).await.unwrap().unwrap().ports.blue;
    // While nobody held it: oCore and the keeper of its ports were away.
    project.host.ports.release(ports.http).unwrap();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", ports.http)).unwrap();
    let slot = project.start(Color::Blue, data_set, &release).await.unwrap();
    assert_ne!(slot.http.port(), ports.http);
    assert_eq!(page(slot.http, "/web/login").await.0, 200);

    // Killed: it is seen, and started again on request.
    rustix::process::kill_process(rustix::process::Pid::from_raw(slot.pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    while !project.host.observe().await.unwrap()[0].slots.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let settings = OdooSettings { workers: 2, ..OdooSettings::default() };
    let slot = project.start_with(Color::Blue, data_set, &release, settings).await.unwrap();
    let websocket = slot.websocket.unwrap();
    assert_eq!(page(slot.http, "/web/login").await.0, 200);
    // It opens later than the other one, and nothing waits for it.
    while page(websocket, "/websocket/health").await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Its log is rotated while it serves, and it goes on in the new one.
    let log = project.host.layout.logs(project.instance).join("odoo.log");
    let mut follower = project.host.odoo_log(project.instance, 0, true).await.unwrap();
    let mut small = project.sandbox.config().clone();
    small.logs.max_bytes = 10;
    ocore_host::LocalHost::open(small).await.unwrap().rotate_logs().await.unwrap();
    assert!(log.with_extension("log.1").exists());
    page(slot.http, "/web/login?after_the_rotation").await;
    loop {
        let line = tokio::time::timeout(Duration::from_secs(30), follower.recv()).await.unwrap().unwrap();
        if line.contains("after_the_rotation") {
            break;
        }
    }
    assert!(std::fs::read_to_string(&log).unwrap().contains("after_the_rotation"));
}

/// Cancels as soon as Odoo says that it loads a module, or kills the process that says it.
struct Interrupt {
    cancel: CancellationToken,
}

impl LogSink for Interrupt {
    fn line(&self, text: &str) {
        if text.contains("Loading module") {
            self.cancel.cancel();
        }
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_or_taken_over_leaves_no_process() {
    let project = Arc::new(Project::new().await);
    let release = project.release(&parcels()).await.unwrap();
    let request = |data_set| RunModules {
        data_set,
        release: release.id.clone(),
        install: names(&["parcels"]),
        update: Vec::new(),
        renames: Vec::new(),
        corrections: Vec::new(),
        with_demo: false,
        admin_password: None,
        settings: OdooSettings::default(),
    };
    let odoo = project.host.ledger.find(project.instance).await.unwrap().unwrap().odoo.uid;
    let left = || ocore_host::local::process::scan().iter().filter(|entry| !entry.is_dead() && entry.uid() == Some(odoo)).count();

    let data_set = project.data_set(DataSource::Fresh).await;
    let cancel = CancellationToken::new();
    let progress = Progress { log: Arc::new(Interrupt { cancel: cancel.clone() }), cancel };
    let error = project.host.run_modules(project.instance, request(data_set), project.fence(), progress).await.unwrap_err();
    assert!(matches!(error, HostError::Cancelled), "{error}");
    assert_eq!(left(), 0);

    // A newer claim takes over while Odoo works.
    let data_set = project.data_set(DataSource::Fresh).await;
    let begun = CancellationToken::new();
    let progress = Progress { log: Arc::new(Interrupt { cancel: begun.clone() }), cancel: CancellationToken::new() };
    let old = tokio::spawn({
        let (project, request, fence) = (Arc::clone(&project), request(data_set), project.fence());
        async move { project.host.run_modules(project.instance, request, fence, progress).await }
    });
    begun.cancelled().await;
    project.host.start_cluster(project.instance, data_set, project.fence()).await.unwrap();
    assert!(matches!(old.await.unwrap().unwrap_err(), HostError::Fenced { .. }));
    assert_eq!(left(), 0);
}
