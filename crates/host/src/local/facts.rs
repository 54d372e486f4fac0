//! What this machine is.

use nix::unistd::{User, geteuid, gethostname};

use super::LocalHost;
use crate::{
    api::HostFacts,
    error::{HostError, Result},
};

impl LocalHost {
    pub(super) async fn gather_facts(&self) -> Result<HostFacts> {
        let (os_name, os_version) = operating_system();
        Ok(HostFacts {
            hostname: gethostname()
                .map_err(|error| HostError::machine_from("the host name could not be read", error))?
                .to_string_lossy()
                .into_owned(),
            os_name,
            os_version,
            cpu_cores: std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
            ram_total_bytes: memory_total()?,
            pool: self.pool.facts().await?,
            distributions: super::distribution::list(&self.config).await,
        })
    }
}

/// The machine's memory in bytes: proc_meminfo(5), whose unit is KiB.
pub(super) fn memory_total() -> Result<u64> {
    let text =
        std::fs::read_to_string("/proc/meminfo").map_err(|error| HostError::machine_from("/proc/meminfo could not be read", error))?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| HostError::machine("/proc/meminfo does not say how much memory there is"))
}

/// The user that this process runs as, by name.
pub(super) fn own_user_name() -> Result<String> {
    User::from_uid(geteuid())
        .ok()
        .flatten()
        .map(|user| user.name)
        .ok_or_else(|| HostError::machine("the user that oCore runs as has no entry in the system's user database"))
}

/// `NAME` and `VERSION_ID` of os-release(5).
fn operating_system() -> (String, String) {
    let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let value = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.map_or_else(|| "unknown".to_owned(), |value| value.trim_matches(['"', '\'']).to_owned())
    };
    (value("NAME"), value("VERSION_ID"))
}
