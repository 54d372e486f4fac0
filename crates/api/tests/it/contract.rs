//! The contract is given; our document has all of it, name for name. What it has more is ours to add.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::environments::Scene;

/// Operations of the contract whose machinery does not exist yet. They are absent: nothing pretends.
const NOT_BUILT_YET: &[(&str, &str)] =
    &[("/environments/{id}/promote", "post"), ("/projects/{projectId}/test-gates", "get"), ("/projects/{projectId}/test-gates", "put")];

pub(crate) fn contract() -> Result<Value> {
    Ok(serde_json::from_str(include_str!("../fixtures/environments.openapi.json"))?)
}

/// Every operation of a document: path, method, description.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            if ["get", "put", "post", "delete", "patch"].contains(&method.as_str()) {
                operations.push((path.clone(), method.clone(), operation.clone()));
            }
        }
    }
    operations
}

/// A schema behind its reference.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => resolve(document, document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null)),
        None => schema,
    }
}

/// A schema without what makes it nullable: `["string", "null"]`, or one of null and a schema.
fn without_null(document: &Value, schema: &Value) -> Value {
    let schema = resolve(document, schema);
    for choice in ["oneOf", "anyOf"] {
        if let Some(options) = schema[choice].as_array() {
            let rest: Vec<&Value> = options.iter().filter(|option| option["type"] != "null").collect();
            if let [only] = rest.as_slice() {
                return without_null(document, only);
            }
        }
    }
    let mut schema = schema.clone();
    if let Some(types) = schema["type"].as_array() {
        let rest: Vec<Value> = types.iter().filter(|kind| **kind != "null").cloned().collect();
        if let [only] = rest.as_slice() {
            schema["type"] = only.clone();
        }
    }
    schema
}

/// Everything that the wanted schema says and ours does not, as lines with a path.
fn compare(wanted_document: &Value, wanted: &Value, our_document: &Value, our: &Value, place: &str, faults: &mut Vec<String>) {
    let wanted = without_null(wanted_document, wanted);
    let our = without_null(our_document, our);
    if wanted["type"].is_string() && wanted["type"] != our["type"] {
        faults.push(format!("{place}: type {} instead of {}", our["type"], wanted["type"]));
        return;
    }
    if wanted["enum"].is_array() {
        let words = |schema: &Value| -> BTreeSet<String> {
            schema["enum"].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
        };
        if words(&wanted) != words(&our) {
            faults.push(format!("{place}: enum {:?} instead of {:?}", words(&our), words(&wanted)));
        }
    }
    for (name, property) in wanted["properties"].as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        match our["properties"].get(name) {
            Some(ours) => compare(wanted_document, property, our_document, ours, &place, faults),
            None => faults.push(format!("{place}: missing")),
        }
    }
    if !wanted["items"].is_null() {
        compare(wanted_document, &wanted["items"], our_document, &our["items"], &format!("{place}[]"), faults);
    }
}

