//! Mailpit's search (https://mailpit.axllent.org/docs/usage/search-filters/): words, "quoted phrases" and `field:value`, all of which must fit;
//! one with `-` or `!` before it must not.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use thiserror::Error;

use crate::{
    index::Entry,
    message::{Address, Summary},
};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Anywhere(String),
    From(String),
    To(String),
    Cc(String),
    Bcc(String),
    ReplyTo(String),
    /// Whoever it goes to or comes from.
    Addressed(String),
    Subject(String),
    MessageId(String),
    Tag(String),
    Before(DateTime<Utc>),
    After(DateTime<Utc>),
    Larger(u64),
    Smaller(u64),
    Read(bool),
    Tagged,
    HasAttachment,
    HasInline,
    /// A value that means nothing, such as a date that is none: nothing fits.
    Nothing,
}

/// The name of a zone that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no time zone {0}; use a name like Europe/Brussels")]
pub(crate) struct NoZone(String);

/// A query, ready to be asked of many messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(bool, Condition)>);

impl Query {
    /// `zone` is that of times that name none; UTC when it is empty.
    pub(crate) fn parse(text: &str, zone: &str) -> Result<Self, NoZone> {
        let zone: Tz = if zone.is_empty() { Tz::UTC } else { zone.parse().map_err(|_| NoZone(zone.chars().take(50).collect()))? };
        let conditions = words(text).into_iter().filter_map(|word| {
            let (wanted, word) = match word.strip_prefix(['-', '!']) {
                Some(rest) if !rest.is_empty() => (false, rest),
                _ => (true, word.as_str()),
            };
            // As what is searched: one space for each space and end of line.
            let word = word.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
            (!word.is_empty()).then(|| (wanted, condition(&word, zone)))
        });
        Ok(Self(conditions.collect()))
    }

    pub(crate) fn fits(&self, entry: &Entry) -> bool {
        self.0.iter().all(|(wanted, condition)| fits(condition, entry) == *wanted)
    }
}

/// Splits at spaces outside of quotation marks, which are taken away.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for character in text.chars() {
        match character {
            '"' | '\u{201c}' | '\u{201d}' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

fn condition(word: &str, zone: Tz) -> Condition {
    let Some((field, value)) = word.split_once(':') else { return Condition::Anywhere(word.to_owned()) };
    let text = value.trim().to_owned();
    let or_nothing = |condition: Option<Condition>| condition.unwrap_or(Condition::Nothing);
    match field {
        "from" => Condition::From(text),
        "to" => Condition::To(text),
        "cc" => Condition::Cc(text),
        "bcc" => Condition::Bcc(text),
        "reply-to" => Condition::ReplyTo(text),
        "addressed" => Condition::Addressed(text),
        "subject" => Condition::Subject(text),
        "message-id" => Condition::MessageId(text),
        "tag" => Condition::Tag(text),
        "before" => or_nothing(date(value, zone).map(Condition::Before)),
        "after" => or_nothing(date(value, zone).map(Condition::After)),
        "larger" => or_nothing(bytes(value).map(Condition::Larger)),
        "smaller" => or_nothing(bytes(value).map(Condition::Smaller)),
        "is" => match value {
            "read" => Condition::Read(true),
            "unread" => Condition::Read(false),
            "tagged" => Condition::Tagged,
            _ => Condition::Anywhere(word.to_owned()),
        },
        "has" if matches!(value, "attachment" | "attachments") => Condition::HasAttachment,
        "has" if value == "inline" => Condition::HasInline,
        // `http://…`, say.
        _ => Condition::Anywhere(word.to_owned()),
    }
}

fn date(text: &str, zone: Tz) -> Option<DateTime<Utc>> {
    let text = text.trim().to_uppercase();
    if let Ok(time) = DateTime::parse_from_rfc3339(&text) {
        return Some(time.to_utc());
    }
    for format in ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y/%m/%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(&text, format) {
            return in_zone(time, zone);
        }
    }
    ["%Y-%m-%d", "%Y/%m/%d"]
        .iter()
        .find_map(|format| NaiveDate::parse_from_str(&text, format).ok())
        .and_then(|day| in_zone(day.and_time(NaiveTime::MIN), zone))
}

/// Of a time that a clock showed twice, the first; of one that it skipped, the next that it showed.
fn in_zone(time: NaiveDateTime, zone: Tz) -> Option<DateTime<Utc>> {
    let at = |time: NaiveDateTime| zone.from_local_datetime(&time).earliest();
    at(time).or_else(|| at(time.checked_add_signed(TimeDelta::hours(1))?)).map(|time| time.to_utc())
}

/// `10k`, `1m`, `1.5mb`, `200`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim_end_matches('b');
    let (number, factor) = match text.chars().last()? {
        'k' => (&text[..text.len() - 1], 1024.0),
        'm' => (&text[..text.len() - 1], 1024.0 * 1024.0),
        _ => (text, 1.0),
    };
    let number: f64 = number.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number * factor) as u64)
}

