//! What the mail catcher does: messages a second that are on the disk when it says so, its memory while it does, its list of 10,000, and what a
//! mailbox costs that nobody uses. Beside it MailDev, a catcher of the npm registry that keeps its messages in a directory.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use ocore_testkit::wait::eventually;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use uuid::Uuid;

use crate::{
    idle::proportional_megabytes,
    report::{Report, Target, median, rounded},
};

/// A mailbox of the default size is full with these.
const MESSAGES: usize = 10_000;
const SENDERS: usize = 16;
const UNUSED: usize = 100;
const LISTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);
const MAILDEV: &str = "maildev@3.0.0";
const MAILDEV_LIST: &str = "/api/email";

/// A catcher's process, ended with this.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    fn megabytes(&self) -> Result<f64> {
        proportional_megabytes(self.0.id().cast_signed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mail as a shop sends it: HTML and text, some 4 KB.
fn message(number: usize) -> Vec<u8> {
    let line = "<tr><td style=\"padding:4px\">Difference engine</td><td align=\"right\">1,837.00 €</td></tr>\r\n";
    format!(
        "From: Shop <shop@example.com>\r\nTo: Ada <ada@example.com>\r\nSubject: Order {number}\r\nMessage-ID: <{number}@shop.example.com>\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/alternative; boundary=x\r\n\r\n--x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nYour order {number}.\r\n--x\r\nContent-Type: text/html; charset=utf-8\r\n\r\n\
         <table>{}</table>\r\n--x--\r\n.\r\n",
        line.repeat(40)
    )
    .into_bytes()
}

async fn answer(stream: &mut BufReader<TcpStream>, wanted: char) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line).await? > 0, "the connection ended");
        if line.as_bytes().get(3) != Some(&b'-') {
            ensure!(line.starts_with(wanted), "{line}");
            return Ok(());
        }
    }
}

/// One connection that sends its share, one message after the other, as Odoo's mail queue does.
async fn sender(address: SocketAddr, numbers: Vec<usize>) -> Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.get_mut().set_nodelay(true)?;
    answer(&mut stream, '2').await?;
    stream.write_all(b"EHLO bench\r\n").await?;
    answer(&mut stream, '2').await?;
    for number in numbers {
        for command in ["MAIL FROM:<shop@example.com>\r\n", "RCPT TO:<ada@example.com>\r\n"] {
            stream.write_all(command.as_bytes()).await?;
            answer(&mut stream, '2').await?;
        }
        stream.write_all(b"DATA\r\n").await?;
        answer(&mut stream, '3').await?;
        stream.write_all(&message(number)).await?;
        answer(&mut stream, '2').await?;
    }
    stream.write_all(b"QUIT\r\n").await?;
    Ok(())
}

