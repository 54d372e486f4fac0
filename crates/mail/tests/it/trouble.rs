//! When things go wrong.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
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

/// A file system of its own that is soon full.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(bytes: u64) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let options = format!("size={bytes},mode=0700");
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path()).status()?;
        ensure!(mounted.success(), "a small file system cannot be mounted; run the tests as root");
        Ok(Self { directory })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.directory.path()).status();
    }
}

/// Sends numbered messages of 40 KB until one is refused; the numbers that were accepted.
async fn fill(scene: &Scene, first: usize) -> Result<(Vec<usize>, String)> {
    let mut smtp = Smtp::connect(scene.smtp()).await?;
    let line = format!("{}\r\n", "x".repeat(998)).repeat(40);
    let mut accepted = Vec::new();
    for number in first..first + 1000 {
        let answer = smtp.send("shop@example.com", &["ada@example.com"], format!("Subject: {number}\r\n\r\n{line}").as_bytes()).await?;
        if !answer.starts_with("250") {
            return Ok((accepted, answer));
        }
        accepted.push(number);
    }
    anyhow::bail!("the small disk is never full")
}

async fn numbers(scene: &Scene) -> Result<Vec<usize>> {
    let list = scene.get("api/v1/messages?limit=1000").await?;
    let subjects = list["messages"].as_array().context("messages")?.iter().rev();
    subjects.map(|message| Ok(message["Subject"].as_str().context("a subject")?.parse()?)).collect()
}

#[tokio::test]
async fn a_disk_that_is_really_full_loses_nothing_that_was_accepted() -> Result<()> {
    // Its own reserve is off, so that a write breaks off in the middle.
    let disk = SmallDisk::mount(2 << 20)?;
    let mut scene = Scene::with(|config| config.directory = disk.directory.path().join("boxes")).await?;
    let (accepted, refusal) = fill(&scene, 0).await?;
    assert!(refusal.starts_with("452"), "{refusal}");
    assert!(accepted.len() > 10, "{accepted:?}");
    assert_eq!(numbers(&scene).await?, accepted);
    scene.stop().await?;
    scene.start().await?;
    scene.listening().await?;
    assert_eq!(numbers(&scene).await?, accepted, "after a restart");
    for message in scene.get("api/v1/messages?limit=1000").await?["messages"].as_array().context("messages")? {
        let raw = scene.call(Method::GET, &format!("api/v1/message/{}/raw", message["ID"].as_str().context("an id")?), None).await?;
        assert!(raw.status == StatusCode::OK && raw.body.len() > 40_000);
    }
    scene.stop().await
}

#[tokio::test]
async fn messages_that_are_deleted_make_room_on_a_full_disk() -> Result<()> {
    let disk = SmallDisk::mount(4 << 20)?;
    let mut scene = Scene::with(|config| {
        config.directory = disk.directory.path().join("boxes");
        config.limits.free_bytes = 1 << 20;
    })
    .await?;
    let (accepted, refusal) = fill(&scene, 0).await?;
    assert!(refusal.starts_with("452"), "{refusal}");
    let deleted = scene.call(Method::DELETE, "api/v1/messages", None).await?;
    assert_eq!(deleted.status, StatusCode::OK, "{}", deleted.text());
    let (again, _) = fill(&scene, accepted.len()).await?;
    assert!(again.len() * 2 > accepted.len(), "room for {} and then for {}", accepted.len(), again.len());
    assert_eq!(numbers(&scene).await?, again);
    scene.stop().await
}

