//! Turns a failed log into one sentence that a developer understands, and the lines that show it.
//!
//! The sentences name what is in the developer's repository: paths are relative to it, and what Odoo or Python say around it is left out.

use std::path::Path;

use super::{
    log_record::{Level, Log, LogRecord},
    traceback::{self, Frame, Raised},
};
use crate::error::HostError;

/// Lines of an excerpt; a traceback keeps its end.
const EXCERPT_LINES: usize = 40;
/// Bytes of an excerpt.
const EXCERPT_BYTES: usize = 8 * 1024;

/// Why Odoo failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// One sentence without an end mark.
    pub(crate) summary: String,
    pub(crate) excerpt: String,
}

impl From<Failure> for HostError {
    fn from(failure: Failure) -> Self {
        Self::Rejected { summary: failure.summary, excerpt: failure.excerpt }
    }
}

/// The failure that a log shows: of its last traceback at ERROR or above, else of its last such record, else of what Python wrote before
/// Odoo began. `None` when nothing in the log is a failure.
pub(crate) fn explain(log: &Log, source: &Path) -> Option<Failure> {
    if let Some(record) = log.at_least(Level::Error).rev().find(|record| record.has_traceback() && !is_symptom(record)) {
        let chain = traceback::parse(&record.more);
        if let Some(summary) = explain_chain(&chain, log, source) {
            return Some(Failure { summary, excerpt: excerpt_of(record, source) });
        }
    }
    if let Some(record) = log.at_least(Level::Error).rev().find(|record| !is_symptom(record)) {
        return Some(of_record(record, source));
    }
    let chain = traceback::parse(&log.before);
    let summary = explain_chain(&chain, log, source).or_else(|| {
        // Odoo complains about its options in this way and ends.
        log.before.iter().rev().find(|line| line.contains("error: ")).map(|line| format!("Odoo did not start: {}", line.trim()))
    })?;
    Some(Failure { summary, excerpt: cut(log.before.iter().map(String::as_str), source) })
}

/// The sentence for one record that stands for itself.
pub(crate) fn of_record(record: &LogRecord, source: &Path) -> Failure {
    let logger = record.logger.strip_prefix("odoo.addons.").map_or(record.logger.as_str(), |rest| rest.split('.').next().unwrap_or(rest));
    let summary = format!(
        "Odoo logged an error while it installed or updated the modules: {} (logged by `{logger}`)",
        clean(&record.message, source)
    );
    Failure { summary, excerpt: excerpt_of(record, source) }
}

/// Records that only say that another one is bad, or that the code around may have handled.
pub(crate) fn is_symptom(record: &LogRecord) -> bool {
    matches!(record.logger.as_str(), "odoo.registry" if record.message == "Failed to load registry")
        || record.logger == "odoo.sql_db" && record.message.starts_with("bad query")
        || record.logger == "odoo.modules.module" && record.message.starts_with("Couldn't load module")
}

/// The lines of a record as the developer sees them.
pub(crate) fn excerpt_of(record: &LogRecord, source: &Path) -> String {
    cut(std::iter::once(record.line.as_str()).chain(record.more.iter().map(String::as_str)), source)
}

/// The end of the lines, without Python's carets and with paths relative to the repository.
fn cut<'a>(lines: impl Iterator<Item = &'a str>, source: &Path) -> String {
    let lines: Vec<String> = lines.filter(|line| !is_carets(line)).map(|line| relative_in(line, source)).collect();
    let mut from = lines.len().saturating_sub(EXCERPT_LINES);
    while lines[from..].iter().map(|line| line.len() + 1).sum::<usize>() > EXCERPT_BYTES && from + 1 < lines.len() {
        from += 1;
    }
    let mut kept = lines[from..].join("\n");
    if from > 0
        && let Some(first) = lines.first()
    {
        kept = format!("{first}\n…\n{kept}");
    }
    let mut end = kept.len().min(EXCERPT_BYTES * 2);
    while !kept.is_char_boundary(end) {
        end -= 1;
    }
    kept.truncate(end);
    kept.trim_end().to_owned()
}

