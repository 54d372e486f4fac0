//! Control groups: what all processes of one instance may take together. Where they are not there or cannot be written to, instances run
//! without limits, and that is said once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ocore_model::ids::InstanceId;

use super::config::InstanceLimits;

const MOUNT: &str = "/sys/fs/cgroup";
const OURS: &str = "ocore";
/// The length of a scheduling period, in microseconds; the kernel's own default.
const CPU_PERIOD: u64 = 100_000;

/// The kind of control groups that this machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// One hierarchy for all (cgroups(7), version 2).
    Unified(PathBuf),
    /// One hierarchy for each controller (version 1), also beside an empty unified one.
    Separate {
        memory: PathBuf,
        cpu: PathBuf,
    },
    Absent,
}

/// The control groups of a server's instances.
#[derive(Debug, Clone)]
pub struct Cgroups {
    kind: Kind,
    limits: InstanceLimits,
}

impl Cgroups {
    /// Finds out what there is by making our own group.
    pub fn detect(limits: InstanceLimits) -> Self {
        let kind = Self::detect_at(Path::new(MOUNT)).unwrap_or_else(|error| {
            tracing::info!(%error, "control groups cannot be used; instances run without limits of memory and processor time");
            Kind::Absent
        });
        Self { kind, limits }
    }

    fn detect_at(mount: &Path) -> io::Result<Kind> {
        if mount.join("cgroup.controllers").exists() {
            let ours = mount.join(OURS);
            make(&ours)?;
            for subtree in [mount, &ours] {
                fs::write(subtree.join("cgroup.subtree_control"), "+memory +cpu")?;
            }
            return Ok(Kind::Unified(ours));
        }
        let (memory, cpu) = (mount.join("memory"), mount.join("cpu"));
        if memory.join("cgroup.procs").exists() && cpu.join("cgroup.procs").exists() {
            let (memory, cpu) = (memory.join(OURS), cpu.join(OURS));
            make(&memory)?;
            make(&cpu)?;
            return Ok(Kind::Separate { memory, cpu });
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "no hierarchy with memory and cpu is mounted"))
    }

    /// Makes the instance's groups with the configured limits and gives the files that a process' pid is written to. May run twice.
    pub fn prepare(&self, instance: InstanceId) -> Vec<PathBuf> {
        match self.try_prepare(instance) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(%error, %instance, "the instance's control group could not be made; it runs without limits");
                Vec::new()
            }
        }
    }

    /// Removes the instance's groups; nothing may run in them. Absent is done.
    pub fn remove(&self, instance: InstanceId) {
        for directory in self.directories(instance) {
            if let Err(error) = fs::remove_dir(&directory)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %directory.display(), "a control group could not be removed");
            }
        }
    }

    /// Removes our own group when no instance is in it.
    pub fn remove_empty(&self) {
        let ours: &[&PathBuf] = match &self.kind {
            Kind::Unified(ours) => &[ours],
            Kind::Separate { memory, cpu } => &[memory, cpu],
            Kind::Absent => &[],
        };
        for directory in ours {
            // Not empty means that another home of this machine uses it.
            let _ = fs::remove_dir(directory);
        }
    }

    fn directories(&self, instance: InstanceId) -> Vec<PathBuf> {
        let name = instance.to_string();
        match &self.kind {
            Kind::Unified(ours) => vec![ours.join(name)],
            Kind::Separate { memory, cpu } => vec![memory.join(&name), cpu.join(&name)],
            Kind::Absent => Vec::new(),
        }
    }

    fn try_prepare(&self, instance: InstanceId) -> io::Result<Vec<PathBuf>> {
        let directories = self.directories(instance);
        for directory in &directories {
            fs::create_dir_all(directory)?;
        }
        let quota = self.limits.cpu_millis.map(|millis| u64::from(millis) * CPU_PERIOD / 1000);
        match (&self.kind, directories.as_slice()) {
            (Kind::Unified(_), [group]) => {
                fs::write(group.join("memory.max"), self.limits.memory_bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string()))?;
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                fs::write(group.join("cpu.max"), format!("{quota} {CPU_PERIOD}"))?;
            }
            (Kind::Separate { .. }, [memory, cpu]) => {
                let bytes = self.limits.memory_bytes.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
                fs::write(memory.join("memory.limit_in_bytes"), bytes)?;
                let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                fs::write(cpu.join("cpu.cfs_quota_us"), quota)?;
            }
            _ => {}
        }
        Ok(directories.into_iter().map(|directory| directory.join("cgroup.procs")).collect())
    }
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
