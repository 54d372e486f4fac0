//! Quarantine: from a raw copy to a harmless one.
//!
//! The order is the promise. Every installed module must be in the release; then, in one transaction, Odoo's own neutralization and ours; then
//! what the project adds; then the check, which reads the database as it is and trusts nothing of what was done. Only when every fact holds is
//! the copy's standing changed. All SQL, the project's and ours, runs as the role of Odoo; all programs run as its user and without a network.
//!
//! Odoo's scripts are run here and not by `odoo neutralize`: that one skips a module that it does not find, does not say whose script failed,
//! and could not share a transaction with ours.
//!
//! A copy that a person's input has kept from being made harmless is set [`aside`], where it can be [`inspect`]ed.

mod aside;
mod catalog;
mod coverage;
mod empty;
mod facts;
mod hook;
mod inspect;
mod mail_servers;
mod masking;
mod parameters;
mod quiet;
mod rules;
mod run_sql;
mod scripts;
mod settings;
mod views;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ocore_model::ids::{DataSetId, InstanceId};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use self::{
    catalog::{Seen, Sightings, VIEW},
    coverage::Evidence,
    empty::{OdooModules, Stuck},
    facts::fact,
    hook::Hook,
    mail_servers::Asked,
    masking::Masking,
    rules::Rules,
    run_sql::lost,
    scripts::{ModuleScripts, ProjectScripts, Script},
    settings::ProjectSettings,
};
use super::{LocalHost, cluster::Cluster, copy, durable, fence::Claim, odoo::administrator};
use crate::{
    api::{Fact, Finding, FindingKind, FindingVerdict, NeutralizationReport, Neutralize, Neutralized, Progress, Standing},
    error::{HostError, Result},
};

/// Places that a sentence names.
const SHOWN: usize = 10;
const OWN: &str = include_str!("own.sql");

/// What is new in this copy.
struct Identity {
    secret: String,
    uuid: String,
}

/// What became of it.
#[derive(Default)]
struct Done {
    /// Columns that the project's rules have masked.
    masked: BTreeSet<String>,
    stuck: Stuck,
    /// Materialized views that hold what was there before.
    stale: Vec<String>,
    /// Of mail servers, where the rows do not tell all.
    asked: Option<Asked>,
}

/// What is known before the first change.
struct Ground {
    rules: &'static Rules,
    modules: ModuleScripts,
    project: ProjectScripts,
    masking: Masking,
    /// Parameters that the project keeps though they look like credentials.
    kept: BTreeSet<String>,
    odoo_modules: BTreeSet<String>,
    before: Sightings,
}

impl LocalHost {
    /// The whole way. May run again on the same copy; what an earlier run has done does no harm.
    pub(super) async fn make_harmless(&self, claim: &Claim, request: &Neutralize, progress: &Progress) -> Result<Neutralized> {
        let (instance, data_set) = (claim.instance, request.data_set.id());
        match self.standing_of(instance, data_set)? {
            Standing::Own => {
                return Err(HostError::rejected("these are the environment's own data and no copy of another one's; nothing was changed"));
            }
            // Until the check has passed again.
            Standing::Neutralized => self.mark_raw(claim, data_set)?,
            Standing::Raw => {}
        }
        // What an earlier run has found does not tell why this one fails.
        forget_note(&self.findings_path(instance, data_set))?;
        self.require_isolation().await?;
        self.stop_users_of(instance, data_set).await?;
        let (_, distribution) = self.runnable(&request.release).await?;
        let hash = self.hash_password(&distribution, Some(&request.admin_password), progress);
        let work = self.neutralize_database(claim, request, progress);
        let (hash, (cluster, ground, identity, done)) = tokio::try_join!(hash, work)?;
        if let Some(hash) = hash {
            administrator::set_password(&cluster, &hash).await?;
        }
        claim.check()?;
        let report = self.prove(instance, request, &cluster, ground, &identity, &done).await?;
        let failed: Vec<&Fact> = report.facts.iter().filter(|fact| !fact.holds).collect();
        if !failed.is_empty() {
            durable::write_fleeting_json(&self.findings_path(instance, data_set), &report)?;
            return Err(not_harmless(&failed));
        }
        let data_set = self.mark_neutralized(claim, data_set)?;
        forget_note(&self.sightings_path(instance, data_set.id()))?;
        progress.log.line(&tell(&report));
        Ok(Neutralized { data_set, report })
    }

