//! What is shown of a message. Names of fields are Mailpit's (https://mailpit.axllent.org/docs/api-v1/); whatever a message is made of, there is
//! something to show.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use mail_parser::{Address as ParsedAddress, HeaderName, Message, MessagePart, MimeHeaders, PartType, decoders::html::html_to_text};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::parse::{self, Readable};

/// Characters of the beginning that a list shows.
const SNIPPET: usize = 250;
/// Bytes of the text in which a search without a field looks.
const SEARCHED_TEXT: usize = 64 << 10;
/// The same of old messages in a mailbox whose list has grown too large.
const SEARCHED_BEGINNING: usize = 4 << 10;
/// Names and addresses in one list: as many as one mail may have receivers.
const ADDRESSES: usize = 1000;
/// Names of files in which a search looks.
const FILES: usize = 100;
/// Tags that a message may bring.
const TAGS: usize = 50;
const HEADER_TEXT: usize = 1000;
/// Bytes of all names and addresses in one list: a list of them is kept in memory for each message.
const ADDRESS_BYTES: usize = 64 << 10;
/// Bytes of HTML in which text is looked for.
const SEARCHED_HTML: usize = 512 << 10;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Address {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// A message as a list shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Summary {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "MessageID")]
    pub(crate) message_id: String,
    pub(crate) read: bool,
    pub(crate) from: Option<Address>,
    pub(crate) to: Vec<Address>,
    pub(crate) cc: Vec<Address>,
    pub(crate) bcc: Vec<Address>,
    pub(crate) reply_to: Vec<Address>,
    pub(crate) subject: String,
    pub(crate) created: DateTime<Utc>,
    pub(crate) username: String,
    pub(crate) tags: Vec<String>,
    pub(crate) size: u64,
    pub(crate) attachments: usize,
    pub(crate) snippet: String,
}

/// What SMTP said about a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
}

impl Envelope {
    /// Of all recipients.
    pub(crate) fn bytes(&self) -> usize {
        self.to.iter().map(String::len).sum()
    }
}

/// What is kept beside a message, so that a list and a search need not read it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) summary: Summary,
    pub(crate) envelope: Envelope,
    /// In lower case, with one space for each space and end of line: the text, that of the HTML, and the names of attachments.
    pub(crate) text: String,
    /// Files that the HTML shows.
    #[serde(default)]
    pub(crate) inline: usize,
    /// It brought tags.
    #[serde(default)]
    pub(crate) came_tagged: bool,
}

impl Kept {
    pub(crate) fn new(id: Uuid, envelope: Envelope, raw: &[u8], created: DateTime<Utc>) -> Self {
        let readable = Readable::new(raw);
        let whole = readable.parse();
        let parsed = if whole.is_some() { None } else { readable.headers() };
        let mut summary = Summary {
            id: id.simple().to_string(),
            message_id: String::new(),
            read: false,
            from: (!envelope.from.is_empty()).then(|| Address { name: String::new(), address: envelope.from.clone() }),
            to: Vec::new(),
            cc: Vec::new(),
            bcc: Vec::new(),
            reply_to: Vec::new(),
            subject: String::new(),
            created,
            username: String::new(),
            tags: Vec::new(),
            size: raw.len() as u64,
            attachments: 0,
            snippet: String::new(),
        };
        let (mut text, mut inline) = (Vec::new(), 0);
        let mut named = HashSet::new();
        if let Some(message) = whole.as_ref().or(parsed.as_ref()) {
            summary.message_id = message.message_id().map(line).unwrap_or_default();
            summary.from = addresses(message.from()).into_iter().next().or(summary.from);
            summary.to = addresses(message.to());
            summary.cc = addresses(message.cc());
            summary.reply_to = addresses(message.reply_to());
            summary.subject = message.subject().map(line).unwrap_or_default();
            let parts = parts(message);
            summary.attachments = parts.iter().filter(|part| !part.inline).count();
            inline = parts.len() - summary.attachments;
            let bodies = bodies(message);
            let seen = bodies.first().map(|body| cut(body, SEARCHED_TEXT).replace(is_invisible, "")).unwrap_or_default();
            summary.snippet = seen.split_whitespace().flat_map(|word| [word, " "]).flat_map(str::chars).take(SNIPPET).collect::<String>();
            summary.snippet.truncate(summary.snippet.trim_end().len());
            // The names first, so that a long text leaves room for them.
            text.extend(parts.iter().take(FILES).map(|part| part.file_name.clone()));
            text.extend(bodies);
            named = [message.to(), message.cc()].into_iter().flatten().flat_map(ParsedAddress::iter).filter_map(named_address).collect();
            summary.tags = tags_of(message);
        }
        // Mailpit's way: who was written to without being named.
        let hidden = envelope.to.iter().filter(|address| !named.contains(&address.to_lowercase())).take(ADDRESSES);
        summary.bcc = hidden.map(|address| Address { name: String::new(), address: line(address) }).collect();
        let addressed = [&summary.to, &summary.cc, &summary.bcc].into_iter().flatten().chain(&summary.from);
        let plus =
            addressed.filter_map(|address| address.address.rsplit_once('@')?.0.split_once('+')).flat_map(|(_, tags)| tags.split('+'));
        let tags: Vec<String> = plus.map(str::to_owned).collect();
        summary.tags.extend(tags);
        summary.tags = fitting_tags(&summary.tags);
        let came_tagged = !summary.tags.is_empty();
        Self { summary, envelope, text: searched(&text), inline, came_tagged }
    }

