//! Caught mail and who may read it, with a real catcher: a link to set a new password is as good as the password.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use hyper_util::rt::TokioIo;
use ocore_control::projects;
use ocore_machine::ports::Ports;
use ocore_mail::{Catcher, MailConfig};
use ocore_model::project::ModuleSelection;
use ocore_testkit::{NoHost, Store, store::Owned};
use serde_json::json;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::{authorization::insert_deployed, support::TestApi};

const TOKEN: &str = "eyJ1aWQiOjJ9.secret-of-the-link";
const SUBJECT: &str = "123456 is your code";

/// A staging environment whose mailbox holds a mail with a link, a code and a file.
struct Scene {
    api: TestApi,
    owner: Owned,
    base: String,
    message: String,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut config =
            MailConfig::new(directory.path().join("boxes"), directory.path().join("mail.sock"), Ports::of_this_process(directory.path())?);
        config.limits.free_bytes = 0;
        let stop = CancellationToken::new();
        tokio::spawn(Catcher::open(config.clone()).await?.serve(stop.clone()));
        let host = NoHost { mail: Some(config.socket.clone()), ..NoHost::default() };
        let api = TestApi::on(Store::with_host(Arc::new(host)).await?);
        let owner = api.store.organization("acme").await?;
        let new = projects::NewProject {
            name: "Shop".to_owned(),
            slug: None,
            description: String::new(),
            odoo_version: Some("19.0".to_owned()),
            module_selection: ModuleSelection::Own,
            with_demo: false,
            create_environment_on_push: true,
            protects_production: false,
        };
        let project = projects::create(&api.store.control, &owner.scope.grant()?, new).await?;
        let (instance, environment, _) = insert_deployed(&api, &owner.scope, project.id.as_uuid()).await?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        sqlx::query("update environments set stage = 'staging'").execute(&api.store.control.pool).await?;
        sqlx::query("update instances set mail_port = $1").bind(i32::from(port)).execute(&api.store.control.pool).await?;
        let stream = UnixStream::connect(&config.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let made = Request::put(format!("/mailboxes/{instance}")).header("host", "mail").header("content-type", "application/json");
        let made = sender.send_request(made.body(Body::from(json!({ "port": port, "uid": 54_321 }).to_string()))?).await?;
        ensure!(made.status() == StatusCode::NO_CONTENT, "{}", made.status());
        let base = format!("/environments/{environment}/mail");
        let link = format!("https://shop.example.com/web/reset_password?db=odoo&token={TOKEN}");
        let mail = json!({
            "From": { "Email": "odoo@example.com", "Name": "Shop" }, "To": [{ "Email": "admin@example.com", "Name": "Mitchell" }],
            "Subject": SUBJECT, "Text": format!("Open {link}"), "HTML": format!("<p><a href=\"{link}\">Change password</a></p>"), "Tags": [SUBJECT],
            "Attachments": [{ "Filename": format!("{TOKEN}.txt"), "Content": "c2VjcmV0" }],
        });
        let sent = api.post(&format!("{base}/api/v1/send"), &mail).token(owner.token()).expect(StatusCode::OK).await?;
        let message = sent["ID"].as_str().context("it has an id")?.to_owned();
        Ok(Self { api, owner, base, message, stop, _directory: directory })
    }

    /// Everything that shows, finds or announces what is in a message.
    fn ways(&self) -> Vec<(Method, String)> {
        let id = &self.message;
        let get = [
            format!("api/v1/message/{id}"),
            "api/v1/message/latest".to_owned(),
            format!("api/v1/message/{id}/raw"),
            format!("api/v1/message/{id}/headers"),
            format!("api/v1/message/{id}/part/1"),
            format!("api/v1/message/{id}/link-check"),
            format!("api/v1/message/{id}/html-check"),
            format!("api/v1/mess%61ge/{id}"),
            "api/v1/search?query=token".to_owned(),
            "api/v1/wait?query=token&timeout=1".to_owned(),
            "api/v1/tags".to_owned(),
            "api/v1/info".to_owned(),
            "api/events".to_owned(),
            format!("view/{id}.html"),
            format!("view/{id}.txt"),
            "view/latest.html".to_owned(),
        ];
        let mut ways: Vec<_> = get.into_iter().map(|way| (Method::GET, way)).collect();
        ways.push((Method::HEAD, format!("api/v1/message/{id}")));
        ways.push((Method::HEAD, "api/v1/messages".to_owned()));
        ways.push((Method::PUT, "api/v1/messages".to_owned()));
        ways.push((Method::DELETE, "api/v1/messages".to_owned()));
        ways
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn a_viewer_reads_no_word_of_a_message_in_any_way() -> Result<()> {
    let scene = Scene::new().await?;
    let viewer = scene.api.store.member(&scene.owner.scope, "viewer@example.com", "Viewer").await?;
    let only = std::iter::once(ocore_model::permission::Permission::view(ocore_model::permission::Resource::Environments));
    let key = crate::authorization::key(&scene.api, &scene.owner, only).await?;
    for token in [viewer.token(), &key] {
        for (method, way) in scene.ways() {
            let path = format!("{}/{way}", scene.base);
            let answer = scene.api.call(method.clone(), &path).token(token).organization("acme").send().await?;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {way}: {}", answer.text);
        }
        let events = scene.api.get(&format!("{}/api/v1/messages", scene.base)).header("upgrade", "websocket").token(token);
        assert_eq!(events.organization("acme").status().await?, StatusCode::FORBIDDEN);

        // The page is the same for everybody, and the list says who wrote to whom when.
        let page = scene.api.get(&scene.base).token(token).organization("acme").send().await?;
        assert!(page.status == StatusCode::OK && !page.text.contains(TOKEN));
        for query in ["", "?query=token", "?query=nothing-that-is-there&limit=1&start=0"] {
            let list = scene.api.get(&format!("{}/api/v1/messages{query}", scene.base)).token(token).organization("acme").send().await?;
            assert_eq!((list.status, list.body["messages_count"].as_u64()), (StatusCode::OK, Some(1)), "{}", list.text);
            let message = &list.body["messages"][0];
            assert_eq!(message["To"], json!([{ "Name": "", "Address": "admin@example.com" }]));
            assert_eq!((message["ID"].as_str(), message["Attachments"].as_u64()), (Some(scene.message.as_str()), Some(1)));
            for secret in [TOKEN, SUBJECT, "reset_password", "Mitchell", "Open"] {
                assert!(!list.text.contains(secret), "{secret} in {}", list.text);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_developer_reads_all_of_it() -> Result<()> {
    let scene = Scene::new().await?;
    let developer = scene.api.store.member(&scene.owner.scope, "developer@example.com", "Developer").await?;
    let get = async |way: &str| scene.api.get(&format!("{}/{way}", scene.base)).token(developer.token()).organization("acme").send().await;
    let message = get(&format!("api/v1/message/{}", scene.message)).await?;
    assert!(message.text.contains(TOKEN), "{}", message.text);
    assert_eq!(get("api/v1/search?query=token").await?.body["messages_count"], 1);
    assert_eq!(get("api/v1/messages").await?.body["messages"][0]["Subject"], SUBJECT);
    Ok(())
}
