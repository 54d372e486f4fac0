//! Which key an ssh host must show: that of a well-known forge from here, any other's as it was first seen.
//!
//! A project's known keys are kept as lines of OpenSSH's known_hosts format, one host a line. They stay when a repository is disconnected, so that
//! nobody comes in between by a disconnecting and connecting again; a changed key is taken only when a person accepts its fingerprint.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use sha2::{Digest as _, Sha256};

use super::address::Address;

/// Behind a key that a person accepted; it stands in for what a forge has published before.
const ACCEPTED: &str = "accepted";
/// The key's bytes are what a host's 4096-bit RSA key takes, and some.
const LONGEST_LINE: usize = 4096;
/// More hosts than submodules have.
const MOST_LINES: usize = 500;

/// As the forges publish them. github.com: "GitHub's SSH key fingerprints" in its documentation; gitlab.com: "SSH host keys fingerprints" in the
/// documentation of GitLab.com's settings; bitbucket.org: "Configure SSH and two-step verification" in Bitbucket Cloud's documentation; codeberg.org: "Verifying you're
/// connecting to Codeberg" in its documentation. The names after the first are the same servers at port 443.
const FORGES: [(&[&str], &str); 4] = [
    (&["github.com", "[ssh.github.com]:443"], "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"),
    (&["gitlab.com", "[altssh.gitlab.com]:443"], "AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf"),
    (&["bitbucket.org", "[altssh.bitbucket.org]:443"], "AAAAC3NzaC1lZDI1NTE5AAAAIIazEu89wgQZ4bqs3d63QSMzYVa0MuJ2e2gKTKqu+UUO"),
    (&["codeberg.org"], "AAAAC3NzaC1lZDI1NTE5AAAAIIVIC02vnjFyL+I4RHfvIGNtOgJMe769VTF1VR4EB3ZB"),
];

/// The name under which a host's key is kept, whatever address it is reached at.
pub(crate) fn alias(address: &Address) -> String {
    if address.port == 22 { address.host.clone() } else { format!("[{}]:{}", address.host, address.port) }
}

/// The keys of which a host must show one; none for a host that is seen for the first time.
pub(crate) fn expected(known: &str, alias: &str) -> Vec<String> {
    let own: Vec<String> = of_host(known, alias).map(str::to_owned).collect();
    let forge = FORGES.iter().find(|(names, _)| names.contains(&alias));
    match forge {
        // What was trusted at first sight, before the forge's key stood here, counts for nothing beside it.
        Some((_, key)) if !own.iter().any(|line| is_accepted(line)) => vec![format!("{alias} ssh-ed25519 {key}")],
        _ => own,
    }
}

fn of_host<'a>(known: &'a str, alias: &'a str) -> impl Iterator<Item = &'a str> {
    known.lines().filter(move |line| line.len() <= LONGEST_LINE && line.split(' ').next() == Some(alias))
}

fn is_accepted(line: &str) -> bool {
    line.split(' ').nth(3) == Some(ACCEPTED)
}

/// The known keys with those of one host that was seen for the first time. A host that is known keeps its keys, whatever was seen.
pub(crate) fn learn(known: &str, alias: &str, seen: &str) -> String {
    if !expected(known, alias).is_empty() || known.lines().count() >= MOST_LINES {
        return known.to_owned();
    }
    lines(known.lines().chain(of_host(seen, alias).filter(|line| fingerprint(line).is_some())))
}

/// The known keys with this one in the place of the host's others: a person has accepted it.
pub(crate) fn accept(known: &str, alias: &str, line: &str) -> String {
    let mut words = line.split(' ').skip(1);
    let (kind, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let accepted = format!("{alias} {kind} {key} {ACCEPTED}");
    let others = known.lines().filter(|line| line.split(' ').next() != Some(alias));
    lines(others.chain([accepted.as_str()]))
}

fn lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// A key as people compare it: `SHA256:` and what `ssh-keygen -l` shows. `None` for a line that has none.
pub(crate) fn fingerprint(line: &str) -> Option<String> {
    let key = STANDARD.decode(line.split(' ').nth(2)?).ok()?;
    Some(format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key))))
}

/// All of them, for a sentence.
pub(crate) fn fingerprints(lines: &[String]) -> String {
    let all: Vec<String> = lines.iter().filter_map(|line| fingerprint(line)).collect();
    all.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIEuBKrPzbawxA/k2g6NcyV5jmqwJ2s+zpgZGZ7tpLIcN";
    const OTHER: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIPwnM+mr+mJhlffRI80cW+IAMKR260E6gQfuhR/jTGkX";

    #[test]
    fn the_forges_keys_are_those_whose_fingerprints_they_publish() {
        let published = [
            ("github.com", "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"),
            ("gitlab.com", "SHA256:eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8"),
            ("bitbucket.org", "SHA256:ybgmFkzwOSotHTHLJgHO0QN8L0xErw6vd0VhFA9m3SM"),
            ("codeberg.org", "SHA256:mIlxA9k46MmM6qdJOdMnAQpzGxF4WIVVL+fj+wZbw0g"),
        ];
        for (host, fingerprint) in published {
            let lines = expected("", host);
            assert_eq!(fingerprints(&lines), fingerprint, "{host}");
        }
    }

    #[test]
    fn what_is_known_is_not_learnt_anew() {
        let first = format!("git.example.com ssh-ed25519 {KEY}\n");
        let known = learn("", "git.example.com", &first);
        assert_eq!(known, first);
        assert_eq!(learn(&known, "git.example.com", &format!("git.example.com ssh-ed25519 {OTHER}\n")), known);
        // Another kind of key is another key.
        assert_eq!(learn(&known, "git.example.com", &format!("git.example.com ssh-rsa {OTHER}\n")), known);
        // Nor does one host speak for others, or for all.
        assert_eq!(learn(&known, "other.example.com", &format!("* ssh-ed25519 {OTHER}\ngit.example.com ssh-ed25519 {OTHER}\n")), known);
        assert_eq!(learn("", "github.com", &format!("github.com ssh-ed25519 {OTHER}\n")), "", "a forge's key is known from the beginning");
    }

    #[test]
    fn a_key_that_a_person_accepted_stands_alone_also_for_a_forge() {
        let known = format!("github.com ssh-ed25519 {OTHER}\ngit.example.com ssh-ed25519 {KEY}\n");
        assert!(expected(&known, "github.com")[0].contains("IOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"), "first sight was long ago");
        let known = accept(&known, "github.com", &format!("github.com ssh-ed25519 {KEY}"));
        assert_eq!(expected(&known, "github.com"), [format!("github.com ssh-ed25519 {KEY} accepted")]);
        assert_eq!(expected(&known, "git.example.com").len(), 1);
    }
}
