//! Says before what would be found after: whether a backup fits the server and the Odoo that is to run on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::survey::Survey;
use crate::{
    api::{CheckImport, ImportFacts, Progress},
    error::{HostError, Result},
    local::{LocalHost, exec::Program},
};

/// Extensions that Odoo and its usual modules ask for, none of which reaches out of the database. The rest are refused: a dump decides about what
/// the server loads only within this list.
pub(super) const EXTENSIONS: &[&str] =
    &["plpgsql", "pg_trgm", "unaccent", "vector", "btree_gin", "btree_gist", "citext", "fuzzystrmatch", "hstore", "pgcrypto", "uuid-ossp"];

/// Statements that give a new database the extensions of a backup, in their schemas, and the schemas that they make. What the backup calls a schema comes
/// from outside: a name that is none of the plain ones is not used.
pub(super) fn statements_for(wanted: &BTreeMap<String, String>, present: &[&str], owner: &str) -> (Vec<String>, BTreeSet<String>) {
    let (mut statements, mut schemas) = (Vec::new(), BTreeSet::new());
    let is_plain = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        name.len() < 64 && name.bytes().all(plain) && name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.starts_with("pg_")
    };
    for name in EXTENSIONS.iter().filter(|name| **name != "plpgsql") {
        let Some(schema) = wanted.get(*name) else { continue };
        let schema = if is_plain(schema) && schema != "information_schema" { schema.as_str() } else { "public" };
        if schema != "public" && schemas.insert(schema.to_owned()) {
            statements.push(format!("create schema \"{schema}\" authorization \"{owner}\""));
        }
        if !present.contains(name) {
            statements.push(format!("create extension if not exists \"{name}\" schema \"{schema}\""));
        } else if schema != "public" {
            statements.push(format!("alter extension \"{name}\" set schema \"{schema}\""));
        }
        if *name == "unaccent" {
            // As Odoo has it, which builds indexes with it (odoo/service/db.py, `_create_empty_database`); no dump says so.
            statements.push(format!("alter function \"{schema}\".unaccent(text) immutable"));
        }
    }
    (statements, schemas)
}

impl LocalHost {
    pub(in crate::local) async fn check_upload(&self, request: &CheckImport, progress: &Progress) -> Result<ImportFacts> {
        let survey = self.survey_upload(request.import, progress).await?;
        let available = self.available_modules(request).await?;
        let server = self.postgres_version().await?;
        let space = self.pool.facts().await?;
        let missing: Vec<String> =
            survey.modules.iter().map(|module| module.name.clone()).filter(|name| !available.contains(name)).collect();
        let needed = needed_bytes(&survey);
        let mut facts = ImportFacts {
            format: survey.database.format(),
            odoo_series: survey.series(),
            postgres_version: survey.postgres_version.clone(),
            modules: survey.modules.clone(),
            missing_modules: missing,
            extensions: survey.extensions.keys().cloned().collect(),
            database_bytes: survey.database_bytes,
            file_store_files: survey.file_store.map_or(0, |store| store.files),
            file_store_bytes: survey.file_store.map_or(0, |store| store.bytes),
            needed_bytes: needed,
            available_bytes: space.available_bytes,
            problems: problems(&survey, request),
            warnings: Vec::new(),
        };
        for extension in survey.extensions.keys() {
            if !EXTENSIONS.contains(&extension.as_str()) {
                facts.problems.push(format!(
                    "the dump asks for the PostgreSQL extension {extension}, which is not among those that an import may use; drop it from the source and dump again"
                ));
            } else if !self.has_extension(extension).await? {
                facts.problems.push(format!(
                    "the dump asks for the PostgreSQL extension {extension}, which this server does not have; an operator can install it"
                ));
            }
        }
        if let Err(error) = self.pool.require(needed, "this import").await {
            facts.problems.push(error.to_string());
        }
        facts.warnings = warnings(&survey, &facts, &server);
        Ok(facts)
    }

    /// Names of the modules that the target's Odoo will have.
    async fn available_modules(&self, request: &CheckImport) -> Result<BTreeSet<String>> {
        let distribution = self.installed_distribution(&request.odoo_version).await?.distribution;
        let mut names: BTreeSet<String> = distribution.modules.iter().map(ToString::to_string).collect();
        if let Some(id) = &request.release {
            let record = self.release(id)?.ok_or_else(|| HostError::NotFound { what: "release", id: id.to_string() })?;
            names.extend(record.release.modules.keys().map(ToString::to_string));
        }
        Ok(names)
    }

    /// Of the server that new clusters run on, e.g. `15.4`.
    pub(in crate::local) async fn postgres_version(&self) -> Result<String> {
        let finished = Program::new(self.config.postgres_bin()?.join("postgres")).arg("--version").run().await?;
        let text = finished.expect_success("PostgreSQL did not say its version")?.stdout_text();
        Ok(text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default().to_owned())
    }