fn is_carets(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && line.bytes().all(|byte| matches!(byte, b'^' | b'~'))
}

fn relative_in(text: &str, source: &Path) -> String {
    match source.to_str() {
        Some(source) if !source.is_empty() => text.replace(&format!("{source}/"), ""),
        _ => text.to_owned(),
    }
}

/// One line of a message for a sentence: relative paths, no end mark.
fn clean(text: &str, source: &Path) -> String {
    let line = text.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    let mut line = relative_in(line, source);
    if line.chars().count() > 300 {
        line = line.chars().take(300).collect::<String>() + "…";
    }
    line
}

/// The path inside the repository; `None` for a file of Odoo or Python.
fn own_path<'a>(file: &'a str, source: &Path) -> Option<&'a str> {
    Path::new(file).strip_prefix(source).ok()?.to_str()
}

fn own_frame<'a>(raised: &'a Raised, source: &Path) -> Option<(&'a str, &'a Frame)> {
    raised.frames.iter().rev().find_map(|frame| Some((own_path(&frame.file, source)?, frame)))
}

fn explain_chain(chain: &[Raised], log: &Log, source: &Path) -> Option<String> {
    let last = chain.last()?;
    let cause = chain.first()?;
    Some(match last.short_class() {
        "SyntaxError" | "IndentationError" | "TabError" => syntax_error(last, source),
        "ModuleNotFoundError" | "ImportError" => failed_import(last, source),
        "ParseError" => parse_error(last, cause, source),
        "XMLSyntaxError" => xml_syntax(last, source),
        "MemoryError" => memory(last, log, source),
        "UserError" if last.message.contains("external dependency is not met") => external_dependency(last, chain),
        "UserError" if last.message.starts_with("Recursion error in modules dependencies") => {
            "modules depend on each other in a loop; break it in their `depends`".to_owned()
        }
        "UserError" if last.message.starts_with("You try to ") && last.message.contains("depends on module") => module_dependency(last),
        _ => migration(last, source)
            .or_else(|| csv_import(last))
            .or_else(|| missing_file(last, source))
            .or_else(|| unknown_model(last, log))
            .unwrap_or_else(|| other(last, log, source)),
    })
}

/// Python's last frame of a syntax error is the place itself.
fn syntax_error(raised: &Raised, source: &Path) -> String {
    let Some(frame) = raised.frames.last() else { return format!("syntax error: {}", clean(&raised.message, source)) };
    let file = own_path(&frame.file, source).unwrap_or(&frame.file);
    // The frame's source line and the carets lie between frame and message in the log only.
    format!("syntax error in {file}, line {}: {}", frame.line, clean(&raised.message, source))
}

fn failed_import(raised: &Raised, source: &Path) -> String {
    let place = own_frame(raised, source).map(|(file, frame)| format!("{file}, line {}", frame.line));
    let at = place.as_deref().unwrap_or("a module");
    let message = raised.first_line();
    if let Some(name) = quoted(message, "No module named ") {
        return match name.strip_prefix("odoo.addons.") {
            Some(rest) if !rest.contains('.') => {
                format!("failed import in {at}: there is no module `{rest}` in the repository or in Odoo; add it, and name it in `depends`")
            }
            Some(_) => format!("failed import in {at}: `{name}` is not in the repository; was the file committed?"),
            None if name == "odoo" || name.starts_with("odoo.") => format!("failed import in {at}: this Odoo has no `{name}`"),
            None => {
                let package = name.split('.').next().unwrap_or(name);
                format!("missing Python dependency: {at} imports `{package}`, which is not installed; add the package to requirements.txt")
            }
        };
    }
    if let (Some(name), Some(from)) =
        (quoted(message, "cannot import name "), quoted(message, "module ").or_else(|| quoted(message, " from ")))
    {
        if let Some(module) = from.strip_prefix("odoo.addons.") {
            return format!("failed import in {at}: `{module}` has no `{name}`; was the file committed?");
        }
        return format!("failed import in {at}: `{from}` has no `{name}`");
    }
    if let Some((library, _)) = message.split_once(": cannot open shared object file") {
        return format!(
            "failed import in {at}: the library `{library}` of the system is missing on this server; ask its operator to install the package that has it \
             (`apt-file search {library}` finds it)"
        );
    }
    format!("failed import in {at}: {}", clean(message, source))
}

