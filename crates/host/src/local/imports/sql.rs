//! Reads the SQL of a dump as it streams by: what it is, and what of it cannot be taken.
//!
//! `psql` runs a plain dump, and a backslash outside of data and quotes is a command to `psql` itself: `\!` runs a program, `\copy` reads files of
//! whoever runs it. So such a command ends the import here, with its line; and [`Key`] makes `psql` refuse all of them by itself, whatever
//! this reader has overlooked. What the statements do is decided by the role that runs them, which owns its database and nothing else.
//!
//! Statements about owners, privileges and extensions are left out, since there is one role and the extensions are made before.
//!
//! Lexical rules: PostgreSQL's manual, 4.1 (quotes, dollar quotes, nested comments), and COPY's text format (`\.` on a line of its own).

use std::{
    collections::BTreeSet,
    io::{self, BufRead, Write},
};

use memchr::memchr;

use crate::{
    api::InstalledModule,
    error::{HostError, Result},
    local::database::STUDIO,
};

/// A statement that is longer than this is passed on in pieces and not looked at any further, in bytes. Those that are left out are short.
const STATEMENT_LIMIT: usize = 64 * 1024;
/// A row of `ir_module_module` that is longer than this is not read, in bytes: descriptions may be long.
const ROW_LIMIT: usize = 4 * 1024 * 1024;

/// What a dump has said about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// It begins as `pg_dump` begins.
    pub(super) is_dump: bool,
    /// It ends as `pg_dump` ends.
    pub(super) is_whole: bool,
    /// Of the server that was dumped.
    pub(super) server_version: Option<String>,
    pub(super) pg_dump_version: Option<String>,
    pub(super) extensions: BTreeSet<String>,
    /// It holds the table of Odoo's modules.
    pub(super) has_modules: bool,
    /// Those that are not `uninstalled` or `uninstallable`.
    pub(super) modules: Vec<InstalledModule>,
    /// Bytes read.
    pub(super) bytes: u64,
    /// Statements about owners and privileges that were left out.
    pub(super) left_out: u64,
}

/// Copies `input` to `output` without what cannot be taken.
pub(super) fn filter(mut input: impl BufRead, output: impl Write) -> Result<Findings> {
    let mut filter = Filter::new(output);
    loop {
        let chunk = input.fill_buf().map_err(unreadable)?;
        if chunk.is_empty() {
            break;
        }
        let length = chunk.len();
        filter.take(chunk)?;
        input.consume(length);
    }
    filter.finish()
}

/// The dump's bytes could not be read; a damaged archive, mostly.
fn unreadable(error: io::Error) -> HostError {
    HostError::rejected(format!("the dump is damaged and cannot be read to its end: {error}"))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Between or in statements, outside of quotes.
    Top,
    /// `'…'`; with backslashes as escapes or without.
    Single { escapes: bool, escaped: bool },
    /// `"…"`
    Double,
    /// After a `$` that may begin a dollar quote: what follows it so far.
    Tag(Vec<u8>),
    /// Inside a dollar quote: its delimiter, and how much of it has been seen.
    Dollar { delimiter: Vec<u8>, seen: usize },
    /// `-- …`
    Line,
    /// `/* … */`, which nests.
    Block { depth: u32, last: u8 },
    /// A command to `psql`, up to the end of its line.
    Meta(Vec<u8>),
    /// The rest of the line of a `COPY … FROM stdin;`.
    CopyHead,
    /// Rows of a COPY.
    Copy,
}

struct Filter<W> {
    output: W,
    state: State,
    /// The statement so far, or the comment between statements.
    pending: Vec<u8>,
    /// The statement is too long to be judged: it goes through.
    passing: bool,
    /// The byte before, when outside of quotes.
    last: u8,
    line: u64,
    backslash_escapes: bool,
    /// The key of the dump's own `\restrict`.
    restricted: Option<Vec<u8>>,
    /// Where they are in the rows of the COPY that is under way, when it is that of the modules.
    columns: Option<Columns>,
    /// The row so far, or its beginning.
    row: Vec<u8>,
    findings: Findings,
}

/// Where name, state, version, `imported` and `demo` of a module are, as far as the table has them.
type Columns = [Option<usize>; 5];

impl<W: Write> Filter<W> {
    fn new(output: W) -> Self {
        Self {
            output,
            state: State::Top,
            pending: Vec::new(),
            passing: false,
            last: b'\n',
            line: 1,
            backslash_escapes: false,
            restricted: None,
            columns: None,
            row: Vec::new(),
            findings: Findings::default(),
        }
    }

