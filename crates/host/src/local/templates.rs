//! Templates: data sets with modules installed that nobody has used, kept to be copied.
//!
//! What a tenant's code has touched is never copied for another tenant. So a template with a project's modules is kept from that project's own
//! build and under its key; one that is for everybody is made in a *workshop*, an instance that no tenant has, with its own users, by a
//! release that holds nothing but Odoo.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use ocore_model::ids::{DataSetId, InstanceId, OperationId, TemplateId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    LocalHost,
    cluster::{self, Cluster},
    copy::{self, Take, TreeCopy, WorkDirectory},
    durable::{self, blocking},
    exec::Program,
    fence::Claim,
    ledger::Allocation,
};
use crate::{
    api::{
        BuildRelease, DataSource, Fence, KeepTemplate, MakeTemplate, OdooSettings, Progress, RunModules, SourceId, Template,
        TemplateContent, TemplateLimits,
    },
    error::{HostError, Result},
};

const MANIFEST: &str = "template.json";
/// Its time is when the template was last used.
const USED: &str = "used";
/// The instance in which templates for everybody are made; no row of a control plane has this id.
pub(super) const WORKSHOP: InstanceId = InstanceId(Uuid::from_u128(0x6f43_6f72_6500_8000_8000_776f_726b_7368));
/// A template that was used so recently may be about to be used again.
const IN_USE: Duration = Duration::from_mins(10);

