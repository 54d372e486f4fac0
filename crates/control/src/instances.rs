//! Instances: one Odoo each, with its settings and what a person can ask of it.

use std::collections::BTreeMap;

use ocore_host::OdooSettings;
use ocore_model::{
    environment::Stage,
    ids::{InstanceId, OrganizationId, ProjectId, ServerId},
    instance::{ControlAction, InstanceEvent, InstanceStatus},
    names::{BranchName, OdooVersion, Slug, slug_from},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

mod env_vars;
mod redact;

pub use crate::store::instances::Instance;
use crate::{
    Control, Error, FieldError, Result, audit,
    authorization::{Grant, ManageEnvironments, ManageInstances, Scope, ViewInstances},
    environments::{self, Removal},
    operations::{self, OperationKind},
    projects, secrets,
    store::{self, branches::PushedProject, instances::NewInstance},
    variables,
};

const NAME_LENGTH: usize = 100;
/// Of a slug; one label of a host name, with room for a suffix.
const SLUG_LENGTH: usize = 50;
const SUFFIX_LENGTH: usize = 7;
/// How often a random suffix is tried.
const SLUG_TRIES: usize = 8;
const ENVIRONMENT_VARIABLES: usize = 100;
const MEBIBYTE: u64 = 1 << 20;
/// Odoo's words for `--log-level`.
const LOG_LEVELS: &[&str] =
    &["info", "debug_rpc", "warn", "test", "critical", "runbot", "debug_sql", "error", "debug", "debug_rpc_answer", "notset"];
/// Odoo's own administrator.
const ADMIN_LOGIN: &str = "admin";

/// Every instance of the organization, the oldest first; those of one server, if given.
pub async fn list(control: &Control, grant: &Grant<ViewInstances>, server: Option<ServerId>) -> Result<Vec<Instance>> {
    let instances = store::instances::list(&mut *control.pool.acquire().await?, grant, server).await?;
    instances.into_iter().map(|instance| shown(control, grant, instance)).collect()
}

/// One that is not deleted.
pub async fn find(control: &Control, grant: &Grant<ViewInstances>, id: InstanceId) -> Result<Instance> {
    show(control, grant, id).await
}

async fn show(control: &Control, scope: &Scope, id: InstanceId) -> Result<Instance> {
    let instance = read(&mut *control.pool.acquire().await?, scope, id).await?;
    shown(control, scope, instance)
}

/// With its variables: the values for who may set them, for others only the names.
fn shown(control: &Control, scope: &Scope, mut instance: Instance) -> Result<Instance> {
    open_variables(control, &mut instance)?;
    if !scope.allows::<ManageInstances>() || instance.stage.is_some_and(|stage| scope.may_touch(stage).is_err()) {
        instance.settings.0.env_vars.values_mut().for_each(|value| variables::MASK.clone_into(value));
    }
    Ok(instance)
}

fn open_variables(control: &Control, instance: &mut Instance) -> Result<()> {
    variables::open(&control.settings, instance.id, &mut instance.settings.0, instance.env_vars.as_deref())
}

async fn read(connection: &mut PgConnection, scope: &Scope, id: InstanceId) -> Result<Instance> {
    let found = store::instances::find(connection, scope, id).await?;
    found.filter(|instance| instance.status != InstanceStatus::Deleted).ok_or(Error::NotFound { what: "instance" })
}

/// What of an Odoo's settings a person gives; the rest stays as it is. Memory in bytes, times in seconds.
#[derive(Debug, Clone, Default)]
pub struct SettingsPatch {
    pub workers: Option<u16>,
    pub max_cron_threads: Option<u16>,
    pub limit_memory_soft: Option<u64>,
    pub limit_memory_hard: Option<u64>,
    pub limit_time_cpu: Option<u32>,
    pub limit_time_real: Option<u32>,
    pub log_level: Option<String>,
    /// Replaces all of them.
    pub env_vars: Option<BTreeMap<String, String>>,
}

impl SettingsPatch {
    fn apply(self, settings: &mut OdooSettings) -> Result<()> {
        let mut fields = Vec::new();
        let mut check = |field: &str, valid: bool, message: String| {
            if !valid {
                fields.push(FieldError { field: field.to_owned(), message });
            }
        };
        if let Some(workers) = self.workers {
            check("workers", workers <= 64, "use 0 to 64".to_owned());
            settings.workers = workers;
        }
        if let Some(threads) = self.max_cron_threads {
            check("maxCronThreads", threads <= 16, "use 0 to 16".to_owned());
            settings.max_cron_threads = threads;
        }
        settings.limit_memory_soft = self.limit_memory_soft.unwrap_or(settings.limit_memory_soft);
        settings.limit_memory_hard = self.limit_memory_hard.unwrap_or(settings.limit_memory_hard);
        check(
            "limitMemorySoft",
            settings.limit_memory_soft >= 256 * MEBIBYTE,
            format!("give at least {} bytes; Odoo does not start with less", 256 * MEBIBYTE),
        );
        check(
            "limitMemoryHard",
            settings.limit_memory_hard >= settings.limit_memory_soft && i64::try_from(settings.limit_memory_hard).is_ok(),
            "give at least limitMemorySoft".to_owned(),
        );
        settings.limit_time_cpu = self.limit_time_cpu.unwrap_or(settings.limit_time_cpu);
        settings.limit_time_real = self.limit_time_real.unwrap_or(settings.limit_time_real);
        for (field, seconds) in [("limitTimeCpu", settings.limit_time_cpu), ("limitTimeReal", settings.limit_time_real)] {
            check(field, (10..=86_400).contains(&seconds), "use 10 to 86400 seconds".to_owned());
        }
        if let Some(level) = self.log_level {
            check("logLevel", LOG_LEVELS.contains(&level.as_str()), format!("use one of: {}", LOG_LEVELS.join(", ")));
            settings.log_level = level;
        }
        if let Some(variables) = self.env_vars {
            check("envVars", variables.len() <= ENVIRONMENT_VARIABLES, format!("use at most {ENVIRONMENT_VARIABLES}"));
            for (name, value) in &variables {
                if let Err(rule) = env_vars::check_variable(name, value) {
                    check(&format!("envVars.{}", name.escape_debug()), false, rule);
                }
            }
            settings.env_vars = variables;
        }
        if fields.is_empty() { Ok(()) } else { Err(Error::Invalid { fields }) }
    }
}

/// What a new instance's Odoo runs with.
fn default_settings(stage: Stage) -> OdooSettings {
    // Workers cost memory even when nobody comes; production has them from the start.
    let workers = if stage == Stage::Production { 2 } else { 0 };
    OdooSettings { workers, ..OdooSettings::default() }
}

/// What a person gives for a new instance.
#[derive(Debug, Clone)]
pub struct InstanceRequest {
    pub project: ProjectId,
    pub name: String,
    /// Made from the name when it is not given.
    pub slug: Option<Slug>,
    /// Makes an environment of this branch on it.
    pub branch: Option<BranchName>,
    /// Of that environment; development when it is not given.
    pub stage: Option<Stage>,
    /// The project's when it is not given.
    pub odoo_version: Option<OdooVersion>,
    pub settings: SettingsPatch,
}

/// Makes an instance, and its environment when a branch is given. Its processes and data come with the first deployment.
pub async fn create(control: &Control, grant: &Grant<ManageInstances>, request: InstanceRequest) -> Result<Instance> {
    let name = checked_name(&request.name)?;
    if request.stage.is_some() && request.branch.is_none() {
        return Err(Error::invalid("branch", "an environmentType needs a branch"));
    }
    let stage = request.stage.unwrap_or(Stage::Development);
    let mut settings = default_settings(stage);
    request.settings.apply(&mut settings)?;
    let mut transaction = control.pool.begin().await?;
    let project = store::branches::lock_project(&mut transaction, request.project)
        .await?
        .filter(|project| project.organization_id == grant.organization_id)
        .ok_or_else(|| Error::invalid("projectId", "there is no such project"))?;
    if project.archived_at.is_some() {
        return Err(Error::conflict("project_archived", "the project is archived; restore it first"));
    }
    let id = InstanceId::new();
    let new = NewInstance {
        id,
        organization_id: project.organization_id,
        project_id: project.id,
        server_id: control.server_id,
        name: name.to_owned(),
        slug: String::new(),
        odoo_version: request.odoo_version.unwrap_or_else(|| project.odoo_version.clone()),
        env_vars: variables::seal(&control.settings, id, &settings.env_vars)?,
        settings,
    };
    let id = match request.slug {
        Some(slug) => {
            let new = NewInstance { slug: slug.as_str().to_owned(), ..new };
            if !store::instances::insert(&mut transaction, &new).await? {
                return Err(Error::conflict("slug_taken", format!("another instance is called {slug}; choose another slug")));
            }
            new.id
        }
        None => insert_with_free_slug(&mut transaction, new, name, &format!("{}/{name}", project.id)).await?,
    };
    if let Some(branch) = &request.branch {
        grant.grant::<ManageEnvironments>()?;
        environments::create_in(&mut transaction, control, grant, &project, branch, stage, Some(id)).await?;
    }
    transaction.commit().await?;
    operations::wake(control, id).await;
    show(control, grant, id).await
}

/// A new instance for a branch, in the caller's transaction.
pub(crate) async fn make_for_branch(
    connection: &mut PgConnection,
    control: &Control,
    project: &PushedProject,
    branch: &BranchName,
    stage: Stage,
) -> Result<InstanceId> {
    let wish = format!("{}-{branch}", project.slug);
    let new = NewInstance {
        id: InstanceId::new(),
        organization_id: project.organization_id,
        project_id: project.id,
        server_id: control.server_id,
        name: wish.chars().take(NAME_LENGTH).collect(),
        slug: String::new(),
        odoo_version: project.odoo_version.clone(),
        settings: default_settings(stage),
        env_vars: None,
    };
    insert_with_free_slug(connection, new, &wish, &format!("{}/{branch}", project.id)).await
}

/// Writes an instance under the first slug that nobody has: the wish itself, then with a suffix from `seed` (so that the same thing gets the
/// same name again), then with random ones.
async fn insert_with_free_slug(connection: &mut PgConnection, new: NewInstance, wish: &str, seed: &str) -> Result<InstanceId> {
    let plain = slug_from(wish, SLUG_LENGTH, "odoo");
    let short = slug_from(wish, SLUG_LENGTH - SUFFIX_LENGTH, "odoo");
    let seeded = hex::encode(&Sha256::digest(seed.as_bytes())[..SUFFIX_LENGTH / 2]);
    let suffixes = std::iter::once(seeded).chain(std::iter::repeat_with(|| hex::encode(rand::random::<[u8; SUFFIX_LENGTH / 2]>())));
    let candidates = std::iter::once(plain.as_str().to_owned()).chain(suffixes.map(|suffix| format!("{short}-{suffix}")));
    for slug in candidates.take(SLUG_TRIES) {
        let new = NewInstance { slug, ..new.clone() };
        if store::instances::insert(connection, &new).await? {
            return Ok(new.id);
        }
    }
    Err(Error::conflict("slug_taken", format!("no free name like {plain} was found; choose a slug yourself")))
}

fn checked_name(name: &str) -> Result<&str> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME_LENGTH || name.chars().any(char::is_control) {
        return Err(Error::invalid("name", format!("use 1 to {NAME_LENGTH} characters, on one line")));
    }
    Ok(name)
}

