//! The programs that Odoo prints and mirrors with.

use std::{fs, io, os::unix::fs::PermissionsExt, path::PathBuf};

use crate::{
    error::{HostError, Result},
    local::{LocalHost, distribution, durable, layout::Layout},
};

const WKHTMLTOPDF: &str = include_str!("wkhtmltopdf.py");
/// Where the machine may have its own.
const MACHINE: [&str; 3] = ["/usr/local/bin/wkhtmltopdf", "/usr/bin/wkhtmltopdf", "/bin/wkhtmltopdf"];

impl LocalHost {
    /// Directories that come before the machine's in the search path of its Odoos. Without any wkhtmltopdf on the machine ours would pretend one.
    pub(super) fn programs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        if MACHINE.iter().any(|path| fs::exists(path).unwrap_or(false)) {
            found.push(self.layout.programs());
        }
        found.push(distribution::tool_directory(&self.config.distributions));
        found
    }
}

/// Writes our own. May run again.
pub(in crate::local) fn prepare(layout: &Layout) -> Result<()> {
    let directory = layout.programs();
    durable::make_directory(&directory, 0o755)?;
    let program = directory.join("wkhtmltopdf");
    if fs::read_to_string(&program).is_ok_and(|text| text == WKHTMLTOPDF) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        durable::write(&program, WKHTMLTOPDF.as_bytes())?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
    };
    write().map_err(|error| HostError::machine_from(format!("{} could not be written: {error}", program.display()), error))
}
