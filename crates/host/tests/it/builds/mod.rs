//! What the code of a project does while it is built: packages of its repository, whose back ends pip runs.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod index;
mod packages;

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ocore_host::{BuildRelease, Host, HostError, KeepTemplate, MakeTemplate, Release, Result, local::BuildLimits, testing::progress};
use serde_json::{Value, json};

use self::index::{Index, PASSWORD};
use crate::project::{Files, Project, archive, names, parcels};

const BACKEND: &str = include_str!("backend.py");
const REACH: &str = include_str!("reach.py");
const BYTE_CODE: &str = include_str!("byte_code.py");
const PYPROJECT: &str =
    "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n[project]\nname = 'attack'\nversion = '1'\n";
/// The same by the old way.
const SETUP: &str = "import json, sys\nsys.path.insert(0, '.')\nimport attack\nfrom setuptools import setup\n\
                     open('legacy_report.py', 'w').write('#' + json.dumps(attack.attack()))\n\
                     setup(name='legacy', version='1', py_modules=['legacy_report'])\n";

/// With a package whose back end does this.
fn attacked(attack: &str) -> Files {
    let mut files = parcels();
    for (path, text) in [
        ("requirements.txt", "./attack\n"),
        ("attack/pyproject.toml", PYPROJECT),
        ("attack/backend.py", BACKEND),
        ("attack/attack.py", attack),
    ] {
        files.insert(path.to_owned(), text.to_owned());
    }
    files
}

async fn build(project: &Project, files: &Files, key: &str) -> Result<Release> {
    let source = project.source(files).await?;
    let request = BuildRelease { source, odoo_version: "19.0".parse().unwrap(), isolation_key: key.to_owned() };
    project.host.build_release(request, progress().0).await
}

/// A file that was installed into the only environment.
fn installed(project: &Project, name: &str) -> Option<PathBuf> {
    let environments = walkdir::WalkDir::new(project.host.layout.environments());
    environments.into_iter().flatten().find(|entry| entry.file_name() == name).map(walkdir::DirEntry::into_path)
}

fn report(project: &Project) -> Value {
    serde_json::from_str(&std::fs::read_to_string(installed(project, "attack_report.json").unwrap()).unwrap()).unwrap()
}

fn byte_code(project: &Project, release: &Release, file: &str) -> PathBuf {
    project.host.layout.releases().join(&release.id.0).join("source").join(file)
}

/// An address of this machine that is not on its loopback device, when it has one.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect("192.0.2.200:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[tokio::test]
async fn a_build_reaches_nothing_of_the_machine_and_sees_no_secret_of_the_operator() {
    let index = Index::start();
    let url = index.url();
    let project = Project::with(move |config| {
        config.builds.pip.extend([("PIP_INDEX_URL".into(), url.into()), ("PIP_EXTRA_INDEX_URL".into(), "https://pypi.org/simple".into())]);
    })
    .await;
    let neighbour = project.host.allocation(project.instance).await.unwrap();
    let listeners: Vec<TcpListener> = [
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        Some(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))),
        own_address().map(|address| SocketAddr::new(address, 0)),
    ]
    .into_iter()
    .flatten()
    .map(|address| TcpListener::bind(address).unwrap())
    .collect();
    let datagrams: Vec<UdpSocket> = listeners.iter().map(|listener| UdpSocket::bind(listener.local_addr().unwrap()).unwrap()).collect();
    let mut places: Vec<Value> = Vec::new();
    for listener in &listeners {
        let address = listener.local_addr().unwrap();
        places.extend(["tcp", "udp"].map(|kind| json!([kind, address.ip(), address.port()])));
    }
    places.push(json!(["tcp", "127.0.0.1", neighbour.ports.blue.http]));
    for place in [json!(["tcp", "localhost", index.port()]), json!(["tcp", "127.0.0.1", index.port()])] {
        places.push(place);
    }
    for metadata in ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "::ffff:169.254.169.254"] {
        places.push(json!(["tcp", metadata, 80]));
    }
    for elsewhere in [json!(["tcp", "10.0.0.1", 443]), json!(["tcp", "203.0.113.1", 443]), json!(["udp", "203.0.113.1", 53])] {
        places.push(elsewhere);
    }
    let attack = REACH.replace("@PLACES@", &Value::from(places).to_string());
    let mut files = attacked(&attack);
    // By the project's own way of building, by the metadata hook, and by the old `setup.py`.
    files.insert("requirements.txt".to_owned(), "./attack\n./legacy\nprivate-thing\n".to_owned());
    files.insert("legacy/setup.py".to_owned(), SETUP.to_owned());
    files.insert("legacy/attack.py".to_owned(), attack);
    let (progress, lines) = progress();
    let source = project.source(&files).await.unwrap();
    let request = BuildRelease { source, odoo_version: "19.0".parse().unwrap(), isolation_key: "a".to_owned() };
    project.host.build_release(request, progress).await.unwrap();

    assert!(installed(&project, "private_thing.py").is_some(), "the operator's own index is asked, with its password");
    let mut reports = report(&project);
    let legacy = std::fs::read_to_string(installed(&project, "legacy_report.py").unwrap()).unwrap();
    reports["legacy"] = serde_json::from_str(legacy.trim_start_matches('#')).unwrap();
    for stage in ["metadata", "wheel", "legacy"] {
        let places = reports[stage]["places"].as_object().unwrap();
        // On a loopback device of its own a datagram can be sent, and goes nowhere.
        let is_lost = |place: &str| place.starts_with("udp 127.") || place.starts_with("udp ::1 ");
        assert!(places.iter().all(|(place, outcome)| outcome != "reached" || is_lost(place)), "{stage}: {places:#?}");
        assert!(places.len() > 20, "{places:#?}");
    }
    assert!(!reports.to_string().contains(PASSWORD) && !lines.all().join("\n").contains(PASSWORD), "{reports:#?}");
    for listener in listeners {
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody came to {}", listener.local_addr().unwrap());
    }
    for socket in datagrams {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "something came to {}", socket.local_addr().unwrap());
    }
    assert!(index.asked_without_password().is_empty(), "{:?}", index.asked_without_password());
}

