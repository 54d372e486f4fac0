//! What is known of places that hold a credential, an endpoint or an address: `rules.toml`, and what a name or a content looks like.

use std::sync::OnceLock;

use serde::Deserialize;

use crate::{
    api::FindingKind,
    error::{HostError, Result},
};

/// The list that people extend.
const RULES: &str = include_str!("rules.toml");

/// What becomes of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Treatment {
    /// It is emptied, and the check demands that it is.
    Empty,
    /// Odoo's neutralization or ours sets it.
    Set,
    /// It stays, and does no harm.
    Keep,
}

/// A rule for columns.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ColumnRule {
    table: String,
    columns: Vec<String>,
    #[serde(rename = "do")]
    pub(super) treatment: Treatment,
    /// Only for columns of modules that come with Odoo.
    #[serde(default)]
    from_odoo: bool,
    pub(super) why: String,
}

/// A rule for parameters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParameterRule {
    keys: Vec<String>,
    #[serde(rename = "do")]
    pub(super) treatment: Treatment,
    pub(super) why: String,
}

/// Binary fields that are kept as attachments, and are removed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachmentRule {
    pub(super) model: String,
    pub(super) fields: Vec<String>,
    pub(super) why: String,
}

/// All that is known.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    #[serde(rename = "column")]
    columns: Vec<ColumnRule>,
    #[serde(rename = "parameter")]
    parameters: Vec<ParameterRule>,
    #[serde(rename = "attachment")]
    pub(super) attachments: Vec<AttachmentRule>,
}

impl Rules {
    /// The list that this program was built with.
    pub(super) fn known() -> Result<&'static Self> {
        static KNOWN: OnceLock<std::result::Result<Rules, toml::de::Error>> = OnceLock::new();
        KNOWN.get_or_init(|| toml::from_str(RULES)).as_ref().map_err(|error| {
            HostError::machine_from(format!("the list of known credentials is damaged: {}", error.message()), error.clone())
        })
    }

    /// The rule for a column. `from_odoo`: it belongs to a module that comes with Odoo.
    pub(super) fn column(&self, table: &str, column: &str, from_odoo: bool) -> Option<&ColumnRule> {
        self.columns.iter().find(|rule| {
            (from_odoo || !rule.from_odoo) && fits(&rule.table, table) && rule.columns.iter().any(|pattern| fits(pattern, column))
        })
    }

    /// Why a file, `model.field`, is removed.
    pub(super) fn attachment(&self, file: &str) -> Option<&AttachmentRule> {
        self.attachments.iter().find(|rule| rule.fields.iter().any(|field| file == format!("{}.{field}", rule.model)))
    }

    /// The rule for a parameter.
    pub(super) fn parameter(&self, key: &str) -> Option<&ParameterRule> {
        self.parameters.iter().find(|rule| rule.keys.iter().any(|pattern| fits(pattern, key)))
    }
}

/// Whether a name fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            match rest.find(middle) {
                Some(at) => rest = &rest[at + middle.len()..],
                None => return false,
            }
        }
    }
    match last {
        Some(end) => rest.ends_with(end),
        None => rest.is_empty(),
    }
}