/// What can be changed of an instance.
#[derive(Debug, Clone, Default)]
pub struct InstancePatch {
    pub name: Option<String>,
    pub settings: SettingsPatch,
}

/// Changes an instance. Its Odoo takes new settings with its next start. Audited, with the names of the variables that changed.
pub async fn update(control: &Control, grant: &Grant<ManageInstances>, id: InstanceId, patch: InstancePatch) -> Result<Instance> {
    let mut transaction = control.pool.begin().await?;
    let mut instance = store::instances::lock(&mut transaction, grant.organization_id, id)
        .await?
        .filter(|instance| instance.status != InstanceStatus::Deleted)
        .ok_or(Error::NotFound { what: "instance" })?;
    may_touch(grant, &instance)?;
    must_stand(&instance)?;
    open_variables(control, &mut instance)?;
    let mut settings = instance.settings.0.clone();
    patch.settings.apply(&mut settings)?;
    let name = patch.name.as_deref().map_or(Ok(instance.name.as_str()), checked_name)?;
    store::instances::rename(&mut transaction, id, name).await?;
    if settings != instance.settings.0 {
        let sealed = variables::seal(&control.settings, id, &settings.env_vars)?;
        store::instances::set_settings(&mut transaction, id, &settings, sealed.as_deref()).await?;
        let detail = changes(&instance, &settings);
        audit::record(&mut transaction, control, grant, "instance.settings_changed", &subject(id), &detail).await?;
    }
    transaction.commit().await?;
    show(control, grant, id).await
}

