//! The users of a production while it is deployed: pages, reads, writes, uploads, long requests, websockets. Each says what it got, and the writers
//! know what has to be there afterwards.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Spread over the kinds of requests.
const CLIENTS: usize = 16;
const WEBSOCKETS: usize = 20;
const KINDS: [Kind; 5] = [Kind::Page, Kind::Read, Kind::Write, Kind::Upload, Kind::Long];
/// Between an answer and the next request. With less, Odoo's two workers are never idle, and what is measured is their queue.
const PAUSE: Duration = Duration::from_millis(250);
/// After a long one, which keeps a whole worker busy.
const LONG_PAUSE: Duration = Duration::from_secs(5);
/// A client gives up after this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Site {
    /// `127.0.0.1:8080`
    pub address: String,
    pub host: String,
    pub database: &'static str,
    pub password: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Page,
    Read,
    Write,
    Upload,
    /// Odoo answers after a second.
    Long,
}

#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub kind: Kind,
    pub began: Instant,
    pub seconds: f64,
    pub good: bool,
}

/// What all of them saw.
#[derive(Default)]
struct Seen {
    answers: Vec<Answer>,
    /// Names that were written for sure.
    written: Vec<String>,
    /// When a websocket was lost, and for how many seconds its client had none.
    gaps: Vec<(Instant, f64)>,
    /// The first ones.
    failures: Vec<String>,
}

pub struct Clients {
    site: Site,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    /// They log in, and work until they are stopped.
    pub async fn start(site: &Site) -> Result<Self> {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let client = Client::log_in(site, number, KINDS[number % KINDS.len()]).await?;
            tasks.push(tokio::spawn(client.work(stop.clone(), seen.clone())));
        }
        for number in 0..WEBSOCKETS {
            tasks.push(tokio::spawn(listen(site.clone(), number, stop.clone(), seen.clone())));
        }
        Ok(Self { site: site.clone(), stop, seen, tasks })
    }

    /// The answers to requests that began in that span.
    pub fn between(&self, from: Instant, to: Instant) -> Vec<Answer> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.answers.iter().copied().filter(|answer| (from..to).contains(&answer.began)).collect()
    }

    /// For how long clients whose websocket was lost in that span had none, in seconds.
    pub fn gaps(&self, from: Instant, to: Instant) -> Vec<f64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.gaps.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, gap)| *gap).collect()
    }

    /// The first requests that failed, in words.
    pub fn failures(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).failures.clone()
    }

    /// Ends them, and answers with how many writes that Odoo had confirmed are not there.
    pub async fn stop(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = tokio::time::timeout(PATIENCE, task).await;
        }
        let written = std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).written);
        let client = Client::log_in(&self.site, 0, Kind::Read).await?;
        let found = client.call("changed.thing", "search_read", json!([[["name", "=like", "written %"]], ["name"]])).await?;
        let found: std::collections::HashSet<&str> =
            found.as_array().context("no things")?.iter().filter_map(|thing| thing["name"].as_str()).collect();
        Ok(written.iter().filter(|name| !found.contains(name.as_str())).count())
    }
}

struct Client {
    http: reqwest::Client,
    site: Site,
    number: usize,
    kind: Kind,
    /// Of a session, as a browser has one: a password with each call costs Odoo half a second of processor time.
    cookie: String,
}

