//! A project on a host of its own: what the tests of releases, runs and slots share.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use ocore_host::{
    BuildRelease, DataSource, Fence, Host, LocalHost, LocalHostConfig, OdooSettings, Release, Result, RunModules, RunningSlot,
    ServableDataSet, SlotSpec, SourceId, TarStream,
    local::distribution,
    testing::{Lines, Sandbox, fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::Color,
    names::ModuleName,
};
use sha2::{Digest, Sha256};

/// Files by path.
pub(crate) type Files = BTreeMap<String, String>;

pub(crate) struct Project {
    pub(crate) host: Arc<LocalHost>,
    pub(crate) instance: InstanceId,
    pub(crate) sandbox: Sandbox,
    generation: AtomicI64,
}

impl Project {
    /// An instance on a new host, whose Odoo is the one that all tests of this machine share.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With data in which the module `parcels` of these files is installed.
    pub(crate) async fn with_parcels(files: &Files) -> (Self, Release, DataSetId) {
        let project = Self::new().await;
        let release = project.release(files).await.unwrap();
        let data_set = project.data_set(DataSource::Fresh).await;
        project.run(data_set, &release, &["parcels"], &[]).await.unwrap();
        (project, release, data_set)
    }

    /// With anything else changed in the host's configuration.
    pub(crate) async fn with(change: impl FnOnce(&mut LocalHostConfig)) -> Self {
        let directory = odoo_directory().await;
        let sandbox = Sandbox::with(|config| {
            config.pool.image = None;
            config.distributions = directory;
            change(config);
        })
        .unwrap();
        let host = sandbox.host().await.unwrap();
        let project = Self { host, instance: InstanceId::new(), sandbox, generation: AtomicI64::new(0) };
        project.host.create_instance(project.instance, project.fence()).await.unwrap();
        project
    }

    /// Of a new claim.
    pub(crate) fn fence(&self) -> Fence {
        fence(self.generation.fetch_add(1, Ordering::SeqCst) + 1)
    }

    pub(crate) async fn source(&self, files: &Files) -> Result<SourceId> {
        let mut digest = Sha256::new();
        for (path, text) in files {
            digest.update(format!("{path}\0{text}\0"));
        }
        let id = SourceId(hex::encode(digest.finalize()));
        self.host.unpack_source(&id, "", archive(files)).await?;
        self.host.seal_source(&id, &[], progress().0).await?;
        Ok(id)
    }

    pub(crate) async fn release(&self, files: &Files) -> Result<Release> {
        let source = self.source(files).await?;
        let request = BuildRelease { source, odoo_version: "19.0".parse().unwrap(), isolation_key: "project".to_owned() };
        self.host.build_release(request, progress().0).await
    }

    pub(crate) async fn data_set(&self, source: DataSource) -> DataSetId {
        let id = DataSetId::new();
        self.host.create_data_set(self.instance, id, source, self.fence(), progress().0).await.unwrap();
        id
    }

    pub(crate) async fn run(&self, data_set: DataSetId, release: &Release, install: &[&str], update: &[&str]) -> Result<Arc<Lines>> {
        self.run_request(run_modules(data_set, release, install, update)).await
    }

    pub(crate) async fn run_request(&self, request: RunModules) -> Result<Arc<Lines>> {
        let (progress, lines) = progress();
        self.host.run_modules(self.instance, request, self.fence(), progress).await?;
        Ok(lines)
    }

    pub(crate) async fn start(&self, color: Color, data_set: DataSetId, release: &Release) -> Result<RunningSlot> {
        self.start_with(color, data_set, release, OdooSettings::default()).await
    }

    pub(crate) async fn start_with(
        &self,
        color: Color,
        data_set: DataSetId,
        release: &Release,
        settings: OdooSettings,
    ) -> Result<RunningSlot> {
        let spec = SlotSpec { color, data_set: ServableDataSet::proven(data_set), release: release.id.clone(), settings };
        self.host.start_slot(self.instance, spec, self.fence(), progress().0).await
    }
}

/// Where this machine's tests have their Odoo; installed when it is not there.
pub(crate) async fn odoo_directory() -> PathBuf {
    let directory = std::env::var_os("OCORE_TEST_ODOO").map_or_else(|| PathBuf::from("/var/cache/ocore/odoo"), PathBuf::from);
    distribution::install(&directory, &"19.0".parse().unwrap(), &progress().0).await.unwrap();
    directory
}

