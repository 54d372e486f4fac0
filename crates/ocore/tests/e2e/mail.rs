//! Mail of what is not production, with a real Odoo that sells: what it sends is caught, seen, searched and opened through the API; nothing leaves,
//! whatever somebody adds; nothing that was accepted is lost; and a mail that is handed to Odoo is one that has come.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::StreamExt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ocore_testkit::{
    Options,
    module::{write_manifest, write_module},
    wait::eventually,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::{
    admin::Admin,
    copies::clone,
    mail_page::a_browser_shows_it,
    outside::Outside,
    scene::{DEPLOYMENT_LIMIT, Scene},
};

/// Beyond the half minute after which the reconciler looks again.
const PATIENCE: Duration = Duration::from_secs(90);
pub(crate) const NEWSLETTER: &str = "A newsletter";

/// The mailbox of an environment, through the API.
pub(crate) struct Mailbox<'a> {
    scene: &'a Scene,
    pub(crate) base: String,
}

impl<'a> Mailbox<'a> {
    fn of(scene: &'a Scene, environment: &Value) -> Self {
        Self { scene, base: format!("/environments/{}/mail", environment["id"].as_str().unwrap_or_default()) }
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.scene.owner.get(&format!("{}/{path}", self.base)).await
    }

    /// The message that fits, as soon as there is one, in full.
    pub(crate) async fn opened(&self, query: &str) -> Result<Value> {
        let summary = self.get(&format!("api/v1/wait?timeout=90&query={}", encoded(query))).await;
        let summary = summary.with_context(|| format!("no mail came for {query}"))?;
        self.get(&format!("api/v1/message/{}", text(&summary, "ID"))).await
    }

    async fn count(&self, query: &str) -> Result<u64> {
        let found = self.get(&format!("api/v1/search?query={}", encoded(query))).await?;
        found["messages_count"].as_u64().with_context(|| format!("{found}"))
    }
}

