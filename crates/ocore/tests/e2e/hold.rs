//! Deployments that nobody who uses the instance notices: requests wait at the edge for the new slot, and none is lost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt, StreamExt};
use ocore_host::EdgeClient;
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};
use tokio_util::sync::CancellationToken;

use crate::scene::Scene;

const READERS: usize = 4;
const WRITERS: usize = 4;

/// Somebody who uses the instance through the edge.
#[derive(Clone)]
pub(crate) struct User {
    http: Client,
    edge: String,
    host: String,
    id: Value,
    password: Value,
    /// Between two requests.
    pause: Duration,
}

/// What one of them did.
#[derive(Default)]
pub(crate) struct Done {
    requests: usize,
    longest: Duration,
    /// Names of the partners that Odoo said it created.
    written: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl User {
    pub(crate) async fn new(scene: &Scene) -> Result<Self> {
        let environment = scene.environment("main").await?;
        let credentials =
            scene.owner.get(&format!("/instances/{}/credentials", environment["instanceId"].as_str().unwrap_or_default())).await?;
        let host = environment["autoSubdomain"].as_str().context("no host")?.to_owned();
        let edge = format!("http://{}", scene.installation.edge_address);
        let mut user =
            Self { http: Client::new(), edge, host, id: Value::Null, password: credentials["password"].clone(), pause: Duration::ZERO };
        user.id = user.rpc("common", "login", json!(["odoo", credentials["login"], credentials["password"]])).await?;
        ensure!(user.id.is_i64(), "{}", user.id);
        Ok(user)
    }

    /// The same who takes a little time between two requests.
    pub(crate) fn calm(self) -> Self {
        Self { pause: Duration::from_millis(150), ..self }
    }

    async fn page(&self) -> Result<()> {
        let answer = self.http.get(format!("{}/web/login", self.edge)).header("host", &self.host).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status == 200 && text.contains("oe_login_form"), "{status}: {}", text.chars().take(200).collect::<String>());
        Ok(())
    }

    async fn rpc(&self, service: &str, method: &str, arguments: Value) -> Result<Value> {
        let body =
            json!({ "jsonrpc": "2.0", "method": "call", "id": 1, "params": { "service": service, "method": method, "args": arguments } });
        let answer = self.http.post(format!("{}/jsonrpc", self.edge)).header("host", &self.host).json(&body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status == 200, "{status}: {}", text.chars().take(200).collect::<String>());
        let answer: Value = serde_json::from_str(&text)?;
        ensure!(answer.get("error").is_none(), "{}", answer["error"]);
        Ok(answer["result"].clone())
    }

    pub(crate) async fn call(&self, model: &str, method: &str, arguments: Value) -> Result<Value> {
        self.rpc("object", "execute_kw", json!(["odoo", self.id, self.password, model, method, arguments])).await
    }

    /// Uses the instance without a pause until it is told to stop.
    pub(crate) async fn hammer(self, name: String, writes: bool, stop: CancellationToken) -> Done {
        let mut done = Done::default();
        while !stop.is_cancelled() {
            let partner = format!("{name} {}", done.requests);
            let begun = Instant::now();
            let outcome = if writes {
                self.call("res.partner", "create", json!([{ "name": partner }])).await.map(|_| done.written.push(partner.clone()))
            } else {
                self.page().await
            };
            done.requests += 1;
            done.longest = done.longest.max(begun.elapsed());
            if let Err(error) = outcome {
                done.failures.push(format!("{partner}: {error:#}"));
            }
            tokio::time::sleep(self.pause).await;
        }
        done
    }
}