/// Odoo wraps what goes wrong in an XML file; view errors say it in their own message, other records in the exception that caused it.
fn parse_error(raised: &Raised, cause: &Raised, source: &Path) -> String {
    let place =
        raised.first_line().strip_prefix("while parsing ").unwrap_or_default().split(", somewhere inside").next().unwrap_or_default();
    let (file, line) = place.rsplit_once(':').unwrap_or((place, ""));
    let file = own_path(file, source).unwrap_or(file);
    let (module, path) = file.split_once('/').unwrap_or(("", file));
    let view_name = context_word(&raised.message, "'name': '").filter(|name| *name != "invalid view").or_else(|| {
        let line = raised.message.lines().find(|line| line.starts_with("View: "))?;
        line.strip_prefix("View: ")?.split(" in ").next()
    });
    let is_view = raised.message.contains("View error context:") || raised.message.contains("validating view");
    if is_view {
        let view = context_word(&raised.message, "'xmlid': '").or(view_name);
        let named = view.map_or_else(String::new, |name| format!(" `{name}`"));
        let model = context_word(&raised.message, "'view.model': '").map_or_else(String::new, |model| format!(" of model `{model}`"));
        let reason = clean(&view_reason(&raised.message), source);
        return format!("invalid view{named}{model} in module `{module}`, {path}, line {line}: {reason}");
    }
    let reason = if std::ptr::eq(raised, cause) { raised.message.lines().nth(1).unwrap_or_default() } else { cause.first_line() };
    let own_words =
        matches!(cause.short_class(), "ValueError" | "ParseError" | "UserError" | "ValidationError" | "Exception" | "AssertionError");
    let what = match cause.short_class() {
        // Odoo looks a record's model up in a dictionary.
        "KeyError" => format!("there is no model `{}`", reason.trim_matches('\'')),
        _ if own_words || cause.class.starts_with("psycopg2.") => clean(reason, source),
        class => format!("{class}: {}", clean(reason, source)),
    };
    format!("invalid data in module `{module}`, {path}, line {line}: {what}")
}

/// The lines of a view error that say what is wrong: after the fragment of the view, before its context.
fn view_reason(message: &str) -> String {
    let body = message.split("View error context:").next().unwrap_or_default();
    let mut reasons: Vec<&str> = body
        .lines()
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('<') && !line.starts_with("View: "))
        .filter(|line| !line.starts_with("Error while ") && !line.contains("(<unknown>"))
        .collect();
    reasons.dedup();
    reasons.first().copied().unwrap_or("it cannot be applied").to_owned()
}

fn xml_syntax(raised: &Raised, source: &Path) -> String {
    match own_frame(raised, source) {
        Some((file, frame)) => format!("{file} is not valid XML, line {}: {}", frame.line, clean(&raised.message, source)),
        None => format!("a data file is not valid XML: {}", clean(&raised.message, source)),
    }
}

fn external_dependency(raised: &Raised, chain: &[Raised]) -> String {
    let message = raised.first_line();
    let module = between(message, "module \"", "\"").unwrap_or("?");
    let dependency = message.rsplit_once(": ").map_or("?", |(_, dependency)| dependency.trim());
    let program = chain.iter().any(|raised| raised.message.contains("Unable to find '"));
    if program {
        format!("module `{module}` needs the program `{dependency}`, which this server does not have; ask its operator to install it")
    } else {
        format!("missing Python dependency: module `{module}` needs `{dependency}`; add it to requirements.txt")
    }
}

fn module_dependency(raised: &Raised) -> String {
    let mut names = raised.message.split('"').skip(1).step_by(2);
    let module = names.next().unwrap_or("?");
    let dependency = names.next().unwrap_or("?");
    format!(
        "missing module dependency: `{module}` depends on `{dependency}`, which is neither in the repository nor in Odoo; add it or take it out of \
         `depends`"
    )
}