    /// Keeps the beginning of the text alone.
    pub(crate) fn shorten(&mut self) {
        self.text.truncate(self.text.floor_char_boundary(SEARCHED_BEGINNING));
        self.text.shrink_to_fit();
    }
    /// What it takes in memory, about.
    pub(crate) fn size(&self) -> usize {
        let Summary { message_id, from, to, cc, bcc, reply_to, subject, tags, snippet, .. } = &self.summary;
        let lists = [to, cc, bcc, reply_to].into_iter().flatten().chain(from);
        let addresses: usize = lists.map(|address| size_of::<Address>() + address.name.len() + address.address.len()).sum();
        let strings = self.envelope.to.iter().chain(tags).chain([message_id, subject, snippet, &self.envelope.from, &self.text]);
        size_of::<Self>() + addresses + strings.map(|text| size_of::<String>() + text.len()).sum::<usize>()
    }
}

/// Of a file's content, in hexadecimal digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Checksums {
    #[serde(rename = "MD5")]
    md5: String,
    #[serde(rename = "SHA1")]
    sha1: String,
    #[serde(rename = "SHA256")]
    sha256: String,
}

impl Checksums {
    fn of(content: &[u8]) -> Self {
        let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
        let hex = |digest: &[u8]| digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        Self {
            md5: hex(&<md5::Md5 as md5::Digest>::digest(content)),
            sha1: hex(&<sha1::Sha1 as sha1::Digest>::digest(content)),
            sha256: hex(&<sha2::Sha256 as sha2::Digest>::digest(content)),
        }
    }
}

/// A part that is a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Part {
    #[serde(rename = "PartID")]
    pub(crate) part_id: String,
    pub(crate) file_name: String,
    pub(crate) content_type: String,
    #[serde(rename = "ContentID")]
    pub(crate) content_id: String,
    pub(crate) size: usize,
    /// Empty where only a list needs the part: they cost more than all the rest.
    pub(crate) checksums: Checksums,
    #[serde(skip)]
    pub(crate) inline: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListUnsubscribe {
    pub(crate) header: String,
    pub(crate) links: Vec<String>,
    pub(crate) errors: String,
    pub(crate) header_post: String,
}

/// A message in full.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Detail {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "MessageID")]
    pub(crate) message_id: String,
    pub(crate) from: Option<Address>,
    pub(crate) to: Vec<Address>,
    pub(crate) cc: Vec<Address>,
    pub(crate) bcc: Vec<Address>,
    pub(crate) reply_to: Vec<Address>,
    pub(crate) return_path: String,
    pub(crate) subject: String,
    pub(crate) list_unsubscribe: ListUnsubscribe,
    pub(crate) date: DateTime<Utc>,
    pub(crate) tags: Vec<String>,
    pub(crate) username: String,
    pub(crate) text: String,
    #[serde(rename = "HTML")]
    pub(crate) html: String,
    pub(crate) size: u64,
    pub(crate) inline: Vec<Part>,
    pub(crate) attachments: Vec<Part>,
}

