//! What every bench leaves: a table for people and `target/bench/<name>.json` for programs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use serde_json::Value;

/// A promise and what was measured of it.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    pub name: String,
    pub unit: &'static str,
    pub value: f64,
    /// The value may be at most this, or must be at least this.
    pub target: f64,
    pub at_least: bool,
    pub met: bool,
}

impl Target {
    pub fn at_most(name: impl Into<String>, unit: &'static str, value: f64, target: f64) -> Self {
        Self { name: name.into(), unit, value: rounded(value), target, at_least: false, met: value <= target }
    }

    pub fn at_least(name: impl Into<String>, unit: &'static str, value: f64, target: f64) -> Self {
        Self { name: name.into(), unit, value: rounded(value), target, at_least: true, met: value >= target }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub name: &'static str,
    pub machine: BTreeMap<&'static str, String>,
    pub rows: Vec<Value>,
    pub targets: Vec<Target>,
}

impl Report {
    pub fn new(name: &'static str) -> Self {
        Self { name, machine: machine(), rows: Vec::new(), targets: Vec::new() }
    }

    /// Prints the table and writes the file.
    pub fn finish(&self) -> Result<()> {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        if let Some(first) = self.rows.first().and_then(Value::as_object) {
            let columns: Vec<String> = first.keys().cloned().collect();
            table.set_header(&columns);
            for row in &self.rows {
                table.add_row(columns.iter().map(|column| match &row[column] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                }));
            }
        }
        println!("{table}");
        let mut targets = Table::new();
        targets.load_style(UTF8_FULL_CONDENSED).set_header(["target", "measured", "wanted", "unit", "met"]);
        for target in &self.targets {
            let met = if target.met { "yes" } else { "NO" };
            let wanted = format!("{} {}", if target.at_least { "≥" } else { "≤" }, target.target);
            targets.add_row([&target.name, &target.value.to_string(), &wanted, target.unit, met]);
        }
        println!("{targets}");
        let missed: Vec<&str> = self.targets.iter().filter(|target| !target.met).map(|target| target.name.as_str()).collect();
        match missed.as_slice() {
            [] => println!("{}: every target is met", self.name),
            missed => println!("{}: {} of {} targets missed: {}", self.name, missed.len(), self.targets.len(), missed.join("; ")),
        }
        let directory = Path::new("target/bench");
        fs::create_dir_all(directory)?;
        fs::write(directory.join(format!("{}.json", self.name)), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

fn machine() -> BTreeMap<&'static str, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
    let memory = read("/proc/meminfo").lines().next().map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    BTreeMap::from([
        ("cpu", cpu.unwrap_or_default()),
        ("cores", cores.to_string()),
        ("memory", memory.unwrap_or_default()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
    ])
}

/// Three decimals are more than the measurements hold.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The value below which that share of the sorted measurements lies.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// The steps of a deployment and how long they took, in milliseconds.
pub fn steps(deployment: &Value) -> Vec<(String, f64)> {
    let steps = deployment["steps"].as_array().into_iter().flatten();
    steps.filter_map(|step| Some((step["name"].as_str()?.to_owned(), step["durationMs"].as_f64()?))).collect()
}

/// Prints how long each step of a deployment took, after a word about which one it is.
pub fn print_steps(which: &str, deployment: &Value) {
    let steps = deployment["steps"].as_array().into_iter().flatten();
    let times: Vec<String> = steps.map(|step| format!("{} {} ms", step["name"].as_str().unwrap_or_default(), step["durationMs"])).collect();
    eprintln!("  {which}: {}", times.join(", "));
}
