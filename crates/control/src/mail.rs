//! Caught mail: every environment that is not production has a mailbox at its server's mail catcher, and its Odoo has no other outgoing server.
//!
//! The catcher keeps and shows messages; here is who may see them, and the two ways out and in that a person may open: a message released to
//! addresses on the environment's list, and one handed to Odoo as if it had come.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{MultiPart, SinglePart},
};
use ocore_host::{Administrator, HostError, MailStream};
use ocore_model::{
    environment::Stage,
    ids::{EnvironmentId, InstanceId},
    instance::InstanceStatus,
};
use serde_json::json;
use url::Url;

use crate::{
    Control, Error, FieldError, Result, audit,
    authorization::{Grant, ManageEnvironments, ViewEnvironments},
    secrets, sleep,
    store::{self, mail::MailRow},
};

/// Addresses on the list of one environment.
const ADDRESSES: usize = 50;
/// How long Odoo, or the server for released messages, may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// The one database of an instance.
const DATABASE: &str = "odoo";
/// What an Odoo may answer, in bytes: a number, or what it says against the mail.
const ANSWER_LIMIT: usize = 1 << 20;
/// Characters of what Odoo said that are shown.
const SAID: usize = 500;

/// The mailbox of an environment: the instance that names it at the catcher.
pub async fn mailbox(control: &Control, grant: &Grant<ViewEnvironments>, id: EnvironmentId) -> Result<InstanceId> {
    let found = store::mail::find(&mut *control.pool.acquire().await?, grant, id).await?;
    let row = caught(found.ok_or(Error::NotFound { what: "environment" })?)?;
    if row.mail_port.is_none() {
        apply(control, row.instance, row.stage).await.map_err(|error| match error {
            Error::NotFound { .. } => {
                Error::conflict("nothing_deployed", "nothing is deployed to this environment yet, so it has sent no mail")
            }
            other => other,
        })?;
    }
    Ok(row.instance)
}

/// A connection to the catcher. Who has it sees every mailbox.
pub async fn connect(control: &Control) -> Result<MailStream> {
    control.host.connect_mail().await.map_err(|error| {
        tracing::warn!(%error, "the mail catcher cannot be reached");
        Error::Unavailable { code: "mail_unavailable", message: "the mail catcher is being started; try again in a moment".to_owned() }
    })
}

fn caught(row: MailRow) -> Result<MailRow> {
    if row.stage == Stage::Production {
        return Err(Error::conflict(
            "production_sends",
            "a production environment sends its mail for real; there is no mail catcher to look into",
        ));
    }
    Ok(row)
}

/// Makes the mailbox of an instance that is about to get its first Odoo. When the catcher is away, the reconciler makes it: nothing leaves in the
/// meantime, since the network of such an instance is closed.
pub(crate) async fn prepare(control: &Control, instance: InstanceId) {
    let made = async {
        let stage = store::mail::stage_of(&mut *control.pool.acquire().await?, instance).await?;
        match stage {
            Some(stage) => apply(control, instance, stage).await,
            None => Ok(()),
        }
    };
    if let Err(error) = made.await {
        tracing::warn!(%instance, %error, "a mailbox could not be made; the mail reconciler tries again");
    }
}

async fn apply(control: &Control, instance: InstanceId, stage: Stage) -> Result<()> {
    let wanted = stage != Stage::Production;
    let port = if wanted { Some(i32::from(control.host.mail_address(instance).await?.port())) } else { None };
    control.host.set_mailbox(instance, wanted).await?;
    store::mail::set_port(&mut *control.pool.acquire().await?, instance, port).await
}