    /// Everything that changes the copy.
    async fn neutralize_database(
        &self,
        claim: &Claim,
        request: &Neutralize,
        progress: &Progress,
    ) -> Result<(Cluster, Ground, Identity, Done)> {
        let (instance, data_set) = (claim.instance, request.data_set.id());
        let cluster = self.run_cluster(instance, data_set).await?;
        let mut connection = cluster.connect_as_owner().await?;
        let ground = self.survey(claim, request, &mut connection).await?;
        let identity = Identity { secret: Uuid::new_v4().to_string(), uuid: Uuid::new_v4().to_string() };
        claim.check()?;

        let scripts = &ground.modules.scripts;
        progress.log.line(&format!("Odoo's neutralization: {} of {} modules have a script.", scripts.len(), ground.modules.modules.len()));
        let mut transaction = connection.begin().await.map_err(lost)?;
        let quiet = quiet::silence(&mut transaction).await?;
        if quiet.count() > 0 {
            progress.log.line(&format!("{} triggers and rules of the database stand still meanwhile.", quiet.count()));
        }
        // First, so that the scripts may have values for copies.
        let emptied = parameters::empty_suspects(&mut transaction, ground.rules, &ground.kept).await?;
        if emptied > 0 {
            progress.log.line(&format!("Masked {emptied} system parameters that look like credentials; the report names them."));
        }
        for script in scripts {
            run_sql::run(&mut transaction, script, &progress.cancel).await?;
        }
        progress.log.line("oCore's own: identity, address, mail, logins, payments, connectors, what waits to be sent.");
        tell_settings(&mut transaction, request, &identity).await?;
        run_sql::run(&mut transaction, &own_script(), &progress.cancel).await?;
        let catalog = catalog::read(&mut transaction).await?;
        let stuck = empty::empty(&mut transaction, &catalog, ground.rules, &OdooModules(&ground.odoo_modules)).await?;
        administrator::let_in(&mut transaction).await.map_err(lost)?;
        let mut done = Done { stuck, ..Done::default() };
        quiet.end(&mut transaction).await?;
        transaction.commit().await.map_err(lost)?;
        copy::remove(&self.sessions(instance, data_set)).await?;

        claim.check()?;
        if let Some(script) = &ground.project.sql {
            progress.log.line("Running the project's neutralize.sql.");
            run_sql::run_together(&mut connection, std::slice::from_ref(script), &progress.cancel).await?;
        }
        drop(connection);
        if let Some((path, _)) = &ground.project.hook {
            claim.check()?;
            let (record, _) = self.runnable(&request.release).await?;
            let user = self.allocation(instance).await?.odoo;
            let hook = Hook { path, record: &record, user: &user, cluster: &cluster, data_set, env_vars: &request.env_vars };
            self.run_hook(claim, hook, progress).await?;
        }
        if ground.masking.is_wanted() {
            claim.check()?;
            progress.log.line("Masking personal data.");
            let key = masking::key(&self.layout.state()).await?;
            let mut connection = cluster.connect_as_owner().await?;
            let apply = ground.masking.apply(&mut connection, &key);
            tokio::select! {
                biased;
                () = progress.cancel.cancelled() => return Err(HostError::Cancelled),
                outcome = apply => done.masked = outcome?,
            }
        }
        claim.check()?;
        done.asked = self.ask_for_mail_servers(claim, request, &cluster, &OdooModules(&ground.odoo_modules), progress).await?;
        let mut connection = cluster.connect_as_owner().await?;
        tokio::select! {
            biased;
            () = progress.cancel.cancelled() => return Err(HostError::Cancelled),
            stale = views::refresh(&mut connection, progress) => done.stale = stale?,
        }
        Ok((cluster, ground, identity, done))
    }