impl Detail {
    pub(crate) fn new(kept: &Kept, raw: &[u8]) -> Self {
        let summary = &kept.summary;
        let mut detail = Self {
            id: summary.id.clone(),
            message_id: summary.message_id.clone(),
            from: summary.from.clone(),
            to: summary.to.clone(),
            cc: summary.cc.clone(),
            bcc: summary.bcc.clone(),
            reply_to: summary.reply_to.clone(),
            return_path: kept.envelope.from.clone(),
            subject: summary.subject.clone(),
            list_unsubscribe: ListUnsubscribe::default(),
            date: summary.created,
            tags: summary.tags.clone(),
            username: String::new(),
            text: String::new(),
            html: String::new(),
            size: summary.size,
            inline: Vec::new(),
            attachments: Vec::new(),
        };
        let readable = Readable::new(raw);
        let Some(message) = readable.parse() else {
            detail.text = String::from_utf8_lossy(raw).into_owned();
            return detail;
        };
        if let Some(date) = message.date().and_then(|date| DateTime::from_timestamp(date.to_timestamp(), 0)) {
            detail.date = date;
        }
        detail.text = text_of(&message);
        detail.html = html_of(&message);
        let mut files = parts(&message);
        for file in &mut files {
            let content = file.part_id.parse().ok().and_then(|position: u32| message.part(position)).map(MessagePart::contents);
            file.checksums = content.map(Checksums::of).unwrap_or_default();
        }
        (detail.inline, detail.attachments) = files.into_iter().partition(|part| part.inline);
        let header = |name: &'static str| message.header_raw(HeaderName::Other(name.into())).map(line).unwrap_or_default();
        let unsubscribe = message.header_raw(HeaderName::ListUnsubscribe).map(line).unwrap_or_default();
        detail.list_unsubscribe = ListUnsubscribe {
            links: unsubscribe.split(['<', '>']).filter(|part| part.contains(':')).map(|part| part.trim().to_owned()).collect(),
            header: unsubscribe,
            errors: String::new(),
            header_post: header("List-Unsubscribe-Post"),
        };
        detail
    }
}

/// What is to be read in a message: its text, and the text of its HTML, unless there is none.
fn bodies(message: &Message) -> Vec<String> {
    let html = html_of(message);
    [text_of(message), html_to_text(cut(&html, SEARCHED_HTML))].into_iter().filter(|body| !body.trim().is_empty()).collect()
}

/// In lower case, every space and end of line as one space, within a bound.
fn searched(texts: &[String]) -> String {
    let mut searched = String::new();
    for word in texts.iter().flat_map(|text| text.split_whitespace()) {
        if searched.len() + word.len() >= SEARCHED_TEXT {
            break;
        }
        searched.extend(word.chars().flat_map(char::to_lowercase));
        searched.push(' ');
    }
    searched
}

fn named_address(address: &mail_parser::Addr<'_>) -> Option<String> {
    address.address().map(|address| line(address).to_lowercase())
}

/// Those that a sender writes into `X-Tags`, parted by commas.
fn tags_of(message: &Message) -> Vec<String> {
    let header = message.header_raw(HeaderName::Other("X-Tags".into())).unwrap_or_default();
    header.split(',').map(str::to_owned).collect()
}

/// As Mailpit takes them: what it does not allow in a tag is left out of it.
fn fitting_tags(tags: &[String]) -> Vec<String> {
    let fitting = |tag: &String| {
        let allowed: String =
            tag.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).filter(|c| is_tag(*c)).take(TAG_LENGTH).collect();
        allowed.trim().to_owned()
    };
    let mut tags: Vec<String> = tags.iter().map(fitting).filter(|tag| !tag.is_empty()).collect();
    tags.sort();
    tags.dedup_by(|one, other| one.to_lowercase() == other.to_lowercase());
    tags.truncate(TAGS);
    tags
}

/// Characters of one tag.
pub(crate) const TAG_LENGTH: usize = 100;

/// May be in a tag.
pub(crate) fn is_tag(character: char) -> bool {
    character.is_alphanumeric() || " -_.@".contains(character)
}

