//! A headless Chromium, told what to do over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/): enough to look at a page
//! as a person does.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next: u64,
    _process: Child,
    _profile: TempDir,
}

impl Browser {
    /// One with an empty page; `None`, with a word about it, where there is no Chromium.
    pub async fn start() -> Result<Option<Self>> {
        let profile = tempfile::tempdir()?;
        let started = Command::new("chromium")
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut process) = started else {
            eprintln!("skipped: there is no Chromium, so no page was looked at");
            return Ok(None);
        };
        let mut lines = BufReader::new(process.stderr.take().context("no output")?).lines();
        let address = loop {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??.context("Chromium has ended")?;
            if let Some(url) = line.strip_prefix("DevTools listening on ws://") {
                break url.split('/').next().unwrap_or_default().to_owned();
            }
        };
        // It goes on talking, and must be heard.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let pages: Value = reqwest::get(format!("http://{address}/json/list")).await?.json().await?;
        let page = pages.as_array().into_iter().flatten().find(|page| page["type"] == "page").context("Chromium has no page")?;
        let (socket, _) = tokio_tungstenite::connect_async(page["webSocketDebuggerUrl"].as_str().context("no address")?).await?;
        let mut browser = Self { socket, next: 0, _process: process, _profile: profile };
        browser.order("Page.enable", json!({})).await?;
        Ok(Some(browser))
    }

    async fn order(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.next += 1;
        let order = json!({ "id": self.next, "method": method, "params": parameters });
        self.socket.send(Message::text(order.to_string())).await?;
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.with_context(|| format!("{method} took too long"))?;
            let Message::Text(text) = message.context("Chromium has ended")?? else { continue };
            let answer: Value = serde_json::from_str(&text)?;
            if answer["id"] == self.next {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].clone());
            }
        }
    }

    pub async fn go(&mut self, url: &str) -> Result<()> {
        let answer = self.order("Page.navigate", json!({ "url": url })).await?;
        ensure!(answer["errorText"].is_null(), "{url}: {answer}");
        self.until("document.readyState === 'complete'").await
    }

    /// The value of an expression, or of what it promises.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true });
        let answer = self.order("Runtime.evaluate", parameters).await?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    pub async fn until(&mut self, expression: &str) -> Result<()> {
        let end = tokio::time::Instant::now() + PATIENCE;
        let truth = format!("Boolean({expression})");
        loop {
            // A page that is about to be another one has no value.
            let last = self.evaluate(&truth).await;
            if last.as_ref().is_ok_and(|value| value == true) {
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                let page = self.evaluate("document.body.innerText.slice(0, 2000)").await.unwrap_or_default();
                bail!("the page never had {expression} ({last:?}); it says: {page}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Gives the page a size, and leaves a picture of it in the directory OCORE_TEST_PICTURES when that is set.
    pub async fn picture(&mut self, name: &str, width: u32, height: u32) -> Result<()> {
        let mobile = width < 600;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        self.order("Emulation.setDeviceMetricsOverride", size).await?;
        let Some(directory) = std::env::var_os("OCORE_TEST_PICTURES").map(PathBuf::from) else { return Ok(()) };
        // What was changed last is painted by then.
        self.evaluate("new Promise((done) => setTimeout(done, 400))").await?;
        let answer = self.order("Page.captureScreenshot", json!({ "format": "png" })).await?;
        std::fs::write(directory.join(format!("{name}.png")), STANDARD.decode(answer["data"].as_str().unwrap_or_default())?)?;
        Ok(())
    }
}
