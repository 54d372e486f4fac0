//! How pip is run: with the machine's settings for it, and nothing else of our environment.

use std::ffi::OsString;

use super::exec::Program;

/// What the operator set for pip and for the way to its index: `PIP_*`, proxies, certificates.
pub(super) fn settings() -> Vec<(OsString, OsString)> {
    let is_setting = |name: &str| {
        let lower = name.to_ascii_lowercase();
        name.starts_with("PIP_")
            || matches!(lower.as_str(), "http_proxy" | "https_proxy" | "no_proxy" | "all_proxy")
            || matches!(name, "SSL_CERT_FILE" | "SSL_CERT_DIR" | "REQUESTS_CA_BUNDLE" | "CURL_CA_BUNDLE")
    };
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_setting)).collect()
}

/// `python -m pip install` with the machine's settings.
pub(super) fn install(python: impl AsRef<std::path::Path>) -> Program {
    let program = Program::new(python).args([
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--no-color",
        "--progress-bar",
        "off",
    ]);
    let program = program.yields();
    settings().into_iter().fold(program, |program, (name, value)| program.env(name, value))
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
