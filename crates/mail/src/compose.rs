//! A message made from the fields of Mailpit's `POST /api/v1/send`.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use lettre::{
    Address, Message,
    message::{
        Attachment, Mailbox, MultiPart, SinglePart,
        header::{ContentType, HeaderName, HeaderValue},
    },
};
use serde::Deserialize;

use crate::message::Envelope;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Named {
    email: String,
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct File {
    content: String,
    filename: String,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(rename = "ContentID", default)]
    content_id: Option<String>,
}

/// The body of `POST /api/v1/send`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Draft {
    from: Named,
    #[serde(default)]
    to: Vec<Named>,
    #[serde(default)]
    cc: Vec<Named>,
    #[serde(default)]
    bcc: Vec<String>,
    #[serde(default)]
    reply_to: Vec<Named>,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    text: String,
    #[serde(rename = "HTML", default)]
    html: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    attachments: Vec<File>,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
}

fn mailbox(named: &Named) -> Result<Mailbox, String> {
    let address: Address = named.email.parse().map_err(|error| format!("{}: {error}", named.email))?;
    Ok(Mailbox::new(Some(named.name.clone()).filter(|name| !name.is_empty()), address))
}

/// The message and who it goes to; or what is wrong with the draft.
pub(crate) fn compose(draft: &Draft) -> Result<(Envelope, Vec<u8>), String> {
    let mut envelope = Envelope { from: draft.from.email.clone(), to: Vec::new() };
    let mut builder = Message::builder().from(mailbox(&draft.from)?).subject(draft.subject.clone());
    for named in &draft.to {
        builder = builder.to(mailbox(named)?);
        envelope.to.push(named.email.clone());
    }
    for named in &draft.cc {
        builder = builder.cc(mailbox(named)?);
        envelope.to.push(named.email.clone());
    }
    for named in &draft.reply_to {
        builder = builder.reply_to(mailbox(named)?);
    }
    envelope.to.extend(draft.bcc.iter().cloned());
    if !draft.headers.keys().any(|name| name.eq_ignore_ascii_case("message-id")) {
        builder = builder.message_id(None);
    }
    for (name, value) in &draft.headers {
        let name = HeaderName::new_from_ascii(name.clone()).map_err(|error| format!("a header's name: {error}"))?;
        builder = builder.raw_header(HeaderValue::new(name, value.replace(['\r', '\n'], " ")));
    }
    let text = SinglePart::plain(draft.text.clone());
    let mut body = if draft.html.is_empty() {
        MultiPart::mixed().singlepart(text)
    } else {
        MultiPart::mixed().multipart(MultiPart::alternative().singlepart(text).singlepart(SinglePart::html(draft.html.clone())))
    };
    for file in &draft.attachments {
        let content = STANDARD.decode(&file.content).map_err(|_| format!("{}: the content is not base64", file.filename))?;
        let kind =
            ContentType::parse(file.content_type.as_deref().unwrap_or("application/octet-stream")).map_err(|error| error.to_string())?;
        let attachment = match &file.content_id {
            Some(id) => Attachment::new_inline_with_name(id.clone(), file.filename.clone()),
            None => Attachment::new(file.filename.clone()),
        };
        body = body.singlepart(attachment.body(content, kind));
    }
    if envelope.to.is_empty() {
        return Err("give at least one recipient".to_owned());
    }
    // Only a header of its own says who a message goes to; the builder's envelope is not used.
    let receivers = envelope.to.iter().map(|to| to.parse()).collect::<Result<Vec<Address>, _>>().map_err(|error| error.to_string())?;
    let sender: Address = draft.from.email.parse().map_err(|error| format!("{}: {error}", draft.from.email))?;
    let builder = builder.envelope(lettre::address::Envelope::new(Some(sender), receivers).map_err(|error| error.to_string())?);
    let message = builder.multipart(body).map_err(|error| error.to_string())?;
    Ok((envelope, message.formatted()))
}