#[tokio::test]
async fn byte_code_is_nobodys_but_the_projects_and_no_build_can_change_it() {
    let project = Project::new().await;
    let releases = project.host.layout.releases();
    let files = attacked(&BYTE_CODE.replace("@RELEASES@", releases.to_str().unwrap()));
    let attacker = build(&project, &files, "attacker").await.unwrap();
    assert_eq!(report(&project)["wheel"], json!([]), "what it could replace");
    let victim = build(&project, &parcels(), "victim").await.unwrap();
    let file = "parcels/models/__pycache__/parcel.cpython-311.pyc";
    let (theirs, ours) = (byte_code(&project, &attacker, file), byte_code(&project, &victim, file));
    assert_eq!(std::fs::read(&theirs).unwrap(), std::fs::read(&ours).unwrap(), "the same module in the same place");
    let (theirs, ours) = (std::fs::metadata(theirs).unwrap(), std::fs::metadata(ours).unwrap());
    assert_ne!(theirs.ino(), ours.ino());
    for found in [theirs, ours] {
        assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o444));
    }
    // Nobody but root has anything in a release.
    let all = walkdir::WalkDir::new(&releases).into_iter().map(|entry| entry.unwrap().metadata().unwrap().uid());
    assert_eq!(all.collect::<BTreeSet<_>>(), BTreeSet::from([0]));
}

/// With links, which [`archive`] does not make.
async fn source_with_links(project: &Project, files: &Files, links: &[(&str, &str)]) -> ocore_host::SourceId {
    let id = ocore_host::SourceId("ab".repeat(32));
    let mut builder = tar::Builder::new(Vec::new());
    for (path, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        builder.append_link(&mut header, path, target).unwrap();
    }
    project.host.unpack_source(&id, "", archive(files)).await.unwrap();
    project.host.unpack_source(&id, "", Box::new(std::io::Cursor::new(builder.into_inner().unwrap()))).await.unwrap();
    project.host.seal_source(&id, &[], progress().0).await.unwrap();
    id
}

#[tokio::test]
async fn byte_code_that_a_repository_brings_along_and_links_in_its_place_are_not_taken() {
    let project = Project::new().await;
    let mut files = parcels();
    files.insert("parcels/__pycache__/__init__.cpython-311.pyc".to_owned(), "code that is not in the source".to_owned());
    files.insert("elsewhere/keep.txt".to_owned(), String::new());
    let source = source_with_links(&project, &files, &[("parcels/models/__pycache__", "../../elsewhere")]).await;
    let request = BuildRelease { source, odoo_version: "19.0".parse().unwrap(), isolation_key: "a".to_owned() };
    let release = project.host.build_release(request, progress().0).await.unwrap();
    let brought = std::fs::read(byte_code(&project, &release, "parcels/__pycache__/__init__.cpython-311.pyc")).unwrap();
    assert!(!brought.starts_with(b"code that"));
    let place = byte_code(&project, &release, "parcels/models/__pycache__");
    assert!(std::fs::symlink_metadata(&place).unwrap().is_dir() && place.join("parcel.cpython-311.pyc").is_file());
    assert_eq!(std::fs::read_dir(byte_code(&project, &release, "elsewhere")).unwrap().count(), 1);
}

