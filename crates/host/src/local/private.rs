//! Directories that programs of tenants share with nobody: in the place of the machine's `/tmp`, `/var/tmp` and `/dev/shm`, and a home.
//!
//! Programs write there under names that others can guess. In the machine's own directories one tenant would read what another has left there, or take
//! its name away; and a number that is lent to the next build would own what the last one left.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use ocore_model::ids::InstanceId;

use super::{LocalHost, copy, durable::blocking, exec::Program, ledger::OsUser};
use crate::{
    api::Standing,
    error::{HostError, Result},
};

/// What every program sees of its own.
const REPLACED: [&str; 3] = [TEMPORARY, TEMPORARY_FOR_LONG, SHARED_MEMORY];
const TEMPORARY: &str = "/tmp";
const TEMPORARY_FOR_LONG: &str = "/var/tmp";
const SHARED_MEMORY: &str = "/dev/shm";
/// As with Docker.
const SHARED_MEMORY_SIZE: &str = "64m";
/// Counts as memory of the program's control group.
const FLEETING_SIZE: &str = "512m";
/// Names below the instance's directory for temporary ones.
const SHORT: &str = "tmp";
const LONG: &str = "var-tmp";

/// The directories of one program.
#[derive(Debug, Clone)]
pub(in crate::local) enum Private {
    /// The instance's, which all of its Odoos have in common.
    Kept { temporary: PathBuf, home: PathBuf },
    /// In memory, and gone with the program: nothing of what it does may stay.
    Fleeting,
}

/// A mount in the program's own mount namespace (mount(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::local) enum Mount {
    Bind { source: PathBuf, target: &'static str },
    Memory { target: &'static str, size: &'static str },
}

impl Private {
    pub(in crate::local) fn mounts(&self) -> Vec<Mount> {
        let shared_memory = Mount::Memory { target: SHARED_MEMORY, size: SHARED_MEMORY_SIZE };
        match self {
            Self::Kept { temporary, .. } => vec![
                Mount::Bind { source: temporary.join(SHORT), target: TEMPORARY },
                Mount::Bind { source: temporary.join(LONG), target: TEMPORARY_FOR_LONG },
                shared_memory,
            ],
            Self::Fleeting => vec![
                Mount::Memory { target: TEMPORARY, size: FLEETING_SIZE },
                Mount::Memory { target: TEMPORARY_FOR_LONG, size: FLEETING_SIZE },
                shared_memory,
            ],
        }
    }

    pub(in crate::local) fn home(&self) -> &Path {
        match self {
            Self::Kept { home, .. } => home,
            Self::Fleeting => Path::new(TEMPORARY),
        }
    }
}

impl Mount {
    /// Words for mount(8): type, options, source, target.
    pub(in crate::local) fn words(&self) -> [OsString; 4] {
        match self {
            Self::Bind { source, target } => ["none".into(), "bind".into(), source.clone().into_os_string(), target.into()],
            Self::Memory { target, size } => ["tmpfs".into(), memory_options(size).into(), "tmpfs".into(), target.into()],
        }
    }

    /// The same for mount(2), by the parent that Odoos are forked from; `None` when the path is not UTF-8.
    pub(in crate::local) fn texts(&self) -> Option<[String; 4]> {
        let text = |word: &OsStr| word.to_str().map(ToOwned::to_owned);
        let [kind, options, source, target] = self.words();
        Some([text(&kind)?, text(&options)?, text(&source)?, text(&target)?])
    }
}

fn memory_options(size: &str) -> String {
    format!("size={size},mode=1777")
}

impl Program {
    /// Gives it these directories, and the home in its environment.
    pub(in crate::local) fn private(self, private: &Private) -> Self {
        self.env("HOME", private.home()).mounts(private.mounts())
    }
}

impl LocalHost {
    /// The directories of a program of the instance, made when they are not there. `alone`: nothing of the instance runs, so that what lies in its
    /// temporary ones is nobody's any more, and goes. A program that works on data which is not made harmless yet leaves nothing for later ones.
    pub(in crate::local) async fn private_directories(
        &self,
        instance: InstanceId,
        user: &OsUser,
        standing: Standing,
        alone: bool,
    ) -> Result<Private> {
        if standing == Standing::Raw {
            return Ok(Private::Fleeting);
        }
        let (temporary, home) = (self.layout.temporary(instance), self.layout.instance_home(instance));
        if alone {
            for name in [SHORT, LONG] {
                copy::remove(&temporary.join(name)).await?;
            }
        }
        let (uid, paths) = (user.uid, (temporary.clone(), home.clone()));
        blocking(move || {
            make(&paths.0, &paths.1, uid)
                .map_err(|error| HostError::machine_from(format!("{} could not be made", paths.0.display()), error))
        })
        .await?;
        Ok(Private::Kept { temporary, home })
    }
}

/// The temporary ones lie below a directory that only root enters, so that nobody reaches them but at the place where they are mounted; their names are
/// root's.
fn make(temporary: &Path, home: &Path, uid: u32) -> io::Result<()> {
    // Also where one was made before and whoever made it was killed before it was closed.
    let ensure = |path: &Path, mode: u32, owner: u32| -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        chown(path, Some(owner), Some(owner))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    ensure(temporary, 0o700, 0)?;
    ensure(&temporary.join(SHORT), 0o1777, 0)?;
    ensure(&temporary.join(LONG), 0o1777, 0)?;
    ensure(home, 0o700, uid)
}

/// Refuses directories of oCore's that its programs would not see.
///
/// # Errors
/// `Machine` names the directory and what to do.
pub(in crate::local) fn require_visible(directories: &[&Path]) -> Result<()> {
    for directory in directories {
        let place = fs::canonicalize(directory).unwrap_or_else(|_| (*directory).to_owned());
        if let Some(replaced) = REPLACED.iter().find(|replaced| place.starts_with(replaced)) {
            return Err(HostError::machine(format!(
                "{} lies below {replaced}, which each environment has of its own, so that its Odoo would not see it; move it elsewhere, e.g. to \
                 /var/lib/ocore, and say so in the configuration",
                directory.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn directories_that_were_left_half_made_are_closed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let (temporary, home) = (place.path().join("temporary"), place.path().join("home"));
        for path in [&temporary, &home, &temporary.join(SHORT)] {
            fs::create_dir(path).unwrap();
        }
        make(&temporary, &home, 41_237).unwrap();
        let found = |path: &Path| fs::metadata(path).map(|status| (status.uid(), status.mode() & 0o7777)).unwrap();
        assert_eq!((found(&temporary), found(&home)), ((0, 0o700), (41_237, 0o700)));
        assert_eq!((found(&temporary.join(SHORT)), found(&temporary.join(LONG))), ((0, 0o1777), (0, 0o1777)));
    }
}