    /// Reads what there is, and refuses what could not be made harmless, before anything is changed.
    async fn survey(&self, claim: &Claim, request: &Neutralize, connection: &mut PgConnection) -> Result<Ground> {
        let (instance, data_set) = (claim.instance, request.data_set.id());
        let (record, distribution) = self.runnable(&request.release).await?;
        let installed = self.modules_in_database(claim, data_set).await?;
        if installed.is_empty() {
            return Err(HostError::rejected("the copied database holds no Odoo, so it cannot be neutralized"));
        }
        let modules = self.module_scripts(&installed, &record, &distribution)?;
        let project = self.project_scripts(&request.release)?;
        let settings = ProjectSettings::read(project.settings.as_deref())?;
        let kept = settings.neutralization.kept(Rules::known()?)?;
        let masking = Masking::of_project(settings.masking)?;
        // What the first run has seen counts also for the next ones, which find it gone.
        let path = self.sightings_path(instance, data_set);
        let known: Option<Sightings> = durable::read_json(&path)?;
        let before = if let Some(before) = known {
            before
        } else {
            let before = catalog::read(connection).await?.look(connection, &Rules::known()?.attachments).await?;
            durable::write_fleeting_json(&path, &before)?;
            before
        };
        let odoo_modules = distribution.distribution.modules.iter().map(ToString::to_string).collect();
        Ok(Ground { rules: Rules::known()?, modules, project, masking, kept, odoo_modules, before })
    }

    /// The check and the report, over a connection of their own in which nothing is called that the database brings along.
    async fn prove(
        &self,
        instance: InstanceId,
        request: &Neutralize,
        cluster: &Cluster,
        ground: Ground,
        identity: &Identity,
        done: &Done,
    ) -> Result<NeutralizationReport> {
        let mut connection = cluster.connect_as_owner().await?;
        sqlx::query("select set_config('search_path', 'pg_catalog', false)").execute(&mut connection).await.map_err(lost)?;
        tell_settings(&mut connection, request, identity).await?;
        let by_configuration = done.asked.as_ref().is_some_and(|asked| asked.by_configuration);
        let mut facts = facts::read(&mut connection, by_configuration).await?;
        facts.extend(done.asked.as_ref().map(Asked::fact));
        let catalog = catalog::read(&mut connection).await?;
        let odoo = OdooModules(&ground.odoo_modules);
        let left = empty::left(&mut connection, &catalog, ground.rules, &odoo).await?;
        facts.push(sessions_fact(&self.sessions(instance, request.data_set.id())));
        facts.push(fact("modules", true, format!("All {} installed modules are in the release.", ground.modules.modules.len())));

        let mut after = catalog.look(&mut connection, &ground.rules.attachments).await?;
        let stale = Seen { kind: FindingKind::Credential, rows: 1, by_name: false };
        after.extend(done.stale.iter().map(|view| (format!("{VIEW}{view}"), stale.clone())));
        let mut scripts = ground.modules.scripts;
        scripts.push(own_script());
        let mut ran = Vec::new();
        if let Some(sql) = ground.project.sql {
            ran.push("neutralize.sql".to_owned());
            scripts.push(sql);
        }
        if let Some((_, text)) = ground.project.hook {
            ran.push("neutralize.py".to_owned());
            scripts.push(Script { name: "neutralize.py of the project".to_owned(), text });
        }
        facts.push(parameters_fact(&parameters::left(&mut connection, ground.rules, &ground.kept, &scripts).await?));
        let evidence = Evidence {
            catalog: &catalog,
            rules: ground.rules,
            odoo,
            before: &ground.before,
            after: &after,
            scripts: &scripts,
            masked: &done.masked,
            kept: &ground.kept,
            stuck: &done.stuck,
        };
        let findings = evidence.findings();
        facts.push(credentials_fact(&left, &findings, &done.stuck));
        let modules = coverage::modules(&ground.modules.modules, &findings);
        Ok(NeutralizationReport {
            facts,
            modules,
            findings,
            scripts: ran,
            masked: done.masked.iter().cloned().collect(),
            sampled: catalog.sampled(),
        })
    }

    fn sessions(&self, instance: InstanceId, data_set: DataSetId) -> PathBuf {
        self.layout.data_dir(instance, data_set).join("sessions")
    }

    fn sightings_path(&self, instance: InstanceId, data_set: DataSetId) -> PathBuf {
        self.layout.data_set(instance, data_set).join("quarantine.json")
    }