#[tokio::test]
async fn modules_of_a_hidden_directory_are_those_that_links_pick() {
    let project = Project::new().await;
    let mut files = parcels();
    for module in ["ropes/coil_label", "ropes/coil_unwanted", "knots/coil_label"] {
        files.insert(format!(".vendor/{module}/__manifest__.py"), "{'name': 'A', 'depends': ['base']}".to_owned());
        files.insert(format!(".vendor/{module}/__init__.py"), format!("FROM = '{module}'\n"));
    }
    let source = source_with_links(&project, &files, &[("coil_label", ".vendor/ropes/coil_label")]).await;
    let request = BuildRelease { source, odoo_version: "19.0".parse().unwrap(), isolation_key: "a".to_owned() };
    let release = project.host.build_release(request, progress().0).await.unwrap();
    let modules: Vec<&str> = release.modules.keys().map(AsRef::as_ref).collect();
    assert_eq!(modules, ["coil_label", "parcels", "parcels_labels"]);
    let module = byte_code(&project, &release, "coil_label");
    assert!(std::fs::symlink_metadata(&module).unwrap().is_dir());
    assert_eq!(std::fs::read_to_string(module.join("__init__.py")).unwrap(), "FROM = 'ropes/coil_label'\n");
    assert!(module.join("__pycache__/__init__.cpython-311.pyc").is_file());
}

#[tokio::test]
async fn what_a_build_has_linked_to_is_refused_and_stays_as_it_is() {
    let project = Project::new().await;
    // Where the kernel lets everybody make hard links, and where it does not: a link to a file that is root's.
    let secret = project.sandbox.path().join("secret");
    std::fs::write(&secret, "root's").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let attack = format!(
        "import os, sys\n\ndef attack():\n    place = os.path.join(sys.prefix, 'lib')\n    made = []\n    for make, name in ((os.link, 'hard'), (os.symlink, 'soft')):\n        \
         try:\n            make({secret:?}, os.path.join(place, name))\n            made.append(name)\n        except OSError:\n            pass\n    if not os.path.exists(os.path.join(place, 'pipe')):\n        os.mkfifo(os.path.join(place, 'pipe'))\n    return made\n"
    );
    let error = build(&project, &attacked(&attack), "a").await.unwrap_err();
    assert!(matches!(&error, HostError::Rejected { summary, .. } if summary.contains("what the build has made is not taken")), "{error}");
    let found = std::fs::metadata(&secret).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600));
    assert_eq!(std::fs::read_dir(project.host.layout.releases()).unwrap().count(), 0);
}

#[tokio::test]
async fn code_of_a_package_runs_as_its_projects_users_alone_also_when_python_starts() {
    let project = Project::new().await;
    let marks = marks(&project);
    let mark = format!("import os; open(os.path.join({marks:?}, str(os.getuid())), 'w').close()");
    let files = json!({ "attack.pth": format!("{mark}\n"), "sitecustomize.py": format!("{mark}\n"), "conftest.py": format!("{mark}\n") });
    let files = attacked(&format!("import json\nFILES = json.loads({:?})\n\ndef attack():\n    return None\n", files.to_string()));
    let release = build(&project, &files, "a").await.unwrap();
    let data_set = project.data_set(ocore_host::DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    let own = project.host.allocation(project.instance).await.unwrap().odoo.uid;
    let ran: BTreeSet<String> = std::fs::read_dir(&marks).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(ran.contains(&own.to_string()), "its own Odoo runs it: {ran:?}");
    let builders = project.sandbox.config().build_uids.clone();
    assert!(ran.iter().all(|uid| *uid == own.to_string() || builders.contains(&uid.parse().unwrap())), "{ran:?}");
    // Another project's environment, and one without requirements, have nothing of it.
    for entry in std::fs::read_dir(&marks).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let other = build(&project, &parcels(), "b").await.unwrap();
    let data_set = project.data_set(ocore_host::DataSource::Fresh).await;
    project.run(data_set, &other, &["parcels"], &[]).await.unwrap();
    assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 0);
}

