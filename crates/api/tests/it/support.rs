//! The API as a test calls it: the real router on a store of its own, without a socket.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use ocore_api::AppState;
use ocore_testkit::Store;
use serde_json::Value;
use tower::ServiceExt;

pub(crate) struct TestApi {
    pub(crate) store: Arc<Store>,
    router: Router,
    /// Where its calls come from, unless they say otherwise: each test is a client of its own.
    address: IpAddr,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Null when the body is no JSON.
    pub(crate) body: Value,
    pub(crate) text: String,
}

/// A request in the making.
pub(crate) struct Call<'api> {
    api: &'api TestApi,
    request: axum::http::request::Builder,
    body: Body,
}

impl TestApi {
    pub(crate) async fn new() -> Result<Self> {
        Ok(Self::on(Store::new().await?))
    }

    pub(crate) fn on(store: impl Into<Arc<Store>>) -> Self {
        // Of the addresses that nobody has (RFC 2544).
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let store = store.into();
        let router = ocore_api::router(AppState { control: store.control.clone() });
        Self { store, router, address: IpAddr::from([198, 18, high, low]) }
    }

    /// A call of a path below `/api`.
    pub(crate) fn call(&self, method: Method, path: &str) -> Call<'_> {
        self.raw(method, &format!("/api{path}"))
    }

    pub(crate) fn raw(&self, method: Method, path: &str) -> Call<'_> {
        let request = Request::builder().method(method).uri(path).extension(ConnectInfo(SocketAddr::new(self.address, 4711)));
        Call { api: self, request, body: Body::empty() }
    }

    pub(crate) fn get(&self, path: &str) -> Call<'_> {
        self.call(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Call<'_> {
        self.call(Method::POST, path).json(body)
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Call<'_> {
        self.call(Method::PUT, path).json(body)
    }

    pub(crate) fn delete(&self, path: &str) -> Call<'_> {
        self.call(Method::DELETE, path)
    }
}

impl Call<'_> {
    /// The peer of the connection is this one.
    pub(crate) fn from(mut self, address: &str) -> Self {
        let address: IpAddr = address.parse().expect("an address");
        self.request = self.request.extension(ConnectInfo(SocketAddr::new(address, 4711)));
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// One more header of that name, of any bytes.
    pub(crate) fn bytes_header(mut self, name: &str, value: &[u8]) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn token(self, token: &str) -> Self {
        self.header(header::AUTHORIZATION.as_str(), &format!("Bearer {token}"))
    }

    pub(crate) fn organization(self, slug: &str) -> Self {
        self.header("x-org-slug", slug)
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        let mut call = self.header(header::CONTENT_TYPE.as_str(), "application/json");
        call.body = Body::from(body.to_string());
        call
    }

    pub(crate) fn text(mut self, body: &str) -> Self {
        self.body = Body::from(body.to_owned());
        self
    }

    /// The status alone; an answer that never ends is not read.
    pub(crate) async fn status(self) -> Result<StatusCode> {
        let request = self.request.body(self.body)?;
        Ok(self.api.router.clone().oneshot(request).await?.status())
    }

    pub(crate) async fn send(self) -> Result<Answer> {
        let request = self.request.body(self.body)?;
        let (method, path) = (request.method().clone(), request.uri().to_string());
        let response = self.api.router.clone().oneshot(request).await?;
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 64 << 20).await?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_slice(&bytes).unwrap_or_default();
        let answer = Answer { status: parts.status, headers: parts.headers, body, text };
        crate::answers::check(&method, &path, &answer)?;
        Ok(answer)
    }

    /// The body of an answer with that status.
    pub(crate) async fn expect(self, status: StatusCode) -> Result<Value> {
        let answer = self.send().await?;
        anyhow::ensure!(answer.status == status, "{} instead of {status}: {}", answer.status, answer.text);
        Ok(answer.body)
    }

    /// A problem with that status; gives its code.
    pub(crate) async fn problem(self, status: StatusCode) -> Result<String> {
        let body = self.expect(status).await?;
        Ok(body["code"].as_str().context("the answer is not a problem")?.to_owned())
    }
}
