//! Where everything is: the one file that knows the paths below the home and the pool.
//!
//! ```text
//! <home>/ledger.json                              users, groups and ports
//! <home>/state/fences/<instance>.json             newest generations; they outlive the instance
//! <home>/state/instances/<instance>/<unit>.json   records of processes
//! <home>/state/egress/<instance>.json             what the instance may reach
//! <home>/state/nurseries/<series>.{json, log}     the parents that Odoos are forked from
//! <home>/state/control/cluster.json               the same for the control plane's own cluster
//! <home>/control/{pgdata, log}                    that cluster
//! <home>/run/<16 digits>/.s.PGSQL.5432            sockets: outside the pool, since their paths have at most 107 bytes
//! <home>/programs/wkhtmltopdf                     what Odoos find before the machine's
//! <home>/mail/{admin.sock, boxes/<instance>/}     the mail catcher's
//! <pool>/instances/<id>/data/<data set>/{manifest.json, pgdata, data_dir}
//! <pool>/instances/<id>/quarantine/<data set>/    one that could not be made harmless: aside.json beside the same
//! <pool>/snapshots/<id>/{snapshot.json, pgdata, data_dir}
//! <pool>/instances/<id>/warm/{data_dir, boot}     a copy of the live file store that the next copy begins with
//! <pool>/instances/<id>/log/                      logs of PostgreSQL and Odoo
//! <pool>/instances/<id>/temporary/{tmp, var-tmp}  what its programs see as /tmp and /var/tmp
//! <pool>/instances/<id>/home/                     their home
//! <pool>/uploads/<import>/                        what is being imported, until it is
//! <pool>/exports/<export>/                        what was exported, until it expires
//! <pool>/templates/<name>/                        clusters to copy
//! <pool>/templates/<id>/{template.json, used, pgdata, data_dir}
//! <pool>/sources/, <pool>/releases/, <pool>/environments/
//! ```

use std::path::{Path, PathBuf};

use ocore_model::{
    ids::{DataSetId, ExportId, ImportId, InstanceId, OperationId, SnapshotId, TemplateId},
    instance::Color,
};

use super::config::LocalHostConfig;
use crate::error::{HostError, Result};

/// The longest path that a Unix socket can have: `sun_path` has 108 bytes with the closing zero (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// The port that names a cluster's socket; nothing listens on TCP.
pub const CLUSTER_PORT: u16 = 5432;

/// A long-running or recorded process of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Cluster(DataSetId),
    Slot(Color),
    /// A program that runs to its end for an operation, e.g. an update of modules.
    Run(OperationId),
}

impl Unit {
    /// Its name in paths and marks.
    pub fn name(self) -> String {
        match self {
            Self::Cluster(data_set) => format!("cluster-{data_set}"),
            Self::Slot(color) => format!("slot-{color}"),
            Self::Run(operation) => format!("run-{operation}"),
        }
    }
}

/// The paths of one server.
#[derive(Debug, Clone)]
pub struct Layout {
    home: PathBuf,
    pool: PathBuf,
}

