//! Templates for everybody: what one project's build had to install of Odoo's own modules, no other one shall. Nothing says so but the templates
//! themselves: each that is kept from a project's build names the modules of Odoo's own that it needed.
//!
//! They are made when nothing is being deployed, one a run, and given up when something is: no push is slower for them.

use std::{sync::Arc, time::Duration};

use ocore_host::{HostError, MakeTemplate, Progress, Template, TemplateLimits};
use ocore_model::{
    ids::TemplateId,
    names::{ModuleName, OdooVersion},
};
use tokio_util::sync::CancellationToken;

use super::Quiet;
use crate::{Control, Result, authorization::System, store};

pub(crate) const NAME: &str = "templates";

/// Some hundred databases with Odoo's usual modules. Their blocks are shared with what was made from them, so they take less than that.
const BYTES: u64 = 20 * 1024 * 1024 * 1024;
const UNUSED_DAYS: u32 = 30;
/// Between two looks whether something is being deployed while a template is made.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn run(control: &Control) -> Result<Vec<String>> {
    let projects = store::repositories::all_projects(&mut *control.pool.acquire().await?, System).await?;
    let keys = projects.into_iter().map(|project| project.to_string()).collect();
    let gone = control.host.prune_templates(TemplateLimits { bytes: BYTES, unused_days: UNUSED_DAYS, keys }).await?;
    let mut changes = Vec::new();
    if !gone.is_empty() {
        changes.push(format!("removed {} that nobody needs", count(gone.len())));
    }
    if !control.settings.shared_templates {
        return Ok(changes);
    }
    let templates = control.host.templates(None).await?;
    let Some(missing) = missing(&templates) else { return Ok(changes) };
    // An Odoo that was updated since has other modules of the same names; its own builds will ask.
    if is_busy(control).await? || control.host.distribution(&missing.odoo_version).await?.id != missing.distribution_id {
        return Ok(changes);
    }
    let (odoo_version, with_demo, from) = (missing.odoo_version.clone(), missing.with_demo, missing.from);
    let request = MakeTemplate { odoo_version, modules: missing.modules, with_demo, from };
    let cancel = CancellationToken::new();
    let making = control.host.make_template(request, Progress { log: Arc::new(Quiet), cancel: cancel.clone() });
    tokio::pin!(making);
    let made = tokio::select! {
        made = &mut making => made?,
        () = until_busy(control) => {
            cancel.cancel();
            // It cleans up behind itself; what was about to be finished is.
            match making.await {
                Err(HostError::Cancelled) => return Ok(changes),
                made => made?,
            }
        }
    };
    changes.push(format!("made a template of Odoo {} with {} modules for all projects", missing.odoo_version, made.installed.len()));
    // There may be more.
    control.signals.wake(NAME);
    Ok(changes)
}

/// Something is being deployed, or waits for it.
async fn is_busy(control: &Control) -> Result<bool> {
    let mut connection = control.pool.acquire().await?;
    Ok(!store::operations::running(&mut connection).await?.is_empty() || !store::operations::waiting(&mut connection).await?.is_empty())
}

async fn until_busy(control: &Control) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // A store that is away deploys nothing.
        if is_busy(control).await.unwrap_or(false) {
            return;
        }
    }
}

fn count(templates: usize) -> String {
    if templates == 1 { "1 template".to_owned() } else { format!("{templates} templates") }
}

/// A template for everybody that is to be made.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    odoo_version: OdooVersion,
    distribution_id: String,
    with_demo: bool,
    modules: Vec<ModuleName>,
    from: Option<TemplateId>,
}

/// For the project template that was used last: first one with Odoo's base alone, which all builds of that Odoo can begin with, then one with all
/// modules of Odoo's own that it needed.
fn missing(templates: &[Template]) -> Option<Missing> {
    let mut projects: Vec<&Template> = templates.iter().filter(|template| template.content.isolation_key.is_some()).collect();
    projects.sort_by_key(|template| (std::cmp::Reverse(template.used_at), template.id));
    projects.into_iter().find_map(|project| {
        let shared = |template: &&Template| {
            template.content.isolation_key.is_none()
                && template.content.distribution_id == project.content.distribution_id
                && template.content.with_demo == project.content.with_demo
        };
        let missing = |modules: Vec<ModuleName>, from: Option<&Template>| Missing {
            odoo_version: project.odoo_version.clone(),
            distribution_id: project.content.distribution_id.clone(),
            with_demo: project.content.with_demo,
            modules,
            from: from.map(|template| template.id),
        };
        let Some(base) = templates.iter().filter(shared).min_by_key(|template| template.installed.len()) else {
            return Some(missing(vec!["base".parse().ok()?], None));
        };
        // What has more than is needed is no beginning for it.
        let fits =
            |template: &&Template| template.content.requested.iter().all(|name| name.as_str() == "base" || project.standard.contains(name));
        let nearest = templates.iter().filter(shared).filter(fits).max_by_key(|template| template.installed.len());
        let has_all =
            |template: &Template| project.standard.iter().all(|name| template.installed.iter().any(|installed| installed == name.as_str()));
        if nearest.is_some_and(has_all) {
            return None;
        }
        Some(missing(project.standard.clone(), nearest.or(Some(base).filter(|base| fits(base)))))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::DateTime;
    use ocore_host::TemplateContent;

    use super::*;

    fn names(names: &[&str]) -> Vec<ModuleName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn template(key: Option<&str>, standard: &[&str], installed: &[&str]) -> Template {
        let content = TemplateContent {
            distribution_id: "19.0-1".to_owned(),
            with_demo: false,
            isolation_key: key.map(str::to_owned),
            requested: names(standard),
            environment: None,
            modules: BTreeMap::new(),
        };
        let now = DateTime::from_timestamp_nanos(0);
        Template {
            id: TemplateId::new(),
            content,
            odoo_version: "19.0".parse().unwrap(),
            postgres: "15".to_owned(),
            shape: 1,
            standard: names(standard),
            installed: installed.iter().map(|name| (*name).to_owned()).collect(),
            created_at: now,
            used_at: now,
            bytes: 0,
            entries: 0,
        }
    }

    #[test]
    fn what_a_project_needed_of_odoo_is_made_for_all_and_base_first() {
        let mut templates = vec![template(Some("ours"), &["sale", "stock"], &["base", "web", "sale", "stock", "shop"])];
        let asked = |templates: &[Template]| missing(templates).map(|missing| (missing.modules, missing.from));
        assert_eq!(asked(&templates), Some((names(&["base"]), None)));
        let base = template(None, &["base"], &["base", "web"]);
        templates.push(base.clone());
        assert_eq!(asked(&templates), Some((names(&["sale", "stock"]), Some(base.id))));
        let sale = template(None, &["sale"], &["base", "web", "sale"]);
        templates.push(sale.clone());
        assert_eq!(asked(&templates), Some((names(&["sale", "stock"]), Some(sale.id))));
        templates.push(template(None, &["sale", "stock"], &["base", "web", "sale", "stock"]));
        assert_eq!(asked(&templates), None);
        // Other demo data make another database.
        let mut demo = template(Some("ours"), &["sale"], &["base", "web", "sale"]);
        demo.content.with_demo = true;
        templates.push(demo);
        assert_eq!(asked(&templates), Some((names(&["base"]), None)));
        assert_eq!(missing(&[]), None);
    }
}