/// What the audit log says of new settings: of variables their names, never a value.
fn changes(instance: &Instance, after: &OdooSettings) -> serde_json::Value {
    let before = &instance.settings.0;
    let names: std::collections::BTreeSet<&String> = before.env_vars.keys().chain(after.env_vars.keys()).collect();
    let changed: Vec<&String> = names.into_iter().filter(|name| before.env_vars.get(*name) != after.env_vars.get(*name)).collect();
    let without = |settings: &OdooSettings| json!(OdooSettings { env_vars: BTreeMap::new(), ..settings.clone() });
    json!({ "instance": instance.slug, "stage": instance.stage, "before": without(before), "after": without(after), "envVars": changed })
}

fn subject(id: InstanceId) -> String {
    format!("instance:{id}")
}

/// Of an instance that serves a production, everything but a look takes `manage:production` on top.
fn may_touch(scope: &Scope, instance: &Instance) -> Result<()> {
    instance.stage.map_or(Ok(()), |stage| scope.may_touch(stage))
}

/// Has the instance's Odoo started, stopped or restarted. Audited where it serves a production.
pub async fn control(control: &Control, grant: &Grant<ManageInstances>, id: InstanceId, action: ControlAction) -> Result<Instance> {
    let mut transaction = control.pool.begin().await?;
    let instance = read(&mut transaction, grant, id).await?;
    may_touch(grant, &instance)?;
    must_stand(&instance)?;
    if instance.active_data_set_id.is_none() {
        return Err(Error::conflict(
            "nothing_deployed",
            format!("nothing is deployed to {} yet, so there is no Odoo to {action}; push its branch", instance.slug),
        ));
    }
    if action == ControlAction::Sleep && store::sleep::stage(&mut transaction, id).await? == Some(Stage::Production) {
        return Err(Error::conflict("production_awake", "a production environment never sleeps; to stop its Odoo, ask for `stop`"));
    }
    operations::enqueue(&mut transaction, instance.organization_id, id, OperationKind::Control { action }).await?;
    if instance.stage == Some(Stage::Production) {
        let detail = json!({ "instance": instance.slug, "action": action });
        audit::record(&mut transaction, control, grant, "instance.controlled", &subject(id), &detail).await?;
    }
    transaction.commit().await?;
    operations::wake(control, id).await;
    shown(control, grant, instance)
}

