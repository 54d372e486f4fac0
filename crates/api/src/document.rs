//! What the OpenAPI document says of every operation alike: how to prove who one is, which headers go with it, what a problem looks like, what is left out.
//! Written here once, so that a handler's description holds only what is its own.

mod errors;
mod words;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use utoipa::{OpenApi, openapi::OpenApi as Document};

use crate::{
    idempotent, parameters,
    problem::{ProblemBody, ProblemField},
    wire::{ByTime, Sort},
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "oCore",
        description = "A self-hosted control plane for Odoo.\n\nProve who you are with `Authorization: Bearer` and an access token (from \
            `/auth/login`) or an API key (`ocore_…`); a browser that logged in has a cookie. Who belongs to several organizations names one in \
            the header `X-Org-Slug` or the query parameter `org`, unless the path has the id of a thing, which says it too. Names are camelCase, ids \
            UUIDs, times RFC 3339. What has no value is left out of an answer. Errors are RFC 9457 problem details with a stable `code`. \
            What belongs to another organization is 404. Fields and query parameters that the API does not know are refused.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/api")),
    components(schemas(ProblemBody, ProblemField, ByTime, Sort))
)]
struct Skeleton;

/// POST operations that start nothing, or that nobody in particular calls: an idempotency key says nothing there.
const LOOKS: &[&str] = &[
    "accounts_signup",
    "accounts_login",
    "accounts_refresh",
    "accounts_logout",
    "deployments_preview",
    "environments_query_quarantine",
    "repositories_validate_repository",
    "repositories_receive_webhook",
];

/// POST operations whose answer says in `Location` where what they began is from then on.
const LOCATED: &[&str] = &[
    "api_keys_create",
    "deployments_deploy",
    "deployments_roll_back",
    "environments_clone",
    "environments_create",
    "environments_trigger_build",
    "exports_create",
    "imports_add_file_store",
    "imports_create",
    "imports_start",
    "instances_create",
    "projects_create",
    "roles_create",
    "snapshots_create",
    "snapshots_verify",
];

/// The document without its paths.
pub(crate) fn skeleton() -> Document {
    Skeleton::openapi()
}

/// The whole document: what the handlers say, and what holds for all of them.
pub(crate) fn complete(document: &Document) -> Value {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let readable: BTreeSet<String> = paths(&document).filter(|(_, item)| gives_json(&item["get"])).map(|(path, _)| path.clone()).collect();
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            complete_operation(method, operation, readable.contains(path));
        }
    }
    let schemas_of_requests = referred(&document, &mut |operation| operation["requestBody"].clone());
    let components = &mut document["components"];
    components["securitySchemes"] = security_schemes();
    components["parameters"] = common_parameters();
    components["headers"] = common_headers();
    components["responses"] = errors::common();
    for (name, schema) in components["schemas"].as_object_mut().into_iter().flatten() {
        if !schemas_of_requests.contains(name) {
            without_null(schema);
        }
        words::describe(name, schema);
    }
    words::describe_parameters(&mut document);
    document
}

fn paths(document: &Value) -> impl Iterator<Item = (&String, &Value)> {
    document["paths"].as_object().into_iter().flatten()
}

fn gives_json(operation: &Value) -> bool {
    operation["responses"]["200"]["content"].get("application/json").is_some()
}

fn complete_operation(method: &str, operation: &mut Value, readable: bool) {
    // A handler is called `list` in many modules; the id is unique in the document.
    let tag = operation["tags"][0].as_str().unwrap_or_default().to_lowercase().replace(' ', "_");
    let own = operation["operationId"].as_str().unwrap_or_default();
    let id = format!("{tag}_{own}");
    operation["operationId"] = id.as_str().into();
    let open =
        operation["security"].as_array().is_some_and(|security| security.iter().all(|one| one.as_object().is_some_and(Map::is_empty)));
    if operation["security"].is_null() {
        operation["security"] = json!([{ "bearer": [] }, { "cookie": [] }]);
    }
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    for parameter in &mut parameters {
        // A parameter is there or not; there is no null in an address or a header.
        let mut schema = json!({ "properties": { "it": parameter["schema"] } });
        without_null(&mut schema);
        parameter["schema"] = schema["properties"]["it"].clone();
    }
    let mut takes = |name: &str| parameters.push(json!({ "$ref": format!("#/components/parameters/{name}") }));
    if !open {
        takes("Organization");
        takes("OrganizationInQuery");
    }
    match method {
        "get" if gives_json(operation) => takes("IfNoneMatch"),
        "put" | "patch" | "delete" if readable => takes("IfMatch"),
        "post" if !LOOKS.contains(&id.as_str()) => takes("IdempotencyKey"),
        _ => {}
    }
    operation["parameters"] = parameters.into();
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        response["headers"]["x-request-id"] = json!({ "$ref": "#/components/headers/RequestId" });
        if LOCATED.contains(&id.as_str()) && status.starts_with('2') {
            response["headers"]["Location"] = json!({ "$ref": "#/components/headers/Location" });
        }
        if method == "get" && status == "200" && response["content"].get("application/json").is_some() {
            response["headers"]["ETag"] = json!({ "$ref": "#/components/headers/ETag" });
        }
    }
    if method == "get" && gives_json(operation) {
        operation["responses"]["304"] = json!({ "$ref": "#/components/responses/NotModified" });
    }
    errors::add(&id, method, operation, open, readable);
}

