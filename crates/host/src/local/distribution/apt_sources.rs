//! Where this machine gets Debian's packages from, read out of its apt configuration, so that another suite of the same mirror can be used.

use std::{
    fs,
    path::{Path, PathBuf},
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A mirror of Debian's archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) uri: String,
    /// The keys that sign it.
    pub(super) signed_by: String,
}

impl Mirror {
    /// A line for a `sources.list`.
    pub(super) fn line(&self, suite: &str) -> String {
        format!("deb [signed-by={}] {} {suite} main\n", self.signed_by, self.uri)
    }

    /// For messages: without what may be a password.
    pub(super) fn shown(&self) -> String {
        match (self.uri.split_once("://"), self.uri.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
            _ => self.uri.clone(),
        }
    }
}

/// The machine's mirror of Debian; `None` when it has none, as on another system.
pub(super) fn machine_mirror(etc_apt: &Path) -> Option<Mirror> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(etc_apt.join("sources.list.d")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.insert(0, etc_apt.join("sources.list"));
    files.iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        match path.extension()?.to_str()? {
            "sources" => text.split("\n\n").find_map(stanza),
            "list" => text.lines().find_map(one_line),
            _ => None,
        }
    })
}

/// deb822 style, sources.list(5): fields that may go on in indented lines, and comments anywhere.
fn stanza(text: &str) -> Option<Mirror> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match (line.starts_with([' ', '\t']), fields.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => {
                value.push('\n');
                value.push_str(line.trim());
            }
            (false, _, Some((name, value))) => fields.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            _ => {}
        }
    }
    let field = |name: &str| fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    if field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"))
        || !field("types")?.split_whitespace().any(|kind| kind == "deb")
    {
        return None;
    }
    let uri = field("uris")?.split_whitespace().next()?;
    // A key may stand in the file itself; then Debian's own keyring does.
    let signed_by = field("signed-by").filter(|value| value.starts_with('/'));
    mirror(uri, field("suites")?.split_whitespace(), field("components").unwrap_or_default().split_whitespace(), signed_by)
}

/// `deb [options] uri suite components`.
fn one_line(line: &str) -> Option<Mirror> {
    let rest = line.trim().strip_prefix("deb ")?.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split('#').next()?.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    mirror(uri, std::iter::once(suite), words, signed_by)
}

fn mirror<'a>(
    uri: &str,
    suites: impl Iterator<Item = &'a str>,
    mut components: impl Iterator<Item = &'a str>,
    signed_by: Option<&str>,
) -> Option<Mirror> {
    const SUITES: [&str; 12] = [
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "sid",
        "oldoldstable",
        "oldstable",
        "stable",
        "testing",
        "unstable",
        "bookworm-updates",
        "trixie-updates",
    ];
    let is_debian = suites.into_iter().any(|suite| SUITES.contains(&suite)) && components.any(|component| component == "main");
    let signed_by = signed_by.unwrap_or(KEYRING);
    is_debian.then(|| Mirror { uri: uri.trim_end_matches('/').to_owned(), signed_by: signed_by.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Option<Mirror> {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        machine_mirror(directory.path())
    }

    #[test]
    fn the_mirror_of_debian_is_found_among_other_archives_in_both_styles() {
        let other = "deb [signed-by=/k.gpg] https://packages.example.com/apt nodistro main\n";
        let stanzas = "Types: deb\n# comment\nURIs: http://security.example.com/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
                       Types: deb\nURIs: http://mirror.example.com/debian/\nSuites: bookworm bookworm-updates\nComponents: main contrib\n\
                       Signed-By: /usr/share/keyrings/debian.pgp\n";
        let mirror = found(&[("sources.list", other), ("sources.list.d/debian.sources", stanzas)]).unwrap();
        assert_eq!(
            (mirror.uri.as_str(), mirror.signed_by.as_str()),
            ("http://mirror.example.com/debian", "/usr/share/keyrings/debian.pgp")
        );
        let line = "# deb http://old bookworm main\ndeb [arch=amd64] http://user:pass@mirror.example.com/debian trixie main # mine\n";
        let mirror = found(&[("sources.list", line)]).unwrap();
        assert_eq!(mirror.line("sid"), format!("deb [signed-by={KEYRING}] http://user:pass@mirror.example.com/debian sid main\n"));
        assert_eq!(mirror.shown(), "http://mirror.example.com/debian");
    }

    #[test]
    fn a_machine_without_debian_has_none() {
        assert_eq!(found(&[("sources.list", "deb http://archive.ubuntu.com/ubuntu jammy main\n")]), None);
        assert_eq!(found(&[]), None);
        assert_eq!(
            found(&[("sources.list.d/a.sources", "Types: deb\nEnabled: no\nURIs: http://x\nSuites: sid\nComponents: main\n")]),
            None
        );
    }
}
