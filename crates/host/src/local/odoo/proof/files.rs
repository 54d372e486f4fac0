//! The files that bundles are made of, by the address that Odoo gives them: `/module/static/src/page.scss`.

use std::{collections::BTreeMap, path::PathBuf};

use ocore_model::names::ModuleName;

use crate::local::sources::read_inside;

/// What a bundle may name. The names come from Odoo, and so from whoever wrote its modules: nothing outside of these directories is read.
pub(super) struct Files {
    /// Of the repository, as it is released.
    pub(super) tree: PathBuf,
    /// Where its modules are in it.
    pub(super) modules: BTreeMap<ModuleName, String>,
    /// Directories of other modules, Odoo's among them.
    pub(super) others: Vec<PathBuf>,
}

impl Files {
    /// The path within the repository of what this address names; `None` for what is not of the repository.
    pub(super) fn own(&self, address: &str) -> Option<String> {
        let (module, rest) = address.strip_prefix('/').unwrap_or(address).split_once('/')?;
        let path = self.modules.get(&module.parse::<ModuleName>().ok()?)?;
        Some(format!("{path}/{rest}"))
    }

    /// The text of a file; `None` when it is not there, or not to be read.
    pub(super) fn read(&self, address: &str) -> Option<String> {
        if let Some(path) = self.own(address) {
            return read_inside(&self.tree, &path).ok()?;
        }
        let path = address.strip_prefix('/').unwrap_or(address);
        let module = path.split('/').next().filter(|module| module.parse::<ModuleName>().is_ok())?;
        self.others.iter().filter(|directory| directory.join(module).is_dir()).find_map(|directory| read_inside(directory, path).ok()?)
    }

    /// The place in a manifest of the repository that names this file: `shop/__manifest__.py, line 7`.
    pub(super) fn named_by(&self, address: &str) -> Option<String> {
        let wanted = address.trim_start_matches('/');
        self.modules.values().find_map(|module| {
            let manifest = format!("{module}/__manifest__.py");
            let text = read_inside(&self.tree, &manifest).ok()??;
            let line = text.lines().position(|line| line.contains(wanted))?;
            Some(format!("{manifest}, line {}", line + 1))
        })
    }

    /// Bundles that manifests of the repository say something of.
    pub(super) fn bundles(&self) -> Vec<String> {
        let manifests =
            self.modules.values().filter_map(|module| read_inside(&self.tree, &format!("{module}/__manifest__.py")).ok().flatten());
        let mut bundles: Vec<String> = manifests.flat_map(|text| keys(&text)).collect();
        bundles.sort();
        bundles.dedup();
        bundles
    }
}

/// Keys of dictionaries that are named like a bundle, `module.name`: those of `assets`, since nothing else of a manifest has such.
fn keys(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = manifest;
    while let Some(at) = rest.find(['\'', '"']) {
        let quote = &rest[at..=at];
        let Some((word, behind)) = rest[at + 1..].split_once(quote) else { break };
        if is_bundle(word) && behind.trim_start().starts_with(':') {
            found.push(word.to_owned());
        }
        rest = behind;
    }
    found
}

/// `module.name`.
pub(super) fn is_bundle(word: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    word.split_once('.').is_some_and(|(module, name)| is_name(module) && is_name(name))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A repository with these files of modules in `addons/`.
    pub(in crate::local::odoo::proof) fn of(directory: &std::path::Path, files: &[(&str, &str)]) -> Files {
        let mut modules = BTreeMap::new();
        for (path, text) in files {
            let place = directory.join("addons").join(path);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, text).unwrap();
            let module = path.split('/').next().unwrap();
            modules.insert(module.parse().unwrap(), format!("addons/{module}"));
        }
        Files { tree: directory.to_owned(), modules, others: Vec::new() }
    }

    #[test]
    fn nothing_outside_of_the_modules_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let files = of(
            &directory.path().join("tree"),
            &[("shop/static/a.scss", "a"), ("shop/__manifest__.py", "{\n'assets': {'web.x': ['shop/static/b.scss']}}")],
        );
        std::fs::write(directory.path().join("secret"), "secret").unwrap();
        assert_eq!(files.read("/shop/static/a.scss").as_deref(), Some("a"));
        assert_eq!(files.read("/shop/../../../secret"), None);
        assert_eq!(files.read("/etc/passwd"), None);
        assert_eq!(files.read("/../etc/passwd"), None);
        assert_eq!(files.own("/shop/static/a.scss").as_deref(), Some("addons/shop/static/a.scss"));
        assert_eq!(files.named_by("/shop/static/b.scss").as_deref(), Some("addons/shop/__manifest__.py, line 2"));
        assert_eq!(files.bundles(), ["web.x"]);
    }

    #[test]
    fn bundles_are_the_keys_with_a_point() {
        let manifest =
            "{'name': \"It's: a 'shop'\", 'version': '19.0.1', 'assets': {'web.assets_backend': ['a/b.js'], \"shop._more\" : []}}";
        assert_eq!(keys(manifest), ["web.assets_backend", "shop._more"]);
    }
}
