//! The configuration file of one Odoo, generated for each start.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use ocore_model::{
    names::{ModuleName, OdooVersion},
    odoo_options::OdooOptions,
};
use uuid::Uuid;

use crate::{
    api::OdooSettings,
    error::{HostError, Result},
    local::{data_sets::ODOO_ROLE, durable, layout::CLUSTER_PORT, ledger::OsUser},
};

/// The one database of a data set. It has the name of its owner.
pub(super) const DATABASE: &str = ODOO_ROLE;

/// Connections that the workers of one Odoo may hold together; its cluster allows some more.
const CONNECTIONS: u16 = 100;

/// 19 of `19.0`.
fn major(version: &OdooVersion) -> u32 {
    version.as_str().split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default()
}

/// The option that loads demo data, or keeps it away. Up to Odoo 18 demo data came unless it was refused; since 19 it comes only when asked for.
pub(super) fn demo_option(version: &OdooVersion, with_demo: bool) -> Option<&'static str> {
    match (major(version) >= 19, with_demo) {
        (true, true) => Some("--with-demo"),
        (false, false) => Some("--without-demo=all"),
        _ => None,
    }
}

/// What differs between two Odoos.
#[derive(Debug, Clone)]
pub(super) struct OdooConfig<'a> {
    pub(super) version: &'a OdooVersion,
    pub(super) addons_path: Vec<PathBuf>,
    pub(super) data_dir: PathBuf,
    pub(super) socket_directory: PathBuf,
    pub(super) settings: &'a OdooSettings,
    /// What the project sets itself.
    pub(super) project: &'a OdooOptions,
    /// `None` for a run that ends by itself: no HTTP, no workers, no crons, and the log on standard error.
    pub(super) serve: Option<Serve>,
}

/// How a serving Odoo is reached, and where it logs.
#[derive(Debug, Clone)]
pub(super) struct Serve {
    pub(super) http: SocketAddr,
    /// Present when there are workers.
    pub(super) websocket: Option<SocketAddr>,
    pub(super) log: PathBuf,
    /// The mail catcher; `None` in production, whose mail goes where its database says.
    pub(super) mail: Option<SocketAddr>,
}

impl OdooConfig<'_> {
    /// The file's text. `admin_password` guards the database manager, which is closed anyway; nobody ever learns it.
    pub(super) fn text(&self, admin_password: &str) -> String {
        let settings = self.settings;
        let mut options: Vec<(&str, String)> = vec![
            ("admin_passwd", admin_password.to_owned()),
            ("data_dir", self.data_dir.display().to_string()),
            ("db_host", self.socket_directory.display().to_string()),
            ("db_port", CLUSTER_PORT.to_string()),
            ("db_user", ODOO_ROLE.to_owned()),
            ("db_name", DATABASE.to_owned()),
            ("dbfilter", format!("^{DATABASE}$")),
            ("list_db", "False".to_owned()),
            ("log_level", settings.log_level.clone()),
            ("limit_memory_soft", settings.limit_memory_soft.to_string()),
            ("limit_memory_hard", settings.limit_memory_hard.to_string()),
        ];
        if !self.addons_path.is_empty() {
            let addons: Vec<String> = self.addons_path.iter().map(|path| path.display().to_string()).collect();
            options.push(("addons_path", addons.join(",")));
        }
        match &self.serve {
            Some(serve) => {
                options.extend([
                    ("proxy_mode", "True".to_owned()),
                    ("http_interface", serve.http.ip().to_string()),
                    ("http_port", serve.http.port().to_string()),
                    ("logfile", serve.log.display().to_string()),
                    ("workers", settings.workers.to_string()),
                    ("max_cron_threads", settings.max_cron_threads.to_string()),
                    ("limit_time_cpu", settings.limit_time_cpu.to_string()),
                    ("limit_time_real", settings.limit_time_real.to_string()),
                ]);
                if let Some(mail) = serve.mail {
                    // For a database without a server of its own; the catcher is the only one in those that have some.
                    options.extend([
                        ("smtp_server", mail.ip().to_string()),
                        ("smtp_port", mail.port().to_string()),
                        ("smtp_ssl", "False".to_owned()),
                        ("smtp_user", "False".to_owned()),
                        ("smtp_password", "False".to_owned()),
                    ]);
                }
                if let Some(websocket) = serve.websocket {
                    let name = if major(self.version) >= 16 { "gevent_port" } else { "longpolling_port" };
                    options.push((name, websocket.port().to_string()));
                    // Each worker has a pool of its own, and all of them share one cluster.
                    options
                        .push(("db_maxconn", (CONNECTIONS / (settings.workers + settings.max_cron_threads + 1)).clamp(4, 32).to_string()));
                }
            }
            None => options.extend([("workers", "0".to_owned()), ("max_cron_threads", "0".to_owned())]),
        }
        if !self.project.server_wide_modules.is_empty() {
            options.push(("server_wide_modules", server_wide(self.version, &self.project.server_wide_modules)));
        }
        options.extend(self.project.options.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let mut text = section("options", options.iter().map(|(name, value)| (*name, value.as_str())));
        for (name, entries) in &self.project.sections {
            text.push('\n');
            text.push_str(&section(name, entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))));
        }
        text
    }

    /// Writes the file so that only root and this user can read it, and nobody but root can change it.
    pub(super) fn write(&self, path: &Path, reader: &OsUser) -> Result<()> {
        let password = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let write = || -> std::io::Result<()> {
            durable::write(path, self.text(&password).as_bytes())?;
            chown(path, Some(0), Some(reader.uid))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o440))
        };
        write().map_err(|error| HostError::machine_from(format!("{} could not be written: {error}", path.display()), error))
    }
}

