//! Templates in a deployment: what a fresh database begins with, what is left to install in it, and what is kept for the next one.
//!
//! Only for builds that are thrown away as easily as they are made: production's own database is installed from nothing. A template is never a reason
//! for a deployment to fail; without one it takes longer.

use std::collections::BTreeSet;

use ocore_host::{DataSource, Distribution, HostError, KeepTemplate, NewDataSet, ReleaseId, Source, SourceId, Template};
use ocore_model::{
    deployment::{DataOrigin, ModulePlan},
    environment::Stage,
    names::ModuleName,
};

use super::{Parameters, data::names, step::Step};
use crate::{
    operations::{saga::Failure, template::Wish},
    reconcilers::templates,
};

/// So many templates are tried; who finds that many damaged in a row has another problem than templates.
const TRIES: usize = 3;

pub(super) fn applies(parameters: &Parameters) -> bool {
    parameters.origin == DataOrigin::Fresh && parameters.stage != Stage::Production
}

/// What the decision rests on.
struct Asked {
    source: Source,
    distribution: Distribution,
    requested: Vec<ModuleName>,
    release: ReleaseId,
    isolation_key: String,
    with_demo: bool,
}

impl Asked {
    async fn of(step: &Step) -> Result<Self, Failure> {
        let parameters = &step.parameters;
        let host = &step.control().host;
        let plan: ModulePlan = step.context.output("deploy::plan")?;
        let source: SourceId = step.context.output("deploy::checkout")?;
        let source = host.find_source(&source).await?;
        let source = source.ok_or_else(|| Failure::broken("the source tree has vanished from the server; deploy again"))?;
        let distribution = host.distribution(&parameters.odoo_version).await?;
        let isolation_key = parameters.project.to_string();
        Ok(Self {
            source,
            distribution,
            requested: names(&plan.install)?,
            release: step.context.output("deploy::build")?,
            isolation_key,
            with_demo: parameters.with_demo,
        })
    }

    fn wish(&self) -> Wish<'_> {
        Wish {
            source: &self.source.modules,
            distribution: &self.distribution,
            requested: &self.requested,
            with_demo: self.with_demo,
            isolation_key: &self.isolation_key,
        }
    }
}

/// Makes the fresh data set from the nearest template that is whole, or from nothing.
pub(super) async fn create(step: &Step) -> Result<(NewDataSet, DataSource), Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let asked = Asked::of(step).await?;
    for _ in 0..TRIES {
        let templates = usable(step, &asked).await.unwrap_or_else(|error| {
            step.say(&format!("the templates could not be read: {error}"));
            Vec::new()
        });
        let Some(template) = asked.wish().nearest(&templates) else { break };
        step.say(&format!("begins with template {}, which has {}", template.id, count(template.installed.len())));
        let source = DataSource::Template { template: template.id };
        match host.create_data_set(parameters.instance, parameters.data_set, source, step.fence(), step.progress()).await {
            Ok(made) => return Ok((made, source)),
            Err(error @ (HostError::Cancelled | HostError::Fenced { .. })) => return Err(error.into()),
            Err(error) => step.say(&format!("the template cannot be used: {error}")),
        }
    }
    step.say("begins with nothing");
    let source = DataSource::Fresh;
    let made = host.create_data_set(parameters.instance, parameters.data_set, source, step.fence(), step.progress()).await?;
    Ok((made, source))
}

/// What builds with this release may begin with: not what was made for all projects, when the operator does not want that.
async fn usable(step: &Step, asked: &Asked) -> Result<Vec<Template>, HostError> {
    let control = step.control();
    let mut templates = control.host.templates(Some(&asked.release)).await?;
    templates.retain(|template| control.settings.shared_templates || template.content.isolation_key.is_some());
    Ok(templates)
}

/// What of `install` the new data set does not have yet.
pub(super) async fn rest(step: &Step, install: Vec<ModuleName>) -> Result<Vec<ModuleName>, Failure> {
    let parameters = &step.parameters;
    if !applies(parameters) {
        return Ok(install);
    }
    let installed = step.control().host.installed_modules(parameters.instance, parameters.data_set, step.fence()).await?;
    let installed: BTreeSet<&str> =
        installed.iter().filter(|module| module.state == "installed").map(|module| module.name.as_str()).collect();
    if installed.is_empty() {
        return Ok(install);
    }
    let rest = Asked::of(step).await?.wish().rest(&installed);
    if rest.is_empty() {
        step.say("the template has every module");
    } else {
        step.say(&format!("the template has {}; {} to install", count(installed.len()), count(rest.len())));
    }
    Ok(rest)
}

/// Keeps what was just installed for the next build of the project, while Odoo starts on it and before anybody reaches that. Without it the next one
/// takes longer.
pub(super) async fn keep(step: &Step) {
    let parameters = &step.parameters;
    if !applies(parameters) {
        return;
    }
    match try_to_keep(step).await {
        Ok(Some(kept)) => step.say(&format!("kept as template {kept} for the project's next build")),
        Ok(None) => {}
        Err(failure) => step.say(&format!("could not be kept as a template: {}", failure.message)),
    }
}

async fn try_to_keep(step: &Step) -> Result<Option<String>, Failure> {
    let parameters = &step.parameters;
    let host = &step.control().host;
    let asked = Asked::of(step).await?;
    let wish = asked.wish();
    let templates = usable(step, &asked).await?;
    if wish.nearest(&templates).is_some_and(|template| wish.is_whole(template)) {
        return Ok(None);
    }
    let request = KeepTemplate {
        data_set: parameters.data_set,
        release: asked.release.clone(),
        isolation_key: asked.isolation_key.clone(),
        requested: asked.requested.clone(),
        standard: wish.standard(),
        with_demo: asked.with_demo,
    };
    let kept = host.keep_template(parameters.instance, request, step.progress()).await?;
    // Which perhaps makes one for all projects, later.
    step.control().signals.wake(templates::NAME);
    Ok(Some(kept.id.to_string()))
}

fn count(modules: usize) -> String {
    if modules == 1 { "1 module".to_owned() } else { format!("{modules} modules") }
}