    fn take(&mut self, mut chunk: &[u8]) -> Result<()> {
        self.findings.bytes += chunk.len() as u64;
        while !chunk.is_empty() {
            if self.state == State::Copy {
                chunk = self.take_row(chunk)?;
            } else {
                self.take_byte(chunk[0])?;
                chunk = &chunk[1..];
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Findings> {
        self.findings.is_whole &= self.state == State::Top && is_blank(&self.pending);
        let rest = std::mem::take(&mut self.pending);
        self.write(&rest)?;
        self.output.flush().map_err(refused)?;
        Ok(self.findings)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(refused)
    }

    /// Takes rows up to the end of a line, or of the chunk; what is left is returned.
    fn take_row<'a>(&mut self, chunk: &'a [u8]) -> Result<&'a [u8]> {
        let (piece, rest, ends) = match memchr(b'\n', chunk) {
            Some(at) => (&chunk[..=at], &chunk[at + 1..], true),
            None => (chunk, &[][..], false),
        };
        let wanted = if self.columns.is_some() { ROW_LIMIT } else { 4 };
        let room = wanted.saturating_sub(self.row.len());
        self.row.extend_from_slice(&piece[..piece.len().min(room)]);
        self.write(piece)?;
        if !ends {
            return Ok(rest);
        }
        self.line += 1;
        let row = std::mem::take(&mut self.row);
        if matches!(row.as_slice(), b"\\.\n" | b"\\.\r\n") {
            self.columns = None;
            self.state = State::Top;
            self.last = b'\n';
        } else if let Some(columns) = self.columns {
            self.note_module(&row, columns);
        }
        Ok(rest)
    }

    fn take_byte(&mut self, byte: u8) -> Result<()> {
        if byte == b'\n' {
            self.line += 1;
        }
        let state = std::mem::replace(&mut self.state, State::Top);
        if !(matches!(state, State::Meta(_)) || (state == State::Top && byte == b'\\')) {
            self.pending.push(byte);
        }
        self.state = match state {
            State::Top => self.top(byte)?,
            State::Single { escapes: true, escaped: false } if byte == b'\\' => State::Single { escapes: true, escaped: true },
            State::Single { escaped: false, .. } if byte == b'\'' => State::Top,
            State::Single { escapes, .. } => State::Single { escapes, escaped: false },
            State::Double if byte == b'"' => State::Top,
            State::Double => State::Double,
            State::Tag(tag) => self.tag(tag, byte)?,
            State::Dollar { delimiter, seen } => {
                let seen = if byte == delimiter[seen] { seen + 1 } else { usize::from(byte == b'$') };
                if seen == delimiter.len() { State::Top } else { State::Dollar { delimiter, seen } }
            }
            State::Line if byte == b'\n' => {
                self.end_comment()?;
                State::Top
            }
            State::Line => State::Line,
            State::Block { depth, last } => match (last, byte) {
                (b'*', b'/') if depth == 1 => State::Top,
                (b'*', b'/') => State::Block { depth: depth - 1, last: 0 },
                (b'/', b'*') => State::Block { depth: depth + 1, last: 0 },
                _ => State::Block { depth, last: byte },
            },
            State::Meta(command) => self.meta(command, byte)?,
            State::CopyHead if byte == b'\n' => {
                let rest = std::mem::take(&mut self.pending);
                self.write(&rest)?;
                State::Copy
            }
            State::CopyHead => State::CopyHead,
            State::Copy => State::Copy,
        };
        self.last = byte;
        if self.pending.len() > STATEMENT_LIMIT {
            self.passing = true;
            let piece = std::mem::take(&mut self.pending);
            self.write(&piece)?;
        }
        Ok(())
    }

    /// A byte outside of quotes and comments.
    fn top(&mut self, byte: u8) -> Result<State> {
        let before = self.last;
        Ok(match byte {
            b'\'' => {
                let begins_escape_string = matches!(before, b'E' | b'e') && !self.pending_word_is_longer();
                State::Single { escapes: self.backslash_escapes || begins_escape_string, escaped: false }
            }
            b'"' => State::Double,
            b'$' if !is_word(before) => State::Tag(Vec::new()),
            b'-' if before == b'-' => State::Line,
            b'*' if before == b'/' => State::Block { depth: 1, last: 0 },
            b'\\' => State::Meta(Vec::new()),
            b';' => self.end_statement()?,
            _ => State::Top,
        })
    }

    /// The byte before the `E` of what may be `E'…'` is part of the same word.
    fn pending_word_is_longer(&self) -> bool {
        let before_letter = self.pending.len().checked_sub(3).map(|at| self.pending[at]);
        before_letter.is_some_and(is_word)
    }

    fn tag(&mut self, mut tag: Vec<u8>, byte: u8) -> Result<State> {
        Ok(match byte {
            b'$' => {
                let delimiter = [b"$", tag.as_slice(), b"$"].concat();
                State::Dollar { delimiter, seen: 0 }
            }
            byte if is_word(byte) && !(tag.is_empty() && byte.is_ascii_digit()) && tag.len() < 64 => {
                tag.push(byte);
                State::Tag(tag)
            }
            // It was a `$` like that of a parameter.
            byte => {
                self.last = b'$';
                self.top(byte)?
            }
        })
    }

    fn end_comment(&mut self) -> Result<()> {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        // Only between statements; in one, the comment is a part of it.
        let Some(comment) = text.trim_start().strip_prefix("--") else { return Ok(()) };
        if text.trim_start().lines().count() > 1 {
            return Ok(());
        }
        let comment = comment.trim();
        match comment {
            "PostgreSQL database dump" => self.findings.is_dump = true,
            "PostgreSQL database dump complete" => self.findings.is_whole = true,
            _ => {
                if let Some(version) = comment.strip_prefix("Dumped from database version ") {
                    self.findings.server_version.get_or_insert(first_word(version));
                } else if let Some(version) = comment.strip_prefix("Dumped by pg_dump version ") {
                    self.findings.pg_dump_version.get_or_insert(first_word(version));
                }
            }
        }
        let comment = std::mem::take(&mut self.pending);
        self.write(&comment)
    }

    /// `\restrict` and `\unrestrict` with the same key are how `pg_dump` itself keeps `psql` from taking commands; everything else is refused.
    fn meta(&mut self, mut command: Vec<u8>, byte: u8) -> Result<State> {
        if byte != b'\n' && command.len() < 200 {
            command.push(byte);
            return Ok(State::Meta(command));
        }
        let words: Vec<&[u8]> = command.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        let is_alone = is_blank(&self.pending);
        match words.as_slice() {
            [b"restrict", key] if is_alone && self.restricted.is_none() => self.restricted = Some(key.to_vec()),
            [b"unrestrict", key] if is_alone && self.restricted.as_deref() == Some(*key) => {}
            _ => {
                let line = self.line - u64::from(byte == b'\n');
                let what = if command.starts_with(b"connect") || command.starts_with(b"c ") {
                    "it connects to another database; make the dump of one database, without `--create` and not with `pg_dumpall`"
                } else {
                    "a dump of one database never holds that"
                };
                return Err(HostError::Rejected {
                    summary: format!("line {line} of the dump is a command to psql and not SQL, which is not run: {what}"),
                    excerpt: format!("\\{}", String::from_utf8_lossy(&command)),
                });
            }
        }
        Ok(State::Top)
    }

    /// At the semicolon.
    fn end_statement(&mut self) -> Result<State> {
        let statement = std::mem::take(&mut self.pending);
        if std::mem::take(&mut self.passing) {
            self.write(&statement)?;
            return Ok(State::Top);
        }
        self.findings.is_whole = false;
        let text = String::from_utf8_lossy(&statement);
        match judge(without_comments(&text)) {
            Verdict::Keep => {}
            Verdict::Escapes(on) => self.backslash_escapes = on,
            Verdict::LeaveOut => {
                self.findings.left_out += 1;
                return Ok(State::Top);
            }
            Verdict::Extension(name) => {
                self.findings.extensions.insert(name);
                return Ok(State::Top);
            }
            Verdict::Copy { table, columns } => {
                if matches!(table.as_str(), "public.ir_module_module" | "ir_module_module") {
                    self.findings.has_modules = true;
                    let place = |name: &str| columns.iter().position(|column| column == name);
                    self.columns = Some(["name", "state", "latest_version", "imported", "demo"].map(place));
                }
                self.write(&statement)?;
                return Ok(State::CopyHead);
            }
        }
        self.write(&statement)?;
        Ok(State::Top)
    }

    fn note_module(&mut self, row: &[u8], [name, state, version, imported, demo]: Columns) {
        let text = String::from_utf8_lossy(row);
        let fields: Vec<&str> = text.trim_end_matches(['\n', '\r']).split('\t').collect();
        let field = |at: Option<usize>| at.and_then(|at| fields.get(at)).filter(|field| **field != "\\N").map(|field| (*field).to_owned());
        let (Some(name), Some(state)) = (field(name), field(state)) else { return };
        if !matches!(state.as_str(), "uninstalled" | "uninstallable") {
            let imported = name == STUDIO || field(imported).is_some_and(|value| value == "t");
            let demo = demo.is_none() || field(demo).is_some_and(|value| value == "t");
            self.findings.modules.push(InstalledModule { name, state, version: field(version), imported, demo });
        }
    }
}

/// The reader went away: `psql` has ended, and says itself why.
fn refused(error: io::Error) -> HostError {
    HostError::machine_from("the SQL could not be passed on to psql", error)
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    LeaveOut,
    Extension(String),
    Copy {
        table: String,
        columns: Vec<String>,
    },
    /// `standard_conforming_strings` was switched.
    Escapes(bool),
}

/// What becomes of a statement, ending with its semicolon.
fn judge(statement: &str) -> Verdict {
    let words: Vec<&str> = statement.trim_end_matches(';').split_whitespace().take(12).collect();
    let is = |at: usize, word: &str| words.get(at).is_some_and(|found| found.eq_ignore_ascii_case(word));
    let name = |at: usize| words.get(at).map(|name| name.trim_matches('"').to_owned()).unwrap_or_default();
    if is(0, "copy") {
        return copy(statement).unwrap_or(Verdict::Keep);
    }
    if is(0, "create") && is(1, "extension") {
        return Verdict::Extension(if is(2, "if") { name(5) } else { name(2) });
    }
    if is(0, "set") && is(1, "standard_conforming_strings") {
        return Verdict::Escapes(!statement.to_ascii_lowercase().contains("on"));
    }
    let leave_out = (is(0, "comment") && is(1, "on") && is(2, "extension"))
        || is(0, "grant")
        || is(0, "revoke")
        || (is(0, "security") && is(1, "label"))
        || (is(0, "alter") && is(1, "default") && is(2, "privileges"))
        || (is(0, "alter") && is(1, "extension"))
        || (is(0, "set") && is(1, "session") && is(2, "authorization"))
        // From newer servers; what they set is our own business.
        || (is(0, "set") && (is(1, "transaction_timeout") || is(1, "default_tablespace")))
        || ((is(0, "create") || (is(0, "comment") && is(1, "on"))) && names_public_schema(&words))
        || (is(0, "alter") && sets_owner(statement));
    if leave_out { Verdict::LeaveOut } else { Verdict::Keep }
}

/// `CREATE SCHEMA public` and the like: it is there, and `pg_dump` of old wrote it.
fn names_public_schema(words: &[&str]) -> bool {
    words
        .iter()
        .position(|word| word.eq_ignore_ascii_case("schema"))
        .is_some_and(|at| at <= 2 && words.get(at + 1).is_some_and(|name| name.trim_matches('"') == "public"))
}

/// Ends with `OWNER TO name`.
fn sets_owner(statement: &str) -> bool {
    let lower = statement.to_ascii_lowercase();
    let Some(at) = lower.rfind(" owner to ") else { return false };
    let owner = statement[at + " owner to ".len()..].trim_end_matches(';').trim();
    match owner.strip_prefix('"') {
        Some(quoted) => quoted.ends_with('"') && !quoted[..quoted.len() - 1].contains('"'),
        None => !owner.is_empty() && owner.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '$')),
    }
}

