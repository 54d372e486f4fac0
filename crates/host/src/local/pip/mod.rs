//! pip: how it is run for oCore itself, what an operator has set for it, and what it says.

mod settings;

use std::ffi::OsString;

pub(super) use self::settings::{FetchPlaces, Settings};
use super::exec::Program;

/// What the operator set for pip and for the way to its index in our own environment: `PIP_*`, proxies, certificates.
pub(super) fn of_this_process() -> Vec<(OsString, OsString)> {
    let is_setting = |name: &str| {
        let lower = name.to_ascii_lowercase();
        name.starts_with("PIP_")
            || matches!(lower.as_str(), "http_proxy" | "https_proxy" | "no_proxy" | "all_proxy")
            || matches!(name, "SSL_CERT_FILE" | "SSL_CERT_DIR" | "REQUESTS_CA_BUNDLE" | "CURL_CA_BUNDLE")
    };
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_setting)).collect()
}

/// `python -m pip install` for oCore itself, with the machine's settings. No project's code may run below it.
pub(super) fn install(python: impl AsRef<std::path::Path>) -> Program {
    of_this_process().into_iter().fold(install_without_settings(python), |program, (name, value)| program.env(name, value))
}

/// The same without any setting of ours.
pub(super) fn install_without_settings(python: impl AsRef<std::path::Path>) -> Program {
    let words = ["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-color", "--progress-bar", "off"];
    Program::new(python).args(words).yields()
}

/// The text without the names and passwords that stand before hosts in URLs.
pub(super) fn redact(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(|character: char| character.is_whitespace() || "/?#\"'<>,;".contains(character)).unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => shown.extend(["****@", host]),
            None => shown.push_str(authority),
        }
        rest = behind;
    }
    shown.push_str(rest);
    shown
}
/// Whether pip failed since it could not reach its index: then the requirements are not at fault.
pub(super) fn could_not_reach_index(output: &str) -> bool {
    [
        "NewConnectionError",
        "Temporary failure in name resolution",
        "ConnectTimeoutError",
        "Network is unreachable",
        "ProxyError",
        "ReadTimeoutError",
    ]
    .iter()
    .any(|words| output.contains(words))
}

/// The lines that say why pip failed, without what it says around them. Of an exception of pip's own, that is the last line of its traceback.
pub(super) fn decisive_lines(output: &str) -> Vec<String> {
    let mut decisive = Vec::new();
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(said) = line.trim().strip_prefix("ERROR: ") else { continue };
        if said.trim() != "Exception:" {
            decisive.push(said.to_owned());
            continue;
        }
        let mut last = said;
        while let Some(more) = lines.next_if(|line| !line.trim_start().starts_with("ERROR: ")) {
            // A traceback's own lines are indented; what is raised is not.
            if !more.starts_with([' ', '\t']) && more.contains(": ") {
                last = more;
            }
        }
        decisive.push(last.to_owned());
    }
    decisive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_of_pip_is_told_by_its_last_line() {
        let output = "ERROR: Exception:\nTraceback (most recent call last):\n  File \"/x/cli.py\", line 1, in run\n    raise\npip._vendor.requests.exceptions.InvalidURL: no host given\nERROR: more\n";
        assert_eq!(decisive_lines(output), ["pip._vendor.requests.exceptions.InvalidURL: no host given", "more"]);
    }

    #[test]
    fn names_and_passwords_in_urls_are_not_shown() {
        let text = "from git+https://me:p%40ss@host.example/x@main, http://token@h and https://plain.example/a@b";
        assert_eq!(redact(text), "from git+https://****@host.example/x@main, http://****@h and https://plain.example/a@b");
    }
}
