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
mod masking;
mod parameters;
mod rules;
mod run_sql;
mod scripts;
mod settings;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ocore_model::ids::{DataSetId, InstanceId};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use self::{
    catalog::{Catalog, Sightings},
    coverage::Evidence,
    empty::OdooModules,
    facts::fact,
    hook::Hook,
    masking::Masking,
    rules::Rules,
    run_sql::lost,
    scripts::{ModuleScripts, ProjectScripts, Script},
    settings::ProjectSettings,
};
use super::{LocalHost, cluster::Cluster, copy, durable, fence::Claim, odoo::run::set_admin_password};
use crate::{
    api::{Fact, NeutralizationReport, Neutralize, Neutralized, Progress, Standing},
    error::{HostError, Result},
};

const OWN: &str = include_str!("own.sql");

/// What is new in this copy.
struct Identity {
    secret: String,
    uuid: String,
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
        let (hash, (cluster, ground, identity, masked)) = tokio::try_join!(hash, work)?;
        if let Some(hash) = hash {
            set_admin_password(&cluster, &hash).await?;
        }
        claim.check()?;
        let report = self.prove(instance, request, &cluster, ground, &identity, &masked).await?;
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
    ) -> Result<(Cluster, Ground, Identity, BTreeSet<String>)> {
        let (instance, data_set) = (claim.instance, request.data_set.id());
        let cluster = self.run_cluster(instance, data_set).await?;
        let mut connection = cluster.connect_as_owner().await?;
        let ground = self.survey(claim, request, &mut connection).await?;
        let identity = Identity { secret: Uuid::new_v4().to_string(), uuid: Uuid::new_v4().to_string() };
        claim.check()?;

        let scripts = &ground.modules.scripts;
        progress.log.line(&format!("Odoo's neutralization: {} of {} modules have a script.", scripts.len(), ground.modules.modules.len()));
        let mut transaction = connection.begin().await.map_err(lost)?;
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
        empty::empty(&mut transaction, &catalog, ground.rules, &OdooModules(&ground.odoo_modules)).await?;
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
        let mut masked = BTreeSet::new();
        if ground.masking.is_wanted() {
            claim.check()?;
            progress.log.line("Masking personal data.");
            let key = masking::key(&self.layout.state()).await?;
            let mut connection = cluster.connect_as_owner().await?;
            let apply = ground.masking.apply(&mut connection, &key);
            tokio::select! {
                biased;
                () = progress.cancel.cancelled() => return Err(HostError::Cancelled),
                outcome = apply => masked = outcome?,
            }
        }
        Ok((cluster, ground, identity, masked))
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
        masked: &BTreeSet<String>,
    ) -> Result<NeutralizationReport> {
        let mut connection = cluster.connect_as_owner().await?;
        sqlx::query("select set_config('search_path', 'pg_catalog', false)").execute(&mut connection).await.map_err(lost)?;
        tell_settings(&mut connection, request, identity).await?;
        let mut facts = facts::read(&mut connection).await?;
        let catalog = catalog::read(&mut connection).await?;
        let odoo = OdooModules(&ground.odoo_modules);
        facts.push(credentials_fact(&mut connection, &catalog, ground.rules, &odoo).await?);
        facts.push(sessions_fact(&self.sessions(instance, request.data_set.id())));
        facts.push(fact("modules", true, format!("All {} installed modules are in the release.", ground.modules.modules.len())));

        let after = catalog.look(&mut connection, &ground.rules.attachments).await?;
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
            masked,
            kept: &ground.kept,
        };
        let findings = evidence.findings();
        let modules = coverage::modules(&ground.modules.modules, &findings);
        Ok(NeutralizationReport {
            facts,
            modules,
            findings,
            scripts: ran,
            masked: masked.iter().cloned().collect(),
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

async fn credentials_fact(connection: &mut PgConnection, catalog: &Catalog, rules: &Rules, odoo: &OdooModules<'_>) -> Result<Fact> {
    let left = empty::left(connection, catalog, rules, odoo).await?;
    let statement = match left.as_slice() {
        [] => "Every known credential is empty.".to_owned(),
        left => format!("Credentials are filled in: {}.", left.join(", ")),
    };
    Ok(fact("credentials", left.is_empty(), statement))
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