    /// What the check found in a copy that is not harmless.
    fn findings_path(&self, instance: InstanceId, data_set: DataSetId) -> PathBuf {
        self.layout.data_set(instance, data_set).join("findings.json")
    }
}

fn forget_note(path: &Path) -> Result<()> {
    durable::remove_fleeting(path).map_err(|error| HostError::machine_from("a note of the quarantine could not be removed", error))
}

fn own_script() -> Script {
    Script { name: "oCore's own neutralization".to_owned(), text: OWN.to_owned() }
}

/// What own.sql and the facts ask for.
async fn tell_settings(connection: &mut PgConnection, request: &Neutralize, identity: &Identity) -> Result<()> {
    let settings = [
        ("ocore.secret", identity.secret.clone()),
        ("ocore.uuid", identity.uuid.clone()),
        ("ocore.base_url", request.base_url.clone()),
        ("ocore.mail_host", request.mail.ip().to_string()),
        ("ocore.mail_port", request.mail.port().to_string()),
    ];
    for (name, value) in settings {
        sqlx::query("select pg_catalog.set_config($1, $2, false)").bind(name).bind(value).execute(&mut *connection).await.map_err(lost)?;
    }
    Ok(())
}

/// A column that could not be emptied is the project's to set: its scripts run after ours.
fn credentials_fact(left: &[String], findings: &[Finding], stuck: &Stuck) -> Fact {
    let is_set = |place: &str| {
        stuck.contains_key(place) && findings.iter().any(|finding| finding.place == place && finding.verdict == FindingVerdict::Handled)
    };
    let filled: Vec<String> = left
        .iter()
        .filter(|place| !is_set(place))
        .map(|place| match stuck.get(place) {
            Some(reason) => format!("{place} (it cannot be emptied: {reason}; give it a value for copies in neutralize.sql)"),
            None => place.clone(),
        })
        .collect();
    if !filled.is_empty() {
        return fact("credentials", false, format!("Credentials are filled in: {}.", filled.join(", ")));
    }
    let unknown = findings.iter().filter(|finding| finding.verdict == FindingVerdict::Unknown && finding.kind == FindingKind::Credential);
    let unknown: Vec<&str> = unknown.map(|finding| finding.place.as_str()).collect();
    let statement = match unknown.as_slice() {
        [] => "Every known credential is empty.".to_owned(),
        places => format!(
            "Every credential that oCore knows is empty; {} places may hold others: {}{}.",
            places.len(),
            places[..places.len().min(SHOWN)].join(", "),
            if places.len() > SHOWN { " …" } else { "" }
        ),
    };
    fact("credentials", true, statement)
}

fn parameters_fact(left: &[String]) -> Fact {
    let statement = match left {
        [] => "No parameter holds what looks like a credential, but for what the project keeps or sets.".to_owned(),
        left => format!(
            "Parameters look like credentials: {}; set them in neutralize.sql, or name them in keep_parameters of ocore.toml.",
            left.join(", ")
        ),
    };
    fact("parameters", left.is_empty(), statement)
}

fn sessions_fact(sessions: &std::path::Path) -> Fact {
    match sessions.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fact("sessions", true, "No session of the original is left."),
        _ => fact("sessions", false, "Sessions are in the file store."),
    }
}

fn not_harmless(failed: &[&Fact]) -> HostError {
    let statements: Vec<&str> = failed.iter().map(|fact| fact.statement.as_str()).collect();
    HostError::Rejected {
        summary: format!(
            "the copy is not harmless and stays in quarantine: {}",
            statements.first().map_or("", |statement| statement.trim_end_matches('.'))
        ),
        excerpt: failed.iter().map(|fact| format!("{}: {}", fact.name, fact.statement)).collect::<Vec<_>>().join("\n"),
    }
}

fn tell(report: &NeutralizationReport) -> String {
    let unknown = report.unknown().count();
    format!(
        "The copy is harmless: {} facts hold. Of {} places that look like a credential, an endpoint or an address, {unknown} {} unknown.",
        report.facts.len(),
        report.findings.len(),
        if unknown == 1 { "is" } else { "are" },
    )
}