fn holds(text: &str, wanted: &str) -> bool {
    text.to_lowercase().contains(wanted)
}

fn any(addresses: &[Address], wanted: &str) -> bool {
    addresses.iter().any(|address| holds(&address.address, wanted) || holds(&address.name, wanted))
}

fn addressed(summary: &Summary, wanted: &str) -> bool {
    any(summary.from.as_slice(), wanted) || [&summary.to, &summary.cc, &summary.bcc, &summary.reply_to].iter().any(|list| any(list, wanted))
}

fn fits(condition: &Condition, entry: &Entry) -> bool {
    let summary = &entry.kept.summary;
    match condition {
        Condition::Anywhere(text) => {
            holds(&summary.subject, text) || entry.kept.text.contains(text) || addressed(summary, text) || holds(&summary.message_id, text)
        }
        Condition::From(text) => any(summary.from.as_slice(), text),
        Condition::To(text) => any(&summary.to, text),
        Condition::Cc(text) => any(&summary.cc, text),
        Condition::Bcc(text) => any(&summary.bcc, text),
        Condition::ReplyTo(text) => any(&summary.reply_to, text),
        Condition::Addressed(text) => addressed(summary, text),
        Condition::Subject(text) => holds(&summary.subject, text),
        Condition::MessageId(text) => holds(&summary.message_id, text),
        Condition::Tag(tag) => summary.tags.iter().any(|other| other.to_lowercase() == *tag),
        Condition::Before(time) => summary.created < *time,
        Condition::After(time) => summary.created >= *time,
        Condition::Larger(bytes) => summary.size > *bytes,
        Condition::Smaller(bytes) => summary.size < *bytes,
        Condition::Read(read) => summary.read == *read,
        Condition::Tagged => !summary.tags.is_empty(),
        Condition::HasAttachment => summary.attachments > 0,
        Condition::HasInline => entry.kept.inline > 0,
        Condition::Nothing => false,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        message::{Envelope, Kept},
        segments::Writer,
    };

    fn entry() -> Entry {
        let raw = b"From: Shop <shop@example.com>\r\nTo: Ada Lovelace <ada@example.com>\r\nSubject: Quotation S00042\r\n\r\nDear Ada,\r\nyour   OFFER is\n\tattached.\r\n";
        let mut kept = Kept::new(Uuid::now_v7(), Envelope::default(), raw, "2026-11-24T10:00:00Z".parse().unwrap());
        kept.summary.tags = vec!["Sales".to_owned()];
        let directory = tempfile::tempdir().unwrap();
        let place = Writer::open(directory.path(), None).unwrap().append(&[(kept.clone(), raw)]).unwrap()[0];
        Entry { kept, place }
    }

    #[test]
    fn each_filter_finds_and_its_negation_does_not() {
        let entry = entry();
        let fitting = [
            "",
            "offer",
            "from:shop",
            "to:lovelace",
            "to:\"Ada Lovelace\"",
            "subject:\"quotation s00042\"",
            "\"dear ada\" from:SHOP",
            "is:unread",
            "is:tagged",
            "tag:sales",
            "after:2026-11-24",
            "before:2026-11-25",
            "before:\"2026-11-24 10:01\"",
            "smaller:1k",
            "addressed:ada@",
            "larger:10",
            "\"your offer is attached\"",
            "\"Ada,  your\"",
            "subject:\"Quotation  S00042\"",
            "offer -has:inline",
            "-is:read -has:attachment",
        ];
        for query in fitting {
            assert!(Query::parse(query, "").unwrap().fits(&entry), "{query}");
            if !query.is_empty() && !query.contains(' ') {
                assert!(!Query::parse(&format!("-{query}"), "").unwrap().fits(&entry), "-{query}");
            }
        }
        for query in [
            "bill",
            "from:ada",
            "subject:offer",
            "is:read",
            "has:attachment",
            "tag:sale",
            "after:tomorrow",
            "-from:shop offer",
            "larger:1m",
        ] {
            assert!(!Query::parse(query, "").unwrap().fits(&entry), "{query}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_in_the_client_s() {
        let entry = entry();
        // Ten o'clock in UTC, seven in the evening in Tokyo.
        for (query, zone, fits) in [
            ("after:\"2026-11-24 18:59:00\"", "Asia/Tokyo", true),
            ("after:\"2026-11-24 19:01\"", "Asia/Tokyo", false),
            ("before:\"2026-11-24 19:01\"", "Asia/Tokyo", true),
            ("before:2026-11-24", "America/New_York", false),
            ("before:2026-11-25", "Pacific/Kiritimati", false),
            ("after:2026-11-24T09:59:00Z", "Asia/Tokyo", true),
            ("after:\"2026-11-24 18:59:00\"", "", false),
            ("after:\"2026-03-29 02:30\"", "Europe/Brussels", true),
        ] {
            assert_eq!(Query::parse(query, zone).unwrap().fits(&entry), fits, "{query} {zone}");
        }
        assert!(Query::parse("x", "Mars/Base").unwrap_err().to_string().contains("Mars/Base"));
    }
}
