//! Users of the operating system for instances: real entries, since `initdb` and PostgreSQL's peer authentication look names up.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use nix::unistd::{Group, Uid, User};

use super::exec::{Finished, Program};
use crate::error::{HostError, Result};

/// What [`ensure`] found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ensured {
    /// The user is there and ours.
    Ours,
    /// The number or the name belongs to somebody else.
    Taken,
}

/// useradd(8) and userdel(8).
const CANNOT_UPDATE: i32 = 1;
const UID_IN_USE: i32 = 4;
const NO_SUCH_USER: i32 = 6;
const NAME_IN_USE: i32 = 9;

/// Somebody has an entry for this number, as user or as group.
pub(super) fn is_known(uid: u32) -> bool {
    matches!(User::from_uid(Uid::from_raw(uid)), Ok(Some(_))) || matches!(Group::from_gid(uid.into()), Ok(Some(_)))
}

/// The user is there, its comment is `comment`, and its own group has the same number. May run twice.
pub(super) async fn ensure(uid: u32, name: &str, comment: &str) -> Result<Ensured> {
    if let Some(user) = find(uid)? {
        return Ok(if user.name == name && user.gecos.to_string_lossy() == comment { Ensured::Ours } else { Ensured::Taken });
    }
    let number = uid.to_string();
    // No ranges of subordinate ids: nothing of ours makes user namespaces. The group gets the user's number only when that lies in the range
    // for groups, which ends at 60000 by default.
    let (uid_max, gid_max) = (format!("UID_MAX={uid}"), format!("GID_MAX={uid}"));
    let program = Program::new("useradd").args(["--uid", &number, "--user-group", "--no-create-home", "--no-log-init"]).args([
        "--key",
        "SUB_UID_COUNT=0",
        "--key",
        "SUB_GID_COUNT=0",
        "--key",
        &uid_max,
        "--key",
        &gid_max,
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/usr/sbin/nologin",
        "--comment",
        comment,
        name,
    ]);
    let finished = patiently(program).await?;
    match finished.status.code() {
        Some(0) => {}
        Some(UID_IN_USE | NAME_IN_USE) => return Ok(Ensured::Taken),
        _ => {
            finished.expect_success(&format!("the user {name} could not be made"))?;
        }
    }
    match find(uid)? {
        // The group's number was taken, so that the group got another one.
        Some(user) if user.gid.as_raw() != uid => {
            remove(name).await?;
            Ok(Ensured::Taken)
        }
        Some(_) => Ok(Ensured::Ours),
        None => Err(HostError::machine(format!("the user {name} was made, but the system does not know it"))),
    }
}

/// The user and its group are gone. Absent is done.
pub(super) async fn remove(name: &str) -> Result<()> {
    let attempt = format!("the user {name} could not be removed");
    let finished = patiently(Program::new("userdel").arg(name)).await?;
    if finished.status.code() != Some(NO_SUCH_USER) {
        finished.expect_success(&attempt)?;
    }
    if matches!(Group::from_name(name), Ok(Some(_))) {
        patiently(Program::new("groupdel").arg(name)).await?.expect_success(&attempt)?;
    }
    Ok(())
}

/// Names and comments of all users whose name starts with `prefix`.
pub(super) fn list(prefix: &str) -> Result<Vec<(u32, String)>> {
    let passwd = std::fs::read_to_string("/etc/passwd")
        .map_err(|error| HostError::machine_from(format!("/etc/passwd could not be read: {error}"), error))?;
    Ok(passwd
        .lines()
        .filter(|line| line.starts_with(prefix))
        .filter_map(|line| {
            let mut fields = line.split(':');
            let uid = fields.nth(2)?.parse().ok()?;
            Some((uid, fields.nth(1)?.to_owned()))
        })
        .collect())
}

fn find(uid: u32) -> Result<Option<User>> {
    User::from_uid(Uid::from_raw(uid)).map_err(|error| HostError::machine_from("the system's users could not be read", error))
}

/// The user database has one lock for the whole machine; whoever finds it taken tries again.
async fn patiently(program: Program) -> Result<Finished> {
    let policy = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(60)
        .with_jitter();
    let locked = "cannot lock";
    let attempt = || async {
        let finished = program.clone().run().await.map_err(HostError::from).map_err(Err::<Finished, _>)?;
        if finished.status.code().is_some_and(|code| code == CANNOT_UPDATE || code == 10) && finished.stderr_text().contains(locked) {
            return Err(Ok(finished));
        }
        Ok(finished)
    };
    match attempt.retry(policy).when(Result::is_ok).await {
        Ok(finished) | Err(Ok(finished)) => Ok(finished),
        Err(Err(error)) => Err(error),
    }
}