/// One run of the reconciler: mailboxes made and removed, and in each awake database one outgoing server.
pub(crate) async fn reconcile(control: &Control) -> Result<Vec<String>> {
    let rows = store::mail::of_server(&mut *control.pool.acquire().await?, control.server_id).await?;
    let mut changes = Vec::new();
    if rows.is_empty() {
        return Ok(changes);
    }
    let mailboxes = control.host.mailboxes().await?;
    for row in rows {
        let has = mailboxes.iter().any(|mailbox| mailbox.instance == row.instance) && row.mail_port.is_some();
        let wants = row.stage != Stage::Production;
        if has != wants && (wants || row.mail_port.is_some()) {
            match apply(control, row.instance, row.stage).await {
                Ok(()) if wants => changes.push(format!("{}: its mail is caught", row.branch)),
                Ok(()) => changes.push(format!("{}: its mail is not caught any more", row.branch)),
                // Its first deployment makes it.
                Err(Error::NotFound { .. }) => {}
                Err(error) => tracing::warn!(instance = %row.instance, %error, "a mailbox is not as it should be"),
            }
        }
        let Some(data_set) = row.data_set.filter(|_| wants && row.status == InstanceStatus::Running) else { continue };
        match control.host.catch_mail(row.instance, data_set).await {
            Ok(done) if done.is_empty() => {}
            Ok(done) => {
                let message = done.join(" ");
                store::environments::set_message(&mut *control.pool.acquire().await?, row.environment, &message).await?;
                changes.push(format!("{}: {message}", row.branch));
            }
            Err(HostError::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(instance = %row.instance, %error, "the outgoing mail servers of an environment were not looked at");
            }
        }
    }
    Ok(changes)
}

/// To whom messages of an environment may be released.
pub async fn release_list(control: &Control, grant: &Grant<ViewEnvironments>, id: EnvironmentId) -> Result<Vec<String>> {
    let found = store::mail::find(&mut *control.pool.acquire().await?, grant, id).await?;
    list_of(&caught(found.ok_or(Error::NotFound { what: "environment" })?)?)
}

fn list_of(row: &MailRow) -> Result<Vec<String>> {
    serde_json::from_value(row.release_to.clone()).map_err(|error| Error::internal("the list of addresses in the store", error))
}

/// How messages of an environment can be released, in Mailpit's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relay {
    /// Host and port of the installation's server for released mail; `None` when nothing can be released, be it for want of a server or of
    /// addresses on the list.
    pub server: Option<String>,
    /// Whom that server is told to tell of failures; may be empty.
    pub sender: String,
    /// A regular expression that the list's addresses, and no others, fit.
    pub allowed: String,
}

/// What a client may know of the way out before it tries it.
pub async fn relay(control: &Control, grant: &Grant<ViewEnvironments>, id: EnvironmentId) -> Result<Relay> {
    let allowed = release_list(control, grant, id).await?;
    let Some(settings) = control.settings.mail_relay.as_ref().filter(|_| !allowed.is_empty()) else { return Ok(Relay::default()) };
    let url = Url::parse(&settings.url).map_err(|error| Error::internal("mail.relay_url", error))?;
    let port = url.port().unwrap_or(if url.scheme() == "smtps" { 465 } else { 25 });
    Ok(Relay {
        server: Some(format!("{}:{port}", url.host_str().unwrap_or_default())),
        sender: settings.sender.clone(),
        allowed: one_of(&allowed),
    })
}

/// A regular expression for these addresses in whatever case.
fn one_of(addresses: &[String]) -> String {
    let literal = |address: &String| -> String {
        let special =
            |c: char| !c.is_alphanumeric() && !matches!(c, '@' | '_' | '-' | '%' | '!' | '#' | '&' | '\'' | '=' | '~' | '`' | '/');
        address.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
    };
    format!("(?i)^({})$", addresses.iter().map(literal).collect::<Vec<_>>().join("|"))
}

/// Replaces the list. Audited.
pub async fn set_release_list(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    id: EnvironmentId,
    addresses: Vec<String>,
) -> Result<Vec<String>> {
    let mut transaction = control.pool.begin().await?;
    let found = store::mail::find(&mut transaction, grant, id).await?;
    caught(found.ok_or(Error::NotFound { what: "environment" })?)?;
    let addresses: Vec<String> = addresses.into_iter().map(|address| address.trim().to_owned()).collect();
    let wrong = |(index, address): (usize, &String)| {
        let error = address.parse::<Address>().err()?;
        Some(FieldError { field: format!("releaseAddresses[{index}]"), message: format!("is no address: {error}") })
    };
    let mut fields: Vec<FieldError> = addresses.iter().enumerate().filter_map(wrong).collect();
    if addresses.len() > ADDRESSES {
        fields.push(FieldError { field: "releaseAddresses".to_owned(), message: format!("give at most {ADDRESSES}") });
    }
    if !fields.is_empty() {
        return Err(Error::Invalid { fields });
    }
    store::mail::set_release_to(&mut transaction, grant, id, &json!(addresses)).await?;
    let detail = json!({ "addresses": addresses });
    audit::record(&mut transaction, control, grant, "mail.release_list_changed", &format!("environment:{id}"), &detail).await?;
    transaction.commit().await?;
    Ok(addresses)
}

