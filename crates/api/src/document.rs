//! What the OpenAPI document says of every operation alike: how to prove who one is, and what a problem looks like. Written here once, so
//! that a handler's description holds only what is its own.

use utoipa::{
    OpenApi,
    openapi::{
        Content, OpenApi as Document, Ref, RefOr, Response,
        path::Operation,
        security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};

use crate::problem::{ProblemBody, ProblemField};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "oCore",
        description = "A self-hosted control plane for Odoo.\n\nProve who you are with `Authorization: Bearer` and an access token (from \
            `/auth/login`) or an API key (`ocore_…`); a browser that logged in has a cookie. Who belongs to several organizations names one in \
            the header `X-Org-Slug`. Names are camelCase, ids UUIDs, times RFC 3339. Errors are RFC 9457 problem details with a stable `code`. \
            What belongs to another organization is 404. Fields that the API does not know are refused.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/api")),
    components(schemas(ProblemBody, ProblemField))
)]
struct Skeleton;

/// The document without its paths.
pub(crate) fn skeleton() -> Document {
    Skeleton::openapi()
}

/// Adds to every operation the security that it has unless it says otherwise, and its problems.
pub(crate) fn complete(mut document: Document) -> Document {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(
        "bearer",
        SecurityScheme::Http({
            let mut http = Http::new(HttpAuthScheme::Bearer);
            http.bearer_format = Some("JWT".to_owned());
            http.description = Some("An access token, or an API key that begins with `ocore_`.".to_owned());
            http
        }),
    );
    components.add_security_scheme(
        "cookie",
        SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(
            "ocore_access",
            "Set by log-in, for browsers; `__Host-ocore_access` under https. Calls that change something must come from a page of oCore.",
        ))),
    );
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            complete_operation(operation);
        }
    }
    document
}

fn complete_operation(operation: &mut Operation) {
    // A handler is called `list` in many modules; the id is unique in the document.
    if let (Some(id), Some(tag)) = (&operation.operation_id, operation.tags.as_ref().and_then(|tags| tags.first())) {
        operation.operation_id = Some(format!("{}_{id}", tag.to_lowercase().replace(' ', "_")));
    }
    let none: [&str; 0] = [];
    operation.security.get_or_insert_with(|| vec![SecurityRequirement::new("bearer", none), SecurityRequirement::new("cookie", none)]);
    for (status, description) in [("4XX", "The call was refused; the problem says why and what to do."), ("5XX", "oCore could not answer.")]
    {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| {
            let mut response = Response::new(description);
            response.content.insert("application/problem+json".to_owned(), RefOr::T(Content::new(Some(Ref::from_schema_name("Problem")))));
            RefOr::T(response)
        });
    }
}
