//! Odoos that are forked from a parent that has imported it already.

#![expect(clippy::unwrap_used, reason = "a test that cannot look fails")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use ocore_host::{
    DataSource, Host, HostError, LogSink, OdooSettings, Progress, RunModules, ServableDataSet, SlotSpec,
    local::{
        cgroups::Part,
        exec::Program,
        process::{Identity, ProcEntry, Process, scan},
    },
    testing::progress,
};
use ocore_model::{instance::Color, names::OdooVersion};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::project::{Files, Project, changed, page, parcels, run_modules};

fn series() -> OdooVersion {
    "19.0".parse().unwrap()
}

/// The project's nursery, which must run.
fn nursery(project: &Project) -> Process {
    Process::find(&project.host.layout.nurseries().join("19.0.json")).unwrap().unwrap()
}

/// A field of `/proc/<pid>/status`.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What its descriptors lead to.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
}

/// Forked and bare starts so far.
fn counts(project: &Project) -> (u64, u64) {
    let starts = project.host.warm_starts();
    (starts.forked, starts.bare)
}

/// Does something once, as soon as Odoo says that it loads a module.
struct AtWork(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl AtWork {
    fn new(action: impl FnOnce() + Send + 'static) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Box::new(action)))))
    }
}

impl LogSink for AtWork {
    fn line(&self, text: &str) {
        if text.contains("Loading module")
            && let Some(action) = self.0.lock().unwrap().take()
        {
            action();
        }
    }
}

#[tokio::test]
async fn a_forked_odoo_is_its_own_user_keeps_nothing_of_its_nursery_and_outlives_it() {
    let project = Project::new().await;
    let release = project.release(&parcels()).await.unwrap();
    let data_set = project.data_set(DataSource::Fresh).await;
    // The first start finds no nursery, waits for none, and has one made.
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    assert_eq!(counts(&project), (0, 1));
    project.host.warm_up(&series()).await.unwrap();
    let parent = nursery(&project);
    let secret = "a-secret-of-the-environment";
    let settings = OdooSettings { env_vars: [("SECRET".to_owned(), secret.to_owned())].into(), ..OdooSettings::default() };
    let slot = project.start_with(Color::Blue, data_set, &release, settings.clone()).await.unwrap();
    assert_eq!(counts(&project), (1, 1));
    assert_eq!(page(slot.http, "/web/login").await.0, 200);

    // It is what a bare start makes.
    let allocation = project.host.ledger.find(project.instance).await.unwrap().unwrap();
    let odoo = allocation.odoo.uid;
    assert_eq!(
        (status(slot.pid, "Uid"), status(slot.pid, "Gid")),
        (format!("{odoo} {odoo} {odoo} {odoo}"), format!("{odoo} {odoo} {odoo} {odoo}"))
    );
    assert!(!status(slot.pid, "Groups").split(' ').any(|group| group == "0"));
    assert_eq!((status(slot.pid, "NoNewPrivs").as_str(), status(slot.pid, "CapEff").as_str()), ("1", "0000000000000000"));
    let entry = ProcEntry::read(slot.pid).unwrap();
    assert_eq!((entry.session, entry.group, entry.parent), (slot.pid, slot.pid, parent.pid()));
    assert_eq!(entry.mark().unwrap(), format!("{}/slot-blue", project.instance));
    assert_eq!(entry.cwd().unwrap(), PathBuf::from("/"));
    let command = String::from_utf8_lossy(&fs::read(format!("/proc/{}/cmdline", slot.pid)).unwrap()).into_owned();
    assert!(command.contains("/slot.py --config ") && command.contains(&project.instance.to_string()), "{command}");
    for procs_file in project.host.cgroups.prepare(project.instance, Part::Slot(Color::Blue), false).procs_files() {
        let members = fs::read_to_string(procs_file).unwrap();
        assert!(members.lines().any(|pid| pid == slot.pid.to_string()), "{}", procs_file.display());
    }

    // Nothing of its parent is open in it, and nothing of it is in its parent.
    let parents = descriptors(parent.pid());
    for open in descriptors(slot.pid) {
        assert!(!open.starts_with("socket:") || !parents.contains(&open), "{open} is shared with the nursery");
        assert!(!open.contains("nurseries"), "{open}");
    }
    let mut sockets = fs::read_dir(project.host.layout.sockets()).unwrap().flatten();
    let socket = sockets.find(|entry| entry.file_name().to_string_lossy().ends_with(".nursery")).unwrap();
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!memory(parent.pid()).contains(secret), "the nursery knows a secret");
    assert!(memory(slot.pid).contains(secret));

    // Another oCore on this home finds both.
    let other = project.sandbox.host().await.unwrap();
    let spec = SlotSpec {
        color: Color::Blue,
        data_set: ServableDataSet::proven(data_set),
        release: release.id.clone(),
        settings: settings.clone(),
    };
    assert_eq!(other.start_slot(project.instance, spec, project.fence(), progress().0).await.unwrap(), slot);
    other.warm_up(&series()).await.unwrap();
    assert_eq!(nursery(&project).record, parent.record);

    // Killed: what it has forked serves on, the next one starts all the same and says why it is bare.
    parent.signal(Signal::KILL);
    parent.exited().await.unwrap();
    assert_eq!(page(slot.http, "/web/login").await.0, 200);
    project.host.stop_slot(project.instance, Color::Blue, project.fence()).await.unwrap();
    assert!(Identity::of(slot.pid).is_none_or(|identity| !identity.is_alive()));
    let slot = project.start_with(Color::Blue, data_set, &release, settings).await.unwrap();
    assert_eq!(page(slot.http, "/web/login").await.0, 200);
    let starts = project.host.warm_starts();
    assert_eq!((starts.forked, starts.bare), (1, 2));
    assert!(starts.last_reason.unwrap().contains("is being made ready"));
    project.host.warm_up(&series()).await.unwrap();
    assert_ne!(nursery(&project).pid(), parent.pid());

    // Stopped, nothing is left that belongs to the home.
    project.host.stop_all().await.unwrap();
    let home = project.sandbox.home().display().to_string();
    let left: Vec<i32> = scan()
        .iter()
        .filter(|entry| {
            !entry.is_dead()
                && fs::read(format!("/proc/{}/cmdline", entry.pid)).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&home))
        })
        .map(|entry| entry.pid)
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// All that a process has in its own memory, private or not.
fn memory(pid: i32) -> String {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (begin, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (begin, end) = (u64::from_str_radix(begin, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
        if memory.read_exact_at(&mut bytes, begin).is_ok() {
            all.append(&mut bytes);
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Prints what a child has for itself after it has allocated, before and after the gaps were filled, and what the parent has, in kB.
const CHILD_BETWEEN_GAPS: &str = r#"
import os, sys
sys.path.insert(0, sys.argv[1])
import nursery

def kilobytes(field):
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

def private_of_a_child():
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = kilobytes("Private_Dirty")
        kept = [[bytes(size) for _ in range(4_000)] for size in SIZES]
        os.write(writer, str(kilobytes("Private_Dirty") - before).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reader, 100))

# One for the interpreter's pools, one for the C library's heap. Every twentieth of them goes again.
SIZES = 160, 1000
things = [[bytes(size) for _ in range(80_000)] for size in SIZES]
for of_a_size in things:
    del of_a_size[::20]
before, parent_before = private_of_a_child(), kilobytes("Rss")
gaps = nursery.fill_gaps()
print(before, private_of_a_child(), parent_before, kilobytes("Rss"))
"#;

#[tokio::test]
async fn what_a_child_allocates_lies_apart_from_what_it_shares() {
    let project = Project::new().await;
    project.host.warm_up(&series()).await.unwrap();
    let command = fs::read(format!("/proc/{}/cmdline", nursery(&project).pid())).unwrap();
    let python = String::from_utf8(command.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
    let program = Program::new(python).args(["-B", "-c", CHILD_BETWEEN_GAPS]).arg(project.host.layout.nurseries());
    let output = program.run().await.unwrap().expect_success("the parent with gaps").unwrap().stdout_text();
    let numbers: Vec<u64> = output.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [in_gaps, apart, parent_before, parent_after] = numbers[..] else { panic!("{output}") };
    assert!(apart * 2 < in_gaps, "{output}");
    assert!(parent_after * 10 < parent_before * 11, "{output}");
}

#[tokio::test]
async fn forked_runs_end_as_they_do_whatever_happens_to_others() {
    let project = Arc::new(Project::new().await);
    project.host.warm_up(&series()).await.unwrap();
    let release = project.release(&parcels()).await.unwrap();
    let data_set = project.data_set(DataSource::Fresh).await;
    let lines = project.run(data_set, &release, &["parcels"], &[]).await.unwrap().all();
    assert!(lines.iter().any(|line| line.contains("odoo.registry") && line.contains("Registry loaded")), "{lines:#?}");

    // A module that cannot be imported breaks its own run, with Odoo's exit code 255, and no other.
    let broken =
        changed(parcels(), "parcels/__init__.py", "from . import models", "import a_package_that_nobody_has\nfrom . import models");
    let broken = project.release(&broken).await.unwrap();
    let error = project.run(data_set, &broken, &[], &["parcels"]).await.unwrap_err();
    assert!(matches!(&error, HostError::Rejected { summary, .. } if summary.contains("a_package_that_nobody_has")), "{error}");
    project.run(data_set, &release, &[], &["parcels"]).await.unwrap();
    assert_eq!(counts(&project), (3, 0));

    // Cancelled: the whole group is gone.
    let odoo = project.host.ledger.find(project.instance).await.unwrap().unwrap().odoo.uid;
    let left = || scan().iter().filter(|entry| !entry.is_dead() && entry.uid() == Some(odoo)).count();
    let cancel = CancellationToken::new();
    let sink = AtWork::new({
        let cancel = cancel.clone();
        move || cancel.cancel()
    });
    let cancelled = Progress { log: sink, cancel };
    let error = project
        .host
        .run_modules(project.instance, run_modules(data_set, &release, &[], &["base"]), project.fence(), cancelled)
        .await
        .unwrap_err();
    assert!(matches!(error, HostError::Cancelled), "{error}");
    assert_eq!((left(), counts(&project)), (0, (4, 0)));

    // The nursery dies in the middle of a run: the run goes on, and says itself how it ended.
    let data_set = project.data_set(DataSource::Fresh).await;
    let parent = nursery(&project).record.identity;
    let sink = AtWork::new(move || parent.signal(Signal::KILL));
    let progress = Progress { log: sink, cancel: CancellationToken::new() };
    project
        .host
        .run_modules(project.instance, run_modules(data_set, &release, &["parcels"], &[]), project.fence(), progress)
        .await
        .unwrap();
    assert_eq!((left(), counts(&project)), (0, (5, 0)));

    // A nursery that hangs is waited for a while, then ended and replaced.
    project.host.warm_up(&series()).await.unwrap();
    let parent = nursery(&project);
    parent.signal(Signal::STOP);
    project.run(data_set, &release, &[], &["parcels"]).await.unwrap();
    assert_eq!(counts(&project), (5, 1));
    tokio::time::timeout(Duration::from_secs(30), parent.exited()).await.unwrap().unwrap();
    project.host.warm_up(&series()).await.unwrap();
    project.run(data_set, &release, &[], &["parcels"]).await.unwrap();
    assert_eq!(counts(&project), (6, 1));
}

#[tokio::test]
async fn a_forked_update_lists_the_modules_once_and_finds_what_is_new() {
    let project = Project::new().await;
    project.host.warm_up(&series()).await.unwrap();
    let release = project.release(&parcels()).await.unwrap();
    let data_set = project.data_set(DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();

    // Both halves of what the list is for: a module that nobody knew, and that the updated one depends on it.
    let mut files =
        changed(parcels(), "parcels/__manifest__.py", "'depends': ['base']", "'depends': ['base', 'parcels_sizes'], 'summary': 'More'");
    files.insert(
        "parcels_sizes/__manifest__.py".to_owned(),
        "{'name': 'Sizes', 'version': '19.0.1.0.0', 'author': 'A', 'license': 'LGPL-3', 'depends': ['base']}\n".to_owned(),
    );
    files.insert("parcels_sizes/__init__.py".to_owned(), String::new());
    let release = project.release(&files).await.unwrap();
    let lines = project.run(data_set, &release, &[], &["parcels"]).await.unwrap().all();
    assert_eq!(lines.iter().filter(|line| line.contains("module.update_list on ")).count(), 1, "{lines:#?}");
    assert_eq!(counts(&project), (2, 0));
    let cluster = project.host.run_cluster(project.instance, data_set).await.unwrap();
    let found: Vec<(String, String, Option<String>)> = sqlx::query_as(
        "select name, state, summary->>'en_US' from ir_module_module where name in ('parcels', 'parcels_sizes') order by name",
    )
    .fetch_all(&mut cluster.connect_as_owner().await.unwrap())
    .await
    .unwrap();
    let row = |name: &str, summary: Option<&str>| (name.to_owned(), "installed".to_owned(), summary.map(str::to_owned));
    assert_eq!(found, [row("parcels", Some("More")), row("parcels_sizes", Some(""))]);
}

#[tokio::test]
async fn what_a_fork_could_not_be_is_started_bare() {
    let project = Project::new().await;
    project.host.warm_up(&series()).await.unwrap();
    let data_set = project.data_set(DataSource::Fresh).await;
    let library = |name: &str| -> Files {
        let mut files = changed(
            parcels(),
            "parcels/models/__init__.py",
            "from . import parcel",
            &format!("from {name} import ANSWER\nfrom . import parcel\nassert ANSWER == 42"),
        );
        files.insert("requirements.txt".to_owned(), "./lib\n".to_owned());
        files.insert(
            "lib/setup.py".to_owned(),
            format!("from setuptools import setup\nsetup(name='parcel-lib', version='1', py_modules=['{name}'])\n"),
        );
        files.insert(format!("lib/{name}.py"), "ANSWER = 42\n".to_owned());
        files
    };
    // A package of the project's own comes on top.
    let release = project.release(&library("parcel_lib")).await.unwrap();
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    assert_eq!(counts(&project), (1, 0));

    // One that the nursery has imported from elsewhere, and one that Odoo had looked for in vain, need a start of their own.
    for (name, expected, bare) in [("vobject", "has its own vobject", 1), ("pdfminer", "has pdfminer, which Odoo uses when it is there", 2)]
    {
        let release = project.release(&library(name)).await.unwrap();
        project.run(data_set, &release, &[], &["parcels"]).await.unwrap();
        assert_eq!(counts(&project), (1, bare));
        assert!(project.host.warm_starts().last_reason.unwrap().ends_with(expected), "{:?}", project.host.warm_starts());
    }

    // So does what Python reads before anybody can tell it.
    let release = project.release(&parcels()).await.unwrap();
    let env_vars = BTreeMap::from([("PYTHONWARNINGS".to_owned(), "default".to_owned())]);
    let settings = OdooSettings { env_vars, ..OdooSettings::default() };
    project.run_request(RunModules { settings, ..run_modules(data_set, &release, &[], &["parcels"]) }).await.unwrap();
    assert_eq!(counts(&project), (1, 3));
    assert!(project.host.warm_starts().last_reason.unwrap().contains("PYTHONWARNINGS"));
}

#[tokio::test]
async fn switched_off_nothing_is_forked() {
    let project = Project::with(|config| config.warm_starts = false).await;
    project.host.warm_up(&series()).await.unwrap();
    let release = project.release(&parcels()).await.unwrap();
    let data_set = project.data_set(DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    assert_eq!(counts(&project), (0, 0));
    assert!(!project.host.layout.nurseries().exists());
}
