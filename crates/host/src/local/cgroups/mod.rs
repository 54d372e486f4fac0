//! Control groups: what all processes of one instance may take together, what a new Odoo may take of that beside a live one, what a build may take, and
//! how each of them is ended as a whole. Where there are no limits to be had, instances run without, and that is said once.

mod group;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ocore_model::{
    ids::{DataSetId, InstanceId, OperationId},
    instance::Color,
};
use sha2::{Digest, Sha256};

pub use self::group::Group;
use self::group::remove_empty;
use super::{
    config::{BuildLimits, InstanceLimits},
    templates::WORKSHOP,
};

const MOUNT: &str = "/sys/fs/cgroup";
const OURS: &str = "ocore";
/// The length of a scheduling period, in microseconds; the kernel's own default.
const CPU_PERIOD: u64 = 100_000;

/// Where limits are set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Limiting {
    /// In the unified hierarchy (cgroups(7), version 2), where groups are ended, too.
    Unified,
    /// A hierarchy for each controller (version 1). One without `pids` limits no number of processes.
    Separate {
        memory: PathBuf,
        cpu: PathBuf,
        pids: Option<PathBuf>,
    },
    Absent,
}

/// What of an instance is in a group of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The PostgreSQL of one data set.
    Cluster(DataSetId),
    Slot(Color),
    /// Updates and other programs of one operation, which end by themselves.
    Run(OperationId),
}

impl Part {
    /// The groups that memory is shared out among.
    const SHARES: [&str; 4] = ["clusters", "blue", "green", "runs"];

    fn share(self) -> &'static str {
        match self {
            Self::Cluster(_) => "clusters",
            Self::Slot(color) => color.as_str(),
            Self::Run(_) => "runs",
        }
    }

    /// Of the group that is ended as a whole, from the instance's on.
    fn place(self) -> PathBuf {
        let share = Path::new(self.share());
        match self {
            Self::Cluster(data_set) => share.join(data_set.to_string()),
            Self::Slot(_) => share.to_owned(),
            Self::Run(operation) => share.join(operation.to_string()),
        }
    }
}

/// A part of an instance, and how its group is made.
#[derive(Debug, Clone)]
pub struct Place {
    cgroups: Cgroups,
    instance: InstanceId,
    part: Part,
}

impl Place {
    /// As [`Cgroups::prepare`], beside nobody.
    pub fn prepare(&self) -> Group {
        self.cgroups.prepare(self.instance, self.part, false)
    }

    /// As [`Cgroups::find`].
    pub fn find(&self) -> Group {
        self.cgroups.find(self.instance, self.part)
    }
}

/// The control groups of a server.
#[derive(Debug, Clone)]
pub struct Cgroups {
    limiting: Limiting,
    /// Our place in the unified hierarchy.
    whole: Option<PathBuf>,
    limits: InstanceLimits,
    builds: BuildLimits,
    /// Stands for the home in the names of groups.
    home: String,
}

impl Cgroups {
    /// Finds out what there is by making our own groups. `home` is whose instances they are of.
    pub fn detect(home: &Path, limits: InstanceLimits, builds: BuildLimits) -> Self {
        let mount = Path::new(MOUNT);
        let whole = unified(mount).and_then(|whole| make(&whole).map(|()| whole));
        let whole = whole.inspect_err(|error| {
            tracing::warn!(%error, "there is no unified hierarchy of control groups, so that processes are ended one by one; mount cgroup2 somewhere");
        });
        let limiting = Self::limiting_at(mount).unwrap_or_else(|error| {
            tracing::info!(%error, "control groups cannot be used; instances run without limits of memory, processes and processor time");
            Limiting::Absent
        });
        Self { limiting, whole: whole.ok(), limits, builds, home: home_name(home) }
    }