fn migration(raised: &Raised, source: &Path) -> Option<String> {
    let (file, frame) = own_frame(raised, source).filter(|(file, _)| {
        let mut parts = file.split('/').skip(1);
        parts.next().is_some_and(|directory| directory == "migrations" || directory == "upgrades")
            || parts.next().is_some_and(|directory| directory == "migrations" || directory == "upgrades")
    })?;
    Some(format!("the migration script {file} failed in line {}: {}", frame.line, describe(raised, source)))
}

/// Python was given none any more: one process may take no more than Odoo's own limit.
fn memory(raised: &Raised, log: &Log, source: &Path) -> String {
    let place = match (own_frame(raised, source), loading(log)) {
        (Some((file, frame)), _) => format!(" in {file}, line {}", frame.line),
        (None, Some(module)) => format!(" while module `{module}` was loaded"),
        (None, None) => String::new(),
    };
    format!(
        "the memory was used up{place}: one process of Odoo may take no more than the instance's limitMemoryHard; take less at once, or raise it"
    )
}

fn csv_import(raised: &Raised) -> Option<String> {
    let file = between(&raised.message, "failed: file ", " could not be processed")?;
    let reason = raised.message.lines().nth(1).unwrap_or_default().trim();
    Some(format!("{file} cannot be loaded: {reason}"))
}

fn missing_file(raised: &Raised, source: &Path) -> Option<String> {
    if raised.short_class() != "FileNotFoundError" {
        return None;
    }
    let path = between(&raised.message, "directory: '", "'").or_else(|| between(&raised.message, "File not found: ", "\n"))?;
    let path = own_path(path, source).unwrap_or(path);
    // Odoo's loader, not the module's own code, opened it: so a manifest names it.
    let by_loader = own_frame(raised, source).is_none();
    let module = path.split('/').next().unwrap_or(path);
    Some(if by_loader {
        format!("the manifest of module `{module}` names {path}, which is not in the repository; was the file committed?")
    } else {
        format!("the file {path} is not in the repository; was it committed?")
    })
}

/// Odoo sets the models up after it has loaded their module: no frame is of the repository.
fn unknown_model(raised: &Raised, log: &Log) -> Option<String> {
    let message = raised.first_line();
    if message.contains("with unknown comodel_name") {
        let field = between(message, "Field ", " with")?;
        let model = between(message, "comodel_name '", "'")?;
        return Some(format!("the field `{field}` refers to the model `{model}`, which does not exist; does a module lack in `depends`?"));
    }
    let model = between(message, "Model '", "' does not exist in registry")?;
    let module = loading(log).map_or_else(|| "a module".to_owned(), |module| format!("module `{module}`"));
    Some(format!("{module} extends the model `{model}`, which does not exist; does a module lack in `depends`?"))
}

fn other(raised: &Raised, log: &Log, source: &Path) -> String {
    let what = describe(raised, source);
    match own_frame(raised, source) {
        Some((file, frame)) => format!("{file}, line {}: {what}", frame.line),
        None => match loading(log) {
            Some(module) => format!("{what} (while module `{module}` was loaded)"),
            None => what,
        },
    }
}

fn describe(raised: &Raised, source: &Path) -> String {
    let message = clean(&raised.message, source);
    match raised.class.strip_prefix("psycopg2.errors.") {
        // Odoo itself limits how long an update waits for one.
        Some("LockNotAvailable") => {
            format!(
                "the database says: {message} (another connection holds the lock: one that a script has opened itself, most often; close it first)"
            )
        }
        Some(_) => format!("the database says: {message}"),
        None if message.is_empty() => raised.short_class().to_owned(),
        None => format!("{}: {message}", raised.short_class()),
    }
}

/// The module that was being loaded when the log ended.
fn loading(log: &Log) -> Option<&str> {
    let record = log.records.iter().rev().find(|record| {
        record.logger == "odoo.modules.loading" && (record.message.starts_with("Loading module ") || record.message.starts_with("Module "))
    })?;
    record.message.strip_prefix("Loading module ")?.split(' ').next()
}

