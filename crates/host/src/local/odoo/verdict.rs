//! Whether Odoo really did what it was asked for. Its exit code alone says too little: it is 0 after an unknown module name, after a constraint
//! that could not be set, and with an installed module whose directory is gone.

use std::{collections::BTreeSet, path::Path};

use ocore_model::names::ModuleName;

use super::{
    failure::{self, Failure},
    log_record::{Level, Log, LogRecord},
};
use crate::api::InstalledModule;

/// How a run of Odoo ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// Reads exit code and log of a run that installs `install` and may update others. `source` is the release's source tree.
pub(crate) fn of_run(exit: Exit, log: &Log, install: &[ModuleName], source: &Path) -> Result<(), Failure> {
    match exit {
        Exit::Code(0) => {}
        Exit::Signal(9) => {
            return Err(Failure {
                summary: "Odoo was killed while it installed or updated the modules; most often the memory was used up".to_owned(),
                excerpt: last_lines(log),
            });
        }
        Exit::Code(_) | Exit::Signal(_) => {
            let ended = match exit {
                Exit::Code(code) => format!("with exit code {code}"),
                Exit::Signal(signal) => format!("by signal {signal}"),
            };
            return Err(silent(log, install, source)
                .or_else(|| failure::explain(log, source))
                .unwrap_or_else(|| Failure { summary: format!("Odoo ended {ended} without saying why"), excerpt: last_lines(log) }));
        }
    }
    if let Some(failure) = silent(log, install, source) {
        return Err(failure);
    }
    match log.at_least(Level::Error).find(|record| !failure::is_symptom(record)) {
        Some(record) if record.has_traceback() => Err(failure::explain(log, source).unwrap_or_else(|| failure::of_record(record, source))),
        Some(record) => Err(failure::of_record(record, source)),
        None => Ok(()),
    }
}

/// What Odoo says and does not count as a failure.
fn silent(log: &Log, install: &[ModuleName], source: &Path) -> Option<Failure> {
    let with = |record: &LogRecord, summary: String| Failure { summary, excerpt: failure::excerpt_of(record, source) };
    let find = |logger: &str, words: &str| log.records.iter().find(|record| record.logger == logger && record.message.contains(words));
    if let Some(record) = find("odoo.modules.loading", "invalid module names, ignored: ") {
        let names = record.message.rsplit(": ").next().unwrap_or_default();
        return Some(with(
            record,
            format!("unknown module name: {} is neither in the repository nor in Odoo, or cannot be installed", list(names.split(", "))),
        ));
    }
    if let Some(record) = find("odoo.modules.module_graph", "in a dependency loop") {
        let name = record.message.split([' ', ':']).nth(1).unwrap_or("?");
        return Some(with(record, format!("module `{name}` depends on itself through other modules; break the loop in their `depends`")));
    }
    let inconsistent = ["Some modules are not loaded, ", "Some modules have inconsistent states, "];
    if let Some(record) = inconsistent.iter().find_map(|words| find("odoo.modules.loading", words)) {
        let names = record.message.rsplit_once('[').map_or("", |(_, names)| names.trim_end_matches(']'));
        let names: Vec<&str> = names.split(", ").map(|name| name.trim_matches('\'')).collect();
        if let Some(failure) = not_installed(
            log,
            &names.iter().copied().filter(|name| install.iter().any(|module| module.as_str() == *name)).collect::<Vec<_>>(),
            source,
        ) {
            return Some(failure);
        }
        if let Some(failure) = names.iter().find_map(|name| of_its_version(log, name, source)) {
            return Some(failure);
        }
        let names = list(names.into_iter());
        return Some(with(
            record,
            format!(
                "{names} is installed in the database, but the repository does not have it any more or its dependencies are not there; put it back, or, if \
                 it has another name now, say so in [modules.renamed] of ocore.toml. Uninstalling it in Odoo would delete its data"
            ),
        ));
    }
    constraint(log, source)
}

/// Odoo tries a constraint again at the end and goes on without it when that fails too; only the second failure is one.
fn constraint(log: &Log, source: &Path) -> Option<Failure> {
    let schema = || log.records.iter().filter(|record| record.logger == "odoo.schema");
    let with = |record: &LogRecord, summary: String| Some(Failure { summary, excerpt: failure::excerpt_of(record, source) });
    if let Some(record) = schema().find(|record| record.message.starts_with("Missing not-null constraint on ")) {
        let field = record.message.rsplit(' ').next().unwrap_or_default();
        return with(
            record,
            format!(
                "the field `{field}` is required, but there are records without a value; give them one in a migration script (`pre-`), or a default"
            ),
        );
    }
    let record = schema().find(|record| record.level >= Level::Error)?;
    let detail = record
        .more
        .iter()
        .find_map(|line| line.trim().strip_prefix("DETAIL:"))
        .map(|detail| format!(" ({})", detail.trim().trim_end_matches('.')));
    with(
        record,
        format!(
            "a constraint of the database cannot be set, since records break it: {}{}; correct them in a migration script (`pre-`)",
            record.message.trim_end_matches('.'),
            detail.unwrap_or_default()
        ),
    )
}

