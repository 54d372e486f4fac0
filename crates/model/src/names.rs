//! Names that came from outside and were checked: a value of these types is safe to put into a path, a host name, an argument list.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A name that breaks its rule; the text says which rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{}` is not a valid {what}: {rule}", shorten(.value))]
pub struct InvalidName {
    pub what: &'static str,
    pub value: String,
    pub rule: &'static str,
}

fn shorten(value: &str) -> String {
    if value.chars().count() <= 60 {
        value.escape_debug().to_string()
    } else {
        format!("{}…", value.chars().take(60).collect::<String>().escape_debug())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(rule) => Err(InvalidName { what: $what, value: text.to_owned(), rule }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        crate::state::stored_as_text!($name);
    };
}

name! {
    /// An Odoo module's technical name: what Odoo itself accepts as a Python package and in `-i`/`-u`.
    ModuleName, "module name", check_module
}
name! {
    /// A branch name that Git accepts (git-check-ref-format) and that cannot be taken for an option.
    BranchName, "branch name", check_branch
}
name! {
    /// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
    CommitSha, "commit id", check_sha
}
name! {
    /// One DNS label: 3 to 50 of `a-z`, `0-9`, `-`, neither first nor last a hyphen. Organizations and instances have one.
    Slug, "slug", check_slug
}
name! {
    /// An Odoo series such as `19.0`.
    OdooVersion, "Odoo version", check_odoo_version
}

fn check_module(text: &str) -> Result<(), &'static str> {
    let mut characters = text.chars();
    match characters.next() {
        Some('a'..='z' | 'A'..='Z' | '_') => {}
        _ => return Err("it starts with a letter"),
    }
    if !characters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err("use letters, digits and underscores only");
    }
    if text.len() > 100 { Err("use at most 100 characters") } else { Ok(()) }
}

fn check_branch(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 255 {
        return Err("use at most 255 bytes");
    }
    if text.starts_with('-') {
        return Err("it may not start with a hyphen");
    }
    if text == "@" || text == "HEAD" || text.starts_with("refs/") {
        return Err("it is a word that Git itself uses");
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c)) {
        return Err("no spaces, control characters or any of ~ ^ : ? * [ \\");
    }
    if text.contains("..") || text.contains("@{") || text.contains("//") {
        return Err("no `..`, `@{` or `//`");
    }
    if text.ends_with('.') || text.starts_with('/') || text.ends_with('/') {
        return Err("it may not start with a slash, or end with a slash or a dot");
    }
    if text
        .split('/')
        .any(|part| part.starts_with('.') || std::path::Path::new(part).extension().is_some_and(|extension| extension == "lock"))
    {
        return Err("no part may start with a dot or end with `.lock`");
    }
    Ok(())
}

fn check_sha(text: &str) -> Result<(), &'static str> {
    let hexadecimal = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if hexadecimal && matches!(text.len(), 40 | 64) { Ok(()) } else { Err("give all 40 (or 64) hexadecimal digits in lower case") }
}

fn check_slug(text: &str) -> Result<(), &'static str> {
    if !(3..=50).contains(&text.len()) {
        return Err("use 3 to 50 characters");
    }
    if !text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err("use lower-case letters, digits and hyphens only");
    }
    if text.starts_with('-') || text.ends_with('-') { Err("it may not start or end with a hyphen") } else { Ok(()) }
}

fn check_odoo_version(text: &str) -> Result<(), &'static str> {
    let valid = text.split_once('.').is_some_and(|(major, minor)| {
        (1..=2).contains(&major.len())
            && major.bytes().all(|b| b.is_ascii_digit())
            && (1..=2).contains(&minor.len())
            && minor.bytes().all(|b| b.is_ascii_digit())
    });
    if valid { Ok(()) } else { Err("write it like 19.0") }
}

/// Makes a slug from free text: lower case, everything else than letters and digits becomes one hyphen, cut to `length`.
/// Text without any letter or digit gives `fallback`. What comes out is at least three characters long and always a valid [`Slug`].
pub fn slug_from(text: &str, length: usize, fallback: &str) -> Slug {
    let mut slug = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(length.clamp(3, 50));
    let slug = slug.trim_end_matches('-');
    let slug = match slug.len() {
        0 => fallback.to_owned(),
        1 | 2 => format!("{slug}-x"),
        _ => slug.to_owned(),
    };
    Slug(slug)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn branches_made_to_hurt_are_refused_and_ordinary_ones_are_not() {
        for bad in [
            "-x",
            "../",
            "a b",
            "a..b",
            "a~1",
            "x.lock",
            "a/.b",
            "/a",
            "a/",
            "a//b",
            "HEAD",
            "@",
            "refs/heads/x",
            "",
            "a\u{7}",
            "a\\b",
            "a:b",
            "a@{1}",
        ] {
            assert!(bad.parse::<BranchName>().is_err(), "{bad:?}");
        }
        for good in ["main", "feature/x", "a;b", "$(id)", "größe", "日本", "19.0-fix", "x".repeat(200).as_str()] {
            assert!(good.parse::<BranchName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn module_names_are_python_packages() {
        for bad in ["a-b", "a b", "1a", "", "a/b", "..", "a;b", "a,b"] {
            assert!(bad.parse::<ModuleName>().is_err(), "{bad:?}");
        }
        assert!("sale_management".parse::<ModuleName>().is_ok());
    }

    proptest! {
        #[test]
        fn every_text_gives_a_valid_slug(text in any::<String>(), length in 0usize..80) {
            let slug = slug_from(&text, length, "env");
            prop_assert!(slug.as_str().parse::<Slug>().is_ok(), "{slug}");
        }
    }
}
