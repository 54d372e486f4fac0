//! How Odoo is started: as the instance's own user, with the Python of its release, in an environment that holds nothing of ours.

use std::{collections::BTreeMap, path::Path};

use crate::{
    api::OdooSettings,
    local::{
        distribution::InstalledDistribution,
        exec::{Program, RunAs},
        ledger::OsUser,
        releases::ReleaseRecord,
    },
};

const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Odoo's program without any option.
pub(super) fn odoo(distribution: &InstalledDistribution, record: &ReleaseRecord, user: &OsUser, settings: &OdooSettings) -> Program {
    python(record, user, &settings.env_vars).arg(&distribution.program)
}

/// The Python of a release, without any argument.
pub(in crate::local) fn python(record: &ReleaseRecord, user: &OsUser, env_vars: &BTreeMap<String, String>) -> Program {
    let mut program = Program::new(&record.python);
    for (name, value) in env_vars.iter().filter(|(name, value)| is_usable(name, value)) {
        program = program.env(name, value);
    }
    // A reload executes `python` again by its name, so the environment's directory comes first.
    let bin = record.python.parent().unwrap_or(Path::new("/usr/bin"));
    program
        .env("PATH", format!("{}:{SEARCH_PATH}", bin.display()))
        .env("PYTHONNOUSERSITE", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .run_as(RunAs { uid: user.uid, gid: user.uid, groups: record.groups.clone() })
}

/// What execve(2) takes.
fn is_usable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}
