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

/// The lines that say why pip failed, without what it says around them.
pub(super) fn decisive_lines(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.trim().strip_prefix("ERROR: ")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_passwords_in_urls_are_not_shown() {
        let text = "from git+https://me:p%40ss@host.example/x@main, http://token@h and https://plain.example/a@b";
        assert_eq!(redact(text), "from git+https://****@host.example/x@main, http://****@h and https://plain.example/a@b");
    }
}
