//! What modules of a tenant could do to whoever waits for their Odoo.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::os::unix::fs::PermissionsExt;

use ocore_host::{
    DataSource, Host, HostError, OdooSettings, ServableDataSet, SlotSpec,
    local::exec::{Program, RunAs},
    testing::progress,
};
use ocore_model::instance::Color;

use crate::{
    clusters::as_odoo,
    project::{Files, Project, changed, parcels},
};

/// Its log-in page never ends.
fn endless() -> Files {
    let controller = "from odoo import http\nfrom odoo.addons.web.controllers.home import Home\nfrom odoo.http import Response\n\n\nclass Endless(Home):\n    @http.route()\n    def web_login(self, redirect=None, **kw):\n        def more():\n            while True:\n                yield b'x' * 65536\n        return Response(more(), direct_passthrough=True)\n";
    let mut files = changed(parcels(), "parcels/__init__.py", "from", "from . import pages\nfrom");
    files.insert("parcels/pages.py".to_owned(), controller.to_owned());
    changed(files, "parcels/__manifest__.py", "'depends': ['base']", "'depends': ['base', 'web']")
}

#[tokio::test]
async fn an_odoo_whose_log_in_page_does_not_end_does_not_start_and_takes_nobody_with_it() {
    let (project, release, live) = Project::with_parcels(&endless()).await;
    let spec = SlotSpec {
        color: Color::Blue,
        data_set: ServableDataSet::proven(live),
        release: release.id.clone(),
        settings: OdooSettings::default(),
    };
    let before = peak();
    // Again, as an operation that is resumed does.
    for _ in 0..2 {
        let started = project.host.start_slot(project.instance, spec.clone(), project.fence(), progress().0).await;
        let Err(HostError::Rejected { summary, .. }) = started else { panic!("{started:?}") };
        assert!(summary.contains("the log-in page does not end"), "{summary}");
    }
    let grown = peak() - before;
    assert!(grown < 64 << 10, "{grown} KiB");
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn who_looks_whose_transactions_are_open_runs_nothing_of_the_database() {
    let project = Project::new().await;
    let release = project.release(&parcels()).await.unwrap();
    let live = project.data_set(DataSource::Fresh).await;
    project.run(live, &release, &["parcels"], &[]).await.unwrap();
    project.start(Color::Blue, live, &release).await.unwrap();
    project.start(Color::Green, live, &release).await.unwrap();
    let who = project.sandbox.path().join("who");
    std::fs::write(&who, "").unwrap();
    std::fs::set_permissions(&who, std::fs::Permissions::from_mode(0o666)).unwrap();
    let hostile = format!(
        "create function public.p() returns name language plpgsql as $$begin execute 'copy (select session_user) to program ''cat >> {}'''; return 'odoo'; exception when insufficient_privilege then return 'odoo'; end$$;
         create view public.pg_stat_activity as select 'x'::text application_name, public.p() usename, 'active'::text state;
         alter database odoo set search_path = public, pg_catalog;",
        who.display()
    );
    as_odoo(&project.host, project.instance, live, &hostile).await.unwrap().expect_success("planted").unwrap();
    // A transaction stays open, whoever's it is has to be asked.
    let odoo = project.host.allocation(project.instance).await.unwrap().odoo;
    let open = Program::new("psql")
        .args(["-X", "-h"])
        .arg(project.host.layout.socket_directory(live))
        .args(["-U", "odoo", "-d", "odoo", "-c", "begin", "-c", "select 1", "-c", "select pg_catalog.pg_sleep(600)"])
        .run_as(RunAs { uid: odoo.uid, gid: odoo.uid, groups: vec![] })
        .start()
        .unwrap();
    project.host.stop_slot(project.instance, Color::Blue, project.fence()).await.unwrap();
    drop(open);
    assert_eq!(std::fs::read_to_string(&who).unwrap(), "", "the superuser ran what the tenant has written");
}
