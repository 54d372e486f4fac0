//! Query parameters. What an operation takes stands in the document, and nothing else is taken: a parameter that it does not know is refused (422, with its
//! name), since whoever sent it believes that it did something. `org` is taken by every operation.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{Method, Uri},
    middleware::Next,
    response::{IntoResponse, Response},
};
use ocore_control::Error;
use serde_json::Value;
use url::form_urlencoded;

use crate::problem::Problem;

/// Chooses among several organizations, where a header cannot be sent: a link, an `EventSource`, a websocket.
pub(crate) const ORGANIZATION: &str = "org";

/// Which query parameters each operation of the document takes, by path template and method.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<HashMap<(String, Method), HashSet<String>>>);

impl Known {
    pub(crate) fn of(document: &Value) -> Self {
        let base = document["servers"][0]["url"].as_str().unwrap_or_default();
        let mut known = HashMap::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let names = parameters.filter(|parameter| parameter["in"] == "query").filter_map(|parameter| parameter["name"].as_str());
                known.insert((format!("{base}{path}"), method), names.map(str::to_owned).collect());
            }
        }
        Self(Arc::new(known))
    }
}

/// Refuses what the operation does not take. What is not in the document (the mail catcher's own paths) takes what it likes.
pub(crate) async fn check(State(Known(known)): State<Known>, request: Request, next: Next) -> Response {
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let template = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if let (Some(query), Some(names)) = (request.uri().query(), known.get(&(template.to_owned(), method))) {
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let message = if !names.contains(name.as_ref()) && name != ORGANIZATION {
                unknown(names)
            } else if value.contains('\0') {
                "it cannot hold the character NUL".to_owned()
            } else {
                continue;
            };
            return Problem::from(Error::invalid(name.replace('\0', ""), message)).into_response();
        }
    }
    next.run(request).await
}

fn unknown(names: &HashSet<String>) -> String {
    let mut names: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != ORGANIZATION).collect();
    names.sort_unstable();
    match names.as_slice() {
        [] => "this operation takes no query parameters but org".to_owned(),
        names => format!("there is no such query parameter; there are {} and org", names.join(", ")),
    }
}

/// The organization that a query names.
pub(crate) fn organization(uri: &Uri) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.find(|(name, _)| name == ORGANIZATION).map(|(_, value)| value.into_owned())
}

/// The address with the operation's own parameters alone.
pub(crate) fn own(uri: &Uri) -> Uri {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).filter(|(name, _)| name != ORGANIZATION);
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    format!("/?{query}").parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_organization_of_a_query_is_apart_from_the_rest() {
        let uri: Uri = "/x?limit=5&org=acme&branch=a%26b%20c".parse().unwrap();
        assert_eq!(organization(&uri).as_deref(), Some("acme"));
        assert_eq!(own(&uri), "/?limit=5&branch=a%26b+c");
        assert_eq!(own(&Uri::from_static("/x")), "/?");
        assert_eq!(organization(&Uri::from_static("/x?organ=b")), None);
    }
}
