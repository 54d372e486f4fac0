//! Which template a fresh database begins with, and what is left to install then: a pure decision from what the build asks for.

use std::collections::{BTreeMap, BTreeSet};

use ocore_host::{Distribution, SourceModule, Template};
use ocore_model::names::ModuleName;

/// What a build of a fresh database asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The modules of the commit.
    pub(super) source: &'a [SourceModule],
    pub(super) distribution: &'a Distribution,
    /// The modules that the plan installs.
    pub(super) requested: &'a [ModuleName],
    pub(super) with_demo: bool,
    /// Of the project: only its own builds may have its modules.
    pub(super) isolation_key: &'a str,
}

impl<'a> Wish<'a> {
    /// Odoo's own modules that are asked for, directly or by the project's modules, sorted. What those depend on is not named. `base`, which
    /// everything needs, only when there is no other.
    pub(super) fn standard(&self) -> Vec<ModuleName> {
        let mut standard: BTreeSet<&str> = self.names().into_iter().filter(|name| self.module(name).is_none() && *name != "base").collect();
        if standard.is_empty() {
            standard.insert("base");
        }
        self.distribution.modules.iter().filter(|module| standard.contains(module.as_str())).cloned().collect()
    }

    /// The template that has most of what is asked for, and nothing else.
    pub(super) fn nearest<'t>(&self, templates: &'t [Template]) -> Option<&'t Template> {
        let names = self.names();
        let fitting = templates.iter().filter(|template| self.fits(template, &names));
        fitting.max_by_key(|template| (template.installed.len(), template.used_at, template.id))
    }

    /// It leaves nothing to install.
    pub(super) fn is_whole(&self, template: &Template) -> bool {
        self.rest(&template.installed.iter().map(String::as_str).collect()).is_empty()
    }

    /// What is to be installed in a database that has these modules.
    pub(super) fn rest(&self, installed: &BTreeSet<&str>) -> Vec<ModuleName> {
        let mut rest: BTreeSet<&ModuleName> = self.requested.iter().filter(|module| !installed.contains(module.as_str())).collect();
        // Odoo installs these by itself only when one of their dependencies is just being installed.
        let automatic = self.source.iter().filter(|module| module.installable && module.auto_install);
        rest.extend(
            automatic
                .filter(|module| !installed.contains(module.name.as_str()))
                .filter(|module| {
                    module.triggers.as_ref().unwrap_or(&module.depends).iter().all(|dependency| installed.contains(dependency.as_str()))
                })
                .map(|module| &module.name),
        );
        rest.into_iter().cloned().collect()
    }

    fn fits(&self, template: &Template, names: &BTreeSet<&str>) -> bool {
        let content = &template.content;
        content.distribution_id == self.distribution.id
            && content.with_demo == self.with_demo
            && content.isolation_key.as_deref().is_none_or(|key| key == self.isolation_key)
            && content.requested.iter().all(|module| module.as_str() == "base" || names.contains(module.as_str()))
            && content.modules.iter().all(|(module, digest)| {
                self.module(module.as_str()).is_some_and(|ours| {
                    ours.installable && ours.digest == *digest && (ours.auto_install || names.contains(module.as_str()))
                })
            })
    }

    /// What is asked for and what the project's modules among it depend on.
    fn names(&self) -> BTreeSet<&'a str> {
        let by_name: BTreeMap<&str, &SourceModule> = self.source.iter().map(|module| (module.name.as_str(), module)).collect();
        let mut names = BTreeSet::new();
        let mut open: Vec<&'a str> = self.requested.iter().map(ModuleName::as_str).collect();
        while let Some(name) = open.pop() {
            if names.insert(name)
                && let Some(module) = by_name.get(name)
            {
                open.extend(module.depends.iter().map(String::as_str));
            }
        }
        names
    }

    fn module(&self, name: &str) -> Option<&'a SourceModule> {
        self.source.iter().find(|module| module.name.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use ocore_host::TemplateContent;
    use ocore_model::ids::TemplateId;

    use super::{super::plan::tests::module, *};

    fn names(names: &[&str]) -> Vec<ModuleName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn template(key: Option<&str>, requested: &[&str], modules: &[(&str, &str)], installed: &[&str]) -> Template {
        let content = TemplateContent {
            distribution_id: "19.0-1".to_owned(),
            with_demo: false,
            isolation_key: key.map(str::to_owned),
            requested: names(requested),
            environment: None,
            modules: modules.iter().map(|(name, digest)| (name.parse().unwrap(), (*digest).to_owned())).collect(),
        };
        let installed = installed.iter().map(|name| (*name).to_owned()).collect();
        let now = chrono::DateTime::from_timestamp_nanos(0);
        Template {
            id: TemplateId::new(),
            content,
            odoo_version: "19.0".parse().unwrap(),
            postgres: "15".to_owned(),
            shape: 1,
            standard: Vec::new(),
            installed,
            created_at: now,
            used_at: now,
            bytes: 0,
            entries: 0,
        }
    }

    #[test]
    fn the_nearest_template_has_most_of_what_is_asked_for_and_nothing_else() {
        let distribution = Distribution {
            odoo_version: "19.0".parse().unwrap(),
            id: "19.0-1".to_owned(),
            modules: names(&["base", "web", "sale", "stock"]),
        };
        let mut automatic = module("glue", &["shop"], "1");
        automatic.auto_install = true;
        let source = [module("shop", &["sale", "tools"], "2"), module("tools", &["base"], "1"), automatic];
        let requested = names(&["shop"]);
        let wish = Wish { source: &source, distribution: &distribution, requested: &requested, with_demo: false, isolation_key: "ours" };
        assert_eq!(wish.standard(), names(&["sale"]));

        let templates = [
            template(None, &["base"], &[], &["base"]),
            template(None, &["sale"], &[], &["base", "web", "sale"]),
            template(None, &["sale", "stock"], &[], &["base", "web", "sale", "stock"]),
            template(Some("theirs"), &["shop"], &[("shop", "2"), ("tools", "1")], &["base", "web", "sale", "shop", "tools"]),
            template(Some("ours"), &["shop"], &[("shop", "1"), ("tools", "1")], &["base", "web", "sale", "shop", "tools"]),
            template(Some("ours"), &["tools"], &[("tools", "1")], &["base", "tools"]),
        ];
        // Not the one with stock, not the other project's, not the one with shop as it was.
        assert_eq!(wish.nearest(&templates), Some(&templates[1]));
        assert!(!wish.is_whole(&templates[1]));
        assert_eq!(wish.rest(&["base", "web", "sale"].into()), names(&["shop"]));
        let whole = template(Some("ours"), &["shop"], &[("shop", "2"), ("tools", "1")], &["base", "web", "sale", "shop", "tools"]);
        let with_whole: Vec<Template> = templates.iter().cloned().chain([whole.clone()]).collect();
        assert_eq!(wish.nearest(&with_whole), Some(&whole));
        assert!(!wish.is_whole(&whole), "the glue between them is new");
        assert_eq!(wish.rest(&["base", "web", "sale", "shop", "tools"].into()), names(&["glue"]));

        let demo = Wish { with_demo: true, ..wish };
        assert_eq!(demo.nearest(&with_whole), None, "demo data make another database");
        let other = Distribution { id: "19.0-2".to_owned(), ..distribution.clone() };
        assert_eq!(Wish { distribution: &other, ..wish }.nearest(&with_whole), None, "so does another Odoo");
        let only_base = names(&["tools"]);
        assert_eq!(Wish { requested: &only_base, ..wish }.standard(), names(&["base"]));
    }
}