fn required(schema: &Value) -> BTreeSet<&str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn compare_operation(contract: &Value, wanted: &Value, document: &Value, our: &Value, place: &str, faults: &mut Vec<String>) {
    for parameter in wanted["parameters"].as_array().into_iter().flatten() {
        let ours = our["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|ours| ours["name"] == parameter["name"] && ours["in"] == parameter["in"]);
        let place = format!("{place} parameter {}", parameter["name"]);
        let Some(ours) = ours else {
            faults.push(format!("{place}: missing"));
            continue;
        };
        if ours["required"].as_bool().unwrap_or(false) != parameter["required"].as_bool().unwrap_or(false) {
            faults.push(format!("{place}: required differs"));
        }
        if !parameter["schema"]["format"].is_null() && parameter["schema"]["format"] != ours["schema"]["format"] {
            faults.push(format!("{place}: format {}", ours["schema"]["format"]));
        }
        compare(contract, &parameter["schema"], document, &ours["schema"], &place, faults);
    }
    for ours in our["parameters"].as_array().into_iter().flatten() {
        let known = wanted["parameters"].as_array().into_iter().flatten().any(|parameter| parameter["name"] == ours["name"]);
        if !known && ours["required"] == true {
            faults.push(format!("{place}: the contract knows no required parameter {}", ours["name"]));
        }
    }
    match (wanted["requestBody"].as_object(), our["requestBody"].as_object()) {
        (None, None) => {}
        (Some(body), Some(ours)) => {
            if body["required"] != *ours.get("required").unwrap_or(&Value::Bool(false)) {
                faults.push(format!("{place} body: required differs"));
            }
            let (schema, our_schema) = (
                resolve(contract, &body["content"]["application/json"]["schema"]),
                resolve(document, &ours["content"]["application/json"]["schema"]),
            );
            if required(schema) != required(our_schema) {
                faults.push(format!("{place} body: required {:?} instead of {:?}", required(our_schema), required(schema)));
            }
            compare(contract, schema, document, our_schema, &format!("{place} body"), faults);
        }
        (body, _) => faults.push(format!("{place}: there must be {} body", if body.is_some() { "a" } else { "no" })),
    }
    for (status, response) in wanted["responses"].as_object().into_iter().flatten() {
        let place = format!("{place} {status}");
        let Some(ours) = our["responses"].get(status) else {
            faults.push(format!("{place}: missing"));
            continue;
        };
        for (media_type, content) in response["content"].as_object().into_iter().flatten() {
            let our_content = &ours["content"][media_type.as_str()];
            if our_content.is_null() {
                faults.push(format!("{place}: no {media_type}"));
                continue;
            }
            compare(contract, &content["schema"], document, &our_content["schema"], &place, faults);
        }
    }
    let secured = |operation: &Value| operation["security"].as_array().is_some_and(|security| !security.is_empty());
    if secured(wanted) && !secured(our) {
        faults.push(format!("{place}: the contract asks for authentication"));
    }
}

#[test]
fn our_document_contains_the_contract_name_for_name() -> Result<()> {
    let (contract, document) = (contract()?, ocore_api::openapi());
    assert_eq!(contract["servers"][0]["url"], document["servers"][0]["url"], "the base path");
    let mut faults = Vec::new();
    for (path, method, wanted) in operations(&contract) {
        let our = &document["paths"][&path][&method];
        let place = format!("{method} {path}");
        match (NOT_BUILT_YET.contains(&(path.as_str(), method.as_str())), our.is_null()) {
            (true, true) => {}
            (true, false) => faults.push(format!("{place}: it is built; take it off the list of those that are not")),
            (false, true) => faults.push(format!("{place}: missing")),
            (false, false) => compare_operation(&contract, &wanted, &document, our, &place, &mut faults),
        }
    }
    for (path, method) in NOT_BUILT_YET {
        contract["paths"][path].get(method).with_context(|| format!("the contract has no {method} {path}"))?;
    }
    for (name, schema) in contract["components"]["schemas"].as_object().context("the contract has schemas")? {
        let our = &document["components"]["schemas"][name];
        if our.is_null() {
            faults.push(format!("schema {name}: missing"));
        } else {
            compare(&contract, schema, &document, our, name, &mut faults);
        }
    }
    assert!(faults.is_empty(), "our document differs from the contract:\n{}", faults.join("\n"));
    Ok(())
}

#[test]
fn the_comparison_sees_what_is_wrong() -> Result<()> {
    let contract = contract()?;
    let mut broken = contract.clone();
    let operation = &mut broken["paths"]["/environments/{id}/deployments"]["get"];
    operation["parameters"][1]["schema"]["type"] = "string".into();
    operation["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["total"]["type"] = "string".into();
    let mut faults = Vec::new();
    compare_operation(
        &contract,
        &contract["paths"]["/environments/{id}/deployments"]["get"],
        &broken,
        &broken["paths"]["/environments/{id}/deployments"]["get"],
        "it",
        &mut faults,
    );
    assert_eq!(faults.len(), 2, "{faults:?}");
    broken["components"]["schemas"]["Environment"]["properties"].as_object_mut().context("it has properties")?.remove("mailpitPort");
    faults.clear();
    let schema = serde_json::json!({ "$ref": "#/components/schemas/Environment" });
    compare(&contract, &schema, &broken, &schema, "it", &mut faults);
    assert_eq!(faults, ["it.mailpitPort: missing"]);
    Ok(())
}

/// Whether an answer has a null anywhere.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(members) => members.values().any(has_null),
        _ => false,
    }
}

