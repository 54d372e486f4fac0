//! A Git work tree that a test writes modules into and pushes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A developer's clone.
pub struct Repository {
    directory: TempDir,
}

/// How a push ended.
#[derive(Debug)]
pub struct Push {
    pub success: bool,
    /// What the terminal showed.
    pub output: String,
}

impl Repository {
    pub fn new() -> Result<Self> {
        let repository = Self { directory: tempfile::tempdir()? };
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        repository.git(&["config", "user.name", "Ada Lovelace"])?;
        repository.git(&["config", "user.email", "ada@example.com"])?;
        Ok(repository)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs git here; its standard output without the last line's end.
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().context("cannot run git")?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.current_dir(self.path()).args(arguments).env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command
    }

    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().context("no directory")?)?;
        Ok(fs::write(path, content)?)
    }

    pub fn remove(&self, path: &str) -> Result<()> {
        let path = self.path().join(path);
        if path.is_dir() { Ok(fs::remove_dir_all(path)?) } else { Ok(fs::remove_file(path)?) }
    }

    /// Copies a directory's content here.
    pub fn copy_from(&self, directory: &Path) -> Result<()> {
        let source: PathBuf = directory.join(".");
        let status = Command::new("cp").arg("-a").arg(source).arg(self.path()).status()?;
        ensure!(status.success(), "cannot copy {}", directory.display());
        Ok(())
    }

    /// Commits everything; the new commit's id.
    pub fn commit(&self, message: &str) -> Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Pushes with an API key, and more arguments before the remote.
    pub fn push(&self, remote: &str, key: &str, refspec: &str, more: &[&str]) -> Result<Push> {
        let address = remote.replacen("://", &format!("://ocore:{key}@"), 1);
        let mut arguments = vec!["push"];
        arguments.extend_from_slice(more);
        arguments.extend_from_slice(&[address.as_str(), refspec]);
        let output = self.command(&arguments).output().context("cannot run git push")?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok(Push { success: output.status.success(), output: text.replace(key, "<key>") })
    }
}