fn text_of(message: &Message) -> String {
    let bodies = message.text_bodies().filter_map(|part| match &part.body {
        PartType::Text(text) => Some(text.as_ref()),
        _ => None,
    });
    bodies.collect::<Vec<_>>().join("\n")
}

fn html_of(message: &Message) -> String {
    let bodies = message.html_bodies().filter_map(|part| match &part.body {
        PartType::Html(html) => Some(html.as_ref()),
        _ => None,
    });
    bodies.collect::<Vec<_>>().join("\n")
}

/// The HTML of a message, or its text when it has none; and the files that the HTML shows by their content id.
pub(crate) struct Body {
    pub(crate) html: Option<String>,
    pub(crate) text: String,
    /// Content id to media type and content.
    pub(crate) inline: Arc<BTreeMap<String, (String, Vec<u8>)>>,
}

impl Body {
    pub(crate) fn new(raw: &[u8]) -> Self {
        let readable = Readable::new(raw);
        let Some(message) = readable.parse() else {
            return Self { html: None, text: String::from_utf8_lossy(raw).into_owned(), inline: Arc::default() };
        };
        let html = Some(html_of(&message)).filter(|html| !html.trim().is_empty());
        let inline = message
            .parts
            .iter()
            .filter_map(|part| Some((part.content_id()?.to_owned(), (media_type(part), part.contents().to_vec()))))
            .collect();
        Self { html, text: text_of(&message), inline: Arc::new(inline) }
    }
}

/// Every header with its values, in the order of the message.
pub(crate) fn headers(raw: &[u8]) -> Vec<(String, Vec<String>)> {
    let readable = Readable::new(raw);
    let Some(message) = readable.headers() else { return Vec::new() };
    let mut headers: Vec<(String, Vec<String>)> = Vec::new();
    for header in message.parts.first().map(MessagePart::headers).unwrap_or_default() {
        let value = raw.get(header.offset_start() as usize..header.offset_end() as usize).unwrap_or_default();
        let value = String::from_utf8_lossy(value).replace(['\r', '\n'], "").trim().to_owned();
        let name = canonical(header.name());
        match headers.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => headers.push((name, vec![value])),
        }
    }
    headers
}

/// A header's name as Go writes it, and so Mailpit: `Message-Id`.
fn canonical(name: &str) -> String {
    let word = |word: &str| {
        let mut characters = word.chars();
        characters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(characters.map(|c| c.to_ascii_lowercase())).collect()
    };
    name.split('-').map(word).collect::<Vec<String>>().join("-")
}

/// A part's media type, file name and content.
pub(crate) fn part(raw: &[u8], part_id: &str) -> Option<(Part, Vec<u8>)> {
    let readable = Readable::new(raw);
    let message = readable.parse()?;
    let position: u32 = part_id.parse().ok()?;
    let found = message.part(position)?;
    Some((describe(position, found), found.contents().to_vec()))
}

/// The parts that are files: what the message calls attachments, and what its HTML shows.
fn parts(message: &Message) -> Vec<Part> {
    let mut files = Vec::new();
    for (position, part) in message.parts.iter().enumerate() {
        let position = position as u32;
        let is_file = message.attachments.contains(&position) || matches!(part.body, PartType::InlineBinary(_));
        if is_file {
            files.push(describe(position, part));
        }
    }
    files
}

fn describe(position: u32, part: &MessagePart) -> Part {
    let content_type = media_type(part);
    let content_id = part.content_id().map(line).unwrap_or_default();
    let file_name = part.attachment_name().map(file_name).filter(|name| !name.is_empty());
    let is_attachment = part.content_disposition().is_some_and(mail_parser::ContentType::is_attachment);
    Part {
        part_id: position.to_string(),
        file_name: file_name.unwrap_or_else(|| {
            let ending = content_type.rsplit(['/', '+']).next().unwrap_or_default();
            format!("part-{position}.{}", if ending == "octet-stream" { "bin" } else { ending })
        }),
        content_type,
        inline: !is_attachment && !content_id.is_empty(),
        content_id,
        size: part.len(),
        checksums: Checksums::default(),
    }
}

