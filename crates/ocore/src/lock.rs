//! One `ocore serve` a home: a lock that the kernel lets go of when its holder dies, with the holder's pid in the file.

use std::{
    fs,
    io::{Read, Seek, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

pub struct ServerLock {
    _file: Flock<fs::File>,
}

fn open(home: &Path) -> Result<fs::File> {
    let path = home.join("serve.lock");
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))
}

impl ServerLock {
    /// Takes the home, or says who has it.
    pub fn take(home: &Path) -> Result<Self> {
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let mut file = open(home)?;
        match Flock::lock(file.try_clone()?, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.rewind()?;
                write!(lock, "{}", std::process::id())?;
                Ok(Self { _file: lock })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                bail!("another `ocore serve` (process {pid}) has {}; stop it with `ocore stop`", home.display())
            }
            Err((_, error)) => Err(error).context("the home cannot be locked"),
        }
    }

    /// The pid of the server that has this home, if one runs.
    pub fn holder(home: &Path) -> Result<Option<i32>> {
        if !home.join("serve.lock").exists() {
            return Ok(None);
        }
        let mut file = open(home)?;
        match Flock::lock(file.try_clone()?, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                Ok(Some(pid.trim().parse().with_context(|| format!("{} holds no pid", home.join("serve.lock").display()))?))
            }
            Err((_, error)) => Err(error).context("the home's lock cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_has_one_server_and_tells_which() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(ServerLock::holder(home.path()).unwrap(), None);
        let lock = ServerLock::take(home.path()).unwrap();
        assert_eq!(ServerLock::holder(home.path()).unwrap(), Some(std::process::id().cast_signed()));
        let error = ServerLock::take(home.path()).err().unwrap().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert_eq!(ServerLock::holder(home.path()).unwrap(), None);
    }
}