/// Sends a caught message, marked as a test, to addresses on the environment's list. Audited.
pub async fn release(
    control: &Control,
    grant: &Grant<ManageEnvironments>,
    id: EnvironmentId,
    message: &str,
    raw: &Bytes,
    to: &[String],
) -> Result<()> {
    let found = store::mail::find(&mut *control.pool.acquire().await?, grant, id).await?;
    let row = caught(found.ok_or(Error::NotFound { what: "environment" })?)?;
    let allowed = list_of(&row)?;
    if to.is_empty() {
        return Err(Error::invalid("to", "give at least one address"));
    }
    if let Some(other) = to.iter().find(|address| !allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(address))) {
        return Err(Error::forbidden(
            "address_not_allowed",
            format!("{other} is not on this environment's list; add it to the list first, or release to: {}", allowed.join(", ")),
        ));
    }
    let relay = control.settings.mail_relay.as_ref().ok_or_else(|| {
        Error::conflict("no_relay", "this installation releases no mail: no server for it is set; see [mail] relay_url in ocore.toml")
    })?;
    let receivers = to.iter().map(|to| to.parse()).collect::<std::result::Result<Vec<Address>, _>>();
    let receivers = receivers.map_err(|error| Error::invalid("to", error.to_string()))?;
    let sender = Some(relay.sender.as_str()).filter(|sender| !sender.is_empty()).map(str::parse).transpose();
    let sender: Option<Address> = sender.map_err(|error| Error::internal("mail.relay_sender", error))?;
    let envelope = lettre::address::Envelope::new(sender, receivers).map_err(|error| Error::invalid("to", error.to_string()))?;
    let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(&relay.url)
        .map_err(|error| Error::internal("mail.relay_url", error))?
        .timeout(Some(PATIENCE))
        .build();
    let mut transaction = control.pool.begin().await?;
    let detail = json!({ "message": message, "to": to, "bytes": raw.len() });
    audit::record(&mut transaction, control, grant, "mail.release_started", &format!("environment:{id}"), &detail).await?;
    // Before anything leaves: what may have left is in the log.
    transaction.commit().await?;
    transport
        .send_raw(&envelope, &marked(raw, &row.branch))
        .await
        .map_err(|error| Error::conflict("relay_refused", format!("the server for released mail did not take the message: {error}")))?;
    Ok(())
}

/// The message with a subject and a header that say that it is a test.
fn marked(raw: &[u8], branch: &str) -> Vec<u8> {
    let branch: String = branch.chars().filter(char::is_ascii_graphic).collect();
    let mut marked = format!("X-oCore-Test: released by hand from the environment {branch}\r\n").into_bytes();
    let mut in_headers = true;
    let mut has_subject = false;
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        if in_headers && matches!(line, b"\r\n" | b"\n") {
            in_headers = false;
            if !has_subject {
                marked.extend(format!("Subject: [TEST {branch}]\r\n").bytes());
            }
        }
        if in_headers && !has_subject && line.len() > 8 && line[..8].eq_ignore_ascii_case(b"subject:") {
            has_subject = true;
            marked.extend(format!("Subject: [TEST {branch}]").bytes());
            marked.extend(&line[8..]);
        } else {
            marked.extend(line);
        }
    }
    marked
}

/// A mail that is handed to Odoo as if it had come.
#[derive(Debug, Clone, Default)]
pub struct InboundMail {
    /// The whole message; then nothing else counts.
    pub raw: Option<Vec<u8>>,
    pub from: String,
    pub to: Vec<String>,
    pub subject: String,
    pub text: String,
    pub html: Option<String>,
    /// The message that it answers.
    pub in_reply_to: Option<String>,
}

impl InboundMail {
    fn message(self) -> Result<Vec<u8>> {
        if let Some(raw) = self.raw {
            return Ok(raw);
        }
        let parse =
            |field: &str, address: &str| address.trim().parse().map_err(|error| Error::invalid(field, format!("is no address: {error}")));
        let mut builder = Message::builder().from(parse("from", &self.from)?).subject(self.subject).message_id(None);
        if self.to.is_empty() {
            return Err(Error::invalid("to", "give the address that it goes to: an alias of Odoo, or the address to answer to"));
        }
        for to in &self.to {
            builder = builder.to(parse("to", to)?);
        }
        if let Some(answered) = self.in_reply_to.filter(|id| !id.trim().is_empty()) {
            let id: String = answered.chars().filter(|c| !c.is_control()).collect();
            let id = if id.starts_with('<') { id } else { format!("<{id}>") };
            builder = builder.in_reply_to(id.clone()).references(id);
        }
        let built = match self.html {
            Some(html) => {
                builder.multipart(MultiPart::alternative().singlepart(SinglePart::plain(self.text)).singlepart(SinglePart::html(html)))
            }
            None => builder.singlepart(SinglePart::plain(self.text)),
        };
        built.map(|message| message.formatted()).map_err(|error| Error::invalid("body", error.to_string()))
    }
}

