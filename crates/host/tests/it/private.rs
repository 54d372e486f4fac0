//! Directories that programs of tenants share with nobody, though they have the names that all know.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use ocore_host::{Host, OdooSettings, testing::Sandbox};
use ocore_model::instance::Color;

use crate::project::{Files, Project, changed, page, parcels};

const CONTROLLER: &str = r#"
import os
import pathlib

from odoo import http

PLACES = ["/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~")]


class Weigh(http.Controller):
    @http.route("/weigh/export", auth="none")
    def export(self):
        for place in PLACES:
            pathlib.Path(place, "oc-weigh.csv").write_text("4711")
        return "exported"

    @http.route("/weigh/peek", auth="none")
    def peek(self):
        return " ".join(name if "oc-weigh.csv" in os.listdir(place) else "-" for name, place in zip(["tmp", "var", "shm", "home"], PLACES))

    @http.route("/weigh/machine", auth="none")
    def machine(self):
        return repr([name for place in PLACES for name in os.listdir(place) if name.startswith("oc-machine")])
"#;

fn files() -> Files {
    let mut files = changed(parcels(), "parcels/__init__.py", "from . import models\n", "from . import controllers, models\n");
    files.insert("parcels/controllers.py".to_owned(), CONTROLLER.to_owned());
    files
}

#[tokio::test]
async fn temporary_files_and_the_home_are_an_instances_own_whether_it_is_forked_or_not() {
    let (project, release, data_set) = Project::with_parcels(&files()).await;
    let machine = tempfile::Builder::new().prefix("oc-machine").tempdir_in("/tmp").unwrap();
    let says = async |address, path: &str, wanted: &str| {
        let (status, text) = page(address, path).await;
        assert!(status == 200 && text.ends_with(&format!("\r\n\r\n{wanted}")), "{path}: {text}");
    };

    // Read when Python starts, so that it cannot be forked.
    let bare = OdooSettings { env_vars: [("PYTHONUTF8".to_owned(), "1".to_owned())].into(), ..OdooSettings::default() };
    let before = project.host.warm_starts();
    let slot = project.start_with(Color::Blue, data_set, &release, bare).await.unwrap();
    assert_eq!(project.host.warm_starts().bare, before.bare + 1);
    says(slot.http, "/weigh/peek", "- - - -").await;
    says(slot.http, "/weigh/export", "exported").await;
    says(slot.http, "/weigh/peek", "tmp var shm home").await;
    says(slot.http, "/weigh/machine", "[]").await;
    for place in ["/tmp", "/var/tmp", "/dev/shm", "/"] {
        assert!(!Path::new(place).join("oc-weigh.csv").exists(), "{place} is the machine's");
    }

    // The other slot, forked, has all but what is in memory; and what is mounted for it is mounted for nobody else.
    project.host.warm_up(&"19.0".parse().unwrap()).await.unwrap();
    let forked = project.host.warm_starts().forked;
    let green = project.start(Color::Green, data_set, &release).await.unwrap();
    assert_eq!(project.host.warm_starts().forked, forked + 1);
    says(green.http, "/weigh/peek", "tmp var - home").await;
    says(green.http, "/weigh/machine", "[]").await;
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", green.pid)).unwrap();
    assert!(!mounts.contains(" shared:"), "{mounts}");

    // Nobody reaches the directories by their way.
    let temporary = project.host.layout.temporary(project.instance);
    let status = fs::metadata(&temporary).unwrap();
    assert_eq!((status.uid(), status.mode() & 0o777), (0, 0o700));

    // When nothing of it runs, what is temporary goes, whatever it is, and the home stays.
    for color in [Color::Blue, Color::Green] {
        project.host.stop_slot(project.instance, color, project.fence()).await.unwrap();
    }
    std::os::unix::fs::symlink("/etc", temporary.join("tmp/link")).unwrap();
    let slot = project.start(Color::Blue, data_set, &release).await.unwrap();
    says(slot.http, "/weigh/peek", "- - - home").await;
    assert!(Path::new("/etc/passwd").exists() && !temporary.join("tmp/link").exists());
    drop(machine);

    project.host.destroy_instance(project.instance, project.fence()).await.unwrap();
    assert!(!temporary.exists());
}

#[tokio::test]
async fn a_home_that_its_odoos_would_not_see_is_refused() {
    let sandbox = Sandbox::with(|config| config.home = std::env::temp_dir().join("oc-not-seen")).unwrap();
    let error = sandbox.host().await.err().unwrap().to_string();
    assert!(error.contains("/tmp/oc-not-seen lies below /tmp, which each environment has of its own"), "{error}");
    assert!(!Path::new("/tmp/oc-not-seen").exists());
}
