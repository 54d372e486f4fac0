//! Files that decide what root does, or hold what only root may know: read only where nobody else can have written or read them.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// More is no configuration.
const SIZE_LIMIT: u64 = 1 << 20;
const WRITE_OF_OTHERS: u32 = 0o022;
const ANYTHING_OF_OTHERS: u32 = 0o077;

/// A file as it was when it was opened.
pub struct GuardedFile {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    mode: u32,
    owner: u32,
}

impl GuardedFile {
    /// `None` when there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(|| format!("cannot read {}", path.display()))?,
        };
        // Of the open file: what its name leads to later is not what was read.
        let metadata = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
        let mut bytes = Vec::new();
        file.take(SIZE_LIMIT + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.len() as u64 > SIZE_LIMIT {
            bail!("{} is larger than {SIZE_LIMIT} bytes", path.display());
        }
        Ok(Some(Self { path: path.to_owned(), bytes, mode: mode(&metadata), owner: metadata.uid() }))
    }

    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.bytes).with_context(|| format!("{} is not text", self.path.display()))
    }

    /// Who else could have had a hand in it, or could know what is in it, with the command that ends that. `secrets` names what is secret in
    /// it, if anything.
    pub fn trouble(&self, secrets: &[&str]) -> Option<String> {
        let Self { mode, owner, .. } = *self;
        let path = self.path.display();
        if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
            return Some(format!("{path} belongs to user {owner}, who thereby decides what oCore does: chown root:root {path}"));
        }
        if mode & WRITE_OF_OTHERS != 0 {
            return Some(format!("others than its owner can write {path} (mode {mode:03o}): chmod 600 {path}"));
        }
        if mode & ANYTHING_OF_OTHERS != 0 && !secrets.is_empty() {
            return Some(format!(
                "others than its owner can read {path} (mode {mode:03o}), which holds {}: chmod 600 {path}",
                secrets.join(", ")
            ));
        }
        None
    }
}

/// A secret that oCore itself keeps in a file; `None` when there is none yet. Refused when others could have read or made it.
pub fn read_secret(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(file) = GuardedFile::read(path)? else { return Ok(None) };
    match file.trouble(&["a secret"]) {
        Some(trouble) => bail!("{trouble}"),
        None => Ok(Some(file.bytes)),
    }
}

/// Writes a file that only its owner reads, whole or not at all. One process at a time writes it.
pub fn write_secret(path: &Path, text: &str) -> Result<()> {
    let write = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let temporary = path.with_extension("new");
        // One that a killed process left may have another mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a directory that only its owner enters, also of one that an earlier version left open.
pub fn private_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("cannot make {} a directory of root alone", path.display()))
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o777
}