/// Reads the database afterwards: every requested module is installed, and nothing is left half done.
pub(crate) fn of_modules(modules: &[InstalledModule], requested: &[ModuleName], log: &Log, source: &Path) -> Result<(), Failure> {
    let pending: Vec<&str> = modules.iter().filter(|module| module.state.starts_with("to ")).map(|module| module.name.as_str()).collect();
    if !pending.is_empty() {
        return Err(Failure {
            summary: format!("Odoo left the update half done: {} was not updated with the others", list(pending.into_iter())),
            excerpt: last_lines(log),
        });
    }
    let installed: BTreeSet<&str> =
        modules.iter().filter(|module| module.state == "installed").map(|module| module.name.as_str()).collect();
    let missing: Vec<&str> = requested.iter().map(ModuleName::as_str).filter(|name| !installed.contains(name)).collect();
    not_installed(log, &missing, source).map_or(Ok(()), Err)
}

/// Why modules that were to be installed are not; `None` when there are none.
fn not_installed(log: &Log, missing: &[&str], source: &Path) -> Option<Failure> {
    let first = missing.first()?;
    Some(of_its_version(log, first, source).unwrap_or_else(|| Failure {
        summary: format!(
            "Odoo did not install {}: a manifest says that it is not installable, or it or what it depends on is not in the repository",
            list(missing.iter().copied())
        ),
        excerpt: last_lines(log),
    }))
}

/// Odoo leaves a module out whose version it does not take.
fn of_its_version(log: &Log, module: &str, source: &Path) -> Option<Failure> {
    let record =
        log.records.iter().find(|record| record.message.starts_with(&format!("The module {module} has an incompatible version")))?;
    Some(Failure {
        summary: format!(
            "Odoo leaves module `{module}` out because of the version in its manifest: it is made for another series, or too short; write it like \
             `19.0.x.y`, beginning with this Odoo's series"
        ),
        excerpt: failure::excerpt_of(record, source),
    })
}

/// `a`, `b` and `c`
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{}`", name.trim())).collect();
    match names.as_slice() {
        [] => "a module".to_owned(),
        [one] => format!("module {one}"),
        [first @ .., last] => format!("one of the modules {} and {last}", first.join(", ")),
    }
}

fn last_lines(log: &Log) -> String {
    let lines: Vec<&str> = if log.records.is_empty() {
        log.before.iter().map(String::as_str).collect()
    } else {
        log.records.iter().map(|record| record.line.as_str()).collect()
    };
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(name: &str) -> Log {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/odoo_logs").join(format!("{name}.log"));
        Log::parse(&std::fs::read_to_string(path).unwrap())
    }

    fn source() -> &'static Path {
        Path::new("/var/lib/ocore/pool/releases/5f1d0c6f3a3a4d7b9a4e0d6b8c2f1e7a9b3c5d7e1f2a4b6c8d0e2f4a6b8c0d2e/source")
    }

    fn module(name: &str, state: &str) -> InstalledModule {
        InstalledModule::new(name, state)
    }

    #[test]
    fn exit_code_zero_is_believed_only_when_the_log_agrees() {
        let sentences: Vec<String> = ["unknown_module", "not_null", "constraint", "gone", "logs_error"]
            .iter()
            .map(|name| format!("{name}: {}", of_run(Exit::Code(0), &captured(name), &[], source()).expect_err(name).summary))
            .collect();
        insta::assert_snapshot!(sentences.join("\n"));
        for name in ["good", "tests_pass"] {
            assert_eq!(of_run(Exit::Code(0), &captured(name), &[], source()), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_module_that_odoo_ignored_is_missed_in_the_database() {
        let log = captured("not_installable");
        assert_eq!(of_run(Exit::Code(0), &log, &[], source()), Ok(()));
        let requested = ["parcels".parse().unwrap()];
        let failure = of_modules(&[module("base", "installed"), module("parcels", "uninstalled")], &requested, &log, source()).unwrap_err();
        assert!(failure.summary.starts_with("Odoo did not install module `parcels`"), "{}", failure.summary);
        assert_eq!(of_modules(&[module("parcels", "installed")], &requested, &log, source()), Ok(()));
        let failure = of_modules(&[], &requested, &captured("incompatible_version"), source()).unwrap_err();
        assert!(failure.summary.starts_with("Odoo leaves module `parcels` out because of the version"), "{}", failure.summary);
    }

    #[test]
    fn a_module_that_waits_for_its_update_is_a_half_update() {
        let modules = [module("parcels", "installed"), module("parcels_labels", "to upgrade")];
        let failure = of_modules(&modules, &[], &captured("gone"), source()).unwrap_err();
        assert!(failure.summary.contains("`parcels_labels` was not updated"), "{}", failure.summary);
    }

    #[test]
    fn a_process_that_was_killed_says_so() {
        assert!(of_run(Exit::Signal(9), &captured("good"), &[], source()).unwrap_err().summary.contains("memory"));
        assert_eq!(
            of_run(Exit::Code(3), &Log::default(), &[], source()).unwrap_err().summary,
            "Odoo ended with exit code 3 without saying why"
        );
    }
}