/// Hands a mail to the environment's Odoo the way its mail gateway is fed (`mail.thread.message_process`; Odoo's own `odoo-mailgate.py`). The id of
/// the record that took it, if Odoo says one.
pub async fn inject(control: &Control, grant: &Grant<ManageEnvironments>, id: EnvironmentId, mail: InboundMail) -> Result<Option<i64>> {
    let mut connection = control.pool.acquire().await?;
    let found = store::mail::find(&mut connection, grant, id).await?;
    let row = caught(found.ok_or(Error::NotFound { what: "environment" })?)?;
    let message = mail.message()?;
    let row = if row.status == InstanceStatus::Asleep {
        drop(connection);
        sleep::wake_and_wait(control, row.instance).await?;
        connection = control.pool.acquire().await?;
        caught(store::mail::find(&mut connection, grant, id).await?.ok_or(Error::NotFound { what: "environment" })?)?
    } else {
        row
    };
    let http = row.http.filter(|_| row.status == InstanceStatus::Running);
    let http = http.ok_or_else(|| Error::conflict("not_running", "the environment's Odoo does not run; start it first"))?;
    let sealed = store::instances::admin_password(&mut connection, grant, row.instance).await?;
    drop(connection);
    let sealed = sealed.ok_or_else(|| Error::conflict("no_password", "oCore has no password of this Odoo, so it cannot hand it a mail"))?;
    let place = secrets::Place { table: "instances", column: "admin_password", row: row.instance.as_uuid() };
    let password = secrets::open(&control.settings, place, &sealed)?;
    let text = |value: &str| format!("<string>{}</string>", escape(value));
    let administrator = match row.data_set {
        Some(data_set) => control.host.administrator(row.instance, data_set).await?,
        None => None,
    };
    let administrator = administrator.ok_or_else(|| {
        Error::conflict("not_running", "the environment's database does not run, or holds no administrator; start it first")
    })?;
    let login = [text(DATABASE), text(&administrator.login), text(password.expose_text()?), "<struct></struct>".to_owned()];
    let user = integer(&call(&http, "common", "authenticate", &login).await?).ok_or_else(|| refused(&administrator))?;
    let arguments = format!(
        "<array><data><value><boolean>0</boolean></value><value><base64>{}</base64></value></data></array>",
        BASE64.encode(message)
    );
    let process = [
        text(DATABASE),
        format!("<int>{user}</int>"),
        text(password.expose_text()?),
        text("mail.thread"),
        text("message_process"),
        arguments,
    ];
    Ok(integer(&call(&http, "object", "execute_kw", &process).await?))
}

/// Why Odoo does not let its administrator in.
fn refused(administrator: &Administrator) -> Error {
    let login = &administrator.login;
    if !administrator.is_active {
        return Error::conflict(
            "administrator_archived",
            format!("Odoo's administrator `{login}` is archived, so oCore cannot hand Odoo a mail; restore that user"),
        );
    }
    if administrator.has_second_factor {
        return Error::conflict(
            "second_factor",
            format!(
                "Odoo asks its administrator `{login}` for a second factor, so oCore cannot hand it a mail; switch that off in this environment"
            ),
        );
    }
    Error::conflict(
        "password_changed",
        format!("Odoo does not take the password that oCore knows; somebody has changed the one of `{login}`"),
    )
}