    fn limiting_at(mount: &Path) -> io::Result<Limiting> {
        if mount.join("cgroup.controllers").exists() {
            let ours = mount.join(OURS);
            make(&ours)?;
            for subtree in [mount, &ours] {
                fs::write(subtree.join("cgroup.subtree_control"), "+memory +cpu")?;
                set(&subtree.join("cgroup.subtree_control"), "+pids");
            }
            return Ok(Limiting::Unified);
        }
        let (memory, cpu, pids) = (mount.join("memory"), mount.join("cpu"), mount.join("pids"));
        if memory.join("cgroup.procs").exists() && cpu.join("cgroup.procs").exists() {
            let (memory, cpu) = (memory.join(OURS), cpu.join(OURS));
            make(&memory)?;
            make(&cpu)?;
            let pids = Some(pids.join(OURS)).filter(|ours| make(ours).is_ok());
            return Ok(Limiting::Separate { memory, cpu, pids });
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "no hierarchy with memory and cpu is mounted"))
    }

    /// Of an instance's groups; unique on this machine, where several homes may each have their workshop.
    fn name(&self, instance: InstanceId) -> String {
        if instance == WORKSHOP { format!("workshop-{}", self.home) } else { instance.to_string() }
    }

    /// Makes the group of a part of the instance with the configured limits. `beside` a live Odoo the part may take half of what the instance may, so that
    /// the live one is not short of memory because of it. May run twice.
    pub fn prepare(&self, instance: InstanceId, part: Part, beside: bool) -> Group {
        let name = self.name(instance);
        self.try_prepare(&name, part, beside).unwrap_or_else(|error| {
            tracing::warn!(%error, %instance, "the instance's control group could not be made; it runs without limits");
            Group { enter: Vec::new(), whole: None }
        })
    }

    /// The group of a part, whether it is there or not, to be ended or removed.
    pub fn find(&self, instance: InstanceId, part: Part) -> Group {
        self.group(Path::new(&self.name(instance)).join(part.place()).as_path())
    }

    /// The data sets of whose clusters there are groups.
    pub fn clusters_of(&self, instance: InstanceId) -> Vec<DataSetId> {
        let clusters = self.group(&Path::new(&self.name(instance)).join("clusters")).whole;
        let entries = clusters.into_iter().filter_map(|clusters| fs::read_dir(clusters).ok()).flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// The group that holds all runs of an instance.
    pub fn runs(&self, instance: InstanceId) -> Group {
        self.group(&Path::new(&self.name(instance)).join("runs"))
    }

    /// Where a part of an instance belongs, for whoever makes the group when something begins in it.
    pub fn place(&self, instance: InstanceId, part: Part) -> Place {
        Place { cgroups: self.clone(), instance, part }
    }

    /// All that runs of an instance, in each part.
    pub fn all_of(&self, instance: InstanceId) -> Group {
        self.group(Path::new(&self.name(instance)))
    }

    /// Makes the group of a build with its limits. `name` is unique on this machine. May run twice.
    pub fn prepare_build(&self, name: &str) -> Group {
        self.try_prepare_build(name).unwrap_or_else(|error| {
            tracing::warn!(%error, name, "the control group of a build could not be made; it runs without limits");
            self.group(Path::new(name))
        })
    }

    fn group(&self, place: &Path) -> Group {
        Group { enter: Vec::new(), whole: self.whole.as_ref().map(|whole| whole.join(place)) }
    }

    /// The part is beside nobody any more, and may take what the instance may. Absent is done.
    pub fn release(&self, instance: InstanceId, part: Part) {
        if let Some((file, none)) = self.memory_file(&self.name(instance), part.share())
            && file.exists()
        {
            set(&file, none);
        }
    }

    /// How many processes of the instance the kernel has ended since its groups were made, because they took more memory than they may. `None` without
    /// control groups.
    pub fn memory_kills(&self, instance: InstanceId) -> Option<u64> {
        let count = |file: PathBuf| counted(&fs::read_to_string(file).ok()?, "oom_kill");
        match &self.limiting {
            // Those of the groups below are among them.
            Limiting::Unified => count(self.whole.as_ref()?.join(self.name(instance)).join("memory.events")),
            Limiting::Separate { memory, .. } => {
                let group = memory.join(self.name(instance));
                let below = Part::SHARES.iter().filter_map(|share| count(group.join(share).join("memory.oom_control")));
                Some(count(group.join("memory.oom_control"))? + below.sum::<u64>())
            }
            Limiting::Absent => None,
        }
    }

    /// What the processes of one instance may take together, in bytes.
    pub fn memory_limit(&self) -> Option<u64> {
        self.limits.memory_bytes
    }

    /// Removes the instance's groups; nothing may run in them. Absent is done.
    pub fn remove(&self, instance: InstanceId) {
        self.remove_named(&self.name(instance));
    }

    /// Removes the groups of a build; nothing may run in them. Absent is done.
    pub fn remove_build(&self, name: &str) {
        self.remove_named(name);
    }

    fn remove_named(&self, name: &str) {
        for hierarchy in self.hierarchies() {
            remove_empty(&hierarchy.join(name));
        }
    }

    /// Removes our own groups when nobody is in them.
    pub fn remove_empty(&self) {
        for directory in self.hierarchies() {
            // Not empty means that another home of this machine uses it.
            let _ = fs::remove_dir(directory);
        }
    }

    /// Our place in each hierarchy.
    fn hierarchies(&self) -> Vec<&Path> {
        let limiting: &[Option<&PathBuf>] = match &self.limiting {
            Limiting::Separate { memory, cpu, pids } => &[Some(memory), Some(cpu), pids.as_ref()],
            Limiting::Unified | Limiting::Absent => &[],
        };
        limiting.iter().copied().flatten().chain(&self.whole).map(PathBuf::as_path).collect()
    }

    /// Where the memory of a share is limited, and the word for no limit of its own.
    fn memory_file(&self, name: &str, share: &str) -> Option<(PathBuf, &'static str)> {
        match &self.limiting {
            Limiting::Unified => Some((self.whole.as_ref()?.join(name).join(share).join("memory.max"), "max")),
            Limiting::Separate { memory, .. } => Some((memory.join(name).join(share).join("memory.limit_in_bytes"), "-1")),
            Limiting::Absent => None,
        }
    }

    fn try_prepare(&self, name: &str, part: Part, beside: bool) -> io::Result<Group> {
        let mut enter = Vec::new();
        let InstanceLimits { memory_bytes, cpu_millis, processes } = self.limits;
        match (&self.limiting, &self.whole) {
            (Limiting::Unified, Some(whole)) => {
                let group = whole.join(name);
                fs::create_dir_all(group.join(part.place()))?;
                set(&group.join("cgroup.subtree_control"), "+memory");
                limit_whole(&group, memory_bytes, cpu_millis, processes);
            }
            (Limiting::Separate { memory, cpu, pids }, _) => {
                let (memory, cpu) = (memory.join(name), cpu.join(name));
                fs::create_dir_all(memory.join(part.share()))?;
                fs::create_dir_all(&cpu)?;
                set(&memory.join("memory.limit_in_bytes"), &or(memory_bytes, "-1"));
                set(&cpu.join("cpu.cfs_quota_us"), &or(quota(cpu_millis), "-1"));
                // Only memory is shared out among the parts.
                enter.extend([memory.join(part.share()), cpu]);
                if let Some(pids) = pids.as_ref().map(|pids| pids.join(name)) {
                    fs::create_dir_all(&pids)?;
                    set(&pids.join("pids.max"), &or(processes, "max"));
                    enter.push(pids);
                }
            }
            _ => {}
        }
        if let Some((file, none)) = self.memory_file(name, part.share()) {
            set(&file, &or(memory_bytes.filter(|_| beside).map(|bytes| bytes / 2), none));
        }
        self.enter_whole(&Path::new(name).join(part.place()), enter)
    }

    fn try_prepare_build(&self, name: &str) -> io::Result<Group> {
        let mut enter = Vec::new();
        let BuildLimits { memory_bytes, processes } = self.builds;
        match (&self.limiting, &self.whole) {
            (Limiting::Unified, Some(whole)) => {
                let group = whole.join(name);
                fs::create_dir_all(&group)?;
                limit_whole(&group, memory_bytes, None, processes);
            }
            (Limiting::Separate { memory, pids, .. }, _) => {
                let memory = memory.join(name);
                fs::create_dir_all(&memory)?;
                set(&memory.join("memory.limit_in_bytes"), &or(memory_bytes, "-1"));
                enter.push(memory);
                if let Some(pids) = pids.as_ref().map(|pids| pids.join(name)) {
                    fs::create_dir_all(&pids)?;
                    set(&pids.join("pids.max"), &or(processes, "max"));
                    enter.push(pids);
                }
            }
            _ => {}
        }
        self.enter_whole(Path::new(name), enter)
    }

    /// Adds the group in the unified hierarchy to those that are entered.
    fn enter_whole(&self, place: &Path, mut enter: Vec<PathBuf>) -> io::Result<Group> {
        let mut group = self.group(place);
        if let Some(whole) = &group.whole {
            fs::create_dir_all(whole)?;
            enter.push(whole.clone());
        }
        group.enter = enter.into_iter().map(|directory| directory.join("cgroup.procs")).collect();
        Ok(group)
    }
}