/// Credentials wherever they stand in a name.
const CREDENTIAL_PARTS: &[&str] = &["password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "hmac", "privatekey"];
/// Words of a name, or several in a row.
const CREDENTIAL_WORDS: &[&str] = &[
    "key",
    "keys",
    "pass",
    "pwd",
    "pin",
    "login",
    "username",
    "client_id",
    "pem",
    "pkcs12",
    "merchant",
    "access_code",
    "bearer",
    "signature_key",
];
const ENDPOINT_PARTS: &[&str] = &["webhook", "endpoint"];
const ENDPOINT_WORDS: &[&str] =
    &["url", "uri", "urls", "host", "hostname", "smtp", "imap", "pop3", "ftp", "sftp", "ldap", "server", "proxy", "ip", "address", "dsn"];
const ADDRESS_WORDS: &[&str] = &["email", "emails", "reply_to", "mail_to", "e_mail"];
/// Words after which `address` is a street, or which say that a name is about something else.
const PLACE_WORDS: &[&str] =
    &["street", "home", "private_address", "work_address", "partner_address", "address_format", "address_view", "delivery_address"];

/// What the name of a column or parameter looks like; `None` for nothing of ours.
pub(super) fn look_of_name(name: &str) -> Option<FindingKind> {
    let name = name.to_lowercase();
    let words: Vec<&str> = name.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let joined = format!("_{}_", words.join("_"));
    let has_word = |wanted: &[&str]| wanted.iter().any(|word| joined.contains(&format!("_{word}_")));
    let has_part = |wanted: &[&str]| wanted.iter().any(|part| name.contains(part));
    if has_part(CREDENTIAL_PARTS) {
        Some(FindingKind::Credential)
    } else if has_part(ENDPOINT_PARTS) {
        Some(FindingKind::Endpoint)
    } else if has_word(ADDRESS_WORDS) {
        Some(FindingKind::Address)
    } else if has_word(CREDENTIAL_WORDS) {
        Some(FindingKind::Credential)
    } else if has_word(ENDPOINT_WORDS) && !has_word(PLACE_WORDS) {
        Some(FindingKind::Endpoint)
    } else {
        None
    }
}

/// What of a value must be there before [`MARKED`] is worth a look: a simple expression is twenty times as fast, and most values are prose.
const MARKS: &str = r"-----BEGIN|eyJ|_live_|_test_|whsec_|AKIA|ASIA|gh[pousr]_|glpat-|xox|SG\.|AIza";
/// Credentials that somebody has marked as such, as regular expressions of PostgreSQL; each must hold no quote.
const MARKED: &[&str] = &[
    "-----BEGIN [A-Z ]*PRIVATE KEY",
    // A signed JSON token.
    r"\meyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.",
    // Prefixes that the issuers give their keys.
    r"\m(sk|pk|rk)_(live|test)_[A-Za-z0-9]{10,}",
    r"\mwhsec_[A-Za-z0-9]{10,}",
    r"\m(AKIA|ASIA)[0-9A-Z]{16}\M",
    r"\mgh[pousr]_[A-Za-z0-9]{30,}",
    r"\mglpat-[A-Za-z0-9_-]{18,}",
    r"\mxox[abeprs]-[A-Za-z0-9-]{10,}",
    r"\mSG\.[A-Za-z0-9_-]{16,}\.",
    r"\mAIza[0-9A-Za-z_-]{30,}",
];
/// A name and a password in an address.
const ADDRESS_WITH_PASSWORD: &str = "[a-z]://[^/ :@]+:[^/ @]+@";
const UUID: &str = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";
const ENDPOINT: &str = "^ *(https?|wss?|s?ftps?|smtps?|imaps?|ldaps?|ssh|redis|amqps?|postgres(ql)?|mysql)://";

/// SQL that is true when a value looks like a credential. `value` is SQL too, of type text and cheap: it stands there many times.
pub(super) fn is_credential(value: &str) -> String {
    let marked = any_of(MARKED);
    // Long and random: nothing but digits of base 16 or 64, of more than one kind.
    format!(
        "({value} ~ '{MARKS}' and {value} ~ {marked} \
          or {value} like '%://%' and {value} ~ '{ADDRESS_WITH_PASSWORD}' \
          or octet_length({value}) >= 24 and {value} !~ '[^0-9A-Za-z+/=_-]' \
             and (octet_length({value}) >= 32 and ({value} !~ '[^0-9a-f]' or {value} !~ '[^0-9A-F]') or {value} ~ '{UUID}' \
                  or {value} ~ '[0-9]' and {value} ~ '[a-z]' and {value} ~ '[A-Z]'))"
    )
}

/// SQL that is true when a value is the address of a service. `value` as in [`is_credential`].
pub(super) fn is_endpoint(value: &str) -> String {
    format!("({value} like '%://%' and {value} ~ '{ENDPOINT}')")
}

/// SQL that is true when a parameter's value looks like a credential. `value` as in [`is_credential`].
pub(super) fn is_credential_of_parameter(value: &str) -> String {
    format!("({} or {value} ~* {})", is_credential(value), any_of(PARAMETER_CONTENT))
}

/// A regular expression that any of these fits, as a literal of SQL.
fn any_of(alternatives: &[&str]) -> String {
    format!("'{}'", alternatives.iter().map(|pattern| format!("(?:{pattern})")).collect::<Vec<_>>().join("|"))
}

/// What values of parameters look like besides, in any case of letters: settings of a program in few words, which prose is not.
const PARAMETER_CONTENT: &[&str] = &[
    // A name alone in an address, as collectors of errors have it.
    "[a-z]://[^/ @]+@",
    // A field of a JSON document, of a connection string or of a query.
    r#""[a-z_.-]*(token|secret|passw(or)?d|pwd|api_?key|private_?key|credential)[a-z_.-]*" *: *"[^"]"#,
    r"(token|secret|passw(or)?d|pwd|api_?key|access_?key) *= *[^ ;&]",
    // Long and random in letters of one case.
    "^(?=.*[0-9])(?=.*[a-z])[a-z0-9]{20,}$",
];

/// Words that make a number under a name like a credential's a harmless one: `token_lifetime`, `password.minlength`.
const MEASURES: &[&str] = &[
    "length",
    "minlength",
    "size",
    "limit",
    "days",
    "hours",
    "hour",
    "minutes",
    "seconds",
    "ms",
    "lifetime",
    "validity",
    "expiration",
    "expiry",
    "timeout",
    "ttl",
    "count",
    "rounds",
    "max",
    "min",
    "interval",
    "age",
];

/// What a log of changes calls the values that it keeps.
const CHANGES: &[&str] = &["old", "new", "value", "data", "before", "after", "change", "changes", "changed", "row", "query", "content"];

/// What a column of a log of changes holds, whatever it is called: old values of everything, credentials too.
pub(super) fn look_of_change(table: &str, column: &str) -> Option<FindingKind> {
    let has = |name: &str, words: &[&str]| name.to_lowercase().split('_').any(|word| words.contains(&word));
    (table.to_lowercase().contains("audit") && has(column, CHANGES)).then_some(FindingKind::Credential)
}

/// Whether a name is one of a measure.
pub(super) fn is_measure(name: &str) -> bool {
    name.to_lowercase().split(|character: char| !character.is_alphanumeric()).any(|word| MEASURES.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name) in [("a", "a"), ("*", ""), ("*", "abc"), ("a*", "abc"), ("*c", "abc"), ("*b*", "abc"), ("a*b*c", "a-b-b-c")] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "ab"), ("*a", "ab"), ("b*", "ab"), ("a*a", "a"), ("*x*", "abc"), ("a*b*c", "a-c")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn the_list_can_be_read_and_the_first_rule_that_fits_counts() {
        let rules = Rules::known().unwrap();
        assert_eq!(rules.column("payment_provider", "stripe_secret_key", true).unwrap().treatment, Treatment::Empty);
        assert_eq!(rules.column("res_users", "password", true).unwrap().treatment, Treatment::Keep);
        assert_eq!(rules.column("sale_order", "access_token", true).unwrap().treatment, Treatment::Keep);
        assert!(rules.column("acme_connector", "access_token", false).is_none(), "a foreign module's token is not a link to a document");
        assert_eq!(rules.parameter("database.secret").unwrap().treatment, Treatment::Set);
        assert!(rules.parameter("acme.token").is_none());
    }

    #[test]
    fn names_look_like_what_they_hold() {
        let credential = Some(FindingKind::Credential);
        for name in ["password", "acme.api_token", "stripe_secret_key", "smtp_user_pass", "oauth_client_id", "api_key", "authToken", "pin"]
        {
            assert_eq!(look_of_name(name), credential, "{name}");
        }
        for name in ["web.base.url", "webhook_url", "smtp_host", "ldap_server", "report.url", "ip"] {
            assert_eq!(look_of_name(name), Some(FindingKind::Endpoint), "{name}");
        }
        assert_eq!(look_of_name("email_from"), Some(FindingKind::Address));
        for name in ["name", "keyboard", "description", "monkey", "curl", "shipping", "partner_address_id_x"] {
            assert!(look_of_name(name) != credential, "{name}");
        }
        assert_eq!(look_of_name("name"), None);
        for (name, expected) in
            [("acme.token_lifetime", true), ("password.minlength", true), ("acme.token", false), ("acme.ageless", false)]
        {
            assert_eq!(is_measure(name), expected, "{name}");
        }
    }
}
