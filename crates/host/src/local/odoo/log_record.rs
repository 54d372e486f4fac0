//! Odoo's log, read: `YYYY-MM-DD HH:MM:SS,mmm PID LEVEL DATABASE LOGGER: message`, followed by the raw lines of its traceback.

/// How bad a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

/// One record with the lines that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogRecord {
    /// The process that wrote it.
    pub(crate) pid: i32,
    pub(crate) level: Level,
    /// `odoo.modules.loading`.
    pub(crate) logger: String,
    /// The first line of the message, without spaces at its end.
    pub(crate) message: String,
    /// What followed it: more of the message, or a traceback.
    pub(crate) more: Vec<String>,
    /// The line as it was written.
    pub(crate) line: String,
}

impl LogRecord {
    /// Whether a Python traceback belongs to it.
    pub(crate) fn has_traceback(&self) -> bool {
        self.more.iter().any(|line| line.starts_with("Traceback (most recent call last)"))
    }
}

/// A whole log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// What was written before the first record: Python itself, when it could not even start Odoo.
    pub(crate) before: Vec<String>,
    pub(crate) records: Vec<LogRecord>,
}

impl Log {
    pub(crate) fn parse(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines() {
            match (parse_line(line), log.records.last_mut()) {
                (Some(record), _) => log.records.push(record),
                (None, Some(last)) => last.more.push(line.trim_end().to_owned()),
                (None, None) => log.before.push(line.trim_end().to_owned()),
            }
        }
        log
    }

    /// The records that are at least this bad.
    pub(crate) fn at_least(&self, level: Level) -> impl DoubleEndedIterator<Item = &LogRecord> {
        self.records.iter().filter(move |record| record.level >= level)
    }
}

/// The record that a line begins; `None` for a line that goes on with the one before.
fn parse_line(line: &str) -> Option<LogRecord> {
    let (time, rest) = line.split_at_checked(23)?;
    let pattern = "dddd-dd-dd dd:dd:dd,ddd";
    let is_time = time.bytes().zip(pattern.bytes()).all(|(byte, kind)| if kind == b'd' { byte.is_ascii_digit() } else { byte == kind });
    if !is_time {
        return None;
    }
    let mut words = rest.strip_prefix(' ')?.splitn(4, ' ');
    let pid = words.next()?.parse().ok()?;
    let level = match words.next()? {
        "DEBUG" => Level::Debug,
        "INFO" | "TEST" | "RUNBOT" => Level::Info,
        "WARNING" => Level::Warning,
        "ERROR" => Level::Error,
        "CRITICAL" => Level::Critical,
        _ => return None,
    };
    let _database = words.next()?;
    let (logger, message) = words.next()?.split_once(':')?;
    Some(LogRecord {
        pid,
        level,
        logger: logger.to_owned(),
        message: message.trim().to_owned(),
        more: Vec::new(),
        line: line.trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_its_traceback_and_the_next_one_begins_at_its_time() {
        let log = Log::parse(
            "python: cannot\n\
             2026-11-24 06:11:14,508 22426 CRITICAL cap odoo.service.server: Failed to initialize database `cap`. \n\
             Traceback (most recent call last):\n\
             \x20 File \"x.py\", line 1\n\
             2026-11-24 06:11:14,509 22426 INFO ? odoo: a: b\n",
        );
        assert_eq!(log.before, ["python: cannot"]);
        assert_eq!(log.records.len(), 2);
        assert!(log.records[0].has_traceback());
        assert_eq!(log.records[0].level, Level::Critical);
        assert_eq!(log.records[0].message, "Failed to initialize database `cap`.");
        assert_eq!((log.records[1].logger.as_str(), log.records[1].message.as_str()), ("odoo", "a: b"));
    }

    #[test]
    fn text_that_only_looks_like_a_time_goes_on_with_the_record_before() {
        for line in ["2026-11-24 is a date", "", "ä2026-11-24 06:11:14,50", "2026-11-24 06:11:14,508 x INFO"] {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
    }
}