    async fn has_extension(&self, name: &str) -> Result<bool> {
        let finished = Program::new(self.config.postgres_bin()?.join("pg_config")).arg("--sharedir").run().await?;
        let directory = finished.expect_success("PostgreSQL did not say where its extensions are")?.stdout_text();
        Ok(Path::new(directory.trim()).join("extension").join(format!("{name}.control")).is_file())
    }
}

/// Restored, a database takes about as much as its SQL, and its indexes as much again.
pub(super) fn needed_bytes(survey: &Survey) -> u64 {
    survey.database_bytes.saturating_mul(2).saturating_add(survey.file_store.map_or(0, |store| store.bytes))
}

fn problems(survey: &Survey, request: &CheckImport) -> Vec<String> {
    let mut problems = Vec::new();
    if !survey.is_dump {
        problems.push("the SQL is none that pg_dump wrote: its first lines do not say so".to_owned());
    } else if !survey.is_whole {
        problems
            .push("the dump is cut off: its end is missing; make it again, and see that the disk it is written to is not full".to_owned());
    }
    let wanted = request.odoo_version.as_str();
    match survey.series() {
        Some(series) if series != wanted => problems.push(format!(
            "the backup is of Odoo {series}, and {wanted} would run on it; Odoo does not open databases of other series: import it where {series} runs, or have it upgraded first"
        )),
        Some(_) => {}
        None if !survey.has_modules => problems.push(
            "the dump holds no Odoo database, as far as can be seen: the rows of ir_module_module are not in it (dumps of the schema alone, or with `--inserts`, cannot be taken)".to_owned(),
        ),
        None => problems.push(match base_version(survey) {
            Some(version) => format!("the backup is of an Odoo whose module base has the version {version}, and {wanted} would run on it"),
            None => "the database has Odoo's tables, but the module base is not installed in it".to_owned(),
        }),
    }
    if let (Some(series), Some(manifest)) = (survey.series(), &survey.manifest_series)
        && series != *manifest
    {
        problems.push(format!("the backup's manifest says Odoo {manifest}, and its database {series}"));
    }
    problems
}

fn base_version(survey: &Survey) -> Option<&str> {
    survey.modules.iter().find(|module| module.name == "base")?.version.as_deref()
}

fn warnings(survey: &Survey, facts: &ImportFacts, server: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let major = |version: &str| version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if let Some(dumped) = survey.postgres_version.as_deref()
        && major(dumped) > major(server)
    {
        warnings.push(format!(
            "the dump comes from PostgreSQL {dumped} and will be restored by {server}, which is older and may not know all of it"
        ));
    }
    if !facts.missing_modules.is_empty() {
        warnings.push(format!(
            "{} installed modules are neither in the release nor in Odoo: {}; add them to the repository before, or the deployment fails",
            facts.missing_modules.len(),
            shortened(&facts.missing_modules)
        ));
    }
    if !survey.of_superusers.is_empty() {
        warnings.push(format!(
            "the dump holds what only a superuser of PostgreSQL may make and no Odoo needs, which does not come in: {}",
            shortened(&survey.of_superusers)
        ));
    }
    if survey.left_out.count > 0 {
        let shown: Vec<String> = survey.left_out.examples.iter().map(|path| path.escape_debug().to_string()).collect();
        let more = if survey.left_out.count > shown.len() as u64 { " …" } else { "" };
        warnings.push(format!(
            "{} of what was sent is neither the database nor a file of its file store, and does not come in: {}{more}",
            survey.left_out.count,
            shown.join(", ")
        ));
    }
    if survey.file_store.is_none() {
        warnings.push("there is no file store: attachments, images and generated documents will be missing".to_owned());
    }
    warnings
}

fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 20 { format!("{shown} and {} more", names.len() - 20) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_made_where_the_dump_has_them_and_no_name_from_outside_is_believed() {
        let wanted = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, schema)| ((*name).to_owned(), (*schema).to_owned())).collect();
        let (statements, schemas) = statements_for(
            &wanted(&[("unaccent", "extensions"), ("pg_trgm", "extensions"), ("plpgsql", "pg_catalog")]),
            &["pg_trgm"],
            "odoo",
        );
        assert_eq!(
            statements,
            [
                "create schema \"extensions\" authorization \"odoo\"",
                "alter extension \"pg_trgm\" set schema \"extensions\"",
                "create extension if not exists \"unaccent\" schema \"extensions\"",
                "alter function \"extensions\".unaccent(text) immutable",
            ]
        );
        assert_eq!(schemas, BTreeSet::from(["extensions".to_owned()]));
        for name in ["pg_catalog", "x\"; alter role odoo superuser; --", "a b", "", "a\nb", "information_schema"] {
            let (statements, schemas) = statements_for(&wanted(&[("hstore", name)]), &[], "odoo");
            assert_eq!(
                (statements.concat(), schemas.len()),
                ("create extension if not exists \"hstore\" schema \"public\"".to_owned(), 0),
                "{name}"
            );
        }
        assert!(statements_for(&wanted(&[("dblink", "public")]), &[], "odoo").0.is_empty());
    }
}
