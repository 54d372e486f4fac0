//! Organizations: the tenants. Whoever makes one is its owner; its system roles come with it.

use chrono::{DateTime, Utc};
use ocore_model::{
    environment::Stage,
    ids::OrganizationId,
    names::{Slug, slug_from},
    permission::{PermissionSet, SystemRole},
};
use serde_json::json;

use crate::{
    Control, Error, FieldError, Result,
    accounts::{Identity, Person},
    audit,
    authorization::{Grant, ManageOrganization, ViewOrganization},
    environments, operations, projects,
    reconcilers::removals,
    store,
};

/// How often a slug of our own choice is chosen anew.
const TRIES: u32 = 16;

#[derive(Debug, Clone)]
pub struct Organization {
    pub id: OrganizationId,
    pub name: String,
    pub slug: String,
    /// Empty when there is none.
    pub logo_url: String,
    /// It goes for good when the last snapshots of its productions have gone. Until then its owners can bring it back.
    pub removal_requested_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// An organization with what the caller is in it.
#[derive(Debug, Clone)]
pub struct OwnOrganization {
    pub organization: Organization,
    /// The name of the caller's role.
    pub role: String,
    /// What the caller may do: of an API key, what is left of it.
    pub permissions: PermissionSet,
}

#[derive(Debug, Clone)]
pub struct NewOrganization {
    pub name: String,
    /// Made from the name when `None`.
    pub slug: Option<String>,
}

/// What changes; `None` stays.
#[derive(Debug, Clone, Default)]
pub struct OrganizationPatch {
    pub name: Option<String>,
    pub slug: Option<String>,
    pub logo_url: Option<String>,
    /// False brings one back that is being removed; its projects are brought back one by one. [`remove`] is the other way.
    pub removed: Option<bool>,
}

/// Makes an organization with its system roles; the caller becomes its owner. A slug that is taken is `Conflict` with the code `slug_taken`;
/// one made from the name gets a number instead. One more than a user may make is `Conflict` with the code `too_many_organizations`.
pub async fn create(control: &Control, person: &Person, new: NewOrganization) -> Result<OwnOrganization> {
    let now = control.clock.now();
    let name = new.name.trim().to_owned();
    let mut fields = Vec::new();
    check_name(&name, &mut fields);
    let wished = match &new.slug {
        Some(slug) => match slug.parse::<Slug>() {
            Ok(slug) => Some(slug),
            Err(error) => {
                fields.push(FieldError { field: "slug".to_owned(), message: error.to_string() });
                None
            }
        },
        None => None,
    };
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    let mut transaction = control.pool.begin().await?;
    store::accounts::lock_user(&mut transaction, person.user_id).await?;
    let limit = control.settings.limits.organizations_per_user;
    if limit > 0 && store::organizations::count_made_by(&mut transaction, person.user_id).await? >= i64::from(limit) {
        return Err(Error::conflict(
            "too_many_organizations",
            format!(
                "you have made {limit} organizations, and one user may not make more (limits.organizations_per_user in this oCore's configuration); \
                 delete one, or ask whoever runs it"
            ),
        ));
    }
    let base = slug_from(&name, 45, "organization");
    let chosen = wished.is_none();
    let taken = if chosen { store::organizations::slugs_like(&mut transaction, base.as_str()).await? } else { Vec::new() };
    let slug = wished.unwrap_or_else(|| first_free(&base, &taken));
    let mut organization = Organization {
        id: OrganizationId::new(),
        name,
        slug: slug.to_string(),
        logo_url: String::new(),
        removal_requested_at: None,
        created_at: now,
        updated_at: now,
    };
    let mut tries = TRIES;
    while !store::organizations::insert(&mut transaction, &organization, person.user_id).await? {
        tries -= 1;
        if !chosen || tries == 0 {
            return Err(slug_taken(&organization.slug));
        }
        // Somebody took the slug that we had chosen, at the same moment.
        let taken = store::organizations::slugs_like(&mut transaction, base.as_str()).await?;
        organization.slug = first_free(&base, &taken).to_string();
    }
    let owner = store::roles::insert_system_roles(&mut transaction, organization.id, now).await?;
    store::members::insert(&mut transaction, organization.id, person.user_id, owner, now).await?;
    transaction.commit().await?;
    tracing::info!(organization_id = %organization.id, slug = %organization.slug, "an organization was made");
    Ok(OwnOrganization { organization, role: SystemRole::Owner.to_string(), permissions: SystemRole::Owner.permissions() })
}

/// The organizations that the caller belongs to, by name.
pub async fn own(control: &Control, identity: &Identity) -> Result<Vec<OwnOrganization>> {
    let mut own = store::organizations::of_user(&mut *control.pool.acquire().await?, identity.user_id).await?;
    own.retain_mut(|own| match identity.permissions_in(own.organization.id) {
        Some(permissions) => {
            own.permissions = permissions.clone();
            true
        }
        None => false,
    });
    Ok(own)
}

/// The caller's organization.
pub async fn show(control: &Control, grant: &Grant<ViewOrganization>) -> Result<OwnOrganization> {
    let own = store::organizations::of_user(&mut *control.pool.acquire().await?, grant.user_id).await?;
    let mut own =
        own.into_iter().find(|own| own.organization.id == grant.organization_id).ok_or(Error::NotFound { what: "organization" })?;
    own.permissions = grant.permissions.clone();
    Ok(own)
}

/// Changes name, slug or logo. A new slug changes the addresses of the organization's built-in repositories.
pub async fn update(control: &Control, grant: &Grant<ManageOrganization>, patch: OrganizationPatch) -> Result<OwnOrganization> {
    let mut fields = Vec::new();
    if let Some(name) = &patch.name {
        check_name(name.trim(), &mut fields);
    }
    if let Some(Err(error)) = patch.slug.as_ref().map(|slug| slug.parse::<Slug>()) {
        fields.push(FieldError { field: "slug".to_owned(), message: error.to_string() });
    }
    if let Some(logo_url) = &patch.logo_url
        && !logo_url.is_empty()
        && !is_web_address(logo_url)
    {
        fields.push(FieldError { field: "logoUrl".to_owned(), message: "give an http or https address, or nothing".to_owned() });
    }
    if patch.removed == Some(true) {
        let message = "an organization is removed by DELETE /api/org?confirm=<slug>; false brings one back".to_owned();
        fields.push(FieldError { field: "removed".to_owned(), message });
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    let mut transaction = control.pool.begin().await?;
    let own = store::organizations::of_user(&mut transaction, grant.user_id).await?;
    let mut own =
        own.into_iter().find(|own| own.organization.id == grant.organization_id).ok_or(Error::NotFound { what: "organization" })?;
    let organization = &mut own.organization;
    let before = json!({ "name": organization.name, "slug": organization.slug, "logoUrl": organization.logo_url });
    if let Some(name) = patch.name {
        name.trim().clone_into(&mut organization.name);
    }
    if let Some(slug) = patch.slug {
        organization.slug = slug;
    }
    if let Some(logo_url) = patch.logo_url {
        organization.logo_url = logo_url;
    }
    organization.updated_at = control.clock.now();
    let after = json!({ "name": organization.name, "slug": organization.slug, "logoUrl": organization.logo_url });
    if before != after {
        let detail = json!({ "before": before, "after": after });
        audit::record(&mut transaction, control, grant, "organization.changed", &subject(organization.id), &detail).await?;
    }
    if patch.removed == Some(false) && organization.removal_requested_at.take().is_some() {
        let detail = json!({ "slug": organization.slug });
        audit::record(&mut transaction, control, grant, "organization.brought_back", &subject(organization.id), &detail).await?;
    }
    if !store::organizations::update(&mut transaction, organization).await? {
        return Err(slug_taken(&organization.slug));
    }
    transaction.commit().await?;
    own.permissions = grant.permissions.clone();
    Ok(own)
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Gone,
    /// Its projects are being removed as [`projects::remove`] does; it goes when the last snapshots of its productions have gone, and its owners can
    /// bring it back until then.
    Going,
}

/// Removes the organization with its projects and their data, its keys and members; its owners stay until it is gone. With projects in it only when its
/// slug is typed as `confirmation`, and with a production in it only with `manage:production` on top. A second call goes on.
pub async fn remove(control: &Control, grant: &Grant<ManageOrganization>, confirmation: Option<&str>) -> Result<Removed> {
    let now = control.clock.now();
    let slug = &grant.organization_slug;
    let mut transaction = control.pool.begin().await?;
    let projects = store::projects::list(&mut transaction, grant, true).await?;
    match confirmation {
        Some(typed) if typed != slug => return Err(environments::not_its_name(slug)),
        None if !projects.is_empty() => {
            let projects = if projects.len() == 1 { "a project".to_owned() } else { format!("{} projects", projects.len()) };
            return Err(Error::conflict(
                "organization_in_use",
                format!(
                    "{slug} still has {projects}: to remove it with all its data, send its name, DELETE /api/org?confirm={slug} \
                     (`ocore org delete --confirm {slug}`); the last snapshots of its productions are kept for {} days",
                    environments::KEPT.num_days()
                ),
            ));
        }
        _ => {}
    }
    let mut going = Vec::new();
    for project in projects {
        // In the order in which everybody locks: a project, its instances, and the organization last.
        store::projects::lock(&mut transaction, grant, project.id).await?;
        if store::environments::production_of(&mut transaction, project.id).await?.is_some() {
            grant.may_touch(Stage::Production)?;
        }
        going.extend(projects::take_down(&mut transaction, control, grant, project).await?.1);
    }
    store::organizations::begin_removal(&mut transaction, grant, now).await?;
    let detail = json!({ "slug": slug, "instances": going.len() });
    audit::record(&mut transaction, control, grant, "organization.removed", &subject(grant.organization_id), &detail).await?;
    transaction.commit().await?;
    tracing::info!(organization_id = %grant.organization_id, slug, "an organization is being removed");
    for instance in going {
        operations::wake(control, instance).await;
    }
    // What is empty goes at once; what does not is the reconciler's.
    if let Err(error) = removals::run(control).await {
        tracing::warn!(organization_id = %grant.organization_id, %error, "what is left of a removed organization could not be removed yet");
    }
    let left = store::organizations::stands(&mut *control.pool.acquire().await?, grant.organization_id).await?;
    Ok(if left { Removed::Going } else { Removed::Gone })
}

fn subject(id: OrganizationId) -> String {
    format!("organization:{id}")
}

fn check_name(name: &str, fields: &mut Vec<FieldError>) {
    if !(2..=100).contains(&name.chars().count()) || name.chars().any(char::is_control) {
        fields.push(FieldError { field: "name".to_owned(), message: "give a name of 2 to 100 characters".to_owned() });
    }
}

fn is_web_address(text: &str) -> bool {
    // As it is written it goes into pages of others: nothing that would end an attribute there, and no credentials.
    let plain = text.len() <= 2000 && !text.chars().any(|c| c.is_control() || c.is_whitespace() || "\"'<>`\\".contains(c));
    plain
        && url::Url::parse(text)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none())
}

/// The slug, or the slug with the lowest number that is not taken.
pub(crate) fn first_free(base: &Slug, taken: &[String]) -> Slug {
    if !taken.iter().any(|slug| slug == base.as_str()) {
        return base.clone();
    }
    (2..=taken.len() + 2)
        .filter_map(|number| format!("{base}-{number}").parse::<Slug>().ok())
        .find(|slug| !taken.iter().any(|taken| taken == slug.as_str()))
        .unwrap_or_else(|| base.clone())
}

fn slug_taken(slug: &str) -> Error {
    Error::conflict("slug_taken", format!("the slug {slug} is taken; choose another"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_that_is_taken_gets_the_lowest_free_number() {
        let base: Slug = "acme".parse().unwrap();
        let free = |taken: &[&str]| first_free(&base, &taken.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string();
        assert_eq!(free(&[]), "acme");
        assert_eq!(free(&["acme-corp"]), "acme");
        assert_eq!(free(&["acme"]), "acme-2");
        assert_eq!(free(&["acme", "acme-3", "acme-2"]), "acme-4");
    }
}
