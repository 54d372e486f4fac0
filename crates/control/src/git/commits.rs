//! Reading commits: what Git says of author, message and time, a call of git for each question.

use chrono::{DateTime, Utc};
use ocore_model::names::{BranchName, CommitSha};

use super::{
    Commit,
    mirror::Mirror,
    program::{Git, GitError},
};
use crate::Settings;

/// Fields end with NUL, which none of them can hold. Git has already turned them into UTF-8 from the encoding that the commit names; bytes
/// that are no UTF-8 even so become U+FFFD.
const FORMAT: &str = "--format=%H%x00%an%x00%ae%x00%at%x00%ct%x00%B%x00";
const FIELDS: usize = 6;

/// The commits at these ids or full ref names, in that order of first mention. What is not there is left out.
pub(super) async fn named(mirror: &Mirror, settings: &Settings, names: &[String]) -> Result<Vec<Commit>, GitError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let input = names.join("\n") + "\n";
    parse(&list(mirror, settings, &["--no-walk=unsorted", FORMAT], input).await?)
}

/// The commits reachable from `to` and not from `from`, newest first, at most `limit`.
pub(super) async fn between(
    mirror: &Mirror,
    settings: &Settings,
    from: Option<&CommitSha>,
    to: &CommitSha,
    limit: usize,
) -> Result<Vec<Commit>, GitError> {
    parse(&list(mirror, settings, &[&format!("--max-count={limit}"), FORMAT], range(from, to)).await?)
}

/// How many commits are reachable from `to` and not from `from`.
pub(super) async fn count(mirror: &Mirror, settings: &Settings, from: Option<&CommitSha>, to: &CommitSha) -> Result<u32, GitError> {
    let output = list(mirror, settings, &["--count"], range(from, to)).await?;
    String::from_utf8_lossy(&output).trim().parse().map_err(|_| GitError::Unreadable { command: "rev-list" })
}

/// The head of a branch.
pub(super) fn branch_ref(branch: &BranchName) -> String {
    format!("refs/heads/{branch}")
}

/// Revisions go through the standard input, where nothing is an option; what is missing counts as not given.
async fn list(mirror: &Mirror, settings: &Settings, arguments: &[&str], revisions: String) -> Result<Vec<u8>, GitError> {
    let git: Git = mirror.git(settings, "rev-list")?.args(["--ignore-missing", "--no-commit-header"]).args(arguments).arg("--stdin");
    git.input(revisions).run().await
}

fn range(from: Option<&CommitSha>, to: &CommitSha) -> String {
    from.map_or_else(|| format!("{to}\n"), |from| format!("{to}\n^{from}\n"))
}

fn parse(output: &[u8]) -> Result<Vec<Commit>, GitError> {
    let unreadable = || GitError::Unreadable { command: "rev-list" };
    let fields: Vec<&[u8]> = output.split(|&byte| byte == 0).collect();
    // After the last record there is a line end only.
    let (records, rest) = fields.as_chunks::<FIELDS>();
    if rest.iter().any(|rest| !rest.trim_ascii().is_empty()) {
        return Err(unreadable());
    }
    records
        .iter()
        .map(|[sha, author, author_email, authored_at, committed_at, message]| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok(Commit {
                sha: text(sha.trim_ascii_start()).parse().map_err(|_| unreadable())?,
                author: text(author),
                author_email: text(author_email),
                authored_at: time(authored_at),
                committed_at: time(committed_at),
                message: text(message.trim_ascii_end()),
            })
        })
        .collect()
}

/// Seconds since 1970. A time that the store cannot hold (a commit may claim any) becomes the nearest that it can; none at all is 1970.
fn time(bytes: &[u8]) -> DateTime<Utc> {
    const YEAR_9999: i64 = 253_402_300_799;
    let seconds: i64 = String::from_utf8_lossy(bytes).trim().parse().unwrap_or(0);
    DateTime::from_timestamp(seconds.clamp(0, YEAR_9999), 0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_field_by_field() {
        let sha = "0123456789012345678901234567890123456789";
        let output = format!("{sha}\0A\0a@x\0{}\0{}\0subject\n\nbody\n\0\n{sha}\0\0\0\0junk\0\0\n", 5, i64::MAX);
        let commits = parse(output.as_bytes()).unwrap();
        assert_eq!(commits.len(), 2);
        assert_eq!(commits[0].message, "subject\n\nbody");
        assert_eq!(commits[0].authored_at.timestamp(), 5);
        assert_eq!(commits[0].committed_at.timestamp(), 253_402_300_799);
        assert_eq!((commits[1].author.as_str(), commits[1].authored_at.timestamp()), ("", 0));
        assert!(parse(b"no record").is_err());
        assert!(parse(b"").unwrap().is_empty());
    }
}