fn encoded(query: &str) -> String {
    url::form_urlencoded::byte_serialize(query.as_bytes()).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Python that runs in the Odoo as one of its server actions.
async fn run(odoo: &Admin<'_>, code: &str) -> Result<()> {
    let model = odoo.values("ir.model", json!([["model", "=", "res.users"]]), "id").await?;
    let action = json!([{ "name": "test", "model_id": model[0], "state": "code", "code": code }]);
    let action = odoo.call("ir.actions.server", "create", action).await?;
    odoo.call("ir.actions.server", "run", json!([[action]])).await.map(drop)
}

pub(crate) async fn send(odoo: &Admin<'_>, values: Value) -> Result<Value> {
    let mail = odoo.call("mail.mail", "create", json!([values])).await?;
    odoo.call("mail.mail", "send", json!([[mail]])).await?;
    Ok(mail)
}

/// A shop with records that people write to, and a scheduled action that sends a mail.
fn write_shop(scene: &Scene) -> Result<()> {
    write_module(&scene.repository, "shop", "version 1")?;
    write_manifest(&scene.repository, "shop", &["base", "web", "auth_signup", "sale_management"], "1.0")?;
    let models = "from odoo import fields, models\n\n\nclass Thing(models.Model):\n    _name = \"shop.thing\"\n    _inherit = [\"mail.thread\"]\n    _description = \"Thing\"\n\n    name = fields.Char(required=True)\n";
    scene.repository.write("shop/models.py", models)?;
    scene.repository.write(
        "shop/views.xml",
        r#"<?xml version="1.0"?>
<odoo>
  <record id="page" model="ir.ui.view">
    <field name="name">page</field>
    <field name="type">qweb</field>
    <field name="arch" type="xml"><t t-name="shop.page"><p>version 1</p></t></field>
  </record>
  <record id="reminder" model="ir.cron">
    <field name="name">Send a reminder</field>
    <field name="model_id" ref="model_shop_thing"/>
    <field name="state">code</field>
    <field name="code">env["mail.mail"].create({"subject": "A reminder", "email_from": "shop@example.com", "email_to": "ada@example.com", "body_html": "by a cron"}).send()</field>
    <field name="interval_number">1</field>
    <field name="interval_type">months</field>
    <field name="active" eval="False"/>
  </record>
</odoo>
"#,
    )?;
    scene.repository.commit("A shop that writes mail").map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_odoo_of_a_clone_sends_is_caught_shown_and_never_leaves() -> Result<()> {
    let relay = Outside::open().await?;
    let environment =
        [("OCORE__MAIL__RELAY_URL", format!("smtp://{}", relay.address)), ("OCORE__MAIL__RELAY_SENDER", "tests@example.com".to_owned())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let scene = Scene::new(Options { environment, ..Options::default() }).await?;
    write_shop(&scene)?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    production_has_no_catcher(&scene).await?;
    let (_, deployment) = clone(&scene, "main", json!({ "targetBranch": "try", "targetType": "staging" })).await?;
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded", "{ended}");
    let odoo = Admin::of(&scene, "try").await?;
    ensure!(odoo.environment["mailpitPort"].as_i64().is_some_and(|port| port > 0), "{}", odoo.environment);
    let mailbox = Mailbox::of(&scene, &odoo.environment);

    // All of them, so that one run says all that is wrong.
    let outcomes = [
        ("what Odoo sends", everything_that_odoo_sends_is_seen(&scene, &odoo, &mailbox).await),
        ("what is handed to Odoo", what_is_handed_to_odoo_has_come(&scene, &odoo, &mailbox).await),
        ("the command line", the_command_line_shows_it(&scene)),
        ("the page in a browser", a_browser_shows_it(&scene, &odoo, &mailbox).await),
        ("somebody else", nobody_else_sees_it(&scene, &mailbox).await),
        ("releases", only_released_mail_leaves(&scene, &mailbox, &relay).await),
        ("an added server", a_server_that_a_person_adds_sends_nothing(&scene, &odoo).await),
        ("a killed catcher", a_killed_catcher_loses_nothing(&scene, &odoo, &mailbox).await),
        ("a stopped environment", the_page_works_while_odoo_is_stopped(&scene, &odoo, &mailbox).await),
        ("Mailpit's client", mailpits_client_works(&scene, &odoo, &mailbox).await),
    ];
    let problems = outcomes.into_iter().filter_map(|(what, outcome)| outcome.err().map(|error| format!("{what}: {error:#}")));
    let problems: Vec<String> = problems.collect();
    ensure!(problems.is_empty(), "{}", problems.join("\n"));

    let instance = text(&odoo.environment, "instanceId").to_owned();
    let boxes = scene.installation.home.join("mail/boxes");
    ensure!(boxes.join(&instance).exists());
    scene.owner.delete(&format!("/environments/{}", text(&odoo.environment, "id"))).await?;
    let gone = eventually(PATIENCE, async || (!boxes.join(&instance).exists()).then_some(())).await;
    gone.context("a destroyed environment has left its mail")
}

async fn production_has_no_catcher(scene: &Scene) -> Result<()> {
    let production = scene.environment("main").await?;
    ensure!(production["mailpitPort"].is_null(), "{production}");
    let base = format!("/environments/{}/mail", text(&production, "id"));
    for path in ["", "/", "/api/v1/messages", "/api/v1/webui", "/view/latest.html", "-settings"] {
        let (status, problem) = scene.owner.request(Method::GET, &format!("{base}{path}"), None).await?;
        ensure!(status == 409 && problem["code"] == "production_sends", "{path}: {status} {problem}");
    }
    let mail = json!({ "from": "bob@example.com", "to": "things@example.com", "text": "Hello" });
    let (status, problem) = scene.owner.request(Method::POST, &format!("{base}/inject"), Some(&mail)).await?;
    ensure!(status == 409 && problem["code"] == "production_sends", "{status} {problem}");
    Ok(())
}

/// As Odoo's own library reads it.
fn text_of_pdf(content: &[u8]) -> Result<String> {
    let distributions = std::env::var("OCORE_TEST_ODOO").unwrap_or_else(|_| "/var/cache/ocore/odoo".to_owned());
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, content)?;
    let script = "import sys, pypdf; print(*(page.extract_text() for page in pypdf.PdfReader(sys.argv[1]).pages))";
    let output =
        std::process::Command::new(format!("{distributions}/19.0/venv/bin/python")).args(["-c", script]).arg(file.path()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" "))
}

async fn everything_that_odoo_sends_is_seen(scene: &Scene, odoo: &Admin<'_>, mailbox: &Mailbox<'_>) -> Result<()> {
    // A quotation, as the button of a sale sends it, with its PDF.
    let code = r#"
env.company.write({"email": "shop@example.com"})
# A font of the machine: web fonts become shapes, which nobody reads back.
arch = '<data><xpath expr="//head" position="inside"><style>* { font-family: "DejaVu Sans" !important; }</style></xpath></data>'
env["ir.ui.view"].create({"name": "plain", "type": "qweb", "inherit_id": env.ref("web.minimal_layout").id, "arch": arch})
env.user.write({"email": "clerk@example.com"})
partner = env["res.partner"].create({"name": "Ada Lovelace", "email": "ada@example.com"})
product = env["product.product"].create({"name": "Difference engine", "list_price": 1837.0})
order = env["sale.order"].create({"partner_id": partner.id, "order_line": [(0, 0, {"product_id": product.id, "product_uom_qty": 2})]})
"#;
    run(odoo, code).await?;
    let order = odoo.values("sale.order", json!([]), "id").await?;
    let action = odoo.call("sale.order", "action_quotation_send", json!([order])).await?;
    let context = json!({ "context": action["context"] });
    let composer = odoo.call_with("mail.compose.message", "create", json!([{}]), context.clone()).await?;
    odoo.call_with("mail.compose.message", "action_send_mail", json!([[composer]]), context).await?;
    let quotation = mailbox.opened("subject:quotation to:ada").await?;
    ensure!(text(&quotation, "HTML").contains("ready for review") && quotation["ReplyTo"].is_array(), "{quotation}");
    let file = &quotation["Attachments"][0];
    ensure!(text(file, "FileName").rsplit_once('.').is_some_and(|(_, ending)| ending == "pdf"), "{quotation}");
    let path = format!("{}/api{}/api/v1/message/{}/part/{}", scene.owner.url, mailbox.base, text(&quotation, "ID"), text(file, "PartID"));
    let answer = reqwest::Client::new().get(&path).bearer_auth(&scene.key).send().await?;
    ensure!(answer.status() == 200 && answer.headers()["x-content-type-options"] == "nosniff", "{answer:?}");
    ensure!(answer.headers()["content-disposition"].to_str()?.starts_with("attachment"), "{answer:?}");
    let printed = text_of_pdf(&answer.bytes().await?)?;
    for words in ["Difference engine", "Ada Lovelace", "My Company", "Page 1 / 1"] {
        ensure!(printed.contains(words), "the quotation lacks {words:?}: {printed}");
    }

    // A password reset.
    let grace = json!([{ "name": "Grace Hopper", "login": "grace@example.com", "email": "grace@example.com" }]);
    let user = odoo.call("res.users", "create", grace).await?;
    odoo.call("res.users", "action_reset_password", json!([[user]])).await?;
    let reset = mailbox.opened("subject:password to:grace").await?;
    let url = text(&odoo.environment, "url").trim_end_matches('/');
    ensure!(text(&reset, "HTML").contains(url), "the link does not lead to the copy at {url}: {reset}");

    // A mail of a scheduled action, run by Odoo's own scheduler.
    run(odoo, "cron = env.ref('shop.reminder')\ncron.write({'active': True})\ncron._trigger()").await?;
    let reminder = mailbox.opened("subject:reminder").await?;
    ensure!(text(&reminder, "HTML").contains("by a cron"), "{reminder}");

    // Whatever a message is made of.
    let attachment = json!([{ "name": "price list.pdf", "datas": STANDARD.encode("%PDF-1.4 prices"), "mimetype": "application/pdf" }]);
    let attachment = odoo.call("ir.attachment", "create", attachment).await?;
    let body = "<h2 style='color:#714b67'>News</h2><p>For <b>Ada</b></p><script>document.title='evil'</script>";
    let newsletter = json!({ "subject": NEWSLETTER, "email_from": "\"Shop\" <shop@example.com>", "email_to": "ada@example.com", "email_cc": "charles@example.com",
        "body_html": body, "attachment_ids": [[6, 0, [attachment]]] });
    let mail = send(odoo, newsletter).await?;
    ensure!(odoo.values("mail.mail", json!([["id", "=", mail], ["state", "=", "exception"]]), "id").await?.is_empty());
    let newsletter = mailbox.opened(&format!("subject:\"{}\"", NEWSLETTER.to_lowercase())).await?;
    ensure!(
        newsletter["Cc"][0]["Address"] == "charles@example.com" && newsletter["Attachments"][0]["FileName"] == "price list.pdf",
        "{newsletter}"
    );
    for (query, at_least) in
        [("\"ready for review\"", 1), ("has:attachment", 2), ("from:shop@example.com", 2), ("to:grace@example.com", 1), ("no-such-word", 0)]
    {
        let found = mailbox.count(query).await?;
        ensure!(if at_least == 0 { found == 0 } else { found >= at_least }, "{query} finds {found}");
    }
    Ok(())
}

async fn what_is_handed_to_odoo_has_come(scene: &Scene, odoo: &Admin<'_>, mailbox: &Mailbox<'_>) -> Result<()> {
    let code = r#"
domain = env["mail.alias.domain"].search([], limit=1) or env["mail.alias.domain"].create({"name": "example.com"})
domain.write({"name": "example.com"})
env.company.write({"alias_domain_id": domain.id})
model = env["ir.model"]._get("shop.thing")
env["mail.alias"].create({"alias_name": "things", "alias_domain_id": domain.id, "alias_model_id": model.id, "alias_contact": "everyone"})
env.ref("base.user_admin").write({"login": "office@shop.example"})
"#;
    run(odoo, code).await?;
    // The administrator is whom Odoo calls so, by whatever login.
    let credentials = scene.owner.get(&format!("/instances/{}/credentials", text(&odoo.environment, "instanceId"))).await?;
    ensure!(credentials["login"] == "office@shop.example", "{}", credentials["login"]);
    let inject = format!("{}/inject", mailbox.base);
    let mail = json!({ "from": "Bob <bob@example.org>", "to": "things@example.com", "subject": "A new thing", "text": "Please make one." });
    let taken = scene.owner.post(&inject, &mail).await?;
    let things = odoo.call("shop.thing", "search_read", json!([[], ["name"]])).await?;
    ensure!(things[0]["name"] == "A new thing" && things[0]["id"] == taken["threadId"], "{things} {taken}");

    // Odoo answers, and the answer to that finds its way by the Message-Id alone.
    let thing = taken["threadId"].as_i64().context("no thread")?;
    let partner = odoo.call("res.partner", "create", json!([{ "name": "Bob", "email": "bob@example.org" }])).await?;
    let message =
        json!({ "body": "It is being made.", "message_type": "comment", "subtype_xmlid": "mail.mt_comment", "partner_ids": [partner] });
    odoo.call_with("shop.thing", "message_post", json!([[thing]]), message).await?;
    let answer = mailbox.opened("to:bob@example.org").await?;
    let reply_to = text(&answer["ReplyTo"][0], "Address");
    ensure!(reply_to.ends_with("@example.com"), "{answer}");
    let reply = json!({ "from": "bob@example.org", "to": reply_to, "subject": "Re: A new thing", "text": "Thank you, Odoo.", "inReplyTo": answer["MessageID"] });
    let taken = scene.owner.post(&inject, &reply).await?;
    ensure!(taken["threadId"] == thing, "{taken}");
    let domain = json!([["model", "=", "shop.thing"], ["res_id", "=", thing], ["body", "ilike", "Thank you, Odoo."]]);
    ensure!(odoo.values("mail.message", domain, "id").await?.len() == 1, "the reply is not in its thread");

    // Nobody's alias: what Odoo says is what the caller reads.
    let (status, problem) = scene
        .owner
        .request(Method::POST, &inject, Some(&json!({ "from": "bob@example.org", "to": "nobody@elsewhere.example", "text": "x" })))
        .await?;
    ensure!(status == 409 && !text(&problem, "detail").is_empty(), "{status} {problem}");
    Ok(())
}

fn the_command_line_shows_it(scene: &Scene) -> Result<()> {
    let run = |arguments: &[&str]| -> Result<String> {
        let output = scene.installation.command(&[&["mail"], arguments].concat()).env("OCORE_API_KEY", &scene.key).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ensure!(run(&["wait", "try", "--to", "ada", "--subject", "newsletter", "--timeout", "5"])?.contains(NEWSLETTER));
    ensure!(run(&["list", "try", "--search", "has:attachment"])?.contains(NEWSLETTER));
    ensure!(run(&["show", "try", "--raw"])?.to_lowercase().contains("message-id:"));
    let directory = tempfile::tempdir()?;
    run(&["export", "try", &directory.path().display().to_string(), "--search", "subject:newsletter"])?;
    ensure!(std::fs::read_dir(directory.path())?.count() == 1);
    let file = directory.path().join("in.eml");
    std::fs::write(
        &file,
        "From: eve@example.org\r\nTo: things@example.com\r\nSubject: By a program\r\nMessage-ID: <1@example.org>\r\n\r\nHello\r\n",
    )?;
    run(&["inject", "try", &file.display().to_string()])?;
    let nothing = scene
        .installation
        .command(&["mail", "wait", "try", "--subject", "never", "--timeout", "1"])
        .env("OCORE_API_KEY", &scene.key)
        .output()?;
    ensure!(!nothing.status.success());
    Ok(())
}

async fn nobody_else_sees_it(scene: &Scene, mailbox: &Mailbox<'_>) -> Result<()> {
    let stranger = scene.installation.owner("eve@example.com", "Elsewhere").await?;
    let paths = [
        "",
        "/",
        "/api/v1/messages",
        "/api/v1/message/latest/raw",
        "/api/v1/webui",
        "/view/latest.html",
        "/api/events",
        "-settings",
        "/api/v1/wait?timeout=0",
    ];
    for path in paths {
        let (status, _) = stranger.request(Method::GET, &format!("{}{path}", mailbox.base), None).await?;
        ensure!(status == 404, "a stranger gets {status} for {path:?}");
    }
    let changes = [
        (Method::DELETE, "/api/v1/messages"),
        (Method::POST, "/inject"),
        (Method::POST, "/api/v1/message/latest/release"),
        (Method::POST, "/api/v1/send"),
    ];
    for (method, path) in changes {
        let body = json!({ "to": "x@example.com", "from": "x@example.com" });
        let body = if path.ends_with("release") { json!({ "to": ["x@example.com"] }) } else { body };
        let (status, _) = stranger.request(method, &format!("{}{path}", mailbox.base), Some(&body)).await?;
        ensure!(status == 404, "a stranger gets {status} for {path:?}");
    }
    let nobody = reqwest::get(format!("{}/api{}/api/v1/messages", scene.owner.url, mailbox.base)).await?;
    ensure!(nobody.status() == 401, "{nobody:?}");

    // Paths that would lead out of the mailbox, to another one's or to the catcher's own administration. As bytes: a client would tidy them up.
    let address = scene.installation.api_address;
    for trick in [
        "../../../mailboxes",
        "%2e%2e/%2e%2e/mailboxes",
        "..%2f..%2fmailboxes",
        "api/v1/../../../../mailboxes",
        "//mailboxes",
        "%252e%252e/mailboxes",
        "view/..%5c..",
        "%00",
    ] {
        let mut stream = TcpStream::connect(address).await?;
        let path = format!("/api{}/{trick}", mailbox.base);
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n", scene.key);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400"), "{trick}: {answer}");
    }
    Ok(())
}

