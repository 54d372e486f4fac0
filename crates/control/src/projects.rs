//! Projects: a repository of Odoo modules, what a fresh database gets, and which branches go where.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use ocore_model::{
    environment::Stage,
    ids::{BranchMappingId, InstanceId, OrganizationId, ProjectId},
    names::{OdooVersion, Slug, slug_from},
    project::{ModuleSelection, RepositoryKind},
};

use serde_json::json;
use sqlx::PgConnection;

use crate::{
    Control, Error, FieldError, Result, audit,
    authorization::{Grant, ManageProduction, ManageProjects, Scope, ViewProjects},
    deployments,
    environments::{self, Removal},
    git, instances, operations,
    organizations::first_free,
    reconcilers::removals,
    store::{self, projects::Written},
};

#[derive(Debug, Clone)]
pub struct Project {
    pub id: ProjectId,
    pub organization_id: OrganizationId,
    pub name: String,
    /// In the address of the built-in remote; never changes.
    pub slug: String,
    pub description: String,
    pub odoo_version: OdooVersion,
    pub module_selection: ModuleSelection,
    pub with_demo: bool,
    pub create_environment_on_push: bool,
    /// Deployments of its production, and where its commits come from, are for those with `manage:production`.
    pub protects_production: bool,
    pub repository: Repository,
    pub branch_mappings: Vec<BranchMapping>,
    pub archived_at: Option<DateTime<Utc>>,
    /// It goes for good when the last snapshots of what was in it have gone. Brought back, it stays.
    pub removal_requested_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Where a project's commits come from.
#[derive(Debug, Clone)]
pub struct Repository {
    pub kind: RepositoryKind,
    /// Of an external one.
    pub url: Option<String>,
    /// Of an external one: the branch that became an environment first.
    pub branch: Option<String>,
    /// The public half of the key that an external one is fetched with.
    pub deploy_key: Option<String>,
    pub fetched_at: Option<DateTime<Utc>>,
    /// Why the last fetch failed, if it did.
    pub error: Option<String>,
}

/// Leads pushes of matching branches to an instance.
#[derive(Debug, Clone)]
pub struct BranchMapping {
    pub id: BranchMappingId,
    /// `*` matches any run of characters.
    pub branch_pattern: String,
    pub instance_id: InstanceId,
    /// The highest that matches decides.
    pub priority: i32,
    pub created_at: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub struct NewProject {
    pub name: String,
    /// Made from the name when `None`.
    pub slug: Option<String>,
    pub description: String,
    /// The newest that is installed on this server when `None`.
    pub odoo_version: Option<String>,
    pub module_selection: ModuleSelection,
    pub with_demo: bool,
    pub create_environment_on_push: bool,
    pub protects_production: bool,
}

/// What changes; `None` stays.
#[derive(Debug, Clone, Default)]
pub struct ProjectPatch {
    pub name: Option<String>,
    pub description: Option<String>,
    pub odoo_version: Option<String>,
    pub module_selection: Option<ModuleSelection>,
    pub with_demo: Option<bool>,
    pub create_environment_on_push: Option<bool>,
    /// Both ways with `manage:production`.
    pub protects_production: Option<bool>,
    pub archived: Option<bool>,
}

#[derive(Debug, Clone)]
pub struct NewBranchMapping {
    pub branch_pattern: String,
    pub instance_id: InstanceId,
    pub priority: i32,
}

/// The organization's projects by name; archived ones only when asked for.
pub async fn list(control: &Control, grant: &Grant<ViewProjects>, include_archived: bool) -> Result<Vec<Project>> {
    store::projects::list(&mut *control.pool.acquire().await?, grant, include_archived).await
}

pub async fn show(control: &Control, grant: &Grant<ViewProjects>, id: ProjectId) -> Result<Project> {
    store::projects::find(&mut *control.pool.acquire().await?, grant, id).await?.ok_or(NOT_FOUND)
}

/// Makes a project with a built-in repository. A name or slug that is taken in the organization is `Conflict`, and so is one project more than an
/// organization may have (`too_many_projects`).
pub async fn create(control: &Control, grant: &Grant<ManageProjects>, new: NewProject) -> Result<Project> {
    if new.protects_production {
        grant.may_touch(Stage::Production)?;
    }
    let now = control.clock.now();
    let name = new.name.trim().to_owned();
    let description = new.description.trim().to_owned();
    let mut fields = Vec::new();
    check_texts(&name, &description, &mut fields);
    check_modules(&new.module_selection, &mut fields);
    let wished_slug = new.slug.as_deref().and_then(|slug| parsed::<Slug>("slug", slug, &mut fields));
    let odoo_version = match &new.odoo_version {
        Some(version) => parsed::<OdooVersion>("odooVersion", version, &mut fields),
        None => newest_installed(control).await?,
    };
    if odoo_version.is_none() && new.odoo_version.is_none() {
        let message = "no Odoo is installed on this server to take the version from; give one such as 19.0";
        fields.push(FieldError { field: "odooVersion".to_owned(), message: message.to_owned() });
    }
    let Some(odoo_version) = odoo_version.filter(|_| fields.is_empty()) else {
        return Err(Error::Invalid { fields });
    };
    let mut transaction = control.pool.begin().await?;
    refuse_one_too_many(control, &mut transaction, grant).await?;
    let slug = if let Some(slug) = wished_slug {
        slug
    } else {
        let base = slug_from(&name, 45, "project");
        let taken = store::projects::slugs_like(&mut transaction, grant, base.as_str()).await?;
        first_free(&base, &taken)
    };
    let project = Project {
        id: ProjectId::new(),
        organization_id: grant.organization_id,
        name,
        slug: slug.to_string(),
        description,
        odoo_version,
        module_selection: new.module_selection,
        with_demo: new.with_demo,
        create_environment_on_push: new.create_environment_on_push,
        protects_production: new.protects_production,
        repository: Repository { kind: RepositoryKind::BuiltIn, url: None, branch: None, deploy_key: None, fetched_at: None, error: None },
        branch_mappings: Vec::new(),
        archived_at: None,
        removal_requested_at: None,
        created_at: now,
        updated_at: now,
    };
    written(store::projects::insert(&mut transaction, grant, &project).await?, &project)?;
    transaction.commit().await?;
    Ok(project)
}

/// Each project has a repository on this machine, also an archived one. The organization is locked, so that two at once do not both be the last.
async fn refuse_one_too_many(control: &Control, connection: &mut sqlx::PgConnection, scope: &Scope) -> Result<()> {
    let limit = control.settings.limits.projects_per_organization;
    store::members::lock(connection, scope).await?;
    if limit > 0 && store::projects::count(connection, scope).await? >= i64::from(limit) {
        return Err(Error::conflict(
            "too_many_projects",
            format!(
                "{} has {limit} projects, archived ones included, and may not have more (limits.projects_per_organization in this oCore's configuration); \
                 ask whoever runs it",
                scope.organization_slug
            ),
        ));
    }
    Ok(())
}

/// Changes a project. What it changes holds from the next deployment on.
pub async fn update(control: &Control, grant: &Grant<ManageProjects>, id: ProjectId, patch: ProjectPatch) -> Result<Project> {
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    store::projects::lock(&mut transaction, grant, id).await?;
    let mut project = store::projects::find(&mut transaction, grant, id).await?.ok_or(NOT_FOUND)?;
    let mut fields = Vec::new();
    if let Some(name) = patch.name {
        name.trim().clone_into(&mut project.name);
    }
    if let Some(description) = patch.description {
        description.trim().clone_into(&mut project.description);
    }
    check_texts(&project.name, &project.description, &mut fields);
    if let Some(version) = patch.odoo_version
        && let Some(version) = parsed("odooVersion", &version, &mut fields)
    {
        project.odoo_version = version;
    }
    if let Some(selection) = patch.module_selection {
        check_modules(&selection, &mut fields);
        project.module_selection = selection;
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    project.with_demo = patch.with_demo.unwrap_or(project.with_demo);
    project.create_environment_on_push = patch.create_environment_on_push.unwrap_or(project.create_environment_on_push);
    if let Some(protects) = patch.protects_production.filter(|protects| *protects != project.protects_production) {
        grant.may_touch(Stage::Production)?;
        project.protects_production = protects;
        let detail = json!({ "project": project.slug, "protectsProduction": protects });
        audit::record(&mut transaction, control, grant, "project.production_protection_changed", &subject(id), &detail).await?;
    }
    match patch.archived {
        Some(true) if project.archived_at.is_none() => {
            refuse_while_in_use(&mut transaction, grant, &project).await?;
            project.archived_at = Some(now);
        }
        Some(false) => {
            if project.removal_requested_at.take().is_some() {
                let detail = json!({ "project": project.slug });
                audit::record(&mut transaction, control, grant, "project.brought_back", &subject(id), &detail).await?;
            }
            project.archived_at = None;
        }
        _ => {}
    }
    project.updated_at = now;
    written(store::projects::update(&mut transaction, grant, &project).await?, &project)?;
    transaction.commit().await?;
    Ok(project)
}

/// Archives a project: it takes no pushes and is listed only on demand; its repository and history stay. Refused while it has environments.
/// An archived one stays as it is.
pub async fn archive(control: &Control, grant: &Grant<ManageProjects>, id: ProjectId) -> Result<Project> {
    update(control, grant, id, ProjectPatch { archived: Some(true), ..ProjectPatch::default() }).await
}

pub async fn branch_mappings(control: &Control, grant: &Grant<ViewProjects>, id: ProjectId) -> Result<Vec<BranchMapping>> {
    Ok(show(control, grant, id).await?.branch_mappings)
}

/// Replaces all branch mappings of a project. Those that lead to a production decide what it deploys: they change with `manage:production`.
pub async fn set_branch_mappings(
    control: &Control,
    grant: &Grant<ManageProjects>,
    id: ProjectId,
    mappings: Vec<NewBranchMapping>,
) -> Result<Vec<BranchMapping>> {
    let now = control.clock.now();
    let mut transaction = control.pool.begin().await?;
    store::projects::lock(&mut transaction, grant, id).await?;
    let before = store::projects::find(&mut transaction, grant, id).await?.ok_or(NOT_FOUND)?.branch_mappings;
    let instances: HashSet<InstanceId> = store::projects::instances(&mut transaction, grant, id).await?.into_iter().collect();
    let mut fields = Vec::new();
    let mut seen = HashSet::new();
    if mappings.len() > 100 {
        fields.push(FieldError { field: "branchMappings".to_owned(), message: "use at most 100 mappings".to_owned() });
    }
    for (index, mapping) in mappings.iter().enumerate() {
        let mut wrong = |field: &str, message: &str| {
            fields.push(FieldError { field: format!("branchMappings[{index}].{field}"), message: message.to_owned() });
        };
        let pattern = &mapping.branch_pattern;
        if pattern.is_empty() || pattern.len() > 255 || pattern.chars().any(|c| c.is_control() || c.is_whitespace()) {
            wrong("branchPattern", "give a branch name of at most 255 bytes; `*` stands for any characters");
        }
        if !instances.contains(&mapping.instance_id) {
            wrong("instanceId", "the project has no such instance");
        }
        if !seen.insert((pattern.as_str(), mapping.instance_id)) {
            wrong("branchPattern", "this pattern leads to this instance already");
        }
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    if let Some(production) = store::environments::production_of(&mut transaction, id).await? {
        let production = store::environments::find(&mut transaction, grant, production).await?.map(|production| production.instance_id);
        let led = |mappings: &mut dyn Iterator<Item = (&String, InstanceId, i32)>| -> BTreeSet<(String, i32)> {
            let to_production = mappings.filter(|(_, instance, _)| Some(*instance) == production);
            to_production.map(|(pattern, _, priority)| (pattern.clone(), priority)).collect()
        };
        let was = led(&mut before.iter().map(|mapping| (&mapping.branch_pattern, mapping.instance_id, mapping.priority)));
        let becomes = led(&mut mappings.iter().map(|mapping| (&mapping.branch_pattern, mapping.instance_id, mapping.priority)));
        if was != becomes {
            grant.may_touch(Stage::Production)?;
        }
    }
    let mappings: Vec<BranchMapping> = mappings
        .into_iter()
        .map(|mapping| BranchMapping {
            id: BranchMappingId::new(),
            branch_pattern: mapping.branch_pattern,
            instance_id: mapping.instance_id,
            priority: mapping.priority,
            created_at: now,
        })
        .collect();
    store::projects::replace_branch_mappings(&mut transaction, id, &mappings).await?;
    let written = store::projects::find(&mut transaction, grant, id).await?.ok_or(NOT_FOUND)?;
    transaction.commit().await?;
    Ok(written.branch_mappings)
}

/// Removes the mirror of a project whose rows go next, with its locks. Gone already is done.
pub(crate) async fn remove_mirror(control: &Control, id: ProjectId) -> Result<()> {
    let control = control.clone();
    let removing = tokio::task::spawn_blocking(move || git::forget(&control, id));
    removing.await.map_err(|error| Error::internal("removing the repository of a removed project", error))?
}

/// What begins a deployment of a project's production, or decides what such a one brings, takes `manage:production` where the project says so.
pub(crate) async fn may_deploy_production(connection: &mut PgConnection, scope: &Scope, project: ProjectId) -> Result<()> {
    if scope.allows::<ManageProduction>() || !store::projects::protects_production(connection, project).await? {
        return Ok(());
    }
    Err(deployments::production_is_kept())
}

/// Removes a project with all its environments, when its slug is typed as `confirmation`. The last snapshot of its production is kept for
/// [`environments::KEPT`]: so long the project is archived and can be brought back (`archived: false`), then its repository goes too. With a production it
/// takes `manage:production`. A second call changes nothing. Audited.
pub async fn remove(control: &Control, grant: &Grant<ManageProjects>, id: ProjectId, confirmation: &str) -> Result<Project> {
    let mut transaction = control.pool.begin().await?;
    store::projects::lock(&mut transaction, grant, id).await?;
    let project = store::projects::find(&mut transaction, grant, id).await?.ok_or(NOT_FOUND)?;
    if confirmation != project.slug {
        return Err(environments::not_its_name(&project.slug));
    }
    if project.removal_requested_at.is_some() {
        return Ok(project);
    }
    if store::environments::production_of(&mut transaction, id).await?.is_some() {
        grant.may_touch(Stage::Production)?;
    }
    let (project, going) = take_down(&mut transaction, control, grant, project).await?;
    let detail = json!({ "project": project.slug, "instances": going.len() });
    audit::record(&mut transaction, control, grant, "project.removed", &subject(id), &detail).await?;
    transaction.commit().await?;
    for instance in going {
        operations::wake(control, instance).await;
    }
    control.signals.wake(removals::NAME);
    Ok(project)
}

/// Has all instances of a project removed and marks it, in the caller's transaction, which has locked it. Gives the instances, to be woken for. Snapshots
/// that somebody pinned go with the rest: what is kept is each production's last one.
pub(crate) async fn take_down(
    connection: &mut PgConnection,
    control: &Control,
    scope: &Scope,
    mut project: Project,
) -> Result<(Project, Vec<InstanceId>)> {
    let now = control.clock.now();
    let instances = store::projects::instances(connection, scope, project.id).await?;
    for instance in &instances {
        instances::remove(connection, scope.organization_id, *instance, Removal::Confirmed).await?;
    }
    store::snapshots::unpin_of_project(connection, project.id, now).await?;
    project.archived_at.get_or_insert(now);
    project.removal_requested_at = Some(now);
    project.updated_at = now;
    written(store::projects::update(connection, scope, &project).await?, &project)?;
    Ok((project, instances))
}

fn subject(id: ProjectId) -> String {
    format!("project:{id}")
}

const NOT_FOUND: Error = Error::NotFound { what: "project" };

async fn refuse_while_in_use(connection: &mut PgConnection, grant: &Grant<ManageProjects>, project: &Project) -> Result<()> {
    let environments = store::projects::count_environments(connection, grant, project.id).await?;
    if environments == 0 {
        return Ok(());
    }
    let environments = if environments == 1 { "an environment".to_owned() } else { format!("{environments} environments") };
    Err(Error::conflict(
        "project_in_use",
        format!(
            "{} still has {environments}; delete what is in it first, or remove it with all its data: send its name, \
             DELETE /api/projects/{}?confirm={slug} (`ocore project delete {slug} --confirm {slug}`)",
            project.name,
            project.id,
            slug = project.slug
        ),
    ))
}

async fn newest_installed(control: &Control) -> Result<Option<OdooVersion>> {
    let facts = control.host.facts().await?;
    let number = |version: &OdooVersion| -> Vec<u32> { version.as_str().split('.').filter_map(|part| part.parse().ok()).collect() };
    Ok(facts.distributions.into_iter().map(|distribution| distribution.odoo_version).max_by_key(|version| number(version)))
}

fn parsed<T: std::str::FromStr<Err = ocore_model::names::InvalidName>>(field: &str, text: &str, fields: &mut Vec<FieldError>) -> Option<T> {
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            fields.push(FieldError { field: field.to_owned(), message: error.to_string() });
            None
        }
    }
}

fn check_texts(name: &str, description: &str, fields: &mut Vec<FieldError>) {
    if !(1..=100).contains(&name.chars().count()) || name.chars().any(char::is_control) {
        fields.push(FieldError { field: "name".to_owned(), message: "give a name of 1 to 100 characters".to_owned() });
    }
    if description.chars().count() > 2000 {
        fields.push(FieldError { field: "description".to_owned(), message: "use at most 2000 characters".to_owned() });
    }
}

fn check_modules(selection: &ModuleSelection, fields: &mut Vec<FieldError>) {
    if let ModuleSelection::List { modules } = selection
        && (modules.is_empty() || modules.len() > 1000)
    {
        let message = "name 1 to 1000 modules, or choose `own` or `all`";
        fields.push(FieldError { field: "moduleSelection.modules".to_owned(), message: message.to_owned() });
    }
}

fn written(written: Written, project: &Project) -> Result<()> {
    match written {
        Written::Done => Ok(()),
        Written::NameTaken => Err(Error::conflict(
            "project_name_taken",
            format!("the organization has a project named {} already (it may be archived)", project.name),
        )),
        Written::SlugTaken => {
            Err(Error::conflict("slug_taken", format!("the organization has a project with the slug {} already", project.slug)))
        }
    }
}