fn media_type(part: &MessagePart) -> String {
    let fallback = match part.body {
        PartType::Text(_) => "text/plain",
        PartType::Html(_) => "text/html",
        PartType::Message(_) => "message/rfc822",
        _ => "application/octet-stream",
    };
    let token =
        |text: &str| !text.is_empty() && text.len() < 100 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    match part.content_type() {
        Some(kind) if token(kind.ctype()) && kind.subtype().is_some_and(token) => {
            format!("{}/{}", kind.ctype(), parse::written(kind.subtype().unwrap_or_default())).to_ascii_lowercase()
        }
        _ => fallback.to_owned(),
    }
}

/// The last component of what a message calls a file, on one line.
fn file_name(text: &str) -> String {
    let name = text.rsplit(['/', '\\']).next().unwrap_or_default();
    name.chars().filter(|c| !c.is_control()).take(200).collect::<String>().trim().to_owned()
}

fn addresses(header: Option<&ParsedAddress>) -> Vec<Address> {
    let Some(header) = header else { return Vec::new() };
    let listed = header.iter().take(ADDRESSES).map(|address| Address {
        name: address.name().map(line).unwrap_or_default(),
        address: address.address().map(line).unwrap_or_default(),
    });
    let mut bytes = 0;
    let fits = |address: &Address| {
        bytes += address.name.len() + address.address.len();
        bytes <= ADDRESS_BYTES
    };
    listed.take_while(fits).collect()
}

/// What senders pad the beginning of a message with, so that mail programs show no more of it than they want to be shown.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

/// A header's text on one line, of a length that fits a list.
fn line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(HEADER_TEXT).collect()
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(raw: &[u8], to: &[&str]) -> Kept {
        let envelope = Envelope { from: "bounce@shop.example".to_owned(), to: to.iter().map(|to| (*to).to_owned()).collect() };
        Kept::new(Uuid::now_v7(), envelope, raw, Utc::now())
    }

    #[test]
    fn what_smtp_names_and_the_header_does_not_is_a_hidden_recipient() {
        let raw = b"From: \"Shop\" <shop@example.com>\r\nTo: Ada <ada@example.com>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\nHello   there\r\n";
        let kept = kept(raw, &["ADA@example.com", "eve@example.com"]);
        assert_eq!(kept.summary.from.unwrap().name, "Shop");
        assert_eq!(kept.summary.subject, "Grüße");
        assert_eq!(kept.summary.snippet, "Hello there");
        assert_eq!(kept.summary.bcc, [Address { name: String::new(), address: "eve@example.com".to_owned() }]);
    }

    #[test]
    fn a_list_shows_what_can_be_seen() {
        let raw =
            "Content-Type: text/plain; charset=utf-8\r\n\r\nYour order \u{34f} \u{200b} \u{34f} \u{200b}\u{feff}is\u{ad} here".as_bytes();
        assert_eq!(kept(raw, &[]).summary.snippet, "Your order is here");
    }

    #[test]
    fn a_files_name_is_a_name_and_not_a_path() {
        let raw = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/plain\r\n\r\nSee.\r\n--x\r\nContent-Type: application/pdf; name=\"../../etc/a\\b.pdf\"\r\nContent-Disposition: attachment; filename=\"../../etc/a\\\\b.pdf\"\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERg==\r\n--x--\r\n";
        let detail = Detail::new(&kept(raw, &[]), raw);
        assert_eq!(detail.attachments.len(), 1);
        assert_eq!(detail.attachments[0].file_name, "b.pdf");
        assert_eq!(part(raw, &detail.attachments[0].part_id).unwrap().1, b"%PDF");
        assert!(part(raw, "99").is_none() && part(raw, "../1").is_none());
    }

    #[test]
    fn nothing_at_all_is_shown_too() {
        let kept = kept(b"", &["ada@example.com"]);
        assert_eq!(kept.summary.from.as_ref().unwrap().address, "bounce@shop.example");
        assert_eq!(Detail::new(&kept, b"").text, "");
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_list(body in proptest::collection::vec(any::<u8>(), 0..600), multipart in any::<bool>()) {
            let mut raw = if multipart { b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n".to_vec() } else { Vec::new() };
            raw.extend(body);
            let kept = kept(&raw, &[]);
            let detail = Detail::new(&kept, &raw);
            for file in detail.attachments.iter().chain(&detail.inline) {
                prop_assert!(part(&raw, &file.part_id).is_some());
            }
            headers(&raw);
            Body::new(&raw);
        }
    }
}