async fn only_released_mail_leaves(scene: &Scene, mailbox: &Mailbox<'_>, relay: &Outside) -> Result<()> {
    ensure!(relay.connections() == 0, "something has left already");
    let message = mailbox.opened("subject:newsletter").await?;
    let path = format!("{}/api/v1/message/{}/release", mailbox.base, text(&message, "ID"));
    let to = json!({ "to": ["tester@example.com"] });
    let (status, problem) = scene.owner.request(Method::POST, &path, Some(&to)).await?;
    ensure!(status == 403 && problem["code"] == "address_not_allowed", "{status} {problem}");
    ensure!(mailbox.get("api/v1/webui").await?["MessageRelay"]["Enabled"] == false, "nobody is on the list");
    scene.owner.put(&format!("{}-settings", mailbox.base), &json!({ "releaseAddresses": ["tester@example.com"] })).await?;
    let configuration = mailbox.get("api/v1/webui").await?;
    ensure!(
        configuration["MessageRelay"]["Enabled"] == true && configuration["MessageRelay"]["SMTPServer"] == relay.address.to_string(),
        "{configuration}"
    );
    scene.owner.post(&path, &to).await?;
    let messages = relay.messages();
    ensure!(messages.len() == 1 && messages[0].contains("[TEST try] A newsletter") && messages[0].contains("X-oCore-Test"), "{messages:?}");
    let audit = scene.owner.get("/audit").await?;
    ensure!(audit.to_string().contains("mail.release_started"), "{audit}");
    Ok(())
}

