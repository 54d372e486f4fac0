//! The shapes that Mailpit's clients read.

use anyhow::{Context, Result};
use futures::StreamExt;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::Scene;

const MESSAGE: &[u8] = b"From: Shop <shop@example.com>\r\nTo: Ada <ada@example.com>\r\nCc: bob@example.com\r\nReply-To: help@example.com\r\nSubject: Offer\r\nMessage-ID: <1@shop>\r\nList-Unsubscribe: <https://shop.example/u>\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/html\r\n\r\n<p>See <a href=\"https://shop.example/offer\">it</a></p>\r\n--x\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename=offer.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERg==\r\n--x--\r\n";

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[tokio::test]
async fn answers_have_mailpits_fields() -> Result<()> {
    let mut scene = Scene::new().await?;
    scene.send(MESSAGE).await?;
    let list = scene.get("api/v1/messages").await?;
    assert_eq!(keys(&list), ["count", "messages", "messages_count", "messages_unread", "start", "tags", "total", "unread"]);
    let summary = &list["messages"][0];
    assert_eq!(
        keys(summary),
        [
            "Attachments",
            "Bcc",
            "Cc",
            "Created",
            "From",
            "ID",
            "MessageID",
            "Read",
            "ReplyTo",
            "Size",
            "Snippet",
            "Subject",
            "Tags",
            "To",
            "Username"
        ]
    );
    assert_eq!(summary["From"], json!({ "Name": "Shop", "Address": "shop@example.com" }));
    assert_eq!((summary["MessageID"].as_str(), summary["Attachments"].as_u64()), (Some("1@shop"), Some(1)));
    let id = summary["ID"].as_str().context("an id")?;
    let detail = scene.get(&format!("api/v1/message/{id}")).await?;
    assert!(detail["HTML"].as_str().is_some_and(|html| html.contains("https://shop.example/offer")));
    assert_eq!(detail["Attachments"][0]["FileName"], "offer.pdf");
    assert_eq!(detail["ListUnsubscribe"]["Links"], json!(["https://shop.example/u"]));
    let headers = scene.get(&format!("api/v1/message/{id}/headers")).await?;
    assert_eq!(headers["Message-Id"], json!(["<1@shop>"]));
    let raw = scene.call(Method::GET, &format!("api/v1/message/{id}/raw"), None).await?;
    assert_eq!(&raw.body[..MESSAGE.len()], MESSAGE);
    assert_eq!(scene.get(&format!("api/v1/message/{id}/link-check")).await?["Links"][0]["URL"], "https://shop.example/offer");
    assert_eq!(scene.get(&format!("api/v1/message/{id}/html-check")).await?["Warnings"], json!([]));
    assert_eq!(scene.get("api/v1/info").await?["RuntimeStats"]["SMTPAccepted"], 1);
    assert_eq!(scene.get("api/v1/webui").await?["MessageRelay"]["Enabled"], false);
    let sent = json!({ "From": { "Email": "a@example.com", "Name": "A" }, "To": [{ "Email": "b@example.com" }], "Subject": "Sent", "HTML": "<p>x</p>",
        "Attachments": [{ "Content": "JVBERg==", "Filename": "a.pdf" }], "Tags": ["one"] });
    assert_eq!(scene.call(Method::POST, "api/v1/send", Some(sent)).await?.status, StatusCode::OK);
    assert_eq!(scene.get("api/v1/tags").await?, json!(["one"]));
    assert_eq!(scene.get("api/v1/message/latest").await?["Attachments"][0]["FileName"], "a.pdf");
    scene.call(Method::PUT, "api/v1/tags/one", Some(json!({ "Name": "two" }))).await?;
    assert_eq!(scene.get("api/v1/search?query=tag%3Atwo").await?["messages_count"], 1);
    let page = scene.call(Method::GET, "", None).await?;
    assert!(page.text().contains("Caught mail") && !page.text().contains("{{nonce}}"));
    scene.stop().await
}

#[tokio::test]
async fn events_tell_what_happens() -> Result<()> {
    let mut scene = Scene::new().await?;
    let stream = tokio::net::UnixStream::connect(&scene.config.socket).await?;
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://mail/box/{}/api/events", scene.instance), stream).await?;
    scene.send(MESSAGE).await?;
    let mut next = async || loop {
        if let Message::Text(text) = socket.next().await.context("the end")?? {
            return anyhow::Ok(serde_json::from_str::<Value>(&text)?);
        }
    };
    let new = next().await?;
    assert_eq!((new["Type"].as_str(), new["Data"]["Subject"].as_str()), (Some("new"), Some("Offer")));
    assert_eq!(next().await?["Data"]["Total"], 1);
    scene.call(Method::DELETE, "api/v1/messages", None).await?;
    assert_eq!(next().await?["Type"], "truncate");
    scene.stop().await
}