fn security_schemes() -> Value {
    json!({
        "bearer": {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "An access token, or an API key that begins with `ocore_`.",
        },
        "cookie": {
            "type": "apiKey", "in": "cookie", "name": "ocore_access",
            "description": "Set by log-in, for browsers; `__Host-ocore_access` under https. Calls that change something must come from a page of oCore.",
        },
    })
}

fn common_parameters() -> Value {
    let slug = json!({ "type": "string", "examples": ["acme"] });
    json!({
        "Organization": {
            "name": "X-Org-Slug", "in": "header", "required": false, "schema": slug,
            "description": "The slug of the organization that the call is about. Needed by people who belong to several, where the path has no id of a thing.",
        },
        "OrganizationInQuery": {
            "name": parameters::ORGANIZATION, "in": "query", "required": false, "schema": slug,
            "description": "As `X-Org-Slug`, for links, `EventSource` and websockets, which cannot send a header.",
        },
        "IdempotencyKey": {
            "name": idempotent::HEADER, "in": "header", "required": false,
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$", "examples": ["0198c5a2-7d3e-7c11-9f6b-3a5f0c2d1e4b"] },
            "description": "Chosen by the caller, new for each thing that is wanted. A call that is sent again with it within a day is not carried out \
                again: it gets the first one's answer, with the header `Idempotency-Replayed: true`.",
        },
        "IfNoneMatch": {
            "name": "If-None-Match", "in": "header", "required": false, "schema": { "type": "string" },
            "description": "The `ETag` of an answer that the caller has: 304 without a body when it is still the one.",
        },
        "IfMatch": {
            "name": "If-Match", "in": "header", "required": false, "schema": { "type": "string" },
            "description": "The `ETag` of what GET gave at this path: 412 `changed_meanwhile`, and nothing is changed, when it is another one now.",
        },
    })
}

fn common_headers() -> Value {
    json!({
        "RequestId": {
            "description": "Finds the request in the server's log: the caller's own id when it is 1 to 64 letters, digits and hyphens.",
            "schema": { "type": "string" },
        },
        "ETag": { "description": "Stands for this state of the answer.", "schema": { "type": "string" } },
        "Location": { "description": "Where what was begun is from now on.", "schema": { "type": "string", "format": "uri-reference" } },
        "RetryAfter": { "description": "Seconds until the call may go through.", "schema": { "type": "integer", "minimum": 0 } },
    })
}

/// The names of the schemas that a part of each operation refers to, directly or through others.
fn referred(document: &Value, part: &mut dyn FnMut(&Value) -> Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut todo: Vec<Value> =
        paths(document).flat_map(|(_, item)| item.as_object().into_iter().flatten()).map(|(_, operation)| part(operation)).collect();
    while let Some(value) = todo.pop() {
        match value {
            Value::Array(items) => todo.extend(items),
            Value::Object(entries) => {
                for (name, value) in entries {
                    let schema = value.as_str().filter(|_| name == "$ref").and_then(|text| text.strip_prefix("#/components/schemas/"));
                    match schema {
                        Some(schema) if names.insert(schema.to_owned()) => todo.push(document["components"]["schemas"][schema].clone()),
                        Some(_) => {}
                        None => todo.push(value),
                    }
                }
            }
            _ => {}
        }
    }
    names
}

/// What has no value is left out of an answer, so nothing in it is null: takes `null` out of the types of an answer's properties.
fn without_null(schema: &mut Value) {
    for part in schema.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten() {
        without_null(part);
    }
    for (_, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if let Some(kinds) = property.get_mut("type").and_then(Value::as_array_mut) {
            kinds.retain(|kind| kind != "null");
            if let [only] = kinds.as_slice() {
                property["type"] = only.clone();
            }
        }
        for choice in ["oneOf", "anyOf"] {
            let Some(options) = property.get_mut(choice).and_then(Value::as_array_mut) else { continue };
            options.retain(|option| option["type"] != "null");
            if let [only] = options.as_slice() {
                let only = only.clone();
                if let Some(property) = property.as_object_mut() {
                    property.remove(choice);
                    property.extend(only.as_object().cloned().unwrap_or_default());
                }
            }
        }
        if property.get("properties").is_some() || property.get("allOf").is_some() {
            without_null(property);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_that_a_table_here_names_is_in_the_document() {
        let document = crate::router::openapi();
        let operations = paths(&document).flat_map(|(_, item)| item.as_object().into_iter().flatten());
        let ids: BTreeSet<&str> = operations.filter_map(|(_, operation)| operation["operationId"].as_str()).collect();
        for named in LOOKS.iter().chain(LOCATED).copied().chain(errors::named()) {
            assert!(ids.contains(named), "{named}");
        }
    }
}