/// The calls of the contract, on things in many states. What each answer has to be, `answers::check` holds against the contract itself.
#[tokio::test]
async fn a_strict_client_of_the_contract_reads_every_answer() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.scenario.commit("first")?;
    let environment = scene.scenario.live("main").await?;
    let (id, project) = (environment.id, scene.scenario.project);
    scene.scenario.commit("second")?;
    let failed = scene.scenario.push("main").await?.deployment_id.context("it is deployed")?;
    scene
        .scenario
        .set(failed, "status = 'failed', started_at = now(), completed_at = now(), error_message = 'no', error_excerpt = 'x'")
        .await?;
    sqlx::query(
        "insert into evidence (deployment_id, gate, status, required, summary, excerpt, details, started_at, completed_at)
         values ($1, 'rehearsal', 'failed', true, 'it fails', 'x', '{}', now(), now())",
    )
    .bind(failed.as_uuid())
    .execute(&scene.scenario.store.control.pool)
    .await?;
    scene.scenario.commit("third")?;
    scene.scenario.push("main").await?;
    let mut answers = Vec::new();
    let mut call = async |method: Method, path: String, body: Option<Value>, status: StatusCode| -> Result<Value> {
        let call = scene.api.call(method, &path).token(scene.scenario.owner.token());
        let call = if let Some(body) = &body { call.json(body) } else { call };
        let answer = call.expect(status).await?;
        answers.push((path, answer.clone()));
        Ok(answer)
    };
    let (ok, accepted) = (StatusCode::OK, StatusCode::ACCEPTED);
    let environments = format!("/projects/{project}/environments");
    let made = json!({ "branch": "waiting", "environmentType": "staging" });
    let made = call(Method::POST, environments.clone(), Some(made), StatusCode::CREATED).await?;
    call(Method::GET, "/environments".to_owned(), None, ok).await?;
    call(Method::GET, environments, None, ok).await?;
    call(Method::GET, format!("/environments/{id}"), None, ok).await?;
    call(Method::PUT, format!("/environments/{id}"), Some(json!({ "name": "Live", "description": "" })), ok).await?;
    call(Method::PUT, format!("/environments/{id}/commit-behavior"), Some(json!({ "behavior": "do_nothing" })), ok).await?;
    let page = call(Method::GET, format!("/environments/{id}/deployments"), None, ok).await?;
    assert_eq!(page["total"], 3);
    for deployment in page["deployments"].as_array().into_iter().flatten() {
        call(Method::GET, format!("/deployments/{}", deployment["id"].as_str().context("an id")?), None, ok).await?;
    }
    scene.scenario.commit("fourth")?;
    scene.scenario.push("main").await?;
    call(Method::POST, format!("/environments/{id}/trigger-build"), None, accepted).await?;
    call(Method::GET, format!("/projects/{project}/pipeline?recentDeployments=10"), None, ok).await?;
    call(Method::GET, format!("/projects/{project}/commits-since?since={first}&branch=main"), None, ok).await?;
    call(Method::POST, format!("/environments/{id}/clone"), Some(json!({ "targetBranch": "copy" })), accepted).await?;
    call(Method::DELETE, format!("/environments/{}", made["id"].as_str().context("an id")?), None, accepted).await?;
    call(Method::GET, "/environments".to_owned(), None, ok).await?;
    for (path, answer) in answers {
        assert!(!has_null(&answer), "{path} has a null: {answer}");
    }
    Ok(())
}