impl LocalHost {
    /// Every template that this server can use, in no order.
    pub(super) async fn whole_templates(&self) -> Result<Vec<Template>> {
        let postgres = self.postgres_version().await?;
        let Ok(entries) = std::fs::read_dir(self.layout.templates()) else { return Ok(Vec::new()) };
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<TemplateId>().ok());
        let mut found: Vec<Template> = ids.filter_map(|id| self.find_template(id).transpose()).collect::<Result<_>>()?;
        found.retain(|template| template.postgres == postgres);
        Ok(found)
    }

    fn find_template(&self, template: TemplateId) -> Result<Option<Template>> {
        let directory = self.layout.template(template);
        let Some(mut found) = durable::read_json::<Template>(&directory.join(MANIFEST))? else { return Ok(None) };
        found.used_at = used_at(&directory).unwrap_or(found.created_at);
        Ok(Some(found))
    }

    /// Installs modules of Odoo's own in the workshop and keeps the result for everybody. Made already is done.
    pub(super) async fn make_shared_template(&self, request: &MakeTemplate, progress: &Progress) -> Result<Template> {
        let distribution = self.installed_distribution(&request.odoo_version).await?.distribution;
        let mut requested = request.modules.clone();
        requested.sort();
        requested.dedup();
        if let Some(foreign) = requested.iter().find(|name| !distribution.modules.contains(name)) {
            return Err(HostError::rejected(format!("`{foreign}` is not part of Odoo {}", request.odoo_version)));
        }
        let content = TemplateContent {
            distribution_id: distribution.id,
            with_demo: request.with_demo,
            isolation_key: None,
            requested,
            modules: BTreeMap::new(),
        };
        let id = self.template_id(&content).await?;
        // They all use the one workshop.
        let _turn = self.workshop.lock().await;
        if let Some(found) = self.find_template(id)? {
            return Ok(found);
        }
        let generation = Utc::now().timestamp_micros();
        let claim = self.claim(WORKSHOP, Fence { operation: OperationId::new(), generation }).await?;
        // What a crash has left of an earlier one.
        self.remove_instance(&claim).await?;
        let made = claim.run(self.make_in_workshop(&claim, request, content, progress)).await;
        let removed = self.remove_instance(&claim).await;
        let made = made?;
        removed?;
        Ok(made)
    }

    async fn make_in_workshop(
        &self,
        claim: &Claim,
        request: &MakeTemplate,
        content: TemplateContent,
        progress: &Progress,
    ) -> Result<Template> {
        let source = SourceId(hex::encode(Sha256::digest(b"a source tree without modules")));
        self.unpack(&source, "", Box::new(&[0_u8; 1024][..])).await?;
        self.seal(&source, &[], progress).await?;
        let build = BuildRelease { source, odoo_version: request.odoo_version.clone(), isolation_key: "ocore".to_owned() };
        let release = self.build(&build, progress).await?;
        self.make_instance(claim).await?;
        let data_set = DataSetId::new();
        self.make_data_set(claim, data_set, DataSource::Fresh, progress).await?;
        let run = RunModules {
            data_set,
            release: release.id,
            install: content.requested.clone(),
            update: Vec::new(),
            with_demo: request.with_demo,
            admin_password: None,
            settings: OdooSettings::default(),
        };
        self.install_and_update(claim, &run, progress).await?;
        self.keep(claim, data_set, content, progress).await
    }

    /// Keeps what a project's build has just installed in a fresh data set, for the builds with the same key. The data set's cluster is stopped.
    /// Kept already is done.
    pub(super) async fn keep_project_template(&self, claim: &Claim, request: &KeepTemplate, progress: &Progress) -> Result<Template> {
        let release = self.release(&request.release)?;
        let release = release.ok_or_else(|| HostError::NotFound { what: "release", id: request.release.to_string() })?.release;
        if !self.is_fresh(claim.instance, request.data_set)? {
            return Err(HostError::rejected("only a database that was made fresh, and that nobody has used, becomes a template"));
        }
        let installed = self.installed_names(claim, request.data_set).await?;
        let modules =
            release.modules.into_iter().filter(|(name, _)| installed.iter().any(|installed| installed == name.as_str())).collect();
        let mut requested = request.requested.clone();
        requested.sort();
        requested.dedup();
        let content = TemplateContent {
            distribution_id: release.distribution_id,
            with_demo: request.with_demo,
            isolation_key: Some(request.isolation_key.clone()),
            requested,
            modules,
        };
        self.keep(claim, request.data_set, content, progress).await
    }

    async fn keep(&self, claim: &Claim, data_set: DataSetId, content: TemplateContent, progress: &Progress) -> Result<Template> {
        let instance = claim.instance;
        let id = self.template_id(&content).await?;
        let _turn = self.data_locks.own(id).await;
        if let Some(found) = self.find_template(id)? {
            return Ok(found);
        }
        let installed = self.installed_names(claim, data_set).await?;
        self.stop_users_of(instance, data_set).await?;
        let cluster = self.cluster(&self.allocation(instance).await?, instance, data_set)?;
        let _ours = self.data_locks.own(data_set).await;
        cluster.stop().await?;
        claim.check()?;
        let (pgdata, data_dir) = (cluster.pgdata.clone(), self.layout.data_dir(instance, data_set));
        let bytes = blocking({
            let trees = [pgdata.clone(), data_dir.clone()];
            move || trees.iter().map(|tree| Ok(copy::measure(tree)?.0)).sum::<Result<u64>>()
        })
        .await?;
        self.pool.require_for_copy(&pgdata, "this template").await?;
        durable::make_directory(&self.layout.templates(), 0o711)?;
        let work = WorkDirectory::create(&self.layout.template(id)).await?;
        self.copy_both(&work, [&pgdata, &data_dir], [0, 0], progress).await?;
        let now = Utc::now();
        let postgres = self.postgres_version().await?;
        let template = Template { id, content, postgres, installed, created_at: now, used_at: now, bytes };
        durable::write_fleeting_json(&work.path().join(USED), &())?;
        durable::write_fleeting_json(&work.path().join(MANIFEST), &template)?;
        claim.check()?;
        work.keep().await?;
        Ok(template)
    }

    /// Fills the directory of a new data set from a template, which the caller has locked. The instance's users own what is made.
    pub(super) async fn fill_from_template(
        &self,
        work: &WorkDirectory,
        template: TemplateId,
        allocation: &Allocation,
        progress: &Progress,
    ) -> Result<()> {
        let found = self.find_template(template)?;
        let found = found.ok_or_else(|| HostError::NotFound { what: "template", id: template.to_string() })?;
        let directory = self.layout.template(template);
        self.pool.require_for_copy(&directory, "this copy of a template").await?;
        let (pgdata, data_dir) = (directory.join("pgdata"), directory.join("data_dir"));
        self.copy_both(work, [&pgdata, &data_dir], [allocation.postgres.uid, allocation.odoo.uid], progress).await?;
        File::options()
            .write(true)
            .open(directory.join(USED))
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(|error| HostError::machine_from(format!("the use of template {template} could not be noted"), error))?;
        progress.log.line(&format!("Took the template {} with {} modules.", found.id, found.installed.len()));
        Ok(())
    }

    /// Removes templates that nobody has used for long, that no PostgreSQL of this server reads, or that are too much together.
    pub(super) async fn evict_templates(&self, limits: TemplateLimits) -> Result<Vec<TemplateId>> {
        let usable = self.whole_templates().await?;
        let Ok(entries) = std::fs::read_dir(self.layout.templates()) else { return Ok(Vec::new()) };
        let all = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<TemplateId>().ok());
        let mut evicted: Vec<TemplateId> = all.filter(|id| usable.iter().all(|template| template.id != *id)).collect();
        evicted.extend(surplus(usable, limits, Utc::now()));
        for template in &evicted {
            let _ours = self.data_locks.own(*template).await;
            copy::remove(&self.layout.template(*template)).await?;
        }
        Ok(evicted)
    }

    async fn copy_both(&self, work: &WorkDirectory, from: [&Path; 2], owners: [u32; 2], progress: &Progress) -> Result<()> {
        let cancel = [progress.cancel.clone()];
        let how = |owner: u32, take| TreeCopy { owner: Some((owner, owner)), take, ..TreeCopy::exact(self.pool.has_reflinks()) };
        let (pgdata, data_dir) = (work.path().join("pgdata"), work.path().join("data_dir"));
        tokio::try_join!(
            how(owners[0], all).run(from[0], &pgdata, work.hold(), &cancel, None),
            how(owners[1], all_but_sessions).run(from[1], &data_dir, work.hold(), &cancel, None),
        )?;
        Ok(())
    }

    async fn installed_names(&self, claim: &Claim, data_set: DataSetId) -> Result<Vec<String>> {
        let modules = self.modules_in_database(claim, data_set).await?;
        let mut installed: Vec<String> =
            modules.into_iter().filter(|module| module.state == "installed").map(|module| module.name).collect();
        installed.sort_unstable();
        Ok(installed)
    }

    async fn template_id(&self, content: &TemplateContent) -> Result<TemplateId> {
        let postgres = self.postgres_version().await?;
        let text = serde_json::to_string(&(content, postgres, cluster::SHAPE))
            .map_err(|error| HostError::machine_from("a template's name could not be written", error))?;
        let digest: [u8; 32] = Sha256::digest(text).into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Ok(TemplateId(uuid::Builder::from_custom_bytes(bytes).into_uuid()))
    }

    async fn postgres_version(&self) -> Result<String> {
        let program = Program::new(self.config.postgres_bin()?.join("postgres")).arg("--version");
        Ok(program.run().await?.expect_success("PostgreSQL did not say its version")?.stdout_text().trim().to_owned())
    }
}