async fn a_server_that_a_person_adds_sends_nothing(scene: &Scene, odoo: &Admin<'_>) -> Result<()> {
    let outside = Outside::open().await?;
    let server = json!([{ "name": "Sneaky", "smtp_host": "127.0.0.1", "smtp_port": outside.address.port(), "sequence": 0 }]);
    let server = odoo.call("ir.mail_server", "create", server).await?;
    let values = json!({ "subject": "Out", "email_from": "shop@example.com", "email_to": "ada@example.com", "body_html": "x", "mail_server_id": server });
    let mail = odoo.call("mail.mail", "create", json!([values])).await?;
    odoo.call("mail.mail", "send", json!([[mail]])).await?;
    let sent = odoo.values("mail.mail", json!([["id", "=", mail], ["state", "=", "sent"]]), "id").await?;
    ensure!(sent.is_empty() && outside.connections() == 0, "a mail went out through a server that somebody added");
    let alone = eventually(PATIENCE, async || {
        let active = odoo.values("ir.mail_server", json!([]), "name").await.ok()?;
        (active == [json!("oCore mail catcher")]).then_some(())
    });
    alone.await.context("the added server stayed active")?;
    let environment = scene.environment("try").await?;
    ensure!(environment.to_string().contains("Sneaky"), "nobody is told that a server was switched off: {environment}");
    Ok(())
}

