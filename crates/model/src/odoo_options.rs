//! Options of Odoo itself: which a project sets (the section `[odoo]` of the `ocore.toml` at the root of its repository), and why it does not set
//! the others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::names::ModuleName;

/// What the value of an option is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Number,
    Text,
    Flag,
    List,
}

/// They concern nothing but what the project's own Odoo does within its limits.
const ALLOWED: &[(&str, Kind)] = &[
    ("csv_internal_sep", Kind::Text),
    ("default_productivity_apps", Kind::Flag),
    ("email_from", Kind::Text),
    ("from_filter", Kind::Text),
    ("import_file_maxbytes", Kind::Whole),
    ("import_file_timeout", Kind::Whole),
    ("import_url_regex", Kind::Text),
    ("limit_request", Kind::Whole),
    ("limit_time_real_cron", Kind::Whole),
    ("limit_time_worker_cron", Kind::Whole),
    ("log_handler", Kind::List),
    ("osv_memory_count_limit", Kind::Whole),
    ("reportgz", Kind::Flag),
    ("transient_age_limit", Kind::Number),
    ("websocket_keep_alive_timeout", Kind::Whole),
    ("websocket_rate_limit_burst", Kind::Whole),
    ("websocket_rate_limit_delay", Kind::Number),
];

/// Why the others are not a project's, by their beginnings; the first that fits counts.
const REASONS: &[(&str, &str)] = &[
    ("addons_path", "oCore finds the modules of the repository and of its submodules by itself"),
    ("upgrade_path", "put migration scripts into `migrations/` of their module, or into a Python package below `odoo/upgrade`"),
    ("pre_upgrade_scripts", "put migration scripts into `migrations/` of their module"),
    ("with", "whether a new database gets demo data is a setting of the project"),
    ("load_language", "activate languages in Odoo, or in the data of a module"),
    ("workers", INSTANCE),
    ("max_cron_threads", INSTANCE),
    ("limit_memory_", INSTANCE),
    ("limit_time_", INSTANCE),
    ("log_level", INSTANCE),
    ("db", DATABASE),
    ("list_db", DATABASE),
    ("pg_path", DATABASE),
    ("unaccent", DATABASE),
    ("admin_passwd", "the database manager is closed"),
    ("smtp_", "mail servers are set in Odoo; what is not production sends to a mailbox of its own"),
    ("http_", ADDRESS),
    ("xmlrpc", ADDRESS),
    ("gevent_port", ADDRESS),
    ("longpolling_port", ADDRESS),
    ("proxy_", ADDRESS),
    ("x_sendfile", ADDRESS),
    ("netrpc", ADDRESS),
    ("log", "oCore keeps the log, see `ocore logs`"),
    ("syslog", "oCore keeps the log, see `ocore logs`"),
    ("data_dir", PLACE),
    ("config", PLACE),
    ("rc", PLACE),
    ("save", PLACE),
    ("pidfile", PLACE),
    ("bin_path", PLACE),
    ("geoip_", PLACE),
    ("screen", PLACE),
    ("import_partial", PLACE),
    ("test_", "tests do not run in an Odoo that serves"),
    ("dev", "an Odoo that serves has no mode for development"),
    ("publisher_warranty_url", "it is not a project's to say where Odoo reports to"),
    ("init", PLAN),
    ("update", PLAN),
    ("reinit", PLAN),
    ("stop_after_init", PLAN),
    ("skip_auto_install", PLAN),
    ("overwrite_existing_translations", PLAN),
];
const INSTANCE: &str = "it is a setting of the instance";
const DATABASE: &str = "each instance has a database of its own, which oCore makes and connects";
const ADDRESS: &str = "oCore's edge is what stands in front of Odoo, and oCore gives the addresses and ports";
const PLACE: &str = "it names a place on the server, which oCore gives";
const PLAN: &str = "the plan of a deployment says what is installed and updated";

