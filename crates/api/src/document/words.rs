//! Descriptions and examples of properties and parameters whose names mean the same wherever they are. What a type says of its own field counts more.

use std::{collections::BTreeMap, sync::LazyLock};

use chrono::DateTime;
use serde_json::{Value, json};
use uuid::Uuid;

/// Name, or `Schema.name` where the name alone says too little; a tab; a description; a tab; an example as JSON.
const WORDS: &str = include_str!("words.tsv");

struct Word {
    description: &'static str,
    example: Option<Value>,
}

static TABLE: LazyLock<BTreeMap<&'static str, Word>> = LazyLock::new(|| {
    let lines = WORDS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut columns = line.split('\t');
            let (name, description) = (columns.next()?, columns.next()?);
            Some((name, Word { description, example: columns.next().and_then(|text| serde_json::from_str(text).ok()) }))
        })
        .collect()
});

/// Says of each property of a schema what it is, where the schema does not.
pub(super) fn describe(name: &str, schema: &mut Value) {
    for part in schema.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten() {
        describe(name, part);
    }
    for variant in schema.get_mut("oneOf").and_then(Value::as_array_mut).into_iter().flatten() {
        describe(name, variant);
    }
    for (property, schema) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        let word = TABLE.get(format!("{name}.{property}").as_str()).or_else(|| TABLE.get(property.as_str()));
        fill(schema, word);
        describe(property, schema);
    }
}

pub(super) fn describe_parameters(document: &mut Value) {
    for (_, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (_, operation) in item.as_object_mut().into_iter().flatten() {
            for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
                let Some(name) = parameter["name"].as_str().map(str::to_owned) else { continue };
                let word = TABLE.get(format!("parameter.{name}").as_str()).or_else(|| TABLE.get(name.as_str()));
                if let (None, Some(word)) = (parameter["description"].as_str().filter(|text| !text.is_empty()), word) {
                    parameter["description"] = word.description.into();
                }
                if parameter.get("example").is_none()
                    && parameter["schema"].get("examples").is_none()
                    && let Some(example) = example(&parameter["schema"], word)
                {
                    parameter["schema"]["examples"] = json!([example]);
                }
            }
        }
    }
}

fn fill(schema: &mut Value, word: Option<&Word>) {
    // What only refers to another schema is described there, too.
    if let (None, Some(word)) = (schema["description"].as_str().filter(|text| !text.is_empty()), word) {
        schema["description"] = word.description.into();
    }
    if ["$ref", "examples", "example"].iter().all(|one| schema.get(one).is_none())
        && let Some(example) = example(schema, word)
    {
        schema["examples"] = json!([example]);
    }
}

fn has_format(format: Option<&str>, text: &str) -> bool {
    match format {
        Some("uuid") => text.parse::<Uuid>().is_ok(),
        Some("date-time") => DateTime::parse_from_rfc3339(text).is_ok(),
        _ => true,
    }
}

/// The word's own example when it has the schema's type, else one that any value of the type could be.
fn example(schema: &Value, word: Option<&Word>) -> Option<Value> {
    if let Some(first) = schema["enum"].as_array().and_then(|words| words.iter().find(|word| !word.is_null())) {
        return Some(first.clone());
    }
    let is = |kind: &str| schema["type"] == kind || schema["type"].as_array().is_some_and(|kinds| kinds.iter().any(|one| one == kind));
    let fits = |value: &Value| match value {
        Value::String(text) => is("string") && has_format(schema["format"].as_str(), text),
        Value::Number(number) => is("number") || (is("integer") && !number.is_f64()),
        Value::Bool(_) => is("boolean"),
        Value::Array(_) => is("array"),
        Value::Object(_) => is("object"),
        Value::Null => false,
    };
    if let Some(example) = word.and_then(|word| word.example.clone()).filter(fits) {
        return Some(example);
    }
    match schema["format"].as_str() {
        Some("uuid") => return Some(json!("0198c5a2-7d3e-7c11-9f6b-3a5f0c2d1e4b")),
        Some("date-time") => return Some(json!("2026-11-30T22:39:16.782892Z")),
        _ => {}
    }
    if is("boolean") {
        return Some(json!(false));
    }
    if is("integer") {
        return Some(schema.get("minimum").filter(|least| least.as_i64() > Some(0)).cloned().unwrap_or_else(|| json!(1)));
    }
    None
}
