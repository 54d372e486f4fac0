//! The report: each place that looked like a credential, an endpoint or an address, before or after, and what became of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    catalog::{ATTACHMENT, Catalog, Column, LARGE_OBJECTS, PARAMETER, SCHEMA, Seen, Sightings, VIEW},
    empty::{OdooModules, Stuck},
    rules::{Rules, Treatment},
    scripts::Script,
};
use crate::api::{Finding, FindingKind, FindingVerdict, ModuleCoverage};

/// All that a verdict rests on.
pub(super) struct Evidence<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) rules: &'a Rules,
    pub(super) odoo: OdooModules<'a>,
    /// What was there before anything was done.
    pub(super) before: &'a Sightings,
    /// What is there now.
    pub(super) after: &'a Sightings,
    /// All that ran.
    pub(super) scripts: &'a [Script],
    pub(super) masked: &'a BTreeSet<String>,
    /// Parameters that the project keeps.
    pub(super) kept: &'a BTreeSet<String>,
    /// Columns that could not be emptied.
    pub(super) stuck: &'a Stuck,
}

impl Evidence<'_> {
    /// What became of every place, by place.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let columns: BTreeMap<String, &Column> = self.catalog.columns.iter().map(|column| (column.place(), column)).collect();
        let places: BTreeSet<&String> = self.before.keys().chain(self.after.keys()).collect();
        places.into_iter().map(|place| self.judge(place, columns.get(place).copied())).collect()
    }

    fn judge(&self, place: &str, column: Option<&Column>) -> Finding {
        let (before, after) = (self.before.get(place), self.after.get(place));
        let rule = match (column, place.strip_prefix(PARAMETER)) {
            (Some(column), _) if column.is_odoos() => {
                self.rules.column(&column.table, &column.name, self.odoo.made(column)).map(|rule| (rule.treatment, rule.why.as_str()))
            }
            (Some(_), _) => None,
            (None, Some(key)) => self.rules.parameter(key).map(|rule| (rule.treatment, rule.why.as_str())),
            (None, None) => place
                .strip_prefix(ATTACHMENT)
                .and_then(|file| self.rules.attachment(file))
                .map(|rule| (Treatment::Empty, rule.why.as_str())),
        };
        let (verdict, reason) = match (after, rule) {
            _ if self.masked.contains(place) => (FindingVerdict::Handled, "masked by the project's rules".to_owned()),
            (None, Some((Treatment::Empty | Treatment::Set, why))) => (FindingVerdict::Handled, format!("emptied: {why}")),
            (None, _) => (FindingVerdict::Handled, self.emptied_by(place, column, before)),
            (Some(_), Some((Treatment::Set, why))) => (FindingVerdict::Handled, why.to_owned()),
            (Some(_), Some((Treatment::Keep, why))) => (FindingVerdict::Harmless, why.to_owned()),
            (Some(_), Some((Treatment::Empty, why))) if column.is_some() && !self.stuck.contains_key(place) => {
                (FindingVerdict::Handled, format!("a value that tells nothing: {why}"))
            }
            (Some(_), None) if self.is_kept(place) => (FindingVerdict::Harmless, "kept by the project's ocore.toml".to_owned()),
            (Some(seen), Some((Treatment::Empty, _)) | None) => match self.mentioned_by(place, column) {
                Some(script) => (FindingVerdict::Handled, format!("set by {}", script.name)),
                None => (FindingVerdict::Unknown, suspicion(place, seen).to_owned()),
            },
        };
        let seen = after.or(before);
        Finding {
            place: place.to_owned(),
            module: column.and_then(|column| column.module.clone()),
            kind: seen.map_or(FindingKind::Credential, |seen| seen.kind),
            verdict,
            rows: before.or(after).map_or(0, |seen| seen.rows),
            reason,
        }
    }

    fn is_kept(&self, place: &str) -> bool {
        place.strip_prefix(PARAMETER).is_some_and(|key| self.kept.contains(key))
    }

    fn emptied_by(&self, place: &str, column: Option<&Column>, before: Option<&Seen>) -> String {
        match (self.mentioned_by(place, column), before) {
            (Some(script), _) => format!("emptied by {}", script.name),
            (None, Some(seen)) if place.starts_with(PARAMETER) && seen.kind == FindingKind::Credential => {
                let why = if seen.by_name { "its name is one of a credential" } else { "its value looked like a credential" };
                format!("masked: {why}; neutralize.sql may set another value, and keep_parameters in ocore.toml keeps this one")
            }
            (None, _) => "emptied".to_owned(),
        }
    }

    /// A script that names the place: its author knew it.
    fn mentioned_by(&self, place: &str, column: Option<&Column>) -> Option<&Script> {
        self.scripts.iter().find(|script| match (column, place.strip_prefix(PARAMETER)) {
            (Some(column), _) => {
                let names = [Some(&column.table), Some(&column.name), (!column.is_odoos()).then_some(&column.schema)];
                names.into_iter().flatten().all(|name| has_word(&script.text, name))
            }
            (None, Some(key)) => script.names_parameter(key),
            (None, None) if place == LARGE_OBJECTS => has_word(&script.text, "lo_unlink"),
            (None, None) => {
                let name = [SCHEMA, VIEW].iter().find_map(|kind| place.strip_prefix(kind));
                name.and_then(|name| name.rsplit('.').next()).is_some_and(|name| has_word(&script.text, name))
            }
        })
    }
}