/// What a project says of its Odoo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OdooOptions {
    /// Loaded with the server, before any database, beside those that Odoo always loads so.
    pub server_wide_modules: Vec<ModuleName>,
    /// By Odoo's names, as the configuration file has them.
    pub options: BTreeMap<String, String>,
    /// Sections beside `[options]`, which modules of the project read.
    pub sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl OdooOptions {
    /// From the section, or one sentence about what is wrong with it.
    pub fn read(section: &BTreeMap<String, Value>) -> Result<Self, String> {
        let mut found = Self::default();
        for (name, value) in section {
            match name.as_str() {
                "server_wide_modules" => {
                    for module in strings(value).ok_or("server_wide_modules is a list of modules, like [\"queue_job\"]")? {
                        found.server_wide_modules.push(module.parse().map_err(|error| format!("server_wide_modules: {error}"))?);
                    }
                }
                "section" => found.sections = sections(value)?,
                _ => {
                    let Some((_, kind)) = ALLOWED.iter().find(|(allowed, _)| allowed == name) else {
                        return Err(match reason(name) {
                            Some(reason) => format!("`{name}` is not set there: {reason}"),
                            None => format!(
                                "`{name}` is none of the options that a project sets; these are server_wide_modules, {}, and sections for modules as \
                                 [odoo.section.NAME]",
                                names().join(", ")
                            ),
                        });
                    };
                    found.options.insert(name.clone(), text(*kind, value).ok_or_else(|| format!("`{name}` {}", kind.words()))?);
                }
            }
        }
        Ok(found)
    }
}

/// Whether a project sets this option of Odoo.
pub fn is_allowed(option: &str) -> bool {
    option == "server_wide_modules" || ALLOWED.iter().any(|(allowed, _)| *allowed == option)
}

/// Why a project does not set this option of Odoo; `None` for what is none, and for what it sets.
pub fn reason(option: &str) -> Option<&'static str> {
    let found = || REASONS.iter().find(|(start, _)| option.starts_with(start)).map(|(_, reason)| *reason);
    if OTHERS.contains(&option) { found() } else { None }
}

/// The others that Odoo knows, of any version; a variable `ODOO_…` sets each.
const OTHERS: &[&str] = &[
    "addons_path",
    "admin_passwd",
    "bin_path",
    "config",
    "data_dir",
    "db_app_name",
    "db_host",
    "db_maxconn",
    "db_maxconn_gevent",
    "db_name",
    "db_password",
    "db_port",
    "db_replica_host",
    "db_replica_port",
    "db_sslmode",
    "db_template",
    "db_user",
    "dbfilter",
    "dev",
    "dev_mode",
    "geoip_city_db",
    "geoip_country_db",
    "geoip_database",
    "gevent_port",
    "http_enable",
    "http_interface",
    "http_port",
    "import_partial",
    "init",
    "limit_memory_hard",
    "limit_memory_hard_gevent",
    "limit_memory_soft",
    "limit_memory_soft_gevent",
    "limit_time_cpu",
    "limit_time_real",
    "list_db",
    "load_language",
    "log_db",
    "log_db_level",
    "log_level",
    "logfile",
    "longpolling_port",
    "max_cron_threads",
    "overwrite_existing_translations",
    "pg_path",
    "pidfile",
    "pre_upgrade_scripts",
    "proxy_access_token",
    "proxy_mode",
    "publisher_warranty_url",
    "rc",
    "reinit",
    "save",
    "screencasts",
    "screenshots",
    "skip_auto_install",
    "smtp_password",
    "smtp_port",
    "smtp_server",
    "smtp_ssl",
    "smtp_ssl_certificate_filename",
    "smtp_ssl_private_key_filename",
    "smtp_user",
    "stop_after_init",
    "syslog",
    "test_enable",
    "test_file",
    "test_tags",
    "unaccent",
    "update",
    "upgrade_path",
    "with_demo",
    "without_demo",
    "workers",
    "x_sendfile",
];

/// Whether Odoo has an option of this name.
pub fn is_option(name: &str) -> bool {
    is_allowed(name) || OTHERS.contains(&name)
}

fn names() -> Vec<&'static str> {
    ALLOWED.iter().map(|(name, _)| *name).collect()
}

fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

