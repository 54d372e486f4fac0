//! A catcher in a temporary directory, and the two ways into it.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener as Port},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use ocore_machine::ports::Ports;
use ocore_mail::{Catcher, MailConfig};
use ocore_model::ids::InstanceId;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(crate) struct Scene {
    _directory: TempDir,
    pub(crate) instance: InstanceId,
    pub(crate) port: u16,
    running: Option<(JoinHandle<Result<(), ocore_mail::MailError>>, CancellationToken)>,
    pub(crate) config: MailConfig,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Scene {
    pub(crate) async fn new() -> Result<Self> {
        Self::with(|_| {}).await
    }

    /// A catcher with one mailbox, for a user who is not us; root's mail is taken too, and tests run as root.
    pub(crate) async fn with(adapt: impl FnOnce(&mut MailConfig)) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut config =
            MailConfig::new(directory.path().join("boxes"), directory.path().join("mail.sock"), Ports::of_this_process(directory.path())?);
        config.limits.free_bytes = 0;
        adapt(&mut config);
        let port = Port::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut scene = Self { _directory: directory, instance: InstanceId::new(), port, running: None, config };
        scene.start().await?;
        let made = scene.admin(Method::PUT, json!({ "port": port, "uid": 54_321 })).await?;
        ensure!(made == StatusCode::NO_CONTENT, "{made}");
        scene.listening().await?;
        Ok(scene)
    }

    pub(crate) async fn start(&mut self) -> Result<()> {
        let stop = CancellationToken::new();
        let catcher = Catcher::open(self.config.clone()).await?;
        self.running = Some((tokio::spawn(catcher.serve(stop.clone())), stop));
        Ok(())
    }

    pub(crate) async fn stop(&mut self) -> Result<()> {
        let (task, stop) = self.running.take().context("it runs")?;
        stop.cancel();
        Ok(task.await??)
    }

    pub(crate) async fn listening(&self) -> Result<()> {
        for _ in 0..1000 {
            if TcpStream::connect(self.smtp()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("nobody listens at {}", self.port)
    }

    pub(crate) fn smtp(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub(crate) async fn admin(&self, method: Method, body: Value) -> Result<StatusCode> {
        Ok(exchange(&self.config.socket, method, &format!("/mailboxes/{}", self.instance), Some(body)).await?.status)
    }

    /// One more mailbox, at a port of its own.
    pub(crate) async fn another_mailbox(&self) -> Result<StatusCode> {
        let port = Port::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let path = format!("/mailboxes/{}", InstanceId::new());
        Ok(exchange(&self.config.socket, Method::PUT, &path, Some(json!({ "port": port, "uid": 54_321 }))).await?.status)
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        exchange(&self.config.socket, method, &format!("/box/{}/{path}", self.instance), body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.call(Method::GET, path, None).await?;
        ensure!(answer.status == StatusCode::OK, "{path}: {} {}", answer.status, answer.text());
        Ok(answer.json())
    }

    pub(crate) async fn send(&self, message: &[u8]) -> Result<String> {
        Smtp::connect(self.smtp()).await?.send("shop@example.com", &["ada@example.com"], message).await
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "mail")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let (parts, body) = response.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes() })
}

/// An SMTP client that says what it is told to.
pub(crate) struct Smtp {
    stream: BufReader<TcpStream>,
}

impl Smtp {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let mut smtp = Self { stream: BufReader::new(TcpStream::connect(address).await?) };
        smtp.answer().await?;
        smtp.say("EHLO test").await?;
        Ok(smtp)
    }

    pub(crate) async fn answer(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(Duration::from_secs(60), self.stream.read_line(&mut line)).await??;
            ensure!(read > 0, "the connection ended");
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.trim_end().to_owned());
            }
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes).await?)
    }

    pub(crate) async fn say(&mut self, line: &str) -> Result<String> {
        self.write(format!("{line}\r\n").as_bytes()).await?;
        self.answer().await
    }

    /// The last answer to a whole message, or the first refusal.
    pub(crate) async fn send(&mut self, from: &str, to: &[&str], message: &[u8]) -> Result<String> {
        let mut commands = vec![format!("MAIL FROM:<{from}>")];
        commands.extend(to.iter().map(|to| format!("RCPT TO:<{to}>")));
        commands.push("DATA".to_owned());
        for command in commands {
            let answer = self.say(&command).await?;
            if !answer.starts_with(['2', '3']) {
                return Ok(answer);
            }
        }
        self.write(message).await?;
        self.say("\r\n.").await
    }
}
