//! What the client commands print: JSON to programs, tables to people. Results go to standard output, the rest to standard error.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;

#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub interactive: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json, interactive: std::io::stderr().is_terminal() && !json }
    }

    /// A list: the whole of it as JSON, or these columns of it as a table. A column is a heading and a JSON pointer.
    pub fn list(self, whole: &Value, rows: &[Value], columns: &[(&str, &str)], nothing: &str) {
        if self.json {
            println!("{whole:#}");
        } else if rows.is_empty() {
            eprintln!("{nothing}");
        } else {
            let mut table = Table::new();
            table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(columns.iter().map(|(heading, _)| heading.to_uppercase()));
            for row in rows {
                table.add_row(columns.iter().map(|(_, pointer)| text(row.pointer(pointer))));
            }
            println!("{}", trim_lines(&table.to_string()));
        }
    }

    /// One thing: the whole as JSON, or these fields, a line each.
    pub fn show(self, whole: &Value, fields: &[(&str, &str)]) {
        if self.json {
            println!("{whole:#}");
            return;
        }
        let width = fields.iter().map(|(heading, _)| heading.len()).max().unwrap_or(0);
        for (heading, pointer) in fields {
            let value = text(whole.pointer(pointer));
            if !value.is_empty() {
                println!("{heading:width$}  {value}");
            }
        }
    }

    /// That something was done: its answer as JSON, or a sentence.
    pub fn done(self, whole: &Value, sentence: &str) {
        if self.json {
            println!("{whole:#}");
        } else {
            eprintln!("{sentence}");
        }
    }
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