/// The mail catcher's process, by its record.
fn catcher(scene: &Scene) -> Option<i32> {
    let record = std::fs::read(scene.installation.home.join("mail/process.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    let pid = record["identity"]["pid"].as_i64().or_else(|| record["pid"].as_i64());
    pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| kill(Pid::from_raw(*pid), None).is_ok())
}

async fn a_killed_catcher_loses_nothing(scene: &Scene, odoo: &Admin<'_>, mailbox: &Mailbox<'_>) -> Result<()> {
    let before = catcher(scene).context("the catcher runs")?;
    // In the middle of what Odoo sends: what Odoo calls sent is there; what it could not leave it has kept or says so.
    let burst = async {
        for number in 0..40 {
            let values = json!({ "subject": format!("Burst {number}"), "email_from": "shop@example.com", "email_to": "ada@example.com", "body_html": "x" });
            let _ = send(odoo, values).await;
        }
    };
    let killed = async {
        let begun = eventually(PATIENCE, async || mailbox.count("subject:burst").await.ok().filter(|count| *count >= 10)).await;
        begun.context("the burst never began")?;
        kill(Pid::from_raw(before), Signal::SIGKILL)?;
        anyhow::Ok(())
    };
    let ((), killed) = tokio::join!(burst, killed);
    killed?;
    let again = eventually(PATIENCE, async || catcher(scene).filter(|pid| *pid != before)).await;
    again.context("the catcher was not started again")?;
    let answers = eventually(PATIENCE, async || mailbox.count("subject:burst").await.ok()).await;
    answers.context("the catcher does not answer again")?;
    let sent = odoo.values("mail.mail", json!([["subject", "like", "Burst"], ["state", "=", "sent"]]), "subject").await?;
    let list = mailbox.get("api/v1/search?query=subject%3Aburst&limit=200").await?;
    let caught: Vec<&str> =
        list["messages"].as_array().context("messages")?.iter().filter_map(|message| message["Subject"].as_str()).collect();
    ensure!(
        !sent.is_empty() && sent.iter().all(|subject| caught.contains(&subject.as_str().unwrap_or_default())),
        "sent {sent:?}, caught {caught:?}"
    );
    send(odoo, json!({ "subject": "After the kill", "email_from": "shop@example.com", "email_to": "ada@example.com", "body_html": "x" }))
        .await?;
    mailbox.opened("subject:\"after the kill\"").await?;
    ensure!(mailbox.count("subject:newsletter").await? == 1);
    Ok(())
}

async fn the_page_works_while_odoo_is_stopped(scene: &Scene, odoo: &Admin<'_>, mailbox: &Mailbox<'_>) -> Result<()> {
    let path = format!("/instances/{}/control", text(&odoo.environment, "instanceId"));
    scene.owner.post(&path, &json!({ "action": "stop" })).await?;
    let stopped = async || scene.environment("try").await.ok().filter(|environment| environment["instanceStatus"] == "stopped");
    eventually(PATIENCE, stopped).await.context("the instance does not stop")?;
    ensure!(mailbox.get("").await?.as_str().is_some_and(|page| page.contains("Caught mail")));
    ensure!(mailbox.count("subject:newsletter").await? == 1);
    ensure!(mailbox.get("view/latest.html").await?.is_string());
    let mail = json!({ "from": "bob@example.org", "to": "things@example.com", "text": "Hello" });
    let (status, problem) = scene.owner.request(Method::POST, &format!("{}/inject", mailbox.base), Some(&mail)).await?;
    ensure!(status == 409 && problem["code"] == "not_running", "{status} {problem}");
    ensure!(scene.environment("try").await?["instanceStatus"] == "stopped", "looking at mail has woken Odoo");
    Ok(())
}

/// The npm package `mailpit-api`, unchanged, and the events that a page follows, through the API.
async fn mailpits_client_works(scene: &Scene, odoo: &Admin<'_>, mailbox: &Mailbox<'_>) -> Result<()> {
    let mut request = format!("ws://{}/api{}/api/events", scene.installation.api_address, mailbox.base).into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {}", scene.key).parse()?);
    let (mut events, _) = tokio_tungstenite::connect_async(request).await?;
    let sent =
        json!({ "From": { "Email": "shop@example.com" }, "To": [{ "Email": "ada@example.com" }], "Subject": "An event", "Text": "x" });
    scene.owner.post(&format!("{}/api/v1/send", mailbox.base), &sent).await?;
    let event = tokio::time::timeout(PATIENCE, events.next()).await?.context("the websocket ended")??;
    let Message::Text(event) = event else { bail!("{event:?} is no event") };
    let event: Value = serde_json::from_str(&event)?;
    ensure!(event["Type"] == "new" && event["Data"]["Subject"] == "An event", "{event}");

    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mailpit-api");
    if Command::new("npm").arg("--version").output().is_err() {
        eprintln!("skipped: there is no npm, so the package mailpit-api was not tried");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    for file in ["package.json", "package-lock.json", "calls.mjs"] {
        std::fs::copy(source.join(file), directory.path().join(file))?;
    }
    let installed = tokio::process::Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(directory.path())
        .output()
        .await?;
    ensure!(installed.status.success(), "npm ci: {}", String::from_utf8_lossy(&installed.stderr));
    let headers = json!({ "authorization": format!("Bearer {}", scene.key) });
    let calls = tokio::process::Command::new("node")
        .arg("calls.mjs")
        .current_dir(directory.path())
        .env("OCORE_MAIL_URL", format!("{}/api/environments/{}/mail", scene.owner.url, text(&odoo.environment, "id")))
        .env("OCORE_MAIL_HEADERS", headers.to_string())
        .env("OCORE_MAIL_RELEASE_TO", "tester@example.com")
        .output()
        .await?;
    let said = String::from_utf8_lossy(&calls.stdout).into_owned();
    ensure!(calls.status.success(), "{said}{}", String::from_utf8_lossy(&calls.stderr));
    eprintln!("mailpit-api: {}", said.lines().last().unwrap_or_default());
    Ok(())
}