/// The text after `before`, up to `after` or the end.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split(after).next().unwrap_or(rest))
}

/// `'name'` after `before`.
fn quoted<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    text.split_once(before).and_then(|(_, rest)| rest.strip_prefix('\'')).and_then(|rest| rest.split('\'').next())
}

fn context_word<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    let (_, context) = message.split_once("View error context:")?;
    between(context, before, "'")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the releases of the captured logs lay.
    fn source() -> &'static Path {
        Path::new("/var/lib/ocore/pool/releases/5f1d0c6f3a3a4d7b9a4e0d6b8c2f1e7a9b3c5d7e1f2a4b6c8d0e2f4a6b8c0d2e/source")
    }

    fn captured(name: &str) -> Log {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/odoo_logs").join(format!("{name}.log"));
        Log::parse(&std::fs::read_to_string(path).unwrap())
    }

    #[test]
    fn every_failure_that_was_seen_has_its_sentence() {
        let names = [
            "syntax_error",
            "indentation_error",
            "failed_import",
            "failed_import_name",
            "python_dependency_undeclared",
            "python_dependency_declared",
            "binary_dependency_declared",
            "module_dependency",
            "view_unknown_field",
            "view_bad_expression",
            "view_unknown_button",
            "view_unknown_tag_attrs",
            "view_not_xml",
            "half",
            "inherit_view_broken",
            "unknown_reference",
            "unknown_model_in_access",
            "unknown_model_in_data",
            "unknown_field_in_data",
            "null_in_data",
            "check_in_data",
            "missing_data_file",
            "dependency_loop",
            "name_error",
            "unknown_inherit",
            "unknown_comodel",
            "post_init_hook",
            "migration",
            "migration_python",
        ];
        let sentences: Vec<String> =
            names.iter().map(|name| format!("{name}: {}", explain(&captured(name), source()).expect(name).summary)).collect();
        insta::assert_snapshot!(sentences.join("\n"));
    }

    #[test]
    fn an_excerpt_shows_the_place_with_paths_of_the_repository() {
        insta::assert_snapshot!(explain(&captured("view_unknown_field"), source()).unwrap().excerpt);
        let failure = explain(&captured("syntax_error"), source()).unwrap();
        assert!(failure.excerpt.ends_with("SyntaxError: '(' was never closed"), "{}", failure.excerpt);
        assert!(!failure.excerpt.contains("/var/lib/ocore"), "{}", failure.excerpt);
    }

    #[test]
    fn used_up_memory_is_called_so() {
        let file = source().join("shop/models.py");
        let log = Log::parse(&format!(
            "2026-11-24 06:18:47,554 1 CRITICAL odoo odoo.service.server: Failed to initialize database `odoo`.\nTraceback (most recent call last):\n  File \"{}\", line 7, in <module>\n    held.append(bytearray(1 << 26))\nMemoryError\n",
            file.display()
        ));
        let summary = explain(&log, source()).unwrap().summary;
        assert!(summary.starts_with("the memory was used up in shop/models.py, line 7: one process"), "{summary}");
    }

    #[test]
    fn a_library_of_the_system_that_is_missing_is_named() {
        let file = source().join("shop/models.py");
        let log = Log::parse(&format!(
            "2026-11-24 06:18:47,554 1 CRITICAL odoo odoo.service.server: Failed to initialize database `odoo`.\nTraceback (most recent call last):\n  File \"{}\", line 3, in <module>\n    import zbar\nImportError: libzbar.so.0: cannot open shared object file: No such file or directory\n",
            file.display()
        ));
        let summary = explain(&log, source()).unwrap().summary;
        assert!(
            summary.starts_with("failed import in shop/models.py, line 3: the library `libzbar.so.0` of the system is missing"),
            "{summary}"
        );
    }

    #[test]
    fn a_log_without_a_failure_has_no_sentence() {
        assert_eq!(explain(&captured("good"), source()), None);
        assert_eq!(explain(&captured("tests_pass"), source()), None);
    }
}