fn section<'a>(name: &str, entries: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let lines = entries.map(|(name, value)| format!("{} = {}\n", one_line(name), one_line(value)));
    std::iter::once(format!("[{}]\n", one_line(name))).chain(lines).collect()
}

/// Those that Odoo loads with the server by itself, and these.
fn server_wide(version: &OdooVersion, modules: &[ModuleName]) -> String {
    let usual: &[&str] = if major(version) >= 19 { &["base", "rpc", "web"] } else { &["base", "web"] };
    let more = modules.iter().map(ModuleName::as_str).filter(|module| !usual.contains(module));
    usual.iter().copied().chain(more).collect::<Vec<_>>().join(",")
}

/// A value ends with its line; what would begin another one is left out.
fn one_line(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serving_odoo_is_closed_to_all_but_the_edge_and_has_no_database_manager() {
        let settings = OdooSettings { workers: 2, log_level: "info\naddons_path = /tmp".to_owned(), ..OdooSettings::default() };
        let version = "19.0".parse().unwrap();
        let config = OdooConfig {
            version: &version,
            addons_path: vec!["/pool/releases/1/source".into(), "/pool/releases/1/source/libs".into()],
            data_dir: "/pool/data".into(),
            socket_directory: "/run/x".into(),
            settings: &settings,
            project: &OdooOptions::default(),
            serve: Some(Serve {
                http: ([127, 0, 0, 1], 20_000).into(),
                websocket: Some(([127, 0, 0, 1], 20_001).into()),
                log: "/pool/log/odoo.log".into(),
                mail: Some(([127, 0, 0, 1], 20_004).into()),
            }),
        };
        insta::assert_snapshot!(config.text("secret"));
    }

    #[test]
    fn a_run_that_ends_by_itself_has_neither_workers_nor_crons() {
        let settings = OdooSettings { workers: 2, ..OdooSettings::default() };
        let version = "19.0".parse().unwrap();
        let config = OdooConfig {
            version: &version,
            addons_path: Vec::new(),
            data_dir: "/d".into(),
            socket_directory: "/s".into(),
            settings: &settings,
            project: &OdooOptions::default(),
            serve: None,
        };
        let text = config.text("secret");
        assert!(text.contains("workers = 0\nmax_cron_threads = 0\n"), "{text}");
        assert!(!text.contains("addons_path") && !text.contains("logfile"), "{text}");
    }

    #[test]
    fn what_the_project_sets_stands_beside_what_ocore_sets() {
        let (settings, version) = (OdooSettings::default(), "19.0".parse().unwrap());
        let project = OdooOptions {
            server_wide_modules: ["web", "beacon", "queue_job"].iter().map(|name| name.parse().unwrap()).collect(),
            options: [("limit_request".to_owned(), "9".to_owned())].into(),
            sections: [("beacon".to_owned(), [("channels".to_owned(), "root:2".to_owned())].into())].into(),
        };
        let config = OdooConfig {
            version: &version,
            addons_path: Vec::new(),
            data_dir: "/d".into(),
            socket_directory: "/s".into(),
            settings: &settings,
            project: &project,
            serve: None,
        };
        let text = config.text("secret");
        assert!(text.contains("\nserver_wide_modules = base,rpc,web,beacon,queue_job\nlimit_request = 9\n"), "{text}");
        assert!(text.ends_with("\n\n[beacon]\nchannels = root:2\n"), "{text}");
        assert_eq!(server_wide(&"17.0".parse().unwrap(), &project.server_wide_modules), "base,web,beacon,queue_job");
    }

    #[test]
    fn demo_data_comes_only_when_it_is_asked_for_in_any_version() {
        let option = |version: &str, with_demo| demo_option(&version.parse().unwrap(), with_demo);
        assert_eq!((option("19.0", true), option("19.0", false)), (Some("--with-demo"), None));
        assert_eq!((option("17.0", true), option("17.0", false)), (None, Some("--without-demo=all")));
    }
}