fn suspicion(place: &str, seen: &Seen) -> &'static str {
    if place.starts_with(SCHEMA) {
        return "tables in a schema that is not Odoo's, of which oCore does not know what they keep; say in the project's neutralize.sql what becomes of them";
    }
    if place.starts_with(VIEW) {
        return "a materialized view that could not be refreshed, and holds what was in the tables before; drop or refresh it in the project's neutralize.sql";
    }
    if place == LARGE_OBJECTS {
        return "large objects, of which oCore does not know what they keep; say in the project's neutralize.sql what becomes of them (`lo_unlink`)";
    }
    match (seen.by_name, seen.kind) {
        (true, FindingKind::Credential) => "its name is one of a credential; say in the project's neutralize.sql what becomes of it",
        (true, FindingKind::Endpoint) => "its name is one of an endpoint; say in the project's neutralize.sql what becomes of it",
        (_, FindingKind::Address) => "its name is one of an address; say in the project's neutralize.sql what becomes of it",
        (false, FindingKind::Credential) => "a value in it looks like a credential; say in the project's neutralize.sql what becomes of it",
        (false, FindingKind::Endpoint) => {
            "a value in it is the address of a service; say in the project's neutralize.sql what becomes of it"
        }
    }
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].chars().next_back().is_some_and(is_part) && !text[at + word.len()..].chars().next().is_some_and(is_part))
}

/// Each installed module with its script and what nobody has handled in its tables.
pub(super) fn modules(modules: &BTreeMap<String, bool>, findings: &[Finding]) -> Vec<ModuleCoverage> {
    let mut unknown: BTreeMap<&str, u32> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.verdict == FindingVerdict::Unknown) {
        if let Some(module) = &finding.module {
            *unknown.entry(module).or_default() += 1;
        }
    }
    modules
        .iter()
        .map(|(module, has_script)| ModuleCoverage {
            module: module.clone(),
            has_script: *has_script,
            unknown: unknown.get(module.as_str()).copied().unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(kind: FindingKind) -> Seen {
        Seen { kind, rows: 1, by_name: true }
    }

    #[test]
    fn what_is_gone_is_handled_what_nobody_knows_is_unknown_and_what_a_script_names_is_handled() {
        let key = |key: &str| format!("{PARAMETER}{key}");
        let before: Sightings =
            ["acme.gone", "acme.token", "acme.other_token", "acme.kept_token", "database.secret", "mail.catchall.domain_token"]
                .iter()
                .map(|name| (key(name), seen(FindingKind::Credential)))
                .collect();
        let mut after = before.clone();
        after.remove(&key("acme.gone"));
        let scripts = [Script {
            name: "neutralize.sql of the project".to_owned(),
            text: "update ir_config_parameter set value = 'x' where key in ('acme.other_token')".to_owned(),
        }];
        let evidence = Evidence {
            catalog: &Catalog::default(),
            rules: Rules::known().unwrap(),
            odoo: OdooModules(&BTreeSet::new()),
            before: &before,
            after: &after,
            scripts: &scripts,
            masked: &BTreeSet::new(),
            kept: &BTreeSet::from(["acme.kept_token".to_owned()]),
            stuck: &Stuck::new(),
        };
        let verdicts: Vec<(String, FindingVerdict)> =
            evidence.findings().into_iter().map(|finding| (finding.place, finding.verdict)).collect();
        assert!(evidence.findings()[0].reason.starts_with("masked: its name is one of a credential"), "{:?}", evidence.findings()[0]);
        assert_eq!(
            verdicts,
            vec![
                (key("acme.gone"), FindingVerdict::Handled),
                (key("acme.kept_token"), FindingVerdict::Harmless),
                (key("acme.other_token"), FindingVerdict::Handled),
                (key("acme.token"), FindingVerdict::Unknown),
                (key("database.secret"), FindingVerdict::Handled),
                (key("mail.catchall.domain_token"), FindingVerdict::Harmless),
            ]
        );
    }

    #[test]
    fn a_word_is_not_a_part_of_another() {
        assert!(has_word("set api_key = null", "api_key"));
        assert!(!has_word("set my_api_key = null", "api_key"));
        assert!(!has_word("set api_keys = null", "api_key"));
    }
}
