//! How Odoo is started: as the instance's own user, with the Python of its release, in an environment that holds nothing of ours.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, OpenOptions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use crate::{
    api::OdooSettings,
    error::{HostError, Result},
    local::{
        distribution::InstalledDistribution,
        durable,
        exec::{Program, RunAs},
        ledger::OsUser,
        releases::ReleaseRecord,
    },
};

const SLOT: &str = include_str!("slot.py");
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Odoo's program without any option. `programs` are directories that come before the machine's in its search path.
pub(in crate::local) fn odoo(
    distribution: &InstalledDistribution,
    record: &ReleaseRecord,
    user: &OsUser,
    settings: &OdooSettings,
    programs: &[PathBuf],
) -> Program {
    python(record, user, &settings.env_vars, programs).arg(&distribution.program)
}

/// The same for an Odoo that serves: its crons wait until those of the instance's other slot are gone, and its workers begin
/// warm (`slot.py`).
pub(super) fn serving(
    distribution: &InstalledDistribution,
    record: &ReleaseRecord,
    user: &OsUser,
    settings: &OdooSettings,
    programs: &[PathBuf],
    turns: &Turns,
) -> Program {
    python(record, user, &settings.env_vars, programs)
        .env("OCORE_ODOO_PROGRAM", &distribution.program)
        .env("OCORE_CRONS_LOCK", &turns.lock)
        .arg(&turns.script)
}

/// What the slots of one instance have in common, so that crons run in one of them only.
pub(super) struct Turns {
    script: PathBuf,
    lock: PathBuf,
}

impl Turns {
    /// Writes the script; the lock is made once and never replaced, since its holder has it open.
    pub(super) fn prepare(instance_directory: &Path, user: &OsUser) -> Result<Self> {
        let turns = Self { script: instance_directory.join("slot.py"), lock: instance_directory.join("crons.lock") };
        let prepare = || -> std::io::Result<()> {
            durable::write(&turns.script, SLOT.as_bytes())?;
            OpenOptions::new().append(true).create(true).mode(0o440).open(&turns.lock)?;
            for path in [&turns.script, &turns.lock] {
                chown(path, Some(0), Some(user.uid))?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o440))?;
            }
            Ok(())
        };
        prepare().map_err(|error| HostError::machine_from(format!("{} could not be written: {error}", turns.script.display()), error))?;
        Ok(turns)
    }
}

/// The Python of a release, without any argument.
pub(in crate::local) fn python(
    record: &ReleaseRecord,
    user: &OsUser,
    env_vars: &BTreeMap<String, String>,
    programs: &[PathBuf],
) -> Program {
    let mut program = Program::new(&record.python);
    for (name, value) in env_vars.iter().filter(|(name, value)| is_usable(name, value)) {
        program = program.env(name, value);
    }
    // A reload executes `python` again by its name, so the environment's directory comes first.
    let mut path = record.python.parent().unwrap_or(Path::new("/usr/bin")).as_os_str().to_owned();
    for directory in programs.iter().map(|program| program.as_os_str()).chain([OsStr::new(SEARCH_PATH)]) {
        path.push(":");
        path.push(directory);
    }
    program
        // Rather than the PostgreSQL that it works with, whose end is also the other slot's.
        .goes_first()
        .env("PATH", path)
        // For wkhtmltopdf and wkhtmltoimage: there is no screen.
        .env("QT_QPA_PLATFORM", "offscreen")
        .env("PYTHONNOUSERSITE", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .run_as(RunAs { uid: user.uid, gid: user.uid, groups: record.groups.clone() })
}

/// What execve(2) takes.
fn is_usable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}