/// The websocket of an open page.
pub(crate) struct Tab(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Tab {
    pub(crate) async fn open(user: &User) -> Result<Self> {
        let mut request = format!("{}/websocket", user.edge.replacen("http", "ws", 1)).into_client_request()?;
        request.headers_mut().insert("host", user.host.parse()?);
        request.headers_mut().insert("origin", format!("http://{}", user.host).parse()?);
        let (socket, _) = tokio::time::timeout(Duration::from_secs(30), tokio_tungstenite::connect_async(request)).await??;
        Ok(Self(socket))
    }

    /// It was never closed, and an Odoo is at its other end.
    pub(crate) async fn is_alive(&mut self) -> Result<()> {
        self.0.send(Message::Ping("here".into())).await?;
        loop {
            match tokio::time::timeout(Duration::from_secs(30), self.0.next()).await?.context("it is gone")?? {
                Message::Pong(_) => return Ok(()),
                Message::Close(frame) => bail!("it was closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The code with which it is closed, once it is.
    pub(crate) async fn closed(mut self) -> Result<Option<u16>> {
        let closed = async {
            while let Some(Ok(message)) = self.0.next().await {
                if let Message::Close(frame) = message {
                    return frame.map(|frame| u16::from(frame.code));
                }
            }
            None
        };
        Ok(tokio::time::timeout(Duration::from_secs(30), closed).await?)
    }
}

/// Lets eight clients use the instance while something happens to it. No request may fail, and what was written has to be there.
pub(crate) async fn under_load(user: &User, round: &str, happens: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    let mut clients = JoinSet::new();
    for number in 0..READERS + WRITERS {
        clients.spawn(user.clone().hammer(format!("{round} {number}"), number < WRITERS, stop.clone()));
    }
    let outcome = happens().await;
    drop(guard);
    let done = clients.join_all().await;
    outcome?;
    let failures: Vec<&String> = done.iter().flat_map(|done| &done.failures).collect();
    let requests: usize = done.iter().map(|done| done.requests).sum();
    ensure!(failures.is_empty(), "{} of {requests} requests failed while {round}: {failures:#?}", failures.len());
    let mut written: Vec<&str> = done.iter().flat_map(|done| &done.written).map(String::as_str).collect();
    written.sort_unstable();
    let found = user.call("res.partner", "search_read", json!([[["name", "=like", format!("{round} %")]], ["name"]])).await?;
    let mut found: Vec<&str> = found.as_array().context("no partners")?.iter().filter_map(|partner| partner["name"].as_str()).collect();
    found.sort_unstable();
    ensure!(found == written, "{} were written while {round}, {} are there", written.len(), found.len());
    let longest = done.iter().map(|done| done.longest).max().unwrap_or_default();
    eprintln!("{round}: {requests} requests, {} writes, the longest {longest:.1?}", written.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_and_no_write_is_lost_while_deployments_come_fail_and_go() -> Result<()> {
    let scene = Arc::new(Scene::new(Options::default()).await?);
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let user = User::new(&scene).await?;
    let edge = EdgeClient::new(scene.installation.home.join("edge/admin.sock"));
    let deploy = |succeeds: bool| {
        let scene = Arc::clone(&scene);
        async move || {
            scene.repository.commit("A change")?;
            let push = tokio::task::spawn_blocking({
                let scene = Arc::clone(&scene);
                move || scene.push("main")
            })
            .await??;
            // The commit is received either way; what became of it stands in the output.
            ensure!(push.success && push.output.contains("live at") == succeeds, "{}", push.output);
            Ok(())
        }
    };

    write_page(&scene.repository, "shop", "two")?;
    let tab = Tab::open(&user).await?;
    under_load(&user, "updating a module", deploy(true)).await?;
    // By the edge, once the new Odoo served: Odoo itself says 1001.
    ensure!(tab.closed().await? == Some(4002));
    ensure!(scene.page("main", "/shop").await?.contains("two"));

    scene.repository.write("README.md", "Nothing that Odoo loads.\n")?;
    under_load(&user, "changing code only", deploy(true)).await?;

    scene.repository.write("shop/models.py", "from odoo.addons.shop import no_such_thing\n")?;
    under_load(&user, "an update fails", deploy(false)).await?;
    ensure!(scene.page("main", "/shop").await?.contains("two"));
    let failed = scene.last_deployment("main").await?;
    ensure!(failed["status"] == "failed" && failed["errorMessage"].as_str().is_some_and(|text| text.contains("no_such_thing")), "{failed}");

    let status = edge.status().await?;
    let held: u64 = status.instances.iter().map(|traffic| traffic.held_total).sum();
    ensure!(held > 0, "nothing had to wait: {status:?}");
    ensure!(status.instances.iter().all(|traffic| traffic.held == 0 && traffic.errors_total == 0), "{status:?}");
    Ok(())
}