fn limit_whole(group: &Path, memory_bytes: Option<u64>, cpu_millis: Option<u32>, processes: Option<u32>) {
    set(&group.join("memory.max"), &or(memory_bytes, "max"));
    set(&group.join("cpu.max"), &format!("{} {CPU_PERIOD}", or(quota(cpu_millis), "max")));
    if group.join("pids.max").exists() {
        set(&group.join("pids.max"), &or(processes, "max"));
    }
}

fn or<T: ToString>(value: Option<T>, none: &str) -> String {
    value.map_or_else(|| none.to_owned(), |value| value.to_string())
}

fn quota(cpu_millis: Option<u32>) -> Option<u64> {
    cpu_millis.map(|millis| u64::from(millis) * CPU_PERIOD / 1000)
}

/// Our place in the unified hierarchy, wherever that is mounted.
fn unified(mount: &Path) -> io::Result<PathBuf> {
    if mount.join("cgroup.controllers").exists() {
        return Ok(mount.join(OURS));
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' '));
    let found = lines.find_map(|mut words| {
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| Path::new(place).join(OURS))
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no file system of the type cgroup2 is mounted"))
}

/// A limit that cannot be set (below what is in use now, say) leaves the earlier one in force.
fn set(file: &Path, value: &str) {
    if let Err(error) = fs::write(file, value) {
        tracing::warn!(%error, path = %file.display(), value, "a limit of a control group could not be set");
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

fn home_name(home: &Path) -> String {
    hex::encode(&Sha256::digest(home.as_os_str().as_encoded_bytes())[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_on_one_machine_have_workshops_of_their_own() {
        let of = |home: &str| Cgroups {
            limiting: Limiting::Absent,
            whole: Some(PathBuf::from("/whole")),
            limits: InstanceLimits::default(),
            builds: BuildLimits::default(),
            home: home_name(Path::new(home)),
        };
        assert_ne!(of("/a").all_of(WORKSHOP).whole, of("/b").all_of(WORKSHOP).whole);
        assert_eq!(of("/a").all_of(WORKSHOP).whole, of("/a").all_of(WORKSHOP).whole);
    }

    #[test]
    fn kills_are_counted_in_both_kinds() {
        assert_eq!(counted("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", "oom_kill"), Some(2));
        assert_eq!(counted("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "oom_kill"), Some(1));
        assert_eq!(counted("oom_kill_disable 0\nunder_oom 0\n", "oom_kill"), None);
    }
}
