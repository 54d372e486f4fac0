//! Settings that must not be shown: printed, they say only that they are set.

use std::fmt;

use anyhow::{Result, anyhow};
use serde::Deserialize;
use url::Url;

const MASK: &str = "***";

/// A secret. Its `Debug` says whether there is one.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Hidden(String);

impl Hidden {
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", if self.0.is_empty() { "" } else { MASK })
    }
}

/// An address that may hold a password. Its `Debug` shows the address without it.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether whoever reads it learns a password. What cannot be read as an address may hold one.
    pub fn has_password(&self) -> bool {
        !self.0.is_empty() && self.masked() != self.0
    }

    fn masked(&self) -> String {
        let Ok(mut url) = Url::parse(&self.0) else { return MASK.to_owned() };
        let mut masked = false;
        if url.password().is_some() {
            masked = true;
            if url.set_password(Some(MASK)).is_err() {
                return MASK.to_owned();
            }
        }
        // `postgres:///ocore?host=…&password=…` is as good.
        if url.query_pairs().any(|(name, _)| is_secret_parameter(&name)) {
            masked = true;
            let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
            let shown = pairs.iter().map(|(name, value)| (name, if is_secret_parameter(name) { MASK } else { value.as_str() }));
            url.query_pairs_mut().clear().extend_pairs(shown);
        }
        if masked { url.into() } else { self.0.clone() }
    }
}

fn is_secret_parameter(name: &str) -> bool {
    name.to_ascii_lowercase().contains("password")
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", if self.0.is_empty() { String::new() } else { self.masked() })
    }
}

/// The settings in a configuration file's text that nobody else may know, by name. What comes from the environment is not in it.
pub fn secrets_in(text: &str) -> Result<Vec<&'static str>> {
    // The parser's own words quote the line, which may be the one with the secret.
    let table: toml::Table = toml::from_str(text).map_err(|error| anyhow!("{}", error.message()))?;
    let value = |section, name| {
        let section = entry(&table, section).and_then(toml::Value::as_table);
        section.and_then(|section| entry(section, name)).and_then(toml::Value::as_str).unwrap_or_default()
    };
    let found = [
        (!value("auth", "secret").is_empty(), "auth.secret"),
        (SecretUrl::new(value("database", "url")).has_password(), "the password in database.url"),
        (SecretUrl::new(value("mail", "relay_url")).has_password(), "the password in mail.relay_url"),
        (!value("metrics", "token").is_empty(), "metrics.token"),
    ];
    Ok(found.into_iter().filter(|(found, _)| *found).map(|(_, name)| name).collect())
}

fn entry<'table>(table: &'table toml::Table, wanted: &str) -> Option<&'table toml::Value> {
    table.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secrets_of_a_file_are_found_however_they_are_written() {
        let secrets = |text: &str| secrets_in(text).unwrap();
        assert!(
            secrets(
                "home = '/srv'
[database]
url = 'postgres://ocore@db/ocore'
[auth]
secret = ''"
            )
            .is_empty()
        );
        assert_eq!(secrets("auth.secret = 'x'"), ["auth.secret"]);
        assert_eq!(secrets("database = { url = 'postgres:///ocore?password=x' }"), ["the password in database.url"]);
        assert_eq!(
            secrets("[mail]\nrelay_url = 'smtp://a:b@c'\n[metrics]\ntoken = 'x'"),
            ["the password in mail.relay_url", "metrics.token"]
        );
        let error = secrets_in("[auth]\nsecret = hunter2").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Hidden("hunter2".to_owned())), r#""***""#);
        assert_eq!(format!("{:?}", Hidden(String::new())), r#""""#);
    }

    #[test]
    fn an_address_is_printed_without_its_password_wherever_that_stands() {
        for with in [
            "postgres://ocore:hunter2@db.internal/ocore",
            "postgres:///ocore?host=/run/postgresql&password=hunter2",
            "postgres://db/ocore?sslpassword=hunter2&sslmode=require",
            "smtp://mailer:hunter2@mail.example.com:587?tls=required",
            "not an address hunter2",
        ] {
            let url = SecretUrl::new(with);
            assert!(url.has_password(), "{with}");
            assert!(!format!("{url:?}").contains("hunter2"), "{url:?}");
        }
        for without in ["", "postgres://ocore@db.internal/ocore?sslmode=require", "smtp://mail.example.com:25"] {
            let url = SecretUrl::new(without);
            assert!(!url.has_password(), "{without}");
            assert_eq!(format!("{url:?}"), format!("{without:?}"));
        }
    }
}
