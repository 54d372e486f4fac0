//! How a new process becomes what it shall be, step by step: each step is a program that replaces itself by the next one, so that the pid stays.
//!
//! As long as a step is still root, nothing of whoever the program is for is in force: its environment comes last, by a descriptor, when the process is its
//! user already. A variable that the C library or a shell obeys would be root's otherwise.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::process::Command;

use super::{GOES_FIRST, Program};
use crate::local::{
    private::Mount,
    process::{MARK, YIELDING},
};

/// Without what the shell adds of its own. Into each control group (`0` is the one that writes, cgroups(7)). Without them it would not end with the others, so that it does not begin.
const ENTER: &str = r#"unset PWD OLDPWD; n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1" || exit 1; shift; n=$((n-1)); done; "#;
/// In a session of its own.
const YIELD: &str = "echo NICE 2>/dev/null >/proc/self/autogroup; exec nice -n NICE \"$@\"";
/// In the mount namespace that it has entered: for each mount its type, options, source and target. Without them it would write where others read, so that
/// it does not begin.
const MOUNT: &str = r#"unset PWD OLDPWD; n=$1; shift; while [ "$n" -gt 0 ]; do mount -n -t "$1" -o "$2" "$3" "$4" || exit 1; shift 4; n=$((n-1)); done; exec "$@""#;
/// Of the user that the program runs as, so that it reads what it may read anyway.
const TAKE_ENVIRONMENT: &str = "unset PWD OLDPWD; . /proc/self/fd/9; exec 9<&-; exec \"$@\"";
/// Where a shell can name it; listening sockets come below.
const ENVIRONMENT_DESCRIPTOR: i32 = 9;
/// Where a program finds its listening sockets: `<port>:<descriptor>`, separated by commas.
pub(in crate::local) const SOCKETS: &str = "OCORE_SOCKETS";
/// As with systemd, and below [`ENVIRONMENT_DESCRIPTOR`].
const FIRST_SOCKET: i32 = 3;

/// A port and the socket that listens there.
pub(super) type ListeningSocket = (u16, Arc<OwnedFd>);

impl Program {
    /// `setsid`, `unshare`, `nsenter` and `setpriv` replace themselves by the program, so the child's pid is the program's.
    pub(super) fn command(&self, own_session: bool) -> io::Result<Command> {
        let mut words: Vec<OsString> = Vec::new();
        if own_session {
            words.push("setsid".into());
        }
        let groups = self.group.procs_files();
        if self.yields || self.goes_first || !groups.is_empty() {
            words.extend(["sh".into(), "-c".into(), self.prelude().into(), "sh".into(), groups.len().to_string().into()]);
            words.extend(groups.iter().map(|file| file.clone().into_os_string()));
        }
        if !self.has_network {
            words.extend(["unshare".into(), "--net".into(), "--".into()]);
        }
        if let Some(namespace) = &self.network {
            let mut option = OsString::from("--net=");
            option.push(namespace);
            words.extend(["nsenter".into(), option, "--".into()]);
        }
        if !self.mounts.is_empty() {
            words.extend(["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", MOUNT, "sh"].map(OsString::from));
            words.push(self.mounts.len().to_string().into());
            words.extend(self.mounts.iter().flat_map(Mount::words));
        }
        if let Some(user) = &self.run_as {
            words.extend(["setpriv".into(), format!("--reuid={}", user.uid).into(), format!("--regid={}", user.gid).into()]);
            words.push(if user.groups.is_empty() {
                "--clear-groups".into()
            } else {
                let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
                format!("--groups={}", groups.join(",")).into()
            });
            words.extend(["--no-new-privs".into(), "--".into()]);
        }
        let mut descriptors = Vec::new();
        for (number, (_, socket)) in self.sockets.iter().enumerate() {
            descriptors.push(FdMapping { parent_fd: socket.as_fd().try_clone_to_owned()?, child_fd: FIRST_SOCKET + number as i32 });
        }
        let environment = self.environment();
        let is_early =
            |name: &OsStr, value: &OsStr| name == MARK || Self::BASE.iter().any(|(base, usual)| name == *base && value == *usual);
        if self.run_as.is_some() && environment.iter().any(|(name, value)| !is_early(name, value)) {
            words.extend(["sh".into(), "-c".into(), TAKE_ENVIRONMENT.into(), "sh".into()]);
            descriptors.push(FdMapping { parent_fd: exports(&environment)?, child_fd: ENVIRONMENT_DESCRIPTOR });
        }
        words.push(self.path.clone().into_os_string());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        let early = if self.run_as.is_none() { environment } else { Self::early(&environment) };
        command.args(words).args(&self.args).env_clear().envs(early).current_dir(&self.cwd);
        if !descriptors.is_empty() {
            command.as_std_mut().fd_mappings(descriptors).map_err(io::Error::other)?;
        }
        Ok(command)
    }

    /// What root still does for it.
    fn prelude(&self) -> String {
        let mut script = ENTER.to_owned();
        if self.goes_first {
            let _ = write!(script, "echo {GOES_FIRST} 2>/dev/null >/proc/self/oom_score_adj; ");
        }
        script.push_str(&if self.yields { YIELD.replace("NICE", &YIELDING.to_string()) } else { "exec \"$@\"".to_owned() });
        script
    }

    /// What is in force from the beginning: what root's own programs have, and the mark by which a process is found that was never written down.
    fn early(environment: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
        let base = Self::BASE.iter().map(|(name, value)| (name.into(), value.into()));
        base.chain(environment.iter().filter(|(name, _)| name == MARK).cloned()).collect()
    }

    /// All of it, as the program is to have it.
    pub(super) fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut environment: Vec<(OsString, OsString)> = self.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        if !self.sockets.is_empty() {
            let places = self.sockets.iter().enumerate().map(|(number, (port, _))| format!("{port}:{}", FIRST_SOCKET + number as i32));
            environment.push((SOCKETS.into(), places.collect::<Vec<_>>().join(",").into()));
        }
        environment
    }
}

/// A file in memory from which a shell takes the variables. What is no name for a shell is left out.
fn exports(environment: &[(OsString, OsString)]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("environment", MemfdFlags::CLOEXEC)?);
    let mut text = Vec::new();
    for (name, value) in environment.iter().filter(|(name, _)| is_name(name)) {
        text.extend_from_slice(b"export ");
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"='");
        for byte in value.as_bytes() {
            match byte {
                b'\'' => text.extend_from_slice(br"'\''"),
                _ => text.push(*byte),
            }
        }
        text.extend_from_slice(b"'\n");
    }
    file.write_all(&text)?;
    Ok(file.into())
}

fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|first| !first.is_ascii_digit()) && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}