/// Has an instance torn down with all its data, and its environment with it: one that serves a production as [`environments::delete`] does. A second
/// call finds that it is on its way, or done.
pub async fn delete(
    control: &Control,
    grant: &Grant<ManageInstances>,
    id: InstanceId,
    confirmation: Option<&str>,
) -> Result<InstanceStatus> {
    let mut transaction = control.pool.begin().await?;
    let instance = store::instances::find(&mut transaction, grant, id).await?.ok_or(Error::NotFound { what: "instance" })?;
    if matches!(instance.status, InstanceStatus::Removing | InstanceStatus::Deleted) {
        return Ok(instance.status);
    }
    may_touch(grant, &instance)?;
    let removal = Removal::of(instance.stage, &instance.slug, confirmation, "instance", id.as_uuid())?;
    let status = remove(&mut transaction, grant.organization_id, id, removal).await?.ok_or(Error::NotFound { what: "instance" })?;
    let detail = json!({ "instance": instance.slug, "branch": instance.branch, "stage": instance.stage });
    audit::record(&mut transaction, control, grant, "instance.removed", &subject(id), &detail).await?;
    transaction.commit().await?;
    operations::wake(control, id).await;
    Ok(status)
}

/// Marks an instance and the environment that it serves, and asks for their end. Returns the instance's status then; `None` when the
/// organization has no such instance. Locks the instance before the environment, as operations do.
pub(crate) async fn remove(
    connection: &mut PgConnection,
    organization: OrganizationId,
    id: InstanceId,
    removal: Removal,
) -> Result<Option<InstanceStatus>> {
    let Some(instance) = store::instances::lock(connection, organization, id).await? else { return Ok(None) };
    if matches!(instance.status, InstanceStatus::Removing | InstanceStatus::Deleted) {
        return Ok(Some(instance.status));
    }
    if let Some(environment) = store::environments::lock_by_instance(connection, id).await? {
        environments::mark_removing(connection, &environment, removal).await?;
    }
    let to = instance.status.next(InstanceEvent::RemovalRequested)?;
    store::instances::set_status(connection, id, instance.status, to, "it is being deleted").await?;
    operations::enqueue(connection, organization, id, OperationKind::Destroy).await?;
    Ok(Some(to))
}