/// Gives a database that was copied from a template what no other one may have. The password of `admin` comes after it.
pub(super) async fn give_identity(cluster: &Cluster) -> Result<()> {
    let mut connection = cluster.connect_as_owner().await?;
    let now = Utc::now().format("%Y-%m-%d %H:%M:%S").to_string();
    for (key, value) in
        [("database.secret", Uuid::new_v4().to_string()), ("database.uuid", Uuid::new_v4().to_string()), ("database.create_date", now)]
    {
        let done = sqlx::query("update public.ir_config_parameter set value = $2 where key = $1").bind(key).bind(value);
        let done = done.execute(&mut connection).await;
        let done = done.map_err(|error| HostError::machine_from(format!("the database's own `{key}` could not be set"), error))?;
        if done.rows_affected() != 1 {
            return Err(HostError::machine(format!("the database has no parameter `{key}` that could be set anew")));
        }
    }
    Ok(())
}

fn all(_: &Path) -> Take {
    Take::All
}

fn all_but_sessions(path: &Path) -> Take {
    if path == Path::new("sessions") { Take::Empty } else { Take::All }
}

fn used_at(directory: &Path) -> io::Result<DateTime<Utc>> {
    std::fs::metadata(PathBuf::from(directory).join(USED))?.modified().map(DateTime::from)
}

/// Which of them have to go, least recently used first.
fn surplus(mut templates: Vec<Template>, limits: TemplateLimits, now: DateTime<Utc>) -> Vec<TemplateId> {
    templates.sort_by_key(|template| template.used_at);
    let mut bytes: u64 = templates.iter().map(|template| template.bytes).sum();
    let mut surplus = Vec::new();
    for template in templates {
        let unused = (now - template.used_at).to_std().unwrap_or_default();
        let is_old = unused > Duration::from_hours(24) * limits.unused_days;
        if is_old || (bytes > limits.bytes && unused > IN_USE) {
            bytes -= template.bytes;
            surplus.push(template.id);
        }
    }
    surplus
}

#[cfg(test)]
mod tests {
    use ocore_model::names::ModuleName;

    use super::*;

    fn template(number: u128, bytes: u64, unused_hours: i64, now: DateTime<Utc>) -> Template {
        let content = TemplateContent {
            distribution_id: "19.0-1".to_owned(),
            with_demo: false,
            isolation_key: None,
            requested: vec!["base".parse::<ModuleName>().unwrap()],
            modules: BTreeMap::new(),
        };
        let used_at = now - chrono::Duration::hours(unused_hours);
        let id = TemplateId(Uuid::from_u128(number));
        Template { id, content, postgres: "15".to_owned(), installed: Vec::new(), created_at: used_at, used_at, bytes }
    }

    #[test]
    fn the_least_recently_used_go_first_and_none_that_was_just_used() {
        let now = Utc::now();
        let templates = || vec![template(1, 100, 5, now), template(2, 100, 50, now), template(3, 100, 0, now), template(4, 100, 800, now)];
        let gone = |bytes| -> Vec<u128> {
            surplus(templates(), TemplateLimits { bytes, unused_days: 30 }, now).into_iter().map(|id| id.0.as_u128()).collect()
        };
        assert_eq!(gone(1000), [4], "unused for more than thirty days");
        assert_eq!(gone(300), [4]);
        assert_eq!(gone(200), [4, 2]);
        assert_eq!(gone(0), [4, 2, 1], "the last one was just used");
    }
}