impl Layout {
    pub fn new(config: &LocalHostConfig) -> Self {
        Self { home: config.home.clone(), pool: config.pool.path.clone() }
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    pub fn pool(&self) -> &Path {
        &self.pool
    }

    pub fn ledger(&self) -> PathBuf {
        self.home.join("ledger.json")
    }

    pub fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    pub fn fences(&self) -> PathBuf {
        self.state().join("fences")
    }

    pub fn fence(&self, instance: InstanceId) -> PathBuf {
        self.fences().join(format!("{instance}.json"))
    }

    pub fn records(&self, instance: InstanceId) -> PathBuf {
        self.state().join("instances").join(instance.to_string())
    }

    pub fn record(&self, instance: InstanceId, unit: Unit) -> PathBuf {
        self.records(instance).join(format!("{}.json", unit.name()))
    }

    /// The value of [`MARK`](super::process::MARK) for an instance's process.
    pub fn mark(instance: InstanceId, unit: Unit) -> String {
        format!("{instance}/{}", unit.name())
    }

    pub fn egress_policies(&self) -> PathBuf {
        self.state().join("egress")
    }

    pub fn egress_policy(&self, instance: InstanceId) -> PathBuf {
        self.egress_policies().join(format!("{instance}.json"))
    }

    pub fn egress_lock(&self) -> PathBuf {
        self.state().join("egress.lock")
    }

    pub fn control(&self) -> PathBuf {
        self.home.join("control")
    }

    pub fn control_record(&self) -> PathBuf {
        self.state().join("control").join("cluster.json")
    }

    /// Programs that Odoos find before the machine's.
    pub fn programs(&self) -> PathBuf {
        self.home.join("programs")
    }

    /// The parents that Odoos are forked from: their records, logs and their program.
    pub fn nurseries(&self) -> PathBuf {
        self.state().join("nurseries")
    }

    pub fn sockets(&self) -> PathBuf {
        self.home.join("run")
    }

    /// The directory of the socket of a data set's cluster.
    pub fn socket_directory(&self, data_set: DataSetId) -> PathBuf {
        // The last 62 bits of a version 7 UUID are random (RFC 9562, section 5.7).
        let simple = data_set.as_uuid().simple().to_string();
        self.sockets().join(&simple[16..])
    }

    /// The directory of the socket of the control plane's own cluster.
    pub fn control_socket_directory(&self) -> PathBuf {
        self.sockets().join("control")
    }

    /// The mail catcher's own directory: outside the pool, so that mail takes no space from databases.
    pub fn mail(&self) -> PathBuf {
        self.home.join("mail")
    }

    pub fn mail_socket(&self) -> PathBuf {
        self.mail().join("admin.sock")
    }

    /// The mailboxes, a directory each.
    pub fn mailboxes(&self) -> PathBuf {
        self.mail().join("boxes")
    }

    pub fn mailbox(&self, instance: InstanceId) -> PathBuf {
        self.mailboxes().join(instance.to_string())
    }

    pub fn instances(&self) -> PathBuf {
        self.pool.join("instances")
    }

    pub fn instance(&self, instance: InstanceId) -> PathBuf {
        self.instances().join(instance.to_string())
    }

    pub fn logs(&self, instance: InstanceId) -> PathBuf {
        self.instance(instance).join("log")
    }

    /// Of what its programs see as `/tmp` and `/var/tmp`.
    pub fn temporary(&self, instance: InstanceId) -> PathBuf {
        self.instance(instance).join("temporary")
    }

    /// The home of its programs.
    pub fn instance_home(&self, instance: InstanceId) -> PathBuf {
        self.instance(instance).join("home")
    }

    pub fn data_sets(&self, instance: InstanceId) -> PathBuf {
        self.instance(instance).join("data")
    }

    pub fn data_set(&self, instance: InstanceId, data_set: DataSetId) -> PathBuf {
        self.data_sets(instance).join(data_set.to_string())
    }

    pub fn warm_copy(&self, instance: InstanceId) -> PathBuf {
        self.instance(instance).join("warm")
    }

    pub fn pgdata(&self, instance: InstanceId, data_set: DataSetId) -> PathBuf {
        self.data_set(instance, data_set).join("pgdata")
    }

    /// Odoo's `data_dir`.
    pub fn data_dir(&self, instance: InstanceId, data_set: DataSetId) -> PathBuf {
        self.data_set(instance, data_set).join("data_dir")
    }

    /// What was set aside of the instance.
    pub fn quarantine(&self, instance: InstanceId) -> PathBuf {
        self.instance(instance).join("quarantine")
    }

    pub fn quarantined(&self, instance: InstanceId, data_set: DataSetId) -> PathBuf {
        self.quarantine(instance).join(data_set.to_string())
    }

    pub fn snapshots(&self) -> PathBuf {
        self.pool.join("snapshots")
    }

    pub fn snapshot(&self, snapshot: SnapshotId) -> PathBuf {
        self.snapshots().join(snapshot.to_string())
    }

    /// In the pool and not in the home: an upload that fills its file system must not stop the control plane, whose store may lie in the home.
    pub fn uploads(&self) -> PathBuf {
        self.pool.join("uploads")
    }

    pub fn upload(&self, import: ImportId) -> PathBuf {
        self.uploads().join(import.to_string())
    }

    pub fn exports(&self) -> PathBuf {
        self.pool.join("exports")
    }

    pub fn export(&self, export: ExportId) -> PathBuf {
        self.exports().join(export.to_string())
    }

    pub fn templates(&self) -> PathBuf {
        self.pool.join("templates")
    }

    pub fn template(&self, template: TemplateId) -> PathBuf {
        self.templates().join(template.to_string())
    }

    pub fn sources(&self) -> PathBuf {
        self.pool.join("sources")
    }

    pub fn releases(&self) -> PathBuf {
        self.pool.join("releases")
    }

    /// Python environments, shared by releases.
    pub fn environments(&self) -> PathBuf {
        self.pool.join("environments")
    }

    /// Refuses a home that is so long that sockets below it could not be used.
    pub(super) fn check(&self) -> Result<()> {
        let longest = self.sockets().join("0123456789abcdef").join(format!(".s.PGSQL.{CLUSTER_PORT}"));
        let length = longest.as_os_str().len();
        if length > SOCKET_PATH_LIMIT {
            return Err(HostError::machine(format!(
                "the home {} is {} bytes too long: a socket below it would have a path of {length} bytes and the system allows {SOCKET_PATH_LIMIT}; choose a shorter one",
                self.home.display(),
                length - SOCKET_PATH_LIMIT,
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_whose_sockets_would_be_too_long_is_refused() {
        let layout = |length: usize| Layout::new(&LocalHostConfig::new(format!("/{}", "h".repeat(length - 1))));
        layout(72).check().unwrap();
        let error = layout(73).check().unwrap_err().to_string();
        assert!(error.contains("is 1 bytes too long") && error.contains("allows 107"), "{error}");
    }

    #[test]
    fn sockets_of_data_sets_differ_and_fit() {
        let layout = Layout::new(&LocalHostConfig::new("/var/lib/ocore"));
        let (one, two) = (layout.socket_directory(DataSetId::new()), layout.socket_directory(DataSetId::new()));
        assert_ne!(one, two);
        assert!(one.join(".s.PGSQL.5432").as_os_str().len() <= SOCKET_PATH_LIMIT);
    }
}
