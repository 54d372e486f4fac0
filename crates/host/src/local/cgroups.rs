//! Control groups: what all processes of one instance may take together, and what a new Odoo may take of that beside a live one. Where they are
//! not there or cannot be written to, instances run without limits, and that is said once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ocore_model::{ids::InstanceId, instance::Color};

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

/// What of an instance is in a group of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Clusters,
    Slot(Color),
    /// Updates and other programs that end by themselves.
    Runs,
}

impl Part {
    const ALL: [Self; 4] = [Self::Clusters, Self::Slot(Color::Blue), Self::Slot(Color::Green), Self::Runs];

    fn name(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Slot(color) => color.as_str(),
            Self::Runs => "runs",
        }
    }
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

    /// Makes the groups of a part of the instance with the configured limits and gives the files that a process' pid is written to. `beside` a live
    /// Odoo the part may take half of what the instance may, so that the live one is not short of memory because of it. May run twice.
    pub fn prepare(&self, instance: InstanceId, part: Part, beside: bool) -> Vec<PathBuf> {
        match self.try_prepare(instance, part, beside) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(%error, %instance, "the instance's control group could not be made; it runs without limits");
                Vec::new()
            }
        }
    }

    /// The part is beside nobody any more, and may take what the instance may. Absent is done.
    pub fn release(&self, instance: InstanceId, part: Part) {
        if let Some((file, none)) = self.memory_file(instance, part)
            && file.exists()
        {
            set(&file, none);
        }
    }

    /// How many processes of the instance the kernel has ended since its groups were made, because they took more memory than they may. `None` without
    /// control groups.
    pub fn memory_kills(&self, instance: InstanceId) -> Option<u64> {
        let count = |file: PathBuf| counted(&fs::read_to_string(file).ok()?, "oom_kill");
        match &self.kind {
            // Those of the groups below are among them.
            Kind::Unified(ours) => count(ours.join(instance.to_string()).join("memory.events")),
            Kind::Separate { memory, .. } => {
                let group = memory.join(instance.to_string());
                let below = Part::ALL.iter().filter_map(|part| count(group.join(part.name()).join("memory.oom_control")));
                Some(count(group.join("memory.oom_control"))? + below.sum::<u64>())
            }
            Kind::Absent => None,
        }
    }

    /// What the processes of one instance may take together, in bytes.
    pub fn memory_limit(&self) -> Option<u64> {
        self.limits.memory_bytes
    }

    /// Removes the instance's groups; nothing may run in them. Absent is done.
    pub fn remove(&self, instance: InstanceId) {
        let groups = self.directories(instance);
        let below = groups.iter().flat_map(|group| Part::ALL.iter().map(|part| group.join(part.name())));
        for directory in below.chain(groups.iter().cloned()) {
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

    /// Where the memory of a part is limited, and the word for no limit of its own.
    fn memory_file(&self, instance: InstanceId, part: Part) -> Option<(PathBuf, &'static str)> {
        match (&self.kind, self.directories(instance).first()) {
            (Kind::Unified(_), Some(group)) => Some((group.join(part.name()).join("memory.max"), "max")),
            (Kind::Separate { .. }, Some(memory)) => Some((memory.join(part.name()).join("memory.limit_in_bytes"), "-1")),
            _ => None,
        }
    }

    fn try_prepare(&self, instance: InstanceId, part: Part, beside: bool) -> io::Result<Vec<PathBuf>> {
        let directories = self.directories(instance);
        for directory in &directories {
            fs::create_dir_all(directory)?;
        }
        let quota = self.limits.cpu_millis.map(|millis| u64::from(millis) * CPU_PERIOD / 1000);
        let or = |value: Option<u64>, none: &str| value.map_or_else(|| none.to_owned(), |value| value.to_string());
        let bytes = self.limits.memory_bytes;
        match (&self.kind, directories.as_slice()) {
            (Kind::Unified(_), [group]) => {
                set(&group.join("cgroup.subtree_control"), "+memory");
                set(&group.join("memory.max"), &or(bytes, "max"));
                set(&group.join("cpu.max"), &format!("{} {CPU_PERIOD}", or(quota, "max")));
            }
            (Kind::Separate { .. }, [memory, cpu]) => {
                set(&memory.join("memory.limit_in_bytes"), &or(bytes, "-1"));
                set(&cpu.join("cpu.cfs_quota_us"), &or(quota, "-1"));
            }
            _ => return Ok(Vec::new()),
        }
        let mut entered = Vec::new();
        for (number, directory) in directories.iter().enumerate() {
            // Only memory is shared out among the parts.
            let group = if number == 0 { directory.join(part.name()) } else { directory.clone() };
            make(&group)?;
            entered.push(group.join("cgroup.procs"));
        }
        if let Some((file, none)) = self.memory_file(instance, part) {
            set(&file, &or(bytes.filter(|_| beside).map(|bytes| bytes / 2), none));
        }
        Ok(entered)
    }
}

/// A limit that cannot be set (below what is in use now, say) leaves the earlier one in force.
fn set(file: &Path, value: &str) {
    if let Err(error) = fs::write(file, value) {
        tracing::warn!(%error, path = %file.display(), value, "a limit of an instance could not be set");
    }
}

/// The number after a name at the begin of a line.
fn counted(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_kinds() {
        assert_eq!(counted("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", "oom_kill"), Some(2));
        assert_eq!(counted("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "oom_kill"), Some(1));
        assert_eq!(counted("oom_kill_disable 0\nunder_oom 0\n", "oom_kill"), None);
    }
}
