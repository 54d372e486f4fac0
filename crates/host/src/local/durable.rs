//! Files that are whole or not there, also after a power cut: written aside, synced, renamed, and the directory synced.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::below;
use crate::error::{HostError, Result};

/// Replaces the file's content; mode 0600. Two writers of one file need a lock of their own.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, true)?;
    sync_parent(path)
}

/// [`write_json`] of what need not survive a power cut: whole or not there as long as the system runs, and worth nothing after it.
pub fn write_fleeting_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let content = to_json(value)?;
    replace(path, &content, false).map_err(|error| write_error(path, error))
}

/// [`write`] of a value as JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, &to_json(value)?).map_err(|error| write_error(path, error))
}

/// The value of a JSON file; `None` when there is no such file. A file that is no such value is an error.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::machine_from(format!("{} could not be read: {error}", path.display()), error)),
    };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|error| HostError::machine_from(format!("{} is damaged: {error}", path.display()), error))
}

/// Removes a file that need not stay removed after a power cut. Absent is done.
pub fn remove_fleeting(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Syncs the directory that holds the path, so that a rename or removal in it lasts.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Syncs the whole file system that the path is on.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// A directory with exactly this mode, made when it is not there.
pub fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make()
        .map_err(|error: io::Error| HostError::machine_from(format!("the directory {} could not be made: {error}", path.display()), error))
}

/// Removes a directory with all that is in it, whoever still works there. Absent is done.
pub fn remove_tree(path: &Path) -> Result<()> {
    below::remove_tree(path)
        .map_err(|error| HostError::machine_from(format!("the directory {} could not be removed: {error}", path.display()), error))
}

/// Runs blocking work on the runtime's blocking threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(HostError::machine_from("work on the host's files was broken off", error)),
    }
}

fn replace(path: &Path, content: &[u8], sync: bool) -> io::Result<()> {
    let aside = aside(path);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    // Also where something of that name was left.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&aside, path)
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|error| HostError::machine_from("a record could not be written as JSON", error))
}

fn write_error(path: &Path, error: io::Error) -> HostError {
    HostError::machine_from(format!("{} could not be written: {error}", path.display()), error)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_beside_the_file_is_never_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        write_json(&path, &7).unwrap();
        fs::write(aside(&path), b"{").unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), Some(7));
        write_json(&path, &8).unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), Some(8));
        assert!(!aside(&path).exists());
        // A slot's record has the variables that its Odoo was started with.
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_record_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        fs::write(&path, b"{").unwrap();
        assert!(read_json::<u32>(&path).unwrap_err().to_string().contains("record.json is damaged"));
    }
}
