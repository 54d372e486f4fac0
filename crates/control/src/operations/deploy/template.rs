//! Templates in a deployment: what a fresh database begins with, what is left to install in it, and what is kept for the next one.
//!
//! Only for builds that are thrown away as easily as they are made. Production's own database is installed from nothing.

use std::collections::BTreeSet;

use ocore_host::{DataSource, Distribution, HostError, KeepTemplate, MakeTemplate, Source, SourceId, Template};
use ocore_model::{
    deployment::{DataOrigin, ModulePlan},
    environment::Stage,
    names::ModuleName,
};

use super::{Parameters, data::names, step::Step};
use crate::operations::{saga::Failure, template::Wish};

fn applies(parameters: &Parameters) -> bool {
    parameters.origin == DataOrigin::Fresh && parameters.stage != Stage::Production
}

/// What the decision rests on.
struct Asked {
    source: Source,
    distribution: Distribution,
    requested: Vec<ModuleName>,
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
        Ok(Self { source, distribution, requested: names(&plan.install)?, isolation_key, with_demo: parameters.with_demo })
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

/// The nearest template. One of Odoo's own modules is made first where none has them all: the next build then begins with it, whichever
/// project's it is. Without any template the build is as good.
pub(super) async fn source(step: &Step) -> Result<DataSource, Failure> {
    if !applies(&step.parameters) {
        return Ok(DataSource::Fresh);
    }
    let asked = Asked::of(step).await?;
    match nearest(step, &asked).await {
        Ok(template) => {
            step.say(&format!("begins with template {}, which has {} modules", template.id, template.installed.len()));
            Ok(DataSource::Template { template: template.id })
        }
        Err(error @ (HostError::Cancelled | HostError::Fenced { .. })) => Err(error.into()),
        Err(error) => {
            step.say(&format!("there is no template to begin with, so everything is installed: {error}"));
            Ok(DataSource::Fresh)
        }
    }
}

async fn nearest(step: &Step, asked: &Asked) -> Result<Template, HostError> {
    let host = &step.control().host;
    let wish = asked.wish();
    let templates = host.templates().await?;
    if let Some(template) = wish.nearest(&templates).filter(|template| wish.has_standard(template)) {
        return Ok(template.clone());
    }
    let modules = wish.standard();
    let list: Vec<&str> = modules.iter().map(ModuleName::as_str).collect();
    step.say(&format!("makes a template with {}, for all builds that need the same", list.join(", ")));
    let odoo_version = step.parameters.odoo_version.clone();
    host.make_template(MakeTemplate { odoo_version, modules, with_demo: asked.with_demo }, step.progress()).await
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
        step.say("the template has everything");
    }
    Ok(rest)
}

/// Keeps what was just installed for the next build of the project, before anybody uses it. Without it that one takes longer.
pub(super) async fn keep(step: &Step) -> Result<(), Failure> {
    let parameters = &step.parameters;
    if !applies(parameters) {
        return Ok(());
    }
    let asked = Asked::of(step).await?;
    if asked.requested.iter().all(|name| asked.distribution.modules.contains(name)) {
        // Nothing of the project's: the template that it began with is the same.
        return Ok(());
    }
    let request = KeepTemplate {
        data_set: parameters.data_set,
        release: step.context.output("deploy::build")?,
        isolation_key: asked.isolation_key,
        requested: asked.requested,
        with_demo: asked.with_demo,
    };
    match step.control().host.keep_template(parameters.instance, request, step.fence(), step.progress()).await {
        Ok(template) => {
            step.say(&format!("kept as template {} for the next build", template.id));
            Ok(())
        }
        Err(error @ (HostError::Cancelled | HostError::Fenced { .. })) => Err(error.into()),
        Err(error) => {
            step.say(&format!("could not be kept as a template: {error}"));
            Ok(())
        }
    }
}