/// `COPY table (columns) FROM stdin;`
fn copy(statement: &str) -> Option<Verdict> {
    let lower = statement.to_ascii_lowercase();
    let from = lower.rfind(" from stdin")?;
    let head = statement.get(4..from)?.trim();
    let (table, columns) = match head.split_once('(') {
        Some((table, columns)) => (table.trim(), columns.trim_end().trim_end_matches(')')),
        None => (head, ""),
    };
    let columns = columns.split(',').map(|column| column.trim().trim_matches('"').to_owned()).collect();
    Some(Verdict::Copy { table: table.replace('"', ""), columns })
}

/// A statement may follow comments and blank lines.
fn without_comments(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        match text.strip_prefix("--") {
            Some(comment) => text = comment.split_once('\n').map_or("", |(_, rest)| rest),
            None => return text,
        }
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn first_word(text: &str) -> String {
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        .take(32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sql: &str) -> Result<(String, Findings)> {
        // In small pieces, so that every boundary is met.
        let mut output = Vec::new();
        let findings = filter(io::BufReader::with_capacity(3, sql.as_bytes()), &mut output)?;
        Ok((String::from_utf8(output).unwrap(), findings))
    }

    const DUMP: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict aB3\n\n-- Dumped from database version 15.4 (Debian 15.4-1)\n\
        -- Dumped by pg_dump version 16.1\n\nSET standard_conforming_strings = on;\nSET transaction_timeout = 0;\n\
        CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;\nCOMMENT ON EXTENSION pg_trgm IS 'x; y';\n\
        CREATE FUNCTION public.f() RETURNS text LANGUAGE sql AS $_$ select 'a; ALTER TABLE t OWNER TO x;' || $1 $_$;\n\
        ALTER FUNCTION public.f() OWNER TO \"odoo 17\";\nALTER TABLE public.t ADD CONSTRAINT c CHECK (a <> ' OWNER TO x');\n\
        COPY public.ir_module_module (id, name, state, latest_version) FROM stdin;\n1\tbase\tinstalled\t17.0.1.3\n2\tsale\tuninstalled\t\\N\n\
        3\tweb\tto upgrade\t\\N\n\\.\n\nCOPY public.t (a) FROM stdin;\n\\\\! touch /tmp/x\n\\! in data\nGRANT ALL ON t TO x;\n\\.\n\n\
        GRANT SELECT ON TABLE public.t TO reader;\nSELECT E'it\\'s; ' || '\\';\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict aB3\n\n";

    #[test]
    fn a_dump_passes_without_owners_privileges_and_extensions() {
        let (output, findings) = run(DUMP).unwrap();
        assert!(findings.is_dump && findings.is_whole && findings.has_modules);
        assert_eq!(findings.server_version.as_deref(), Some("15.4"));
        assert_eq!(findings.pg_dump_version.as_deref(), Some("16.1"));
        assert_eq!(findings.extensions, BTreeSet::from(["pg_trgm".to_owned()]));
        let names: Vec<_> = findings.modules.iter().map(|module| (module.name.as_str(), module.version.as_deref())).collect();
        assert_eq!(names, [("base", Some("17.0.1.3")), ("web", None)]);
        for gone in ["OWNER TO \"odoo", "EXTENSION", "GRANT SELECT", "transaction_timeout", "restrict"] {
            assert!(!output.contains(gone), "{gone} is still in {output}");
        }
        for kept in ["OWNER TO x;' || $1", "OWNER TO x')", "\\! in data\nGRANT ALL ON t TO x;\n\\.\n", "E'it\\'s; ' || '\\';"] {
            assert!(output.contains(kept), "{kept} is not in {output}");
        }
    }

    #[test]
    fn commands_to_psql_are_refused_wherever_psql_would_take_them() {
        for command in
            ["\\! touch /tmp/x", "\\copy t from '/etc/passwd'", "\\o |cat", "select 1 \\gexec", "\\restrict other", "\\unrestrict no"]
        {
            let error = run(&format!("-- PostgreSQL database dump\n\\restrict key\nselect 'a';\n{command}\n")).unwrap_err();
            assert!(error.to_string().starts_with("line 4 of the dump is a command to psql"), "{error}");
        }
        // The data end earlier than they seem to.
        let error = run("COPY t (a) FROM stdin;\n1\n\\.\n\\! id\n\\.\n").unwrap_err();
        assert!(error.to_string().starts_with("line 4"), "{error}");
        let error = run("\\connect other\n").unwrap_err();
        assert!(error.to_string().contains("without `--create`"), "{error}");
    }

    #[test]
    fn a_dump_that_was_cut_off_is_not_whole() {
        for end in [DUMP.len() / 2, DUMP.len() - 80, DUMP.find("\\.\n").unwrap()] {
            assert!(!run(&DUMP[..end]).unwrap().1.is_whole, "{end}");
        }
        assert!(!run(&format!("{DUMP}insert into t values (1);")).unwrap().1.is_whole);
    }

    #[test]
    fn quotes_and_comments_hide_semicolons_and_commands() {
        let sql = "select \"a;\\! b\", 'x''\\', $a$ $b$ ; \\! $a$, a$b, $1 /* ; /* \\! */ ' */ -- \\! '\n;\nGRANT x TO y;";
        let (output, findings) = run(sql).unwrap();
        assert_eq!(findings.left_out, 1);
        assert!(output.ends_with("-- \\! '\n;"), "{output}");
    }

    #[test]
    fn a_long_statement_goes_through_whole() {
        let sql = format!("insert into t values ('{}');\nselect 1;\n", "x; ".repeat(100_000));
        assert_eq!(run(&sql).unwrap().0, sql);
    }
}