/// Refuses work on an instance that is being torn down.
pub(crate) fn must_stand(instance: &Instance) -> Result<()> {
    if matches!(instance.status, InstanceStatus::Removing | InstanceStatus::Deleted) {
        return Err(Error::conflict("instance_removing", format!("{} is being deleted", instance.slug)));
    }
    Ok(())
}

/// The instance's Odoo log: its last lines, then, when `follow`, new ones as they come, until the receiver is dropped. Odoo writes what it likes
/// there, at some log levels all that it sends: so it is for those who manage the instance, and where a project protects its production, that one's is
/// for those who manage production. Passwords and tokens in the addresses of requests are left out for everybody.
pub async fn log(
    control: &Control,
    grant: &Grant<ManageInstances>,
    id: InstanceId,
    lines: usize,
    follow: bool,
) -> Result<tokio::sync::mpsc::Receiver<String>> {
    let mut connection = control.pool.acquire().await?;
    let instance = read(&mut connection, grant, id).await?;
    if instance.stage == Some(Stage::Production) {
        projects::may_deploy_production(&mut connection, grant, instance.project_id).await?;
    }
    drop(connection);
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    if instance.active_data_set_id.is_none() {
        // Nothing has run: an empty log, not an error.
        return Ok(receiver);
    }
    let mut lines = control.host.odoo_log(id, lines, follow).await?;
    tokio::spawn(async move {
        // Who stops reading ends the follower with it.
        loop {
            tokio::select! {
                () = sender.closed() => return,
                line = lines.recv() => {
                    let Some(line) = line else { return };
                    if sender.send(redact::line(&line)).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    Ok(receiver)
}

/// How to log in to an instance's Odoo.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub login: String,
    pub password: secrets::Secret,
}

/// The login that the fresh database got. Who changed the password in Odoo knows the new one themselves. Audited.
pub async fn credentials(control: &Control, grant: &Grant<ManageInstances>, id: InstanceId) -> Result<Credentials> {
    let mut connection = control.pool.acquire().await?;
    let instance = read(&mut connection, grant, id).await?;
    may_touch(grant, &instance)?;
    let sealed = store::instances::admin_password(&mut connection, grant, id).await?.ok_or_else(|| {
        Error::conflict("nothing_deployed", format!("nothing is deployed to {} yet, so its Odoo has no password", instance.slug))
    })?;
    let place = secrets::Place { table: "instances", column: "admin_password", row: id.as_uuid() };
    let detail = json!({ "instance": instance.slug, "stage": instance.stage });
    audit::record(&mut connection, control, grant, "instance.credentials_read", &subject(id), &detail).await?;
    Ok(Credentials { login: ADMIN_LOGIN.to_owned(), password: secrets::open(&control.settings, place, &sealed)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn production_has_workers_from_the_start() {
        assert_eq!(default_settings(Stage::Production).workers, 2);
        assert_eq!(default_settings(Stage::Development).workers, 0);
    }

    #[test]
    fn settings_that_cannot_work_name_their_fields() {
        let patch = SettingsPatch {
            workers: Some(65),
            limit_memory_soft: Some(1 << 31),
            limit_memory_hard: Some(1 << 30),
            log_level: Some("loud".to_owned()),
            env_vars: Some([("PATH".to_owned(), "/tmp".to_owned())].into()),
            ..SettingsPatch::default()
        };
        let Err(Error::Invalid { fields }) = patch.apply(&mut OdooSettings::default()) else { panic!("it was taken") };
        let names: Vec<&str> = fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(names, ["workers", "limitMemoryHard", "logLevel", "envVars.PATH"]);
    }
}