/// One XML-RPC call of Odoo's external API; the answer's text, or what Odoo said against it.
async fn call(http: &str, service: &str, method: &str, parameters: &[String]) -> Result<String> {
    let parameters: Vec<String> = parameters.iter().map(|parameter| format!("<param><value>{parameter}</value></param>")).collect();
    let parameters = parameters.concat();
    let body = format!("<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{parameters}</params></methodCall>");
    let unreachable =
        |error: reqwest::Error| Error::conflict("odoo_away", format!("the environment's Odoo did not answer: {}", error.without_url()));
    // The call holds a password: it goes where the Odoo is, and nowhere that its answer names.
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE).build();
    let client = client.map_err(unreachable)?;
    let response = client.post(format!("http://{http}/xmlrpc/2/{service}")).header("content-type", "text/xml").body(body).send().await;
    let mut response = response.map_err(unreachable)?;
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if answer.len() + chunk.len() > ANSWER_LIMIT {
            return Err(Error::conflict("odoo_away", "the environment's Odoo answers without an end; look at the code that it runs"));
        }
        answer.extend_from_slice(&chunk);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if let Some((_, fault)) = answer.split_once("<fault>") {
        let said = fault.split_once("faultString").and_then(|(_, rest)| between(rest, "<string>", "</string>")).unwrap_or_default();
        let said = unescape(said);
        let last: String = said.trim().lines().last().unwrap_or_default().chars().filter(|c| !c.is_control()).take(SAID).collect();
        return Err(Error::conflict("odoo_refused", format!("Odoo did not take the mail: {last}")));
    }
    Ok(answer)
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

fn integer(answer: &str) -> Option<i64> {
    between(answer, "<int>", "</int>").or_else(|| between(answer, "<i4>", "</i4>"))?.parse().ok()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_message_says_that_it_is_a_test() {
        let raw = b"From: a@example.com\r\nSUBJECT: Offer\r\n\r\nSubject: not this one\r\n";
        let marked = String::from_utf8(marked(raw, "feature/x\r\nBcc: evil@example.com")).unwrap();
        assert_eq!(marked.lines().next(), Some("X-oCore-Test: released by hand from the environment feature/xBcc:evil@example.com"));
        assert!(marked.contains("Subject: [TEST feature/xBcc:evil@example.com] Offer\r\n\r\nSubject: not this one"), "{marked}");
    }

    #[test]
    fn a_written_mail_answers_and_keeps_to_its_lines() {
        let mail = InboundMail {
            from: "Bob <bob@example.com>".to_owned(),
            to: vec!["catchall@example.com".to_owned()],
            subject: "Re: Offer\r\nBcc: evil@example.com".to_owned(),
            text: "Yes".to_owned(),
            in_reply_to: Some("1@shop".to_owned()),
            ..InboundMail::default()
        };
        let text = String::from_utf8(mail.message().unwrap()).unwrap();
        assert!(text.contains("In-Reply-To: <1@shop>") && !text.contains("\r\nBcc:"), "{text}");
    }

    #[test]
    fn the_list_is_written_as_mailpit_writes_it() {
        assert_eq!(one_of(&["a.b+c@example.com".to_owned(), "d@x-y.org".to_owned()]), r"(?i)^(a\.b\+c@example\.com|d@x-y\.org)$");
    }

    /// An Odoo of somebody's own making: it answers one request with `head`, and then with `body` again and again, until nobody reads any more.
    async fn odoo(head: &'static str, body: &'static [u8]) -> (String, tokio::task::JoinHandle<usize>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64 * 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut written = 0;
            while !body.is_empty() && written < 1 << 30 && stream.write_all(body).await.is_ok() {
                written += body.len();
            }
            written
        });
        (address, server)
    }

    #[tokio::test]
    async fn an_odoo_that_answers_without_an_end_is_not_read_to_it() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (address, server) = odoo("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &[b'x'; 16 * 1024]).await;
        let refused = call(&address, "common", "authenticate", &[]).await.unwrap_err();
        assert!(refused.to_string().contains("without an end"), "{refused}");
        let written = server.await.unwrap();
        assert!(written < 64 << 20, "{written} bytes were read");
    }

    #[tokio::test]
    async fn the_password_does_not_go_where_an_answer_leads() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (elsewhere, other) = odoo("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"").await;
        let head = format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{elsewhere}/\r\nContent-Length: 0\r\n\r\n");
        let (address, server) = odoo(Box::leak(head.into_boxed_str()), b"").await;
        let _ = call(&address, "common", "authenticate", &["<string>secret</string>".to_owned()]).await;
        server.await.unwrap();
        assert!(!other.is_finished(), "somebody else was asked");
        other.abort();
    }

    #[test]
    fn odoos_answers_are_read() {
        assert_eq!(integer("<params><param><value><int>42</int></value></param></params>"), Some(42));
        assert_eq!(integer("<params><param><value><boolean>0</boolean></value></param></params>"), None);
    }
}
