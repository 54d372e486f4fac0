//! Where a copy's Odoo would send mail, by asking it.
//!
//! A module may take the settings of mail servers from elsewhere than the database: from files or variables of an environment, as computed fields (OCA's
//! `mail_environment`), or in code of its own. Then the rows say nothing. So where a module that is not Odoo's has a hand in them, Odoo itself is asked, with
//! the code of the release, the variables of the environment and no network.

use std::net::SocketAddr;

use serde::Deserialize;
use sqlx::PgConnection;

use super::{empty::OdooModules, facts::fact, run_sql::lost};
use crate::{
    api::{Fact, Neutralize, OdooSettings, Progress},
    error::{HostError, Result},
    local::{
        LocalHost,
        cluster::Cluster,
        data_sets::ODOO_ROLE,
        fence::Claim,
        layout::{Layout, Unit},
        odoo::{command, config::OdooConfig},
        private::Private,
        process::run_recorded,
    },
};

const ASK: &str = include_str!("ask_mail_servers.py");
const MARK: &str = "ocore-mail-servers ";
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_mins(10);
const EXCERPT_LINES: usize = 40;
const SHOWN: usize = 5;

/// What Odoo did when it was asked to send mail.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    /// Hosts and ports that it connected to.
    asked: Vec<(String, u16)>,
    /// What went another way.
    said: Vec<String>,
}

impl Answer {
    fn strangers(&self, catcher: SocketAddr) -> Vec<String> {
        let strangers = self.asked.iter().filter(|(host, port)| *host != catcher.ip().to_string() || *port != catcher.port());
        strangers.map(|(host, port)| format!("{}:{port}", host.escape_debug())).chain(self.said.iter().cloned()).collect()
    }
}

/// What is known by asking.
#[derive(Debug)]
pub(super) struct Asked {
    modules: Vec<String>,
    /// Where mail would go that must not.
    strangers: Vec<String>,
    /// No server of the database is active; Odoo's configuration names the catcher.
    pub(super) by_configuration: bool,
}

impl Asked {
    pub(super) fn fact(&self) -> Fact {
        let modules = self.modules.join(", ");
        let statement = if self.strangers.is_empty() {
            format!(
                "Odoo was asked, since {modules} changes its mail servers: mail goes to the environment's mail catcher and nowhere else."
            )
        } else {
            format!(
                "Odoo was asked, since {modules} changes its mail servers, and would send mail to {}: it takes them from elsewhere than the database; give them \
                 values for copies in the environment's variables, or in neutralize.py.",
                self.strangers.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ")
            )
        };
        fact("mail_servers_asked", self.strangers.is_empty(), statement)
    }
}

/// Modules that are not Odoo's and extend the model of outgoing mail servers.
async fn strange_modules(connection: &mut PgConnection, odoo: &OdooModules<'_>) -> Result<Vec<String>> {
    let modules: Vec<String> = sqlx::query_scalar(
        "select distinct d.module::text from public.ir_model_data d join public.ir_model m on m.id = d.res_id
          where d.model = 'ir.model' and m.model = 'ir.mail_server' order by 1",
    )
    .fetch_all(connection)
    .await
    .map_err(lost)?;
    Ok(modules.into_iter().filter(|module| !odoo.0.contains(module)).collect())
}

impl LocalHost {
    /// `None` when the rows tell all. Where computed settings lead elsewhere, the servers of the database are switched off, and Odoo's configuration counts.
    pub(super) async fn ask_for_mail_servers(
        &self,
        claim: &Claim,
        request: &Neutralize,
        cluster: &Cluster,
        odoo: &OdooModules<'_>,
        progress: &Progress,
    ) -> Result<Option<Asked>> {
        let mut connection = cluster.connect_as_owner().await?;
        let modules = strange_modules(&mut connection, odoo).await?;
        if modules.is_empty() {
            return Ok(None);
        }
        progress.log.line(&format!("Asking Odoo where it would send mail, since {} changes its mail servers.", modules.join(", ")));
        let strangers = self.ask(claim, request, cluster, progress).await?.strangers(request.mail);
        if strangers.is_empty() {
            return Ok(Some(Asked { modules, strangers, by_configuration: false }));
        }
        progress
            .log
            .line("It would send it elsewhere than to the mail catcher; without any server in the database, its configuration counts.");
        sqlx::query("update public.ir_mail_server set active = false where active is distinct from false")
            .execute(&mut connection)
            .await
            .map_err(lost)?;
        let strangers = self.ask(claim, request, cluster, progress).await?.strangers(request.mail);
        Ok(Some(Asked { modules, strangers, by_configuration: true }))
    }

    async fn ask(&self, claim: &Claim, request: &Neutralize, cluster: &Cluster, progress: &Progress) -> Result<Answer> {
        let (instance, data_set) = (claim.instance, request.data_set.id());
        let (record, distribution) = self.runnable(&request.release).await?;
        let user = self.allocation(instance).await?.odoo;
        let settings = OdooSettings { env_vars: request.env_vars.clone(), ..OdooSettings::default() };
        let config = self.layout.instance(instance).join("odoo-run.conf");
        OdooConfig {
            version: &record.release.odoo_version,
            addons_path: self.addons_path(&record, &distribution)?,
            data_dir: self.layout.data_dir(instance, data_set),
            socket_directory: cluster.socket_directory.clone(),
            settings: &settings,
            project: &self.project_options(claim, data_set, &record, None).await?,
            serve: None,
        }
        .write(&config, &user)?;
        claim.check()?;
        let unit = Unit::Run(claim.fence.operation);
        let program = command::odoo(&distribution, &record, &user, &settings, &[])
            .arg("shell")
            .arg("--config")
            .arg(&config)
            .args(["--database", ODOO_ROLE, "--no-http", "--smtp", &request.mail.ip().to_string()])
            .arg(format!("--smtp-port={}", request.mail.port()))
            .stdin(ASK)
            .without_network()
            .private(&Private::Fleeting)
            .group(self.prepare_run(instance, claim.fence.operation)?)
            .time_limit(TIME_LIMIT)
            .cancel(progress.cancel.clone());
        let finished = run_recorded(program, &self.layout.record(instance, unit), &Layout::mark(instance, unit), Some(data_set)).await?;
        let said = finished.stdout_text();
        if let Some(answer) =
            said.lines().rev().find_map(|line| line.strip_prefix(MARK)).and_then(|answer| serde_json::from_str(answer).ok())
        {
            return Ok(answer);
        }
        let output = finished.stderr_text();
        let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        Err(HostError::Rejected {
            summary: format!(
                "Odoo could not be asked where it would send mail ({}): {}",
                finished.status,
                lines.last().map_or("it said nothing", |line| line.trim())
            ),
            excerpt: lines[lines.len().saturating_sub(EXCERPT_LINES)..].join("\n"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_not_the_catcher_is_a_stranger() {
        let catcher = ([127, 0, 0, 1], 2525).into();
        let answer: Answer =
            serde_json::from_str(r#"{"asked": [["127.0.0.1", 2525], ["smtp.shop.example", 2525], ["127.0.0.1", 25]], "said": ["x"]}"#)
                .unwrap();
        assert_eq!(answer.strangers(catcher), ["smtp.shop.example:2525", "127.0.0.1:25", "x"]);
        let asked = Asked { modules: vec!["acme".to_owned()], strangers: answer.strangers(catcher), by_configuration: true };
        assert!(
            !asked.fact().holds
                && asked.fact().statement.contains("acme changes its mail servers, and would send mail to smtp.shop.example:2525")
        );
    }
}
