//! When things go wrong.

use std::process::Stdio;

use anyhow::{Context, Result};
use hyper::{Method, StatusCode};
use tokio::process::Command;

use crate::support::{Scene, Smtp};

#[tokio::test]
async fn a_stranger_on_the_same_machine_is_sent_away() -> Result<()> {
    let mut scene = Scene::new().await?;
    let greeting = |uid: u32| {
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; head -n1 <&3", scene.port);
        let child = Command::new("setpriv")
            .args(["--reuid", &uid.to_string(), "--regid", "65534", "--clear-groups", "bash", "-c", &script])
            .stdout(Stdio::piped())
            .output();
        async move { anyhow::Ok(String::from_utf8_lossy(&child.await?.stdout).into_owned()) }
    };
    assert!(greeting(54_321).await?.starts_with("220"), "its own user");
    assert!(greeting(54_322).await?.starts_with("554"), "somebody else");
    scene.stop().await
}

#[tokio::test]
async fn a_large_message_is_taken_and_a_larger_one_refused_to_its_end() -> Result<()> {
    let mut scene = Scene::with(|config| config.limits.message_bytes = 8 << 20).await?;
    let line = format!("{}\r\n", "x".repeat(998));
    let mut large = b"Subject: large\r\n\r\n".to_vec();
    (0..7 << 10).for_each(|_| large.extend(line.as_bytes()));
    assert!(scene.send(&large).await?.starts_with("250"));
    let mut smtp = Smtp::connect(scene.smtp()).await?;
    assert!(smtp.say("MAIL FROM:<shop@example.com> SIZE=99999999").await?.starts_with("552"));
    (0..7 << 10).for_each(|_| large.extend(line.as_bytes()));
    assert!(smtp.send("shop@example.com", &["ada@example.com"], &large).await?.starts_with("552"));
    assert!(
        smtp.send("shop@example.com", &["ada@example.com"], b"Subject: small\r\n\r\nx").await?.starts_with("250"),
        "the connection goes on"
    );
    let list = scene.get("api/v1/messages").await?;
    assert_eq!((list["total"].as_u64(), list["messages"][0]["Subject"].as_str()), (Some(2), Some("small")));
    scene.stop().await
}

#[tokio::test]
async fn a_full_disk_refuses_for_the_moment_and_loses_nothing() -> Result<()> {
    let mut scene = Scene::new().await?;
    scene.send(b"Subject: kept\r\n\r\nx").await?;
    scene.stop().await?;
    scene.config.limits.free_bytes = u64::MAX;
    scene.start().await?;
    scene.listening().await?;
    assert!(scene.send(b"Subject: refused\r\n\r\nx").await?.starts_with("452"));
    scene.stop().await?;
    scene.config.limits.free_bytes = 0;
    scene.start().await?;
    scene.listening().await?;
    assert!(scene.send(b"Subject: later\r\n\r\nx").await?.starts_with("250"));
    let list = scene.get("api/v1/messages").await?;
    let subjects: Vec<_> = list["messages"].as_array().context("messages")?.iter().map(|message| message["Subject"].clone()).collect();
    assert_eq!(subjects, ["later", "kept"]);
    scene.stop().await
}

#[tokio::test]
async fn headers_of_strangers_stay_headers_of_their_message() -> Result<()> {
    let mut scene = Scene::new().await?;
    let mut smtp = Smtp::connect(scene.smtp()).await?;
    // A message that ends in a message: only a dot behind CR LF ends one.
    let smuggled = b"Subject: one\r\n\r\nx\n.\nMAIL FROM:<evil@example.com>\n.\r\r\n more";
    assert!(smtp.send("a@example.com\rBcc: x@example.com", &["ada@example.com"], b"x").await?.starts_with('5'));
    smtp.say("RSET").await?;
    assert!(smtp.send("shop@example.com", &["ada@example.com"], smuggled).await?.starts_with("250"));
    let injected = b"Subject: =?utf-8?q?one=0D=0ASet-Cookie:_a=3Db?=\r\nContent-Type: text/html; name=\"a\r\n b\"\r\nContent-Disposition: attachment; filename*=utf-8''a%0d%0aSet-Cookie:%20b%22.html\r\n\r\n<script>alert(1)</script>";
    assert!(smtp.send("shop@example.com", &["ada@example.com"], injected).await?.starts_with("250"));
    let list = scene.get("api/v1/messages").await?;
    assert_eq!(list["total"], 2);
    assert_eq!(list["messages"][0]["Subject"], "one  Set-Cookie: a=b");
    let id = list["messages"][0]["ID"].as_str().context("an id")?.to_owned();
    let detail = scene.get(&format!("api/v1/message/{id}")).await?;
    let part = detail["Attachments"][0]["PartID"].as_str().context("an attachment")?.to_owned();
    let answer = scene.call(Method::GET, &format!("api/v1/message/{id}/part/{part}"), None).await?;
    assert!(!answer.headers.contains_key("set-cookie"));
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    assert!(answer.headers["content-disposition"].to_str()?.starts_with("attachment; "), "{:?}", answer.headers);
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    scene.stop().await
}

#[tokio::test]
async fn hostile_html_comes_in_a_sandbox() -> Result<()> {
    let mut scene = Scene::new().await?;
    scene
        .send(b"Subject: evil\r\nContent-Type: text/html\r\n\r\n<script>alert(1)</script><img src=\"https://tracker.example/x.gif\">hi")
        .await?;
    let answer = scene.call(Method::GET, "view/latest.html", None).await?;
    assert_eq!(answer.status, StatusCode::OK);
    let policy = answer.headers["content-security-policy"].to_str()?;
    assert!(policy.contains("sandbox") && !policy.contains("allow-scripts") && !policy.contains("allow-same-origin"), "{policy}");
    assert!(!answer.text().contains("script>") && !answer.text().contains("tracker"), "{}", answer.text());
    assert_eq!(answer.headers["x-remote-content"], "blocked");
    let open = scene.call(Method::GET, "view/latest.html?remote=1", None).await?;
    assert!(open.text().contains("tracker.example"));
    scene.stop().await
}

#[tokio::test]
async fn a_second_catcher_on_the_same_socket_is_refused() -> Result<()> {
    let mut scene = Scene::new().await?;
    let error = ocore_mail::Catcher::open(scene.config.clone()).await.err().context("it opened")?;
    assert!(error.to_string().contains("another mail catcher"), "{error}");
    scene.stop().await
}

#[tokio::test]
async fn a_mailbox_that_rests_and_wakes_has_all_its_messages() -> Result<()> {
    let mut scene = Scene::with(|config| config.idle = std::time::Duration::from_millis(1)).await?;
    for number in 0..20 {
        assert!(scene.send(format!("Subject: {number}\r\n\r\nx").as_bytes()).await?.starts_with("250"));
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    assert_eq!(scene.get("api/v1/messages").await?["total"], 20);
    scene.stop().await
}
