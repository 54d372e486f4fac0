//! Deploy keys: one ed25519 pair a repository, made by `ssh-keygen`, and the way in which Git's ssh uses it.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio, time::Duration};

use tempfile::TempDir;
use tokio::process::Command;

use super::{
    address::{Address, Reach},
    host_keys,
    program::{Git, GitError},
};
use crate::{Error, Result, Settings, secrets::Secret};

/// A key pair. The private half leaves this process only sealed, or as a file that ssh reads and that lives as long as one call.
pub(crate) struct KeyPair {
    /// One line, as forges take it.
    pub(crate) public: String,
    pub(crate) private: Secret,
}

/// Makes a key pair; `comment` ends its public line.
pub(crate) async fn generate(settings: &Settings, comment: &str) -> Result<KeyPair> {
    let failed = |error: io::Error| Error::internal("making a deploy key", error);
    let directory = private_directory(settings).map_err(failed)?;
    let path = directory.path().join("key");
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(&path).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(30), command.output());
    let output = match output.await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Unavailable {
                code: "ssh_missing",
                message: "this machine has no ssh-keygen; install it (Debian: apt-get install openssh-client)".to_owned(),
            });
        }
        Ok(Err(error)) => return Err(failed(error)),
        Err(_) => return Err(Error::broken("ssh-keygen did not end")),
    };
    if !output.status.success() {
        return Err(Error::broken(format!("ssh-keygen: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(KeyPair {
        public: fs::read_to_string(path.with_extension("pub")).map_err(failed)?.trim().to_owned(),
        private: Secret::new(fs::read(&path).map_err(failed)?),
    })
}

/// What ssh needs for one call: key, known hosts and configuration in a directory that only we can read and that goes with this value.
pub(crate) struct SshSession {
    directory: TempDir,
}

impl SshSession {
    /// `expected` are the keys of which the host must show one. When there are none, the host is seen for the first time, and is trusted this once.
    pub(crate) fn new(
        settings: &Settings,
        address: &Address,
        reach: &Reach,
        key: Option<&Secret>,
        expected: &[String],
    ) -> io::Result<Self> {
        let directory = private_directory(settings)?;
        let file = |name: &str| directory.path().join(name);
        fs::write(file("known_hosts"), expected.iter().flat_map(|line| [line, "\n"]).collect::<String>())?;
        if let Some(key) = key {
            fs::write(file("key"), key.expose())?;
            fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600))?;
        }
        fs::write(file("config"), configuration(directory.path(), address, reach, key.is_some(), !expected.is_empty()))?;
        Ok(Self { directory })
    }

    /// Lets a call of git use this session. The command is one fixed text that Git hands to a shell; the path goes by a variable.
    pub(crate) fn apply(&self, git: Git) -> Git {
        git.environment("GIT_SSH_COMMAND", r#"exec ssh -F "$OCORE_SSH_CONFIGURATION""#)
            .environment("GIT_SSH_VARIANT", "ssh")
            .environment("OCORE_SSH_CONFIGURATION", self.directory.path().join("config"))
    }

    /// The keys that the host is known by now.
    pub(crate) fn known_hosts(&self) -> io::Result<String> {
        fs::read_to_string(self.directory.path().join("known_hosts"))
    }
}

fn configuration(directory: &Path, address: &Address, reach: &Reach, with_key: bool, is_known: bool) -> String {
    let directory = directory.display();
    // Also when ssh is given one of its addresses.
    let alias = host_keys::alias(address);
    // A host that is known by a key of one kind would be taken with any of another kind otherwise.
    let checking = if is_known { "yes" } else { "accept-new" };
    let identity = if with_key { format!("\"{directory}/key\"") } else { "none".to_owned() };
    // Where the connection goes: the first address that was judged, or wherever the name leads.
    let target = match reach {
        Reach::Pinned(addresses) => addresses.first().map(ToString::to_string),
        Reach::Any | Reach::Local => None,
    };
    let target = target.unwrap_or_else(|| "%h".to_owned());
    format!(
        "Host *\n\
         BatchMode yes\n\
         PreferredAuthentications publickey\n\
         IdentitiesOnly yes\n\
         IdentityAgent none\n\
         StrictHostKeyChecking {checking}\n\
         UserKnownHostsFile \"{directory}/known_hosts\"\n\
         GlobalKnownHostsFile /dev/null\n\
         HostKeyAlias {alias}\n\
         HashKnownHosts no\n\
         UpdateHostKeys no\n\
         CheckHostIP no\n\
         ConnectTimeout 20\n\
         ServerAliveInterval 15\n\
         ServerAliveCountMax 4\n\
         ForwardAgent no\n\
         ForwardX11 no\n\
         ClearAllForwardings yes\n\
         PermitLocalCommand no\n\
         ControlMaster no\n\
         ControlPath none\n\
         IdentityFile {identity}\n\
         HostName {target}\n\
         LogLevel ERROR\n"
    )
}

/// A directory below our own home that only this user can enter (`tempfile` makes it 0700).
fn private_directory(settings: &Settings) -> io::Result<TempDir> {
    let home = settings.repositories.join(".home");
    fs::create_dir_all(&home)?;
    tempfile::Builder::new().prefix("ssh-").tempdir_in(home)
}

impl From<io::Error> for GitError {
    fn from(source: io::Error) -> Self {
        Self::Pipe(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ssh itself makes of the configuration for that host.
    fn effective(reach: &Reach, with_key: bool, is_known: bool) -> String {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::parse("ssh://git@git.example.com:2222/acme/shop.git").unwrap();
        let path = directory.path().join("config");
        fs::write(&path, configuration(directory.path(), &address, reach, with_key, is_known)).unwrap();
        let output = std::process::Command::new("ssh").arg("-G").arg("-F").arg(&path).arg("git.example.com").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().replace(&directory.path().display().to_string(), "<session>")
    }

    #[test]
    fn ssh_reads_the_configuration_as_it_is_meant() {
        let pinned = effective(&Reach::Pinned(vec!["192.0.2.7".parse().unwrap()]), true, false);
        for line in [
            "hostname 192.0.2.7",
            "hostkeyalias [git.example.com]:2222",
            "identityfile <session>/key",
            "userknownhostsfile <session>/known_hosts",
            "globalknownhostsfile /dev/null",
            "stricthostkeychecking accept-new",
            "batchmode yes",
            "identitiesonly yes",
            "identityagent none",
            "preferredauthentications publickey",
            "forwardagent no",
            "updatehostkeys false",
        ] {
            assert!(pinned.lines().any(|found| found == line), "{line} is not in\n{pinned}");
        }
        assert!(!pinned.contains("proxycommand") && !pinned.contains("controlpath"), "{pinned}");
        let open = effective(&Reach::Any, false, true);
        assert!(open.contains("\nstricthostkeychecking true\n"), "{open}");
        assert!(open.contains("\nhostname git.example.com\n") && open.contains("\nidentityfile none\n"), "{open}");
    }
}
