//! Releases and the Python environments under them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use ocore_host::{
    BuildRelease, DataSource, Host, HostError, ReleaseId, TakeSnapshot,
    local::distribution::{self, ExternalDistribution},
    testing::progress,
};
use ocore_model::ids::SnapshotId;

use crate::project::{Files, Project, odoo_directory, parcels};

fn with_requirements(text: &str) -> Files {
    let mut files = parcels();
    files.insert("requirements.txt".to_owned(), text.to_owned());
    files
}

#[tokio::test]
async fn requirements_that_cannot_be_met_are_rejected_and_leave_nothing() {
    let project = Project::new().await;
    let error = project.release(&with_requirements("./no-such-directory\n")).await.unwrap_err();
    assert!(matches!(error, HostError::Rejected { .. }), "{error}");
    assert!(error.to_string().starts_with("the requirements in requirements.txt cannot be met: "), "{error}");
    let left = |path: std::path::PathBuf| std::fs::read_dir(path).into_iter().flatten().count();
    assert_eq!(left(project.host.layout.releases()), 0);
    for environment in std::fs::read_dir(project.host.layout.environments()).unwrap().flatten() {
        assert_eq!(left(environment.path()), 0);
    }
}

#[tokio::test]
async fn a_package_of_the_repository_is_installed_once_and_only_its_releases_can_read_it() {
    let project = Project::new().await;
    let mut files = with_requirements("./lib\nWerkzeug\n");
    files.insert(
        "lib/setup.py".to_owned(),
        "from setuptools import setup\nsetup(name='parcel-lib', version='1', py_modules=['parcel_lib'])\n".to_owned(),
    );
    files.insert("lib/parcel_lib.py".to_owned(), "ANSWER = 42\n".to_owned());
    files.insert(
        "parcels/models/__init__.py".to_owned(),
        "from parcel_lib import ANSWER\nfrom . import parcel\nassert ANSWER == 42\n".to_owned(),
    );
    let release = project.release(&files).await.unwrap();
    let data_set = project.data_set(ocore_host::DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
    for directory in [project.host.layout.releases(), project.host.layout.environments()] {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let metadata = entry.metadata().unwrap();
            assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (0o710, 0));
            assert_ne!(metadata.gid(), 0);
        }
    }
    // Another project's key makes another environment.
    let request = BuildRelease { source: release.source.clone(), odoo_version: "19.0".parse().unwrap(), isolation_key: "other".to_owned() };
    let other = project.host.build_release(request, progress().0).await.unwrap();
    assert_ne!(other.id, release.id);
    assert_eq!(std::fs::read_dir(project.host.layout.environments()).unwrap().count(), 2);
}

#[tokio::test]
async fn byte_code_is_made_before_a_release_is_used_and_taken_over_by_the_next() {
    let project = Project::new().await;
    let first = project.release(&parcels()).await.unwrap();
    let code = |release: &ReleaseId| {
        let file = format!("{release}/source/parcels/models/__pycache__/parcel.cpython-311.pyc");
        std::fs::metadata(project.host.layout.releases().join(file)).unwrap()
    };
    let mut files = parcels();
    files.insert("README.md".to_owned(), "changed".to_owned());
    let second = project.release(&files).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(code(&first.id).ino(), code(&second.id).ino());
    assert_eq!(code(&first.id).uid(), 0);
}

#[tokio::test]
async fn a_module_with_the_name_of_one_of_odoos_own_is_refused() {
    let project = Project::new().await;
    let mut files = parcels();
    files.insert("addons/sale/__manifest__.py".to_owned(), "{'name': 'Sale'}".to_owned());
    let error = project.release(&files).await.unwrap_err().to_string();
    assert!(error.starts_with("the module addons/sale has the name of one of Odoo's own"), "{error}");
}

