//! System parameters that look like credentials. Any module may keep its token in `ir_config_parameter` under a name that only it knows, so a
//! copy begins without whatever looks like one: the value is emptied, which Odoo reads as "not set", and the row stays for a script that has a
//! value for copies.
//!
//! What is known of Odoo's own is in `rules.toml`. A project keeps others by name:
//!
//! ```toml
//! [neutralization]
//! keep_parameters = ["acme.public_key"]
//! ```

use std::collections::BTreeSet;

use serde::Deserialize;
use sqlx::{AssertSqlSafe, PgConnection};

use super::{
    rules::{Rules, Treatment, is_credential_of_parameter, is_measure, look_of_name},
    run_sql::lost,
    scripts::Script,
};
use crate::{
    api::FindingKind,
    error::{HostError, Result},
};

/// The section `[neutralization]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    keep_parameters: BTreeSet<String>,
}

impl Section {
    /// The names of parameters that stay as they are. What is known to be a credential cannot be among them.
    pub(super) fn kept(self, rules: &Rules) -> Result<BTreeSet<String>> {
        for key in &self.keep_parameters {
            if let Some(rule) = rules.parameter(key).filter(|rule| rule.treatment != Treatment::Keep) {
                return Err(HostError::rejected(format!(
                    "ocore.toml keeps the parameter {key}, which no copy keeps ({}); take it out of keep_parameters",
                    rule.why
                )));
            }
        }
        Ok(self.keep_parameters)
    }
}

/// A parameter that is filled and looks like something of ours. Its value stays in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) key: String,
    pub(super) kind: FindingKind,
    /// Its name says so; otherwise its value does.
    pub(super) by_name: bool,
}

/// Everything that looks like a credential, an endpoint or an address.
pub(super) async fn look(connection: &mut PgConnection) -> Result<Vec<Parameter>> {
    let query = format!(
        "select key::text, {}, value ~ '[a-z]://', lower(value) in ('true', 'false', 't', 'f', 'yes', 'no', 'none'), \
                value ~ '^[0-9.]+$'
           from public.ir_config_parameter where coalesce(value, '') <> '' order by key",
        is_credential_of_parameter("value"),
    );
    let rows: Vec<(String, bool, bool, bool, bool)> = sqlx::query_as(AssertSqlSafe(query)).fetch_all(connection).await.map_err(lost)?;
    let parameters = rows.into_iter().filter_map(|(key, is_credential, is_endpoint, is_choice, is_number)| {
        // `acme.token_lifetime = 3600` tells nobody anything.
        let by_name = look_of_name(&key).filter(|kind| *kind != FindingKind::Credential || !(is_choice || is_number && is_measure(&key)));
        let by_content = match (is_credential, is_endpoint) {
            (true, _) => Some(FindingKind::Credential),
            (false, true) => Some(FindingKind::Endpoint),
            (false, false) => None,
        };
        // A name that says less than the value does not hide it.
        let kind = if is_credential { by_content } else { by_name.or(by_content) }?;
        Some(Parameter { by_name: by_name == Some(kind), kind, key })
    });
    Ok(parameters.collect())
}

/// Keys of what looks like a credential, is filled, and of which neither the rules nor the project know that it does no harm.
async fn suspects(connection: &mut PgConnection, rules: &Rules, kept: &BTreeSet<String>) -> Result<Vec<String>> {
    let looks = look(connection).await?.into_iter().filter(|parameter| parameter.kind == FindingKind::Credential);
    Ok(looks.map(|parameter| parameter.key).filter(|key| rules.parameter(key).is_none() && !kept.contains(key)).collect())
}

/// Empties them; before the scripts of modules and project, which may have a value for copies.
pub(super) async fn empty_suspects(connection: &mut PgConnection, rules: &Rules, kept: &BTreeSet<String>) -> Result<usize> {
    let keys = suspects(connection, rules, kept).await?;
    sqlx::query("update public.ir_config_parameter set value = '' where key = any($1)")
        .bind(&keys)
        .execute(connection)
        .await
        .map_err(lost)?;
    Ok(keys.len())
}

/// Those that are filled though no script names them.
pub(super) async fn left(connection: &mut PgConnection, rules: &Rules, kept: &BTreeSet<String>, scripts: &[Script]) -> Result<Vec<String>> {
    let keys = suspects(connection, rules, kept).await?;
    Ok(keys.into_iter().filter(|key| !scripts.iter().any(|script| script.names_parameter(key))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(keys: &[&str]) -> Result<BTreeSet<String>> {
        Section { keep_parameters: keys.iter().map(|key| (*key).to_owned()).collect() }.kept(Rules::known().unwrap())
    }

    #[test]
    fn a_project_keeps_what_it_names_but_nothing_that_is_known_to_be_a_credential() {
        assert_eq!(kept(&["acme.public_key", "auth_signup.reset_password"]).unwrap().len(), 2);
        for key in ["google_gmail_client_secret", "database.secret"] {
            let error = kept(&["acme.public_key", key]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("keep_parameters"), "{error}");
        }
    }
}