impl Client {
    async fn log_in(site: &Site, number: usize, kind: Kind) -> Result<Self> {
        let http = reqwest::Client::new();
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "call", "params":
            { "db": site.database, "login": "admin", "password": site.password } });
        let url = format!("http://{}/web/session/authenticate", site.address);
        let answer = http.post(url).header("host", &site.host).timeout(PATIENCE).json(&body).send().await?.error_for_status()?;
        let cookies = answer.headers().get_all("set-cookie").iter().filter_map(|value| value.to_str().ok()?.split(';').next());
        let cookie = cookies.collect::<Vec<_>>().join("; ");
        let answer: Value = answer.json().await?;
        ensure!(answer["result"]["uid"].is_u64(), "cannot log in: {answer}");
        Ok(Self { http, site: site.clone(), number, kind, cookie })
    }

    async fn work(self, stop: Arc<AtomicBool>, seen: Arc<Mutex<Seen>>) {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            count += 1;
            let name = format!("written {} {count} {}", self.number, uuid::Uuid::new_v4());
            let began = Instant::now();
            let outcome = match self.kind {
                Kind::Page => self.get("/changed").await,
                Kind::Long => self.get("/changed/long").await,
                Kind::Read => self.call("changed.thing", "search_read", json!([[["id", "<", 20]], ["name"]])).await.map(drop),
                Kind::Write => {
                    self.call("changed.thing", "create", json!([[{ "name": name }, { "name": format!("{name} too") }]])).await.map(drop)
                }
                Kind::Upload => {
                    let file = json!([[{ "name": name, "raw": name.repeat(200) }]]);
                    self.call("ir.attachment", "create", file).await.map(drop)
                }
            };
            let answer = Answer { kind: self.kind, began, seconds: began.elapsed().as_secs_f64(), good: outcome.is_ok() };
            note(&seen, answer, &name, outcome);
            tokio::time::sleep(if self.kind == Kind::Long { LONG_PAUSE } else { PAUSE }).await;
        }
    }

    async fn get(&self, path: &str) -> Result<()> {
        let url = format!("http://{}{path}", self.site.address);
        let answer = self.http.get(url).header("host", &self.site.host).header("cookie", &self.cookie).timeout(PATIENCE).send().await?;
        answer.error_for_status()?.bytes().await?;
        Ok(())
    }

    async fn call(&self, model: &str, method: &str, arguments: Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "call", "params":
            { "model": model, "method": method, "args": arguments, "kwargs": {} } });
        let url = format!("http://{}/web/dataset/call_kw", self.site.address);
        let request = self.http.post(url).header("host", &self.site.host).header("cookie", &self.cookie);
        let answer = request.timeout(PATIENCE).json(&body).send().await?;
        let answer: Value = answer.error_for_status()?.json().await?;
        ensure!(answer.get("error").is_none(), "{}", answer["error"]["data"]["message"]);
        Ok(answer["result"].clone())
    }
}

fn note(seen: &Mutex<Seen>, answer: Answer, name: &str, outcome: Result<()>) {
    let mut all = seen.lock().unwrap_or_else(PoisonError::into_inner);
    all.answers.push(answer);
    match outcome {
        Ok(()) if answer.kind == Kind::Write => all.written.extend([name.to_owned(), format!("{name} too")]),
        Err(error) if all.failures.len() < 20 => all.failures.push(format!("{:?}: {error:#}", answer.kind)),
        Ok(()) | Err(_) => {}
    }
}

/// Somebody with an open tab: comes back at once when the connection is lost, as a browser does.
async fn listen(site: Site, number: usize, stop: Arc<AtomicBool>, seen: Arc<Mutex<Seen>>) {
    let mut lost: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut socket) = open(&site, number).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if let Some(since) = lost {
            seen.lock().unwrap_or_else(PoisonError::into_inner).gaps.push((since, since.elapsed().as_secs_f64()));
        }
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(message)) if !message.is_close() => {}
                    _ => break,
                },
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        }
        lost = Some(Instant::now());
    }
}

async fn open(
    site: &Site,
    number: usize,
) -> Result<tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>> {
    let mut request = format!("ws://{}/websocket", site.address).into_client_request()?;
    request.headers_mut().insert("host", site.host.parse()?);
    // Odoo refuses one without.
    request.headers_mut().insert("origin", format!("http://{}", site.host).parse()?);
    request.headers_mut().insert("cookie", format!("visitor={number}").parse()?);
    let (socket, _) = tokio::time::timeout(PATIENCE, tokio_tungstenite::connect_async(request)).await??;
    Ok(socket)
}