#[tokio::test]
async fn an_odoo_that_the_configuration_points_to_is_used_and_named_by_its_content() {
    let installed = distribution::find_installed(&odoo_directory().await, &"19.0".parse().unwrap()).unwrap().unwrap();
    let checkout = tempfile::tempdir_in("/srv").unwrap();
    let source = checkout.path().to_owned();
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(&installed.program, source.join("odoo-bin")).unwrap();
    std::os::unix::fs::symlink(installed.packages[1].join("odoo"), source.join("odoo")).unwrap();
    std::fs::create_dir_all(source.join("addons/own_addon")).unwrap();
    std::fs::write(source.join("addons/own_addon/__manifest__.py"), "{'name': 'Own', 'author': 'A', 'license': 'LGPL-3'}").unwrap();
    std::fs::write(source.join("addons/own_addon/__init__.py"), "").unwrap();
    let external = ExternalDistribution { source: source.clone(), python: installed.python.clone() };
    let project = Project::with(|config| {
        config.external_distributions.insert("19.0".parse().unwrap(), external);
    })
    .await;
    let found = project.host.distribution(&"19.0".parse().unwrap()).await.unwrap();
    assert!(found.modules.contains(&"own_addon".parse().unwrap()) && found.modules.contains(&"base".parse().unwrap()));
    assert_ne!(found.id, installed.distribution.id);
    let release = project.release(&parcels()).await.unwrap();
    let data_set = project.data_set(ocore_host::DataSource::Fresh).await;
    project.run(data_set, &release, &["parcels", "own_addon"], &[]).await.unwrap();
    std::fs::create_dir(source.join("addons/another")).unwrap();
    std::fs::write(source.join("addons/another/__manifest__.py"), "{}").unwrap();
    let changed = project.host.distribution(&"19.0".parse().unwrap()).await.unwrap();
    assert_ne!(changed.id, found.id);
    let error = project.start(ocore_model::instance::Color::Blue, data_set, &release).await.unwrap_err().to_string();
    assert!(error.starts_with("this release was built for another Odoo 19.0"), "{error}");
}

#[tokio::test]
async fn pruning_keeps_what_is_asked_for_and_what_is_young() {
    let project = Project::new().await;
    let old = project.release(&parcels()).await.unwrap();
    let kept = project.release(&with_requirements("# nothing\n")).await.unwrap();
    let hours_ago = std::time::SystemTime::now() - std::time::Duration::from_hours(2);
    let age = |path: std::path::PathBuf| std::fs::File::open(path).unwrap().set_modified(hours_ago).unwrap();
    let releases = project.host.layout.releases();
    project.host.prune_releases(&[]).await.unwrap();
    assert!(releases.join(&old.id.0).exists() && releases.join(&kept.id.0).exists());
    for release in [&old, &kept] {
        age(releases.join(&release.id.0).join("release.json"));
        age(project.host.layout.sources().join(&release.source.0));
    }
    // A snapshot needs the release that ran on it.
    let data_set = project.data_set(DataSource::Fresh).await;
    let snapshot = TakeSnapshot { snapshot: SnapshotId::new(), instance: project.instance, data_set, release: Some(old.id.clone()) };
    project.host.take_snapshot(snapshot.clone(), progress().0).await.unwrap();
    project.host.prune_releases(std::slice::from_ref(&kept.id)).await.unwrap();
    assert_eq!(project.host.find_release(&old.id).await.unwrap(), Some(old.clone()));
    project.host.remove_snapshot(snapshot.snapshot).await.unwrap();
    project.host.prune_releases(std::slice::from_ref(&kept.id)).await.unwrap();
    let gone = project.host.take_snapshot(snapshot, progress().0).await;
    assert!(matches!(gone, Err(HostError::NotFound { what: "release", .. })), "{gone:?}");
    assert_eq!(project.host.find_release(&old.id).await.unwrap(), None);
    assert_eq!(project.host.find_source(&old.source).await.unwrap(), None);
    assert_eq!(project.host.find_release(&kept.id).await.unwrap(), Some(kept.clone()));
    assert!(project.host.find_source(&kept.source).await.unwrap().is_some());
}

#[tokio::test]
async fn code_that_nobody_imports_does_not_keep_a_release_from_being_built() {
    let project = Project::new().await;
    let mut files = parcels();
    files.insert("parcels/scripts/old.py".to_owned(), "print 'python 2'\n".to_owned());
    files.insert("parcels/skeleton/{{name}}/models.py".to_owned(), "class {{name}}:\n".to_owned());
    let release = project.release(&files).await.unwrap();
    let tree = project.host.layout.releases().join(&release.id.0).join("source");
    assert!(tree.join("parcels/scripts/old.py").is_file() && tree.join("parcels/models/__pycache__/parcel.cpython-311.pyc").is_file());
    for (path, place) in [("parcels/models/wrong.py", "parcels/models/__init__.py"), ("parcels/hooks.py", "parcels/__init__.py")] {
        let mut files = files.clone();
        files.insert(path.to_owned(), "\ndef x(:\n".to_owned());
        assert!(project.release(&files).await.is_ok(), "nothing imports {path} yet");
        let name = path.rsplit(['/', '.']).nth(1).unwrap();
        files.get_mut(place).unwrap().extend(["def late():\n    from . import ", name, "\n"]);
        let error = project.release(&files).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("syntax error in {path}, line 2: ")), "{error}");
    }
}
