//! The last route snapshot on disk, so that an edge that starts alone serves on.
//!
//! Written beside and renamed, with the one before kept as `<name>.previous`. A file that cannot be read whole (a torn write, a foreign
//! hand) is put aside as `<name>.broken` with a message, and the previous one is used.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use ocore_model::route::RouteSnapshot;

#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    current: PathBuf,
    previous: PathBuf,
    broken: PathBuf,
    directory: PathBuf,
}

impl SnapshotFile {
    /// Makes the directory if need be.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&directory)?;
        Ok(Self { current: path.to_owned(), previous: with_suffix(path, ".previous"), broken: with_suffix(path, ".broken"), directory })
    }

    /// The newest snapshot that can be read; `None` when there never was one.
    pub(crate) fn load(&self) -> io::Result<Option<RouteSnapshot>> {
        for path in [&self.current, &self.previous] {
            let bytes = match fs::read(path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match serde_json::from_slice(&bytes) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error) => {
                    tracing::error!(
                        path = %path.display(),
                        %error,
                        "the stored routes cannot be read and are put aside as {}; the ones before are used",
                        self.broken.display()
                    );
                    fs::rename(path, &self.broken)?;
                }
            }
        }
        Ok(None)
    }

    /// Stores a snapshot; after a crash at any point one that was stored is found again. May run twice.
    pub(crate) fn store(&self, snapshot: &RouteSnapshot) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer(&mut file, snapshot)?;
        file.flush()?;
        file.as_file().sync_all()?;
        match fs::rename(&self.current, &self.previous) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        file.persist(&self.current).map_err(|error| error.error)?;
        File::open(&self.directory)?.sync_all()
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(generation: u64) -> RouteSnapshot {
        RouteSnapshot { generation, routes: Vec::new() }
    }

    #[test]
    fn the_last_stored_snapshot_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = SnapshotFile::open(&directory.path().join("deep/routes.json")).unwrap();
        assert_eq!(file.load().unwrap(), None);
        file.store(&snapshot(1)).unwrap();
        file.store(&snapshot(2)).unwrap();
        assert_eq!(file.load().unwrap(), Some(snapshot(2)));
        let names = fs::read_dir(directory.path().join("deep")).unwrap().count();
        assert_eq!(names, 2, "the snapshot and the previous one, nothing else");
    }

    #[test]
    fn a_torn_file_is_put_aside_and_the_previous_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routes.json");
        let file = SnapshotFile::open(&path).unwrap();
        file.store(&snapshot(1)).unwrap();
        file.store(&snapshot(2)).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(file.load().unwrap(), Some(snapshot(1)));
        assert!(directory.path().join("routes.json.broken").exists());
        // The torn one must not replace the good previous one.
        file.store(&snapshot(3)).unwrap();
        fs::write(&path, b"").unwrap();
        assert_eq!(file.load().unwrap(), Some(snapshot(1)));
    }
}