#[tokio::test]
async fn a_flood_is_kept_to_the_last_message() -> Result<()> {
    const SENDERS: usize = 16;
    const EACH: usize = 125;
    let mut scene = Scene::new().await?;
    let senders = (0..SENDERS).map(|sender| {
        let address = scene.smtp();
        async move {
            let mut smtp = Smtp::connect(address).await?;
            for number in 0..EACH {
                let message = format!("Subject: {}\r\n\r\nflood\r\n", sender * EACH + number);
                let answer = smtp.send("shop@example.com", &["ada@example.com"], message.as_bytes()).await?;
                ensure!(answer.starts_with("250"), "{answer}");
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(senders).await?;
    let list = scene.get("api/v1/messages?limit=10000").await?;
    let messages = list["messages"].as_array().context("messages")?;
    let mut subjects =
        messages.iter().map(|message| Ok(message["Subject"].as_str().context("a subject")?.parse()?)).collect::<Result<Vec<usize>>>()?;
    subjects.sort_unstable();
    assert!(subjects.iter().copied().eq(0..SENDERS * EACH), "{} of {}", subjects.len(), SENDERS * EACH);
    assert_eq!(scene.get("api/v1/search?query=subject%3A1999").await?["messages_count"], 1);
    scene.stop().await
}

#[tokio::test]
async fn a_mail_of_fifty_megabytes_is_kept_and_opened() -> Result<()> {
    let mut scene = Scene::new().await?;
    let line = format!("{}\r\n", "QUFB".repeat(19));
    let mut message = b"Subject: large\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/plain\r\n\r\nSee the file.\r\n--x\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=large.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n".to_vec();
    let end = b"--x--\r\n";
    let lines = ((50 << 20) - message.len() - end.len()) / line.len();
    message.extend(line.repeat(lines).into_bytes());
    message.extend(end);
    assert!(scene.send(&message).await?.starts_with("250"));
    let detail = scene.get("api/v1/message/latest").await?;
    assert_eq!(detail["Text"].as_str().map(str::trim), Some("See the file."));
    let file = &detail["Attachments"][0];
    assert_eq!((file["FileName"].as_str(), file["Size"].as_u64()), (Some("large.bin"), Some(lines as u64 * 57)));
    let raw = scene.call(Method::GET, "api/v1/message/latest/raw", None).await?;
    assert!(raw.body.starts_with(&message), "it came back changed");
    message.extend(line.repeat(100).into_bytes());
    assert!(scene.send(&message).await?.starts_with("552"));
    assert_eq!(scene.get("api/v1/messages").await?["total"], 1);
    scene.stop().await
}

#[tokio::test]
async fn whatever_a_message_is_made_of_it_is_listed_and_opened() -> Result<()> {
    let mut scene = Scene::new().await?;
    let level = |level: usize| format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n");
    let deep = (0..2000).map(level).collect::<Vec<String>>().concat();
    let broken: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"no header at all".to_vec(),
        b"Subject".to_vec(),
        b"Subject: a multipart without an end\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/html\r\n\r\n<p>half".to_vec(),
        b"Subject: no boundary\r\nContent-Type: multipart/mixed\r\n\r\n--x\r\n\r\ntext".to_vec(),
        b"Subject: an unknown charset\r\nContent-Type: text/html; charset=klingon\r\n\r\n<p>\xff\xfe\x00</p>".to_vec(),
        b"Subject: =?utf-8?b?//8=?= =?utf-8?q?=ZZ?= \xff\x00\r\nFrom: @@@ <<>>\r\nTo: ,,;:\r\nDate: yesterday\r\n\r\n\x00".to_vec(),
        b"Subject: no base64\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!".to_vec(),
        b"Subject: a message in a message in itself\r\nContent-Type: message/rfc822\r\n\r\nContent-Type: message/rfc822\r\n\r\nContent-Type: message/rfc822\r\n\r\n".to_vec(),
        format!("Subject: {}\r\nX-{}: a\r\n\r\nlong", "y".repeat(300_000), "z".repeat(100_000)).into_bytes(),
        format!("Subject: deep\r\n{deep}").into_bytes(),
        format!("Subject: deep html\r\nContent-Type: text/html\r\n\r\n{}", "<div><b>".repeat(200_000)).into_bytes(),
        format!("To: {}\r\nSubject: everybody\r\n\r\n", "a@example.com, ".repeat(20_000)).into_bytes(),
    ];
    for message in &broken {
        let answer = scene.send(message).await?;
        ensure!(answer.starts_with("250"), "{answer}: {}", String::from_utf8_lossy(&message[..message.len().min(100)]));
    }
    let list = scene.get("api/v1/messages").await?;
    let messages = list["messages"].as_array().context("messages")?;
    assert_eq!(messages.len(), broken.len());
    for message in messages {
        let id = message["ID"].as_str().context("an id")?;
        let detail = scene.get(&format!("api/v1/message/{id}")).await?;
        for path in ["headers", "raw", "link-check"] {
            let answer = scene.call(Method::GET, &format!("api/v1/message/{id}/{path}"), None).await?;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {message}");
        }
        for view in ["html", "txt"] {
            let answer = scene.call(Method::GET, &format!("view/{id}.{view}"), None).await?;
            assert_eq!(answer.status, StatusCode::OK, "{view}: {message}");
        }
        for file in detail["Attachments"].as_array().context("files")?.iter().take(5) {
            let part = file["PartID"].as_str().context("a part")?;
            assert_eq!(scene.call(Method::GET, &format!("api/v1/message/{id}/part/{part}"), None).await?.status, StatusCode::OK);
        }
    }
    scene.stop().await
}

#[tokio::test]
async fn a_hostile_picture_is_a_file_and_no_page() -> Result<()> {
    let mut scene = Scene::new().await?;
    let svg = b"Subject: picture\r\nContent-Type: multipart/related; boundary=x\r\n\r\n--x\r\nContent-Type: text/html\r\n\r\n<img src=\"cid:a@b\"><object data=\"cid:a@b\"></object>\r\n--x\r\nContent-Type: image/svg+xml; name=a.svg\r\nContent-ID: <a@b>\r\nContent-Disposition: inline; filename=a.svg\r\n\r\n<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"alert(1)\"><script>alert(1)</script></svg>\r\n--x--\r\n";
    assert!(scene.send(svg).await?.starts_with("250"));
    let page = scene.call(Method::GET, "view/latest.html?remote=1", None).await?.text();
    assert!(!page.contains("svg") && !page.contains("alert") && !page.contains("<object"), "{page}");
    let detail = scene.get("api/v1/message/latest").await?;
    let part = detail["Inline"][0]["PartID"].as_str().context("the picture")?;
    let answer = scene.call(Method::GET, &format!("api/v1/message/latest/part/{part}"), None).await?;
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    assert!(answer.headers["content-disposition"].to_str()?.starts_with("attachment; "));
    assert!(answer.headers["content-security-policy"].to_str()?.contains("sandbox"));
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

#[tokio::test]
async fn messages_made_to_exhaust_the_catcher_are_kept_and_shown_as_they_are() -> Result<()> {
    let mut scene = Scene::new().await?;
    let deep = [b"Subject: deep\r\n".to_vec(), b"Content-Type: message/rfc822\r\n\r\n".repeat(300_000)].concat();
    let headers = [b"Subject: headers\r\n".to_vec(), b"a: b\r\n".repeat(2_000_000), b"\r\nx".to_vec()].concat();
    let receivers = [b"Subject: receivers\r\nTo: ".to_vec(), b"a@b,\r\n ".repeat(1_500_000), b"c@d\r\n\r\nx".to_vec()].concat();
    let head = b"Subject: parts\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n";
    let parts = [head.to_vec(), b"--x\r\n\r\n".repeat(1_500_000)].concat();
    for message in [&deep, &headers, &receivers, &parts] {
        assert!(scene.send(message).await?.starts_with("250"));
    }
    let list = scene.get("api/v1/messages").await?;
    let subjects: Vec<&str> =
        list["messages"].as_array().context("a list")?.iter().filter_map(|message| message["Subject"].as_str()).collect();
    assert_eq!(subjects, ["parts", "receivers", "headers", "deep"]);
    for message in list["messages"].as_array().context("a list")? {
        let id = message["ID"].as_str().context("an id")?;
        let answer = scene.call(Method::GET, &format!("api/v1/message/{id}"), None).await?;
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert!(scene.send(b"Subject: after\r\n\r\nx").await?.starts_with("250"));
    scene.stop().await
}

#[tokio::test]
async fn a_message_has_so_many_receivers_and_its_list_stays_small() -> Result<()> {
    let mut scene = Scene::new().await?;
    let mut smtp = Smtp::connect(scene.smtp()).await?;
    smtp.say("MAIL FROM:<shop@example.com>").await?;
    let long = format!("{}@example.com", "a".repeat(200));
    let mut taken = 0;
    let refusal = loop {
        let answer = smtp.say(&format!("RCPT TO:<{long}>")).await?;
        if !answer.starts_with("250") {
            break answer;
        }
        taken += 1;
    };
    ensure!(refusal.starts_with("452") && taken < 400, "{taken}: {refusal}");
    smtp.say("DATA").await?;
    let names = vec![format!("{} <{long}>", "n".repeat(900)); 90].join(",\r\n ");
    smtp.write(format!("Subject: many\r\nTo: {names}\r\nCc: {names}\r\n\r\nx").as_bytes()).await?;
    assert!(smtp.say("\r\n.").await?.starts_with("250"));
    let list = scene.get("api/v1/messages").await?;
    ensure!(list.to_string().len() < 256 << 10, "{} bytes of a list", list.to_string().len());
    scene.stop().await
}

#[tokio::test]
async fn mailboxes_that_only_listen_keep_no_place_from_the_others() -> Result<()> {
    let mut scene = Scene::new().await?;
    for _ in 0..520 {
        assert_eq!(scene.another_mailbox().await?, StatusCode::NO_CONTENT);
    }
    assert!(scene.send(b"Subject: still here\r\n\r\nx").await?.starts_with("250"));
    scene.stop().await
}
