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

/// Ids of the messages that a search finds, sorted.
async fn found(scene: &Scene, query: &str, zone: &str) -> Result<Vec<String>> {
    let query: String = url::form_urlencoded::Serializer::new(String::new()).append_pair("query", query).append_pair("tz", zone).finish();
    let answer = scene.get(&format!("api/v1/search?{query}")).await?;
    let ids = answer["messages"].as_array().context("messages")?.iter().filter_map(|message| message["ID"].as_str().map(str::to_owned));
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    Ok(ids)
}

async fn sent(scene: &Scene, draft: Value) -> Result<String> {
    let mut whole =
        json!({ "From": { "Email": "shop@shop.example" }, "To": [{ "Email": "ada@shop.example" }], "Subject": "x", "Text": "x" });
    whole.as_object_mut().context("an object")?.extend(draft.as_object().cloned().unwrap_or_default());
    let answer = scene.call(Method::POST, "api/v1/send", Some(whole)).await?;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    Ok(answer.json()["ID"].as_str().context("an id")?.to_owned())
}

#[tokio::test]
async fn a_search_finds_what_mailpit_finds() -> Result<()> {
    let mut scene = Scene::new().await?;
    let wrapped = sent(&scene, json!({ "Text": "Dear Ada,\r\nplease confirm\r\nyour \t address until Friday.\r\n" })).await?;
    let html = sent(&scene, json!({ "Text": "", "HTML": "<p>please <b>confirm</b>\n   your address</p>" })).await?;
    let both = sent(&scene, json!({ "Text": "As text", "HTML": "<p>only in the HTML</p>" })).await?;
    let long = sent(&scene, json!({ "Text": format!("{}The code is Q77Z.", "A line of the terms.\r\n".repeat(1500)) })).await?;
    let endless = sent(&scene, json!({ "Text": format!("{}Q88Z", "word ".repeat(100_000)), "Subject": "endless" })).await?;
    let picture = json!([{ "Content": "iVBORw0KGgo=", "Filename": "logo.png", "ContentType": "image/png", "ContentID": "logo" }]);
    let image = sent(&scene, json!({ "HTML": "<img src=\"cid:logo\">", "Attachments": picture })).await?;
    for (query, zone, wanted) in [
        ("\"please confirm your address\"", "", vec![&wrapped, &html]),
        ("Q77Z", "", vec![&long]),
        ("\"as text\" \"in the html\"", "", vec![&both]),
        ("Q88Z", "", vec![]),
        ("subject:endless", "", vec![&endless]),
        ("logo.png", "", vec![&image]),
        ("has:inline", "", vec![&image]),
        ("!has:inline confirm", "", vec![&wrapped, &html]),
    ] {
        let mut wanted: Vec<String> = wanted.into_iter().cloned().collect();
        wanted.sort();
        assert_eq!(found(&scene, query, zone).await?, wanted, "{query}");
    }
    let before = (chrono::Utc::now() + chrono::TimeDelta::hours(9) - chrono::TimeDelta::minutes(5)).format("\"%Y-%m-%d %H:%M:%S\"");
    assert_eq!(found(&scene, &format!("after:{before}"), "Asia/Tokyo").await?.len(), 6);
    assert_eq!(found(&scene, &format!("after:{before}"), "").await?.len(), 0);
    assert_eq!(scene.call(Method::GET, "api/v1/search?query=x&tz=Mars", None).await?.status, StatusCode::BAD_REQUEST);
    scene.stop().await
}

#[tokio::test]
async fn tags_come_with_a_message_and_can_be_taken_away_for_good() -> Result<()> {
    let mut scene = Scene::new().await?;
    let draft = json!({ "To": [{ "Email": "ada+signup+new@shop.example" }], "Headers": { "X-Tags": "Invoice, EU <1>,,invoice" }, "Tags": ["mine"] });
    let id = sent(&scene, draft).await?;
    let tags = scene.get(&format!("api/v1/message/{id}")).await?["Tags"].clone();
    assert_eq!(tags, json!(["EU 1", "Invoice", "mine", "new", "signup"]));
    for tag in ["invoice", "\"EU 1\"", "signup", "mine"] {
        assert_eq!(found(&scene, &format!("tag:{tag}"), "").await?, std::slice::from_ref(&id), "{tag}");
    }
    scene.call(Method::PUT, "api/v1/tags", Some(json!({ "IDs": [id], "Tags": [] }))).await?;
    scene.stop().await?;
    scene.start().await?;
    assert_eq!(scene.get(&format!("api/v1/message/{id}")).await?["Tags"], json!([]));
    scene.stop().await
}

#[tokio::test]
async fn everybody_who_is_named_is_listed_and_only_who_is_hidden_is_hidden() -> Result<()> {
    let mut scene = Scene::new().await?;
    let members =
        |kind: &str| (0..400).map(|n| json!({ "Email": format!("{kind}{n:03}@shop.example"), "Name": format!("Member {n}") })).collect();
    let (to, cc): (Vec<Value>, Vec<Value>) = (members("to"), members("cc"));
    let id = sent(&scene, json!({ "To": to, "Cc": cc, "Bcc": ["archive@shop.example"] })).await?;
    let message = scene.get(&format!("api/v1/message/{id}")).await?;
    let count = |field: &str| message[field].as_array().map_or(0, Vec::len);
    assert_eq!((count("To"), count("Cc")), (400, 400));
    assert_eq!(message["Bcc"], json!([{ "Name": "", "Address": "archive@shop.example" }]));
    assert_eq!(found(&scene, "to:to399@shop.example cc:cc399@ -bcc:cc399@", "").await?, [id]);
    scene.stop().await
}
