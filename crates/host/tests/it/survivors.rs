//! What tenants' code leaves running when it should have ended, in all the ways that hide a process from whoever looks for it.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use ocore_host::{DataSource, Host, local::process};
use ocore_model::instance::Color;

use crate::project::{Files, Project, changed, parcels};

/// Starts a process without a main thread in a session of its own, with an environment of its own: the kernel shows it as a zombie.
const WITHOUT_MAIN_THREAD: &str = "
import ctypes, os, threading, time
if os.fork() == 0:
    os.setsid()
    for descriptor in range(3, 64):
        try:
            os.close(descriptor)
        except OSError:
            pass
    null = os.open('/dev/null', os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    def live():
        while True:
            time.sleep(0.01)
    threading.Thread(target=live).start()
    ctypes.CDLL(None).syscall(60, 0)
";

/// A chain in which each process forks the next one and ends: whoever has been seen is gone when it is to be ended.
const HOPPER: &str = "
import os
if os.fork() == 0:
    os.setsid()
    null = os.open('/dev/null', os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    while True:
        if os.fork():
            os._exit(0)
";

/// Forks as fast as it can, and each of them does.
const BOMB: &str = "
import os
if os.fork() == 0:
    os.setsid()
    null = os.open('/dev/null', os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    while True:
        try:
            os.fork()
        except OSError:
            pass
";

/// A project with a package of its own whose build runs this.
fn building(script: &str) -> Files {
    let mut files = parcels();
    files.insert("requirements.txt".to_owned(), "./lib\n".to_owned());
    let setup = format!("{script}\nfrom setuptools import setup\nsetup(name='parcel-lib', version='1', py_modules=['parcel_lib'])\n");
    files.insert("lib/setup.py".to_owned(), setup);
    files.insert("lib/parcel_lib.py".to_owned(), "ANSWER = 42\n".to_owned());
    files
}

/// The same by another way: a build back end of the repository's own.
fn building_by_a_back_end(script: &str) -> Files {
    let mut files = building("");
    files.remove("lib/setup.py");
    files.insert(
        "lib/pyproject.toml".to_owned(),
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'backend'\nbackend-path = ['.']\n[project]\nname = 'parcel-lib'\nversion = '1'\n"
            .to_owned(),
    );
    files.insert("lib/backend.py".to_owned(), format!("from setuptools.build_meta import *\n{script}\n"));
    files
}

fn build_uids(project: &Project) -> BTreeSet<u32> {
    project.sandbox.config().build_uids.clone().collect()
}

#[tokio::test]
async fn nothing_of_a_build_is_left_whatever_it_does_to_stay() {
    let project = Project::with(|config| {
        // No other test may end what this one leaves.
        config.build_uids = 40_900..40_902;
        config.build_limits.processes = Some(200);
    })
    .await;
    let ways = [building(WITHOUT_MAIN_THREAD), building_by_a_back_end(WITHOUT_MAIN_THREAD), building(HOPPER), building_by_a_back_end(BOMB)];
    for (number, files) in ways.into_iter().enumerate() {
        let built = tokio::time::timeout(Duration::from_secs(240), project.release(&files)).await.expect("it ends");
        // The bomb may keep pip from starting what it needs, and its own back end may not be built offline: failures like others.
        assert!(built.is_ok() || number != 0, "way {number}: {built:?}");
        let left = process::living(&build_uids(&project));
        assert!(left.is_empty(), "way {number}: {left:?}");
    }
    assert_eq!(groups_of(&project), Vec::<PathBuf>::new());
}

/// The control groups of the project's builds.
fn groups_of(project: &Project) -> Vec<PathBuf> {
    let hierarchies = ["", "unified", "memory", "pids"].map(|name| PathBuf::from("/sys/fs/cgroup").join(name).join("ocore"));
    let groups = build_uids(project).into_iter().flat_map(|uid| hierarchies.clone().map(|ours| ours.join(format!("build-{uid}"))));
    groups.filter(|group| group.exists()).collect()
}

#[tokio::test]
async fn a_build_gets_no_number_that_a_survivor_of_another_one_has() {
    let project = Project::with(|config| config.build_uids = 40_902..40_904).await;
    let first = project.host.claim_build_user().await.unwrap().uid;
    let second = project.host.claim_build_user().await.unwrap();
    assert_ne!(second.uid, first, "it rests");
    second.release().await.unwrap();
    // Somebody else's program under that number, in no group of ours.
    let mut survivor = std::process::Command::new("setpriv")
        .args(["--reuid", &first.to_string(), "--clear-groups", "/usr/bin/python3", "-c", WITHOUT_MAIN_THREAD])
        .spawn()
        .unwrap();
    survivor.wait().unwrap();
    assert_eq!(process::living(&BTreeSet::from([first])).len(), 1);
    let third = project.host.claim_build_user().await.unwrap();
    assert_eq!(third.uid, first);
    assert!(process::living(&BTreeSet::from([first])).is_empty(), "ended before the number is lent");
    third.release().await.unwrap();
}

/// Module code that leaves a process when it is installed, and when it is served.
fn leaving(script: &str) -> Files {
    let files = changed(parcels(), "parcels/__manifest__.py", "'depends'", "'post_init_hook': 'leave', 'depends'");
    let code = format!("from . import models\n\n\ndef leave(env):\n    exec(SCRIPT)\n\n\nSCRIPT = {script:?}\n");
    changed(files, "parcels/__init__.py", "from . import models\n", &code)
}

#[tokio::test]
async fn nothing_of_an_update_or_of_a_removed_instance_is_left() {
    let project = Project::new().await;
    let uids = {
        let allocation = project.host.ledger.find(project.instance).await.unwrap().unwrap();
        BTreeSet::from([allocation.odoo.uid, allocation.postgres.uid])
    };
    for script in [WITHOUT_MAIN_THREAD, HOPPER] {
        let release = project.release(&leaving(script)).await.unwrap();
        let data_set = project.data_set(DataSource::Fresh).await;
        project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
        let odoo = project.host.ledger.find(project.instance).await.unwrap().unwrap().odoo.uid;
        let left: Vec<_> = process::living(&uids).into_iter().filter(|entry| entry.uid() == Some(odoo)).collect();
        assert!(left.is_empty(), "after an update: {left:?}");
    }
    // In what serves they may live, and end with it.
    let stay = format!(
        "import subprocess\nimport sys\nfrom . import models\n\nsubprocess.Popen([sys.executable, '-c', {WITHOUT_MAIN_THREAD:?}])\n"
    );
    let serving = changed(parcels(), "parcels/__init__.py", "from . import models\n", &stay);
    let release = project.release(&serving).await.unwrap();
    let data_set = project.data_set(DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    let slot = project.start(Color::Blue, data_set, &release).await.unwrap();
    let hidden = || process::living(&uids).into_iter().filter(|entry| entry.state == 'Z').count();
    let seen = async {
        while hidden() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap_or_else(|_| panic!("the module has left nobody beside {}", slot.pid));
    project.host.pause_slot(project.instance, Color::Blue, project.fence()).await.unwrap();
    let runs = |entry: &process::ProcEntry| {
        let threads = std::fs::read_dir(format!("/proc/{}/task", entry.pid)).into_iter().flatten().flatten();
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok())
            .any(|stat| stat.contains(") S ") || stat.contains(") R "))
    };
    let hidden_entries = || process::living(&uids).into_iter().filter(|entry| entry.state == 'Z').collect::<Vec<_>>();
    assert!(!hidden_entries().iter().any(runs), "who rests rests with all that it has started");
    project.host.destroy_instance(project.instance, project.fence()).await.unwrap();
    assert!(process::living(&uids).is_empty());
}