pub(crate) fn names(names: &[&str]) -> Vec<ModuleName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

pub(crate) fn archive(files: &Files) -> TarStream {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    Box::new(std::io::Cursor::new(builder.into_inner().unwrap()))
}

/// The example repository of this project, text files only.
pub(crate) fn examples() -> Files {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let files = walkdir::WalkDir::new(&root).into_iter().map(std::result::Result::unwrap).filter(|entry| entry.file_type().is_file());
    files
        .filter_map(|entry| {
            let path = entry.path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            Some((path, std::fs::read_to_string(entry.path()).ok()?))
        })
        .collect()
}

/// A small module `parcels` with a model, a view and access rights, and `parcels_labels` that changes its view.
pub(crate) fn parcels() -> Files {
    let view = |id: &str, inherit: &str, arch: &str| {
        format!(
            "<?xml version=\"1.0\"?>\n<odoo>\n<record id=\"{id}\" model=\"ir.ui.view\">\n<field name=\"name\">{id}</field>\n<field name=\"model\">\
             parcels.parcel</field>\n{inherit}<field name=\"arch\" type=\"xml\">{arch}</field>\n</record>\n</odoo>\n"
        )
    };
    let manifest = |name: &str, depends: &str, data: &str| {
        format!(
            "{{'name': '{name}', 'version': '19.0.1.0.0', 'author': 'A', 'license': 'LGPL-3', 'depends': ['{depends}'], 'data': [{data}]}}\n"
        )
    };
    [
        ("parcels/__manifest__.py", manifest("Parcels", "base", "'security/ir.model.access.csv', 'views/parcel.xml'")),
        ("parcels/__init__.py", "from . import models\n".to_owned()),
        ("parcels/models/__init__.py", "from . import parcel\n".to_owned()),
        (
            "parcels/models/parcel.py",
            "from odoo import fields, models\n\n\nclass Parcel(models.Model):\n    _name = 'parcels.parcel'\n    _description = 'Parcel'\n\n    name = fields.Char()\n    weight = fields.Float()\n".to_owned(),
        ),
        (
            "parcels/security/ir.model.access.csv",
            "id,name,model_id:id,group_id:id,perm_read,perm_write,perm_create,perm_unlink\naccess_parcel,parcels,model_parcels_parcel,base.group_user,1,1,1,1\n".to_owned(),
        ),
        ("parcels/views/parcel.xml", view("view_parcel_form", "", "<form><field name=\"name\"/><field name=\"weight\"/></form>")),
        ("parcels_labels/__manifest__.py", manifest("Labels", "parcels", "'views/parcel.xml'")),
        ("parcels_labels/__init__.py", String::new()),
        (
            "parcels_labels/views/parcel.xml",
            view(
                "view_parcel_labels",
                "<field name=\"inherit_id\" ref=\"parcels.view_parcel_form\"/>\n",
                "<field name=\"weight\" position=\"after\"><field name=\"create_date\"/></field>",
            ),
        ),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), text))
    .collect()
}

/// The files with one of them changed by a replacement that must be possible.
pub(crate) fn changed(mut files: Files, path: &str, from: &str, to: &str) -> Files {
    let text = files.get_mut(path).unwrap();
    assert!(text.contains(from), "{path} has no {from:?}");
    *text = text.replace(from, to);
    files
}

/// Status and text of a page; 0 when there was no whole answer.
pub(crate) async fn page(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { return (0, String::new()) };
    let mut bytes = Vec::new();
    let asked = stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await;
    if asked.is_err() || stream.read_to_end(&mut bytes).await.is_err() {
        return (0, String::new());
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, text)
}

/// Modules to install and to update, with nothing unusual about it.
pub(crate) fn run_modules(data_set: DataSetId, release: &Release, install: &[&str], update: &[&str]) -> RunModules {
    RunModules {
        data_set,
        release: release.id.clone(),
        install: names(install),
        update: names(update),
        renames: Vec::new(),
        corrections: Vec::new(),
        with_demo: false,
        admin_password: None,
        settings: OdooSettings::default(),
    }
}
