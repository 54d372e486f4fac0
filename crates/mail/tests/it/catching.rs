//! What is accepted is there: at once, after a restart, after a kill.

use std::time::Duration;

use anyhow::{Context, Result};
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::support::{Scene, Smtp};

fn message(subject: &str, body: &str) -> Vec<u8> {
    format!(
        "From: Shop <shop@example.com>\r\nTo: Ada <ada@example.com>\r\nSubject: {subject}\r\nMessage-ID: <{subject}@shop>\r\n\r\n{body}\r\n"
    )
    .into_bytes()
}

#[tokio::test]
async fn a_message_is_listed_searched_shown_and_stays_after_a_restart() -> Result<()> {
    let mut scene = Scene::new().await?;
    assert!(scene.send(&message("first", "..hidden dots\r\n.. and more")).await?.starts_with("250"));
    assert!(scene.send(&message("second", "an offer for you")).await?.starts_with("250"));
    let list = scene.get("api/v1/messages").await?;
    assert_eq!((list["total"].as_u64(), list["unread"].as_u64()), (Some(2), Some(2)));
    assert_eq!(list["messages"][0]["Subject"], "second");
    let found = scene.get("api/v1/search?query=subject%3Afirst%20-offer").await?;
    assert_eq!(found["messages_count"], 1);
    let id = found["messages"][0]["ID"].as_str().context("an id")?.to_owned();
    let detail = scene.get(&format!("api/v1/message/{id}")).await?;
    assert_eq!(detail["Text"].as_str().map(str::trim), Some(".hidden dots\r\n. and more"));
    assert_eq!(scene.get("api/v1/message/latest").await?["Subject"], "second");
    scene.call(Method::PUT, "api/v1/tags", Some(json!({ "IDs": [id], "Tags": ["Sales"] }))).await?;

    scene.stop().await?;
    scene.start().await?;
    scene.listening().await?;
    let list = scene.get("api/v1/messages").await?;
    assert_eq!((list["total"].as_u64(), list["unread"].as_u64()), (Some(2), Some(0)));
    assert_eq!(list["messages"][1]["Tags"], json!(["Sales"]));
    scene.call(Method::DELETE, "api/v1/messages", Some(json!({ "IDs": [id] }))).await?;
    scene.stop().await?;
    scene.start().await?;
    let list = scene.get("api/v1/messages").await?;
    assert_eq!(list["total"], 1);
    assert_eq!(scene.call(Method::GET, &format!("api/v1/message/{id}"), None).await?.status, StatusCode::NOT_FOUND);
    scene.call(Method::DELETE, "api/v1/messages", None).await?;
    assert!(scene.send(&message("third", "")).await?.starts_with("250"));
    assert_eq!(scene.get("api/v1/messages").await?["total"], 1);
    scene.stop().await
}

#[tokio::test]
async fn a_wait_ends_with_the_message_that_it_waits_for() -> Result<()> {
    let mut scene = Scene::new().await?;
    scene.send(&message("old", "")).await?;
    let old = scene.get("api/v1/message/latest").await?["ID"].as_str().context("an id")?.to_owned();
    let path = format!("api/v1/wait?query=to%3Aada%20subject%3Ahello&after={old}&timeout=30");
    let (found, ()) = tokio::try_join!(scene.get(&path), async {
        scene.send(&message("other", "")).await?;
        scene.send(&message("hello", "")).await.map(drop)
    })?;
    assert_eq!(found["Subject"], "hello");
    assert_eq!(scene.call(Method::GET, "api/v1/wait?query=subject%3Anever&timeout=0.05", None).await?.status, StatusCode::REQUEST_TIMEOUT);
    scene.stop().await
}

#[tokio::test]
async fn many_senders_at_once_lose_nothing_and_the_oldest_go_first() -> Result<()> {
    let mut scene = Scene::with(|config| config.limits.messages = 200).await?;
    let senders = (0..8).map(|sender| {
        let address = scene.smtp();
        async move {
            let mut smtp = Smtp::connect(address).await?;
            for number in 0..50 {
                let answer = smtp.send("shop@example.com", &["ada@example.com"], &message(&format!("{sender}-{number}"), "text")).await?;
                anyhow::ensure!(answer.starts_with("250"), "{answer}");
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(senders).await?;
    // The oldest go when the newest is there already.
    let (list, total) = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let list = scene.get("api/v1/messages?limit=1000").await?;
            let total = list["total"].as_u64().context("total")?;
            if total <= 200 {
                return anyhow::Ok((list, total));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .context("more than 200 stay")??;
    assert!(total >= 180, "{total}");
    let newest: Vec<_> =
        list["messages"].as_array().context("messages")?.iter().filter_map(|message| message["Subject"].as_str()).collect();
    assert!((0..8).all(|sender| newest.contains(&format!("{sender}-49").as_str())), "{newest:?}");
    scene.stop().await?;
    scene.start().await?;
    assert_eq!(scene.get("api/v1/messages").await?["total"].as_u64(), Some(total));
    scene.stop().await
}

#[tokio::test]
async fn a_removed_mailbox_takes_its_messages_with_it() -> Result<()> {
    let mut scene = Scene::new().await?;
    scene.send(&message("first", "")).await?;
    assert!(scene.config.directory.join(scene.instance.to_string()).exists());
    assert_eq!(scene.admin(Method::DELETE, json!(null)).await?, StatusCode::NO_CONTENT);
    assert!(!scene.config.directory.join(scene.instance.to_string()).exists());
    assert_eq!(scene.call(Method::GET, "api/v1/messages", None).await?.status, StatusCode::NOT_FOUND);
    assert!(tokio::net::TcpStream::connect(scene.smtp()).await.is_err());
    scene.stop().await
}