fn text(kind: Kind, value: &Value) -> Option<String> {
    match kind {
        Kind::Whole => value.as_u64().map(|number| number.to_string()),
        Kind::Number => value.as_f64().filter(|number| *number >= 0.0).map(|number| number.to_string()),
        Kind::Text => value.as_str().filter(|text| !text.contains(char::is_control)).map(str::to_owned),
        Kind::Flag => value.as_bool().map(|flag| if flag { "True" } else { "False" }.to_owned()),
        Kind::List => strings(value).filter(|items| !items.iter().any(|item| item.contains(char::is_control))).map(|items| items.join(",")),
    }
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::Whole => "is a whole number",
            Self::Number => "is a number",
            Self::Text => "is a text of one line",
            Self::Flag => "is true or false",
            Self::List => "is a list of texts",
        }
    }
}

/// `[odoo.section.queue_job]`
fn sections(value: &Value) -> Result<BTreeMap<String, BTreeMap<String, String>>, String> {
    let wrong = || "section holds sections of their own, like [odoo.section.queue_job] with channels = \"root:4\"".to_owned();
    let plain = |name: &str| !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-.".contains(letter));
    let mut found = BTreeMap::new();
    for (name, entries) in value.as_object().ok_or_else(wrong)? {
        if name == "options" || !plain(name) {
            return Err(format!("`{name}` is no name for a section of a module"));
        }
        let mut section = BTreeMap::new();
        for (key, value) in entries.as_object().ok_or_else(wrong)? {
            let text = match value {
                Value::String(text) if !text.contains(char::is_control) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => if *flag { "True" } else { "False" }.to_owned(),
                _ => return Err(format!("`{key}` in [odoo.section.{name}] is a text of one line, a number, or true or false")),
            };
            if !plain(key) {
                return Err(format!("`{key}` in [odoo.section.{name}] is no name"));
            }
            section.insert(key.clone(), text);
        }
        found.insert(name.clone(), section);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<OdooOptions, String> {
        OdooOptions::read(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn what_a_project_sets_is_taken() {
        let options = read(json!({
            "server_wide_modules": ["base", "web", "beacon"], "limit_request": 100, "transient_age_limit": 1.5, "log_handler": ["a:DEBUG", ":INFO"],
            "section": { "queue_job": { "channels": "root:2", "port": 8069, "on": true } },
        }));
        let options = options.unwrap();
        assert_eq!(options.server_wide_modules.iter().map(ModuleName::as_str).collect::<Vec<_>>(), ["base", "web", "beacon"]);
        let written: Vec<(&str, &str)> = options.options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(written, [("limit_request", "100"), ("log_handler", "a:DEBUG,:INFO"), ("transient_age_limit", "1.5")]);
        assert_eq!(options.sections["queue_job"]["port"], "8069");
    }

    #[test]
    fn each_of_odoos_options_is_a_projects_or_has_a_reason() {
        for option in OTHERS {
            assert!(reason(option).is_some() && !is_allowed(option), "{option}");
        }
        assert!(reason("queue_job_channels").is_none() && reason("limit_request").is_none());
    }

    #[test]
    fn everything_else_is_answered() {
        for (value, part) in [
            (json!({ "workers": 4 }), "setting of the instance"),
            (json!({ "dbfilter": ".*" }), "a database of its own"),
            (json!({ "addons_path": "/x" }), "by itself"),
            (json!({ "data_dir": "/x" }), "a place on the server"),
            (json!({ "http_port": 80 }), "edge"),
            (json!({ "smtp_server": "x" }), "mailbox"),
            (json!({ "sever_wide_modules": [] }), "none of the options"),
            (json!({ "server_wide_modules": "web" }), "a list of modules"),
            (json!({ "server_wide_modules": ["../x"] }), "server_wide_modules: "),
            (json!({ "limit_request": "many" }), "is a whole number"),
            (json!({ "email_from": "a\naddons_path = /x" }), "one line"),
            (json!({ "section": { "options": {} } }), "no name for a section"),
            (json!({ "section": { "x]\n[options": {} } }), "no name for a section"),
            (json!({ "section": { "x": { "a": "b\nc" } } }), "one line"),
            (json!({ "section": { "x": 1 } }), "sections of their own"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