#[tokio::test]
async fn a_template_for_everybody_has_seen_no_code_of_a_tenant() {
    let project = Project::new().await;
    let marks = marks(&project);
    let mark = format!("import os; open(os.path.join({marks:?}, str(os.getuid())), 'w').close()");
    let mut files = attacked(&format!(
        "import json\nFILES = json.loads({:?})\n\ndef attack():\n    return None\n",
        json!({ "attack.pth": mark }).to_string()
    ));
    files.get_mut("parcels/__init__.py").unwrap().extend([mark.as_str(), "\n"]);
    let release = build(&project, &files, "a").await.unwrap();
    let data_set = project.data_set(ocore_host::DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    assert!(std::fs::read_dir(&marks).unwrap().count() > 0);
    let request = KeepTemplate {
        data_set,
        release: release.id.clone(),
        requested: names(&["parcels"]),
        standard: names(&["base"]),
        with_demo: false,
        isolation_key: "a".to_owned(),
    };
    let own = project.host.keep_template(project.instance, request, progress().0).await.unwrap();
    assert_eq!(own.content.isolation_key.as_deref(), Some("a"));

    for entry in std::fs::read_dir(&marks).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let make = |from| MakeTemplate { odoo_version: "19.0".parse().unwrap(), modules: names(&["base"]), with_demo: false, from };
    let refused = project.host.make_template(make(Some(own.id)), progress().0).await.unwrap_err();
    assert!(refused.to_string().contains("cannot begin with a project's"), "{refused}");
    let shared = project.host.make_template(make(None), progress().0).await.unwrap();
    assert_eq!((shared.content.isolation_key, shared.content.environment, shared.content.modules.len()), (None, None, 0));
    assert!(!shared.installed.contains(&"parcels".to_owned()));
    assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 0, "nothing of the project ran meanwhile");
}

/// A directory where everybody can leave something.
fn marks(project: &Project) -> PathBuf {
    let marks = project.sandbox.path().join("marks");
    std::fs::create_dir_all(&marks).unwrap();
    std::fs::set_permissions(&marks, std::fs::Permissions::from_mode(0o777)).unwrap();
    marks
}

#[tokio::test]
async fn a_repository_that_the_requirements_name_is_reached_when_it_is_public_or_allowed() {
    let index = Index::start();
    let port = index.port();
    let mut files = parcels();
    files.insert(
        "requirements.txt".to_owned(),
        format!("thing @ git+http://localhost:{port}/thing.git\n-e ./lib\nprivate-thing @ http://localhost:{port}/open/private_thing-1-py3-none-any.whl\n"),
    );
    files.insert("lib/pyproject.toml".to_owned(), PYPROJECT.to_owned());
    files.insert("lib/backend.py".to_owned(), BACKEND.to_owned());
    files.insert("lib/attack.py".to_owned(), "FILES = {'parcel_lib.py': 'ANSWER = 42'}\n\ndef attack():\n    return None\n".to_owned());

    let closed = Project::new().await;
    let error = build(&closed, &files, "a").await.unwrap_err();
    assert!(matches!(error, HostError::Rejected { .. }), "{error}");
    assert!(error.excerpt().contains(&format!("not reached from a build: localhost:{port}")), "{}", error.excerpt());
    assert!(index.asked().is_empty(), "{:?}", index.asked());

    let open = Project::with(|config| config.builds.allow = vec![format!("localhost:{port}").parse().unwrap()]).await;
    build(&open, &files, "a").await.unwrap();
    for name in ["thing.py", "private_thing.py", "parcel_lib.py"] {
        assert!(installed(&open, name).is_some(), "{name}");
    }
    drop(open);
    let by_network = Project::with(|config| config.builds.allow = vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]).await;
    build(&by_network, &files, "a").await.unwrap();
}

#[tokio::test]
async fn an_index_that_cannot_be_reached_is_the_machines_fault_and_its_password_is_not_shown() {
    // Nobody listens there any more.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let url = format!("http://reader:{PASSWORD}@127.0.0.1:{port}/simple");
    let project = Project::with(move |config| config.builds.pip.push(("PIP_INDEX_URL".into(), url.into()))).await;
    let mut files = parcels();
    files.insert("requirements.txt".to_owned(), "private-thing\n".to_owned());
    let error = build(&project, &files, "a").await.unwrap_err();
    assert!(matches!(error, HostError::Machine { .. }), "{error}");
    assert!(error.to_string().contains("could not be reached") && !format!("{error:?}").contains(PASSWORD), "{error:?}");
    left_nothing(&project);
}

