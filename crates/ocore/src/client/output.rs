//! What the client commands print: JSON to programs, tables to people. Results go to standard output, the rest to standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;

use super::failure::Failure;

#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub interactive: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json, interactive: std::io::stderr().is_terminal() && !json }
    }

    /// A list: the whole of it as JSON, or these columns of it as a table, without those that no row has anything in. A column is a heading and a
    /// JSON pointer.
    pub fn list(self, whole: &Value, rows: &[Value], columns: &[(&str, &str)], nothing: &str) {
        if self.json {
            out!("{whole:#}");
        } else if rows.is_empty() {
            note!("{nothing}");
        } else {
            out!("{}", table(rows, columns));
        }
    }

    /// One thing: the whole as JSON, or these fields, a line each.
    pub fn show(self, whole: &Value, fields: &[(&str, &str)]) {
        if self.json {
            out!("{whole:#}");
            return;
        }
        let width = fields.iter().map(|(heading, _)| heading.len()).max().unwrap_or(0);
        for (heading, pointer) in fields {
            let value = text(whole.pointer(pointer));
            if !value.is_empty() {
                out!("{heading:width$}  {value}");
            }
        }
    }

    /// That something was done: its answer as JSON, or a sentence.
    pub fn done(self, whole: &Value, sentence: &str) {
        if self.json {
            out!("{whole:#}");
        } else {
            note!("{sentence}");
        }
    }
}

/// Asks a person. Without a terminal there is nobody to ask, which is an error that says so.
pub fn confirm(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{question} There is no terminal to ask at; give --yes")).into());
    }
    dialoguer::Confirm::new().with_prompt(question).default(false).interact().context("cannot ask")
}

/// What is typed to confirm a removal: given, or asked for.
pub fn typed(given: Option<String>, question: &str, name: &str) -> Result<String> {
    let typed = match given {
        Some(given) => given,
        None if std::io::stdin().is_terminal() => {
            let prompt = format!("{question} Type {name} to go on");
            dialoguer::Input::<String>::new().with_prompt(prompt).interact_text().context("cannot ask")?
        }
        None => return Err(Failure::Usage(format!("{question} There is no terminal to ask at; give --confirm {name}")).into()),
    };
    if typed.trim() == name {
        Ok(name.to_owned())
    } else {
        Err(Failure::Usage(format!("nothing was removed: {typed} is not {name}")).into())
    }
}

/// A number of bytes for people: three digits at most, in powers of 1024.
pub fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while size >= 999.5 {
        let Some(larger) = units.next() else { break };
        (size, unit) = (size / 1024.0, larger);
    }
    if size >= 9.95 || unit == "B" { format!("{size:.0} {unit}") } else { format!("{size:.1} {unit}") }
}

fn table(rows: &[Value], columns: &[(&str, &str)]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let is_filled = |pointer: &str| rows.iter().any(|row| !text(row.pointer(pointer)).is_empty());
    let columns: Vec<&(&str, &str)> = columns.iter().filter(|(_, pointer)| is_filled(pointer)).collect();
    table.set_header(columns.iter().map(|(heading, _)| heading.to_uppercase()));
    for row in rows {
        table.add_row(columns.iter().map(|(_, pointer)| text(row.pointer(pointer))));
    }
    trim_lines(&table.to_string())
}

fn trim_lines(table: &str) -> String {
    table.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(time) if text.len() >= 20 => time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string(),
            _ => text.lines().next().unwrap_or_default().to_owned(),
        },
        Some(Value::Array(values)) => values.iter().map(|value| text(Some(value))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_column_that_is_empty_in_every_row_is_left_out() {
        let columns = [("branch", "/branch"), ("by", "/by"), ("tags", "/tags"), ("pending", "/pending")];
        let rows =
            [json!({ "branch": "main", "by": null, "tags": [], "pending": 0 }), json!({ "branch": "other", "by": "", "pending": null })];
        let lines: Vec<Vec<String>> =
            super::table(&rows, &columns).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
        assert_eq!(lines, [vec!["BRANCH", "PENDING"], vec!["main", "0"], vec!["other"]]);
    }

    #[test]
    fn bytes_are_short_and_never_four_digits() {
        let sizes = [0, 999, 1000, 1024, 10_000, 1_048_575, 5 << 20, 40 << 20, 3 << 30, u64::MAX];
        let texts: Vec<String> = sizes.into_iter().map(super::bytes).collect();
        assert_eq!(texts, ["0 B", "999 B", "1.0 KiB", "1.0 KiB", "9.8 KiB", "1.0 MiB", "5.0 MiB", "40 MiB", "3.0 GiB", "16384 PiB"]);
    }
}