/// Messages a second.
async fn send(address: SocketAddr, messages: usize) -> Result<f64> {
    let begin = Instant::now();
    let senders = (0..SENDERS).map(|first| tokio::spawn(sender(address, (first..messages).step_by(SENDERS).collect())));
    for sent in try_join_all(senders).await? {
        sent?;
    }
    Ok(messages as f64 / begin.elapsed().as_secs_f64())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn listens(port: u16) -> Result<()> {
    let listening = eventually(PATIENCE, async || TcpStream::connect(local(port)).await.ok()).await;
    listening.map(drop).with_context(|| format!("nobody listens at {port}"))
}

/// Median milliseconds of a whole answer, and its bytes.
async fn timed(client: &reqwest::Client, url: &str) -> Result<(f64, usize)> {
    let (mut times, mut bytes) = (Vec::new(), 0);
    for _ in 0..LISTS {
        let begin = Instant::now();
        let response = client.get(url).send().await?.error_for_status()?;
        bytes = response.bytes().await?.len();
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    Ok((median(times), bytes))
}

/// The embedded catcher, on its own, as `ocore serve` starts it.
struct Catcher {
    running: Running,
    client: reqwest::Client,
    _directory: tempfile::TempDir,
}

impl Catcher {
    async fn start(binary: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("ocore-bench-").tempdir_in("/tmp")?;
        let running = Running::start(
            Command::new(binary).arg("mail-catcher").env("OCORE__HOME", directory.path()).env("OCORE__LOG__FILTER", "warn"),
        )?;
        let socket = directory.path().join("mail/admin.sock");
        let client = reqwest::Client::builder().no_proxy().unix_socket(socket.as_path()).build()?;
        let catcher = Self { running, client, _directory: directory };
        let ready = eventually(PATIENCE, async || catcher.client.get("http://mail/healthz").send().await.ok()).await;
        ready.context("the mail catcher does not serve")?;
        Ok(catcher)
    }

    /// A mailbox, its port open.
    async fn mailbox(&self) -> Result<(Uuid, u16)> {
        let (id, port) = (Uuid::now_v7(), free_port()?);
        let made = self.client.put(format!("http://mail/mailboxes/{id}")).json(&json!({ "port": port, "uid": 0 })).send().await?;
        made.error_for_status()?;
        listens(port).await?;
        Ok((id, port))
    }
}

pub async fn run(binary: PathBuf, rounds: usize, no_npm: bool) -> Result<()> {
    ensure!(rounds >= 3, "memory is flat over at least three rounds");
    // Asked for by the client, also when it speaks through a socket of this machine only.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut report = Report::new("mail");
    unused(&binary, &mut report).await?;
    busy(&binary, rounds, &mut report).await?;
    if no_npm {
        report.rows.push(row("MailDev", "left out", Value::Null, Value::Null));
    } else {
        maildev(&mut report).await?;
    }
    report.finish()
}

fn row(catcher: &str, what: &str, value: impl Into<Value>, unit: impl Into<Value>) -> Value {
    json!({ "catcher": catcher, "what": what, "value": value.into(), "unit": unit.into() })
}

async fn unused(binary: &Path, report: &mut Report) -> Result<()> {
    let catcher = Catcher::start(binary).await?;
    let empty = catcher.running.megabytes()?;
    catcher.mailbox().await?;
    report.rows.push(row("oCore", "process with one unused mailbox, PSS", rounded(catcher.running.megabytes()?), "MB"));
    for _ in 1..UNUSED {
        catcher.mailbox().await?;
    }
    let all = catcher.running.megabytes()?;
    report.rows.push(row("oCore", "process with 100 unused mailboxes, PSS", rounded(all), "MB"));
    report.rows.push(row("oCore", "one more unused mailbox", rounded((all - empty) / (UNUSED - 1) as f64), "MB"));
    report.targets.push(Target::at_most("an unused mailbox of 100, its share of the process", "MB", all / UNUSED as f64, 3.0));
    Ok(())
}

async fn busy(binary: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    let catcher = Catcher::start(binary).await?;
    let (id, port) = catcher.mailbox().await?;
    let base = format!("http://mail/box/{id}/api/v1");
    report.rows.push(row("oCore", "before the first message, PSS", rounded(catcher.running.megabytes()?), "MB"));
    let (mut rates, mut memory) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let rate = send(local(port), MESSAGES).await?;
        let megabytes = catcher.running.megabytes()?;
        report.rows.push(row("oCore", &format!("10,000 messages from 16 connections, round {round}"), rounded(rate), "messages a second"));
        report.rows.push(row("oCore", &format!("after round {round}, PSS"), rounded(megabytes), "MB"));
        rates.push(rate);
        memory.push(megabytes);
    }
    // Retention has taken the oldest; the list is of as many as there can be.
    let info: Value = catcher.client.get(format!("{base}/info")).send().await?.json().await?;
    report.rows.push(row("oCore", "messages that are kept", info["Messages"].clone(), "of at most 10,000"));
    let (page, _) = timed(&catcher.client, &format!("{base}/messages")).await?;
    let (search, _) = timed(&catcher.client, &format!("{base}/search?query=subject%3Aorder%20-nothing%20difference")).await?;
    let (whole, bytes) = timed(&catcher.client, &format!("{base}/messages?limit={MESSAGES}")).await?;
    report.rows.push(row("oCore", "first page of the list", rounded(page), "ms"));
    report.rows.push(row("oCore", "a search of all", rounded(search), "ms"));
    report.rows.push(row("oCore", "the whole list", rounded(whole), format!("ms, {} KB", bytes / 1024)));
    report.targets.push(Target::at_least("messages accepted, each on the disk", "a second", median(rates), 1000.0));
    let settled = memory[1];
    report.targets.push(Target::at_most("memory of the last round to that of the second", "×", memory[rounds - 1] / settled, 1.2));
    report.targets.push(Target::at_most("a list of 10,000, first page", "ms", page, 50.0));
    report.targets.push(Target::at_most("a list of 10,000, whole", "ms", whole, 50.0));
    Ok(())
}

/// The same messages to MailDev; it does not sync its files before it answers.
async fn maildev(report: &mut Report) -> Result<()> {
    let directory = Path::new("target/bench/maildev");
    fs::create_dir_all(directory)?;
    let installed =
        Command::new("npm").args(["install", "--no-audit", "--no-fund", "--silent", "--prefix"]).arg(directory).arg(MAILDEV).status();
    if !installed.is_ok_and(|status| status.success()) {
        report.rows.push(row("MailDev", "not to be had here: npm could not install it", Value::Null, Value::Null));
        return Ok(());
    }
    let messages = tempfile::Builder::new().prefix("ocore-bench-").tempdir_in("/tmp")?;
    let (smtp, web) = (free_port()?, free_port()?);
    let mut command = Command::new(directory.join("node_modules/.bin/maildev"));
    command.args(["--ip", "127.0.0.1", "--web-ip", "127.0.0.1", "--silent", "--max-emails", &MESSAGES.to_string()]);
    command.args(["--smtp", &smtp.to_string(), "--web", &web.to_string()]).arg("--mail-directory").arg(messages.path());
    let running = Running::start(&mut command)?;
    listens(smtp).await?;
    listens(web).await?;
    report.rows.push(row("MailDev", "before the first message, PSS", rounded(running.megabytes()?), "MB"));
    let rate = send(local(smtp), MESSAGES).await?;
    report.rows.push(row("MailDev", "10,000 messages from 16 connections", rounded(rate), "messages a second"));
    report.rows.push(row("MailDev", "afterwards, PSS", rounded(running.megabytes()?), "MB"));
    let client = reqwest::Client::builder().no_proxy().build()?;
    let (whole, bytes) = timed(&client, &format!("http://127.0.0.1:{web}{MAILDEV_LIST}")).await?;
    report.rows.push(row("MailDev", "the whole list", rounded(whole), format!("ms, {} KB", bytes / 1024)));
    Ok(())
}