/// Leaves a process whose first thread has ended, one that forks without end, and one in a session of its own.
const SURVIVE: &str = r"
import ctypes, os, threading, time

libc = ctypes.CDLL(None)


def zombie():
    threading.Thread(target=lambda: time.sleep(600)).start()
    libc.syscall(60, 0)


def hopper():
    while True:
        if os.fork():
            os._exit(0)
        time.sleep(0.001)


def attack():
    for what in (zombie, hopper, lambda: time.sleep(600)):
        if os.fork() == 0:
            os.setsid()
            for descriptor in range(3):
                os.close(descriptor)
            what()
            os._exit(0)
    return None
";

/// Threads that have one of these user numbers, with their process.
fn threads_of(project: &Project) -> Vec<String> {
    let builders = project.sandbox.config().build_uids.clone();
    let of = |path: PathBuf| {
        let text = std::fs::read_to_string(path.join("status")).ok()?;
        let uid: u32 = text.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()?;
        // What has ended and waits to be reaped runs nothing; a thread whose process' first one has ended does.
        let has_ended = text.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"));
        (!has_ended && builders.contains(&uid)).then(|| format!("{} {uid}", path.display()))
    };
    let tasks = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|process| std::fs::read_dir(process.path().join("task")).ok());
    tasks.flatten().flatten().filter_map(|task| of(task.path())).collect()
}

#[tokio::test]
async fn nothing_of_a_build_outlives_it() {
    // Numbers that no other test lends, so that only this build's processes have them.
    let project = Project::with(|config| config.build_uids = 41_000..41_004).await;
    build(&project, &attacked(SURVIVE), "a").await.unwrap();
    assert_eq!(threads_of(&project), Vec::<String>::new());
    let fetchers = std::fs::read_to_string("/etc/passwd").unwrap();
    let home = project.sandbox.home().display().to_string();
    let fetcher =
        fetchers.lines().find(|line| line.starts_with("ocore-f") && line.contains(&home)).unwrap().split(':').nth(2).unwrap().to_owned();
    let left = ocore_host::local::process::scan()
        .into_iter()
        .filter(|entry| !entry.is_dead() && entry.uid().is_some_and(|uid| uid.to_string() == fetcher));
    assert_eq!(left.count(), 0, "nor does its gateway");
}

#[tokio::test]
async fn a_build_that_takes_all_memory_or_all_processes_fails_alone() {
    let attacks = [
        ("memory", "def attack():\n    hold = []\n    while True:\n        hold.append(bytearray(16 << 20))\n"),
        (
            "processes",
            "import os, time\n\ndef attack():\n    while True:\n        if os.fork() == 0:\n            os.closerange(0, 3)\n            time.sleep(600)\n",
        ),
    ];
    for (what, attack) in attacks {
        let project = Project::with(|config| {
            config.build_uids = if what == "memory" { 41_010..41_014 } else { 41_020..41_024 };
            config.build_limits = BuildLimits { memory_bytes: Some(300 << 20), processes: Some(100) };
        })
        .await;
        let error = build(&project, &attacked(attack), "a").await.unwrap_err();
        assert!(matches!(error, HostError::Rejected { .. }), "{what}: {error}");
        assert_eq!(threads_of(&project), Vec::<String>::new(), "{what}");
        build(&project, &parcels(), "b").await.unwrap();
    }
}

fn left_nothing(project: &Project) {
    let left = |path: &Path| std::fs::read_dir(path).into_iter().flatten().count();
    assert_eq!(left(&project.host.layout.releases()), 0);
    for environment in std::fs::read_dir(project.host.layout.environments()).unwrap().flatten() {
        assert_eq!(left(&environment.path()), 0);
    }
}

#[tokio::test]
async fn without_the_firewall_no_build_gets_packages_unless_the_operator_says_so() {
    let without = |enforce| {
        move |config: &mut ocore_host::LocalHostConfig| {
            config.egress.nft = "/nonexistent/nft".into();
            config.egress.enforce = enforce;
        }
    };
    let files = attacked("def attack():\n    return None\n");
    let project = Project::with(without(ocore_host::local::EnforceEgress::Required)).await;
    let error = build(&project, &files, "a").await.unwrap_err();
    assert!(error.to_string().contains("install the package `nftables`"), "{error}");
    build(&project, &parcels(), "a").await.unwrap();
    drop(project);
    let project = Project::with(without(ocore_host::local::EnforceEgress::Off)).await;
    build(&project, &files, "a").await.unwrap();
}
