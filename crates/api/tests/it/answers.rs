//! Every answer that any test of this crate reads is held against our document, and where the contract has the operation against the contract too: the status
//! is one that the document names, the body is what the schema says (with formats), a problem's code is one of the operation's. Nothing in the contract may be
//! null, and nothing is.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use axum::http::Method;
use jsonschema::Validator;
use serde_json::Value;

use crate::{contract, support::Answer};

struct Book {
    name: &'static str,
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

static OURS: LazyLock<Book> = LazyLock::new(|| Book::new("our document", ocore_api::openapi()));
static CONTRACT: LazyLock<Book> = LazyLock::new(|| Book::new("the contract", contract::contract().expect("the contract is JSON")));

/// Fails when the answer is not what the documents say of it.
pub(crate) fn check(method: &Method, path: &str, answer: &Answer) -> Result<()> {
    let Some(path) = path.strip_prefix("/api").map(|path| path.split('?').next().unwrap_or_default()) else { return Ok(()) };
    let method = if method == Method::HEAD { "get".to_owned() } else { method.as_str().to_lowercase() };
    OURS.check(&method, path, answer, true)?;
    if answer.status.is_success() { CONTRACT.check(&method, path, answer, false) } else { Ok(()) }
}

impl Book {
    fn new(name: &'static str, document: Value) -> Self {
        Self { name, document, validators: Mutex::default() }
    }

    fn check(&self, method: &str, path: &str, answer: &Answer, every_status: bool) -> Result<()> {
        let Some(template) = self.template(path) else { return Ok(()) };
        let Some(operation) = self.document["paths"][template].get(method) else { return Ok(()) };
        let status = answer.status.as_str();
        let place = format!("{method} {template} {status}");
        let Some(response) = operation["responses"].get(status).map(|response| self.resolve(response)) else {
            ensure!(!every_status, "{place}: {} does not name the status: {}", self.name, answer.text);
            return Ok(());
        };
        for name in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name).filter(|name| *name != "Retry-After") {
            ensure!(answer.headers.contains_key(name.as_str()), "{place}: {} promises the header {name}", self.name);
        }
        let kind = answer.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default();
        let content = response["content"].as_object().filter(|content| !content.is_empty());
        let Some(content) = content else { return Ok(()) };
        let Some(schema) = content.get(kind).map(|content| &content["schema"]) else {
            bail!("{place}: {} does not name {kind:?}", self.name);
        };
        if !kind.ends_with("json") || method == "head" || answer.text.is_empty() {
            return Ok(());
        }
        let body: Value = serde_json::from_str(&answer.text).with_context(|| format!("{place}: the body is not JSON"))?;
        let validator = self.validator(&format!("{place} {kind}"), schema)?;
        let faults: Vec<String> = validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
        ensure!(faults.is_empty(), "{place}: the answer is not what {} says:\n{}\n{}", self.name, faults.join("\n"), answer.text);
        Ok(())
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null),
            None => value,
        }
    }

    /// The template of a path, the one with the most plain segments where several fit.
    fn template(&self, path: &str) -> Option<&str> {
        let segments: Vec<&str> = path.split('/').collect();
        let plain = |template: &str| template.split('/').filter(|segment| !segment.starts_with('{')).count();
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == segments.len() && parts.iter().zip(&segments).all(|(part, segment)| part.starts_with('{') || part == segment)
        };
        let templates = self.document["paths"].as_object()?.keys().map(String::as_str);
        templates.filter(|template| fits(template)).max_by_key(|template| plain(template))
    }

    fn validator(&self, key: &str, schema: &Value) -> Result<Arc<Validator>> {
        let mut validators = self.validators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(validator) = validators.get(key) {
            return Ok(validator.clone());
        }
        let mut root = schema.clone();
        if root.get("$ref").is_some() {
            root = serde_json::json!({ "allOf": [root] });
        }
        root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        root["components"]["schemas"] = self.document["components"]["schemas"].clone();
        let validator = jsonschema::options().should_validate_formats(true).build(&root);
        let validator = Arc::new(validator.map_err(|error| anyhow::anyhow!("{key}: the schema is none: {error}"))?);
        validators.insert(key.to_owned(), validator.clone());
        Ok(validator)
    }
}

#[test]
fn the_document_is_openapi() -> Result<()> {
    let schema: Value = serde_json::from_str(include_str!("../fixtures/openapi-3.1.schema.json"))?;
    let validator = jsonschema::validator_for(&schema).map_err(|error| anyhow::anyhow!("{error}"))?;
    let faults = |document: &Value| -> Vec<String> {
        validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).take(20).collect()
    };
    let document = ocore_api::openapi();
    assert_eq!(faults(&document), Vec::<String>::new());
    // It sees what is missing.
    let mut broken = document.clone();
    broken["paths"]["/projects"]["get"]["responses"]["200"].as_object_mut().context("a response")?.remove("description");
    assert!(!faults(&broken).is_empty());
    // What it does not see: references that lead nowhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(reference).is_some(), "{reference} leads nowhere");
    }
    Ok(())
}

#[test]
fn every_property_and_parameter_of_the_document_has_a_description_and_an_example() {
    let document = ocore_api::openapi();
    let mut faults = Vec::new();
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        look(name, schema, &mut faults);
    }
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            if operation["summary"].as_str().is_none_or(str::is_empty) {
                faults.push(format!("{method} {path}: no summary"));
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten().filter(|parameter| parameter.get("$ref").is_none()) {
                if parameter["description"].as_str().is_none_or(str::is_empty) {
                    faults.push(format!("{method} {path} parameter.{}: no description", parameter["name"]));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} are missing:\n{}", faults.len(), faults.join("\n"));
}

fn look(place: &str, schema: &Value, faults: &mut Vec<String>) {
    for part in ["allOf", "oneOf"] {
        for schema in schema[part].as_array().into_iter().flatten() {
            look(place, schema, faults);
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        if property["description"].as_str().is_none_or(str::is_empty) {
            faults.push(format!("{place}: no description"));
        }
        let compound =
            ["$ref", "oneOf", "allOf", "items", "properties", "additionalProperties"].iter().any(|part| property.get(part).is_some());
        let free = property.get("type").is_none() || property["type"] == "object";
        if !compound && !free && property.get("examples").is_none() && property.get("example").is_none() {
            faults.push(format!("{place}: no example"));
        }
        look(&place, property, faults);
    }
}
