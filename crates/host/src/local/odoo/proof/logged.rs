//! Errors that an Odoo logs while it is asked for pages: it answers 200 to many of them.

use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use super::Fault;
use crate::local::odoo::{
    failure,
    log_record::{Level, Log, LogRecord},
};

/// Of the log before, in bytes: what was live may have logged the same.
const BEFORE: u64 = 4 * 1024 * 1024;
/// Who tells of pages, whatever else goes on.
const OF_PAGES: [&str; 5] = [
    "odoo.http",
    "odoo.addons.base.models.assetsbundle",
    "odoo.addons.base.models.ir_asset",
    "odoo.addons.base.models.ir_qweb",
    "odoo.addons.base.models.ir_ui_view",
];
/// What Odoo has put into a bundle is told from there, with its place.
const OF_BUNDLES: &str = "odoo.addons.base.models.assetsbundle";
/// A query that another transaction kept from ending is asked again; a page that ends with one has an error of its own.
const OF_QUERIES: &str = "odoo.sql_db";
const OF_SCHEDULED_ACTIONS: &str = "odoo.addons.base.models.ir_cron";

/// The errors of these processes in what was logged, without such as were logged before already, and without what scheduled actions say.
pub(super) fn errors(before: &str, text: &str, pids: &[i32], source: &Path, bundles_are_told: bool) -> Vec<Fault> {
    let log = Log::parse(text);
    let records: Vec<&LogRecord> = log.records.iter().filter(|record| pids.contains(&record.pid)).collect();
    let acts = records.iter().any(|record| record.logger == OF_SCHEDULED_ACTIONS);
    let counts = |record: &&&LogRecord| {
        record.level >= Level::Error
            && record.logger != OF_QUERIES
            && !(bundles_are_told && record.logger == OF_BUNDLES)
            && record.logger != OF_SCHEDULED_ACTIONS
            && (!acts || OF_PAGES.contains(&record.logger.as_str()))
    };
    let earlier = Log::parse(before);
    let known: HashSet<(&str, String)> = earlier.at_least(Level::Error).map(shape).collect();
    records.iter().filter(counts).filter(|record| !known.contains(&shape(record))).map(|record| fault(record, source)).collect()
}

fn fault(record: &LogRecord, source: &Path) -> Fault {
    let alone = Log { before: Vec::new(), records: vec![record.clone()] };
    let failure = failure::explain(&alone, source).unwrap_or_else(|| failure::of_record(record, source));
    let reason = if record.has_traceback() {
        failure.summary
    } else {
        format!("{} (logged by `{}`)", record.message.chars().take(300).collect::<String>(), record.logger)
    };
    Fault::new(format!("it logs an error when its pages are asked for: {reason}"), failure.excerpt)
}

/// What two errors of one kind have in common.
fn shape(record: &LogRecord) -> (&str, String) {
    (record.logger.as_str(), record.message.chars().filter(|character| !character.is_ascii_digit()).collect())
}

/// What was logged before this place.
pub(super) fn before(log: &Path, place: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let start = place.saturating_sub(BEFORE);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(place - start).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pid: i32, level: &str, logger: &str, message: &str) -> String {
        format!("2026-01-01 00:00:00,000 {pid} {level} odoo {logger}: {message}\n")
    }

    #[test]
    fn an_error_of_the_new_odoo_counts_when_it_is_new() {
        let found = |before: &str, text: &str| errors(before, text, &[7], Path::new("/s"), false).len();
        let error = line(7, "ERROR", "odoo.addons.shop.pages", "no stock in 12 places");
        assert_eq!(found("", &error), 1);
        assert_eq!(found("", &line(8, "ERROR", "odoo.http", "of the one that serves")), 0);
        assert_eq!(found(&line(3, "ERROR", "odoo.addons.shop.pages", "no stock in 9 places"), &error), 0);
        assert_eq!(found("", &line(7, "WARNING", "odoo.addons.shop.pages", "no stock")), 0);
        assert_eq!(found("", &line(7, "ERROR", "odoo.sql_db", "bad query: could not serialize access")), 0);
        let acts = line(7, "INFO", OF_SCHEDULED_ACTIONS, "Job 'Fetch' (3) starting") + &error;
        assert_eq!(found("", &acts), 0, "whose error it is nobody can say");
        assert_eq!(found("", &(acts + &line(7, "ERROR", "odoo.http", "Exception during request handling."))), 1);
    }

    #[test]
    fn a_traceback_names_the_file_of_the_repository() {
        let text = line(7, "ERROR", "odoo.http", "Exception during request handling.")
            + "Traceback (most recent call last):\n  File \"/s/shop/pages.py\", line 3, in page\n    1 / 0\nZeroDivisionError: division by zero\n";
        let found = errors("", &text, &[7], Path::new("/s"), false);
        assert!(found[0].summary.ends_with("shop/pages.py, line 3: ZeroDivisionError: division by zero"), "{}", found[0].summary);
    }
}
