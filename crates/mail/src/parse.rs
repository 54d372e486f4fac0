//! Messages as the parser may see them. What a stranger writes can make any parser take thirty times its size of memory, or nest one message in the other
//! until a stack ends: so it gets a message only when that stays within bounds, and a nested one is a file to it.
//!
//! What is beyond them is shown as what it is: its source. Nothing is lost; it is only not taken apart.

use std::borrow::Cow;

use mail_parser::{Message, MessageParser};
use memchr::{memchr, memmem::Finder};

/// Bytes of lines that may be headers, in all parts together: each may become thirty times as many in memory.
const HEAD_BYTES: usize = 512 << 10;
/// Lines in which a part may begin.
const BOUNDARIES: usize = 50_000;
/// Steps that looking for the ends of parts may take: the message's length for each part that has parts, and for each place in a boundary at which the
/// search may begin anew.
const STEPS: usize = 4 << 30;
/// Of the head that is read of a message that is too much.
const HEAD_ONLY: usize = 64 << 10;

/// The kinds whose parts the parser would take for messages in their turn, and what stands in their place while it reads: of the same length, so that
/// every offset stays.
const NESTING: [(&[u8], &[u8]); 3] = [(b"rfc822", b"rfc82_"), (b"global", b"globa_"), (b"digest", b"diges_")];

/// A message within bounds.
pub(crate) struct Readable<'a> {
    bytes: Cow<'a, [u8]>,
    whole: bool,
}

impl<'a> Readable<'a> {
    pub(crate) fn new(raw: &'a [u8]) -> Self {
        match survey(raw) {
            Some(nesting) if nesting.is_empty() => Self { bytes: Cow::Borrowed(raw), whole: true },
            Some(nesting) => {
                let mut bytes = raw.to_vec();
                for (place, by) in nesting {
                    bytes[place..place + by.len()].copy_from_slice(by);
                }
                Self { bytes: Cow::Owned(bytes), whole: true }
            }
            None => Self { bytes: head(raw), whole: false },
        }
    }

    /// `None` where there is nothing to take apart: the message's source is its text.
    pub(crate) fn parse(&self) -> Option<Message<'_>> {
        MessageParser::default().parse(self.bytes.as_ref()).filter(|_| self.whole)
    }

    /// The headers alone, which every message has.
    pub(crate) fn headers(&self) -> Option<Message<'_>> {
        MessageParser::default().parse_headers(self.bytes.as_ref())
    }
}

/// The part of a media type that the parser was shown something else for.
pub(crate) fn written(subtype: &str) -> &str {
    let shown = NESTING.iter().find(|(_, shown)| shown.eq_ignore_ascii_case(subtype.as_bytes()));
    shown.and_then(|(written, _)| std::str::from_utf8(written).ok()).unwrap_or(subtype)
}

/// The first lines until an empty one, but not without an end. An empty text is not a kind of message.
fn head(raw: &[u8]) -> Cow<'_, [u8]> {
    let limit = &raw[..raw.len().min(HEAD_ONLY)];
    let end = limit.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 1);
    let end = limit.windows(3).position(|three| three == b"\n\r\n").map(|at| at + 1).into_iter().chain(end).min();
    let mut head = limit[..end.unwrap_or(limit.len())].to_vec();
    head.extend_from_slice(b"\r\n");
    Cow::Owned(head)
}

/// Where nested messages are announced, and what to write there; `None` for a message that would take too much.
///
/// One pass over the lines. Whether a line is a header's is decided generously: the parser finds a boundary in the middle of a line as well, so after
/// any `--`, on its very line even, there may be headers until an empty one.
fn survey(raw: &[u8]) -> Option<Vec<(usize, &'static [u8])>> {
    let words = NESTING.map(|(written, shown)| (Finder::new(written), shown));
    let (mut nesting, mut head_bytes, mut boundaries) = (Vec::new(), 0, 0);
    let (mut multiparts, mut dashes) = (1_usize, 1_usize);
    let (mut in_head, mut in_content_type) = (true, false);
    let mut rest = raw;
    while !rest.is_empty() {
        let start = raw.len() - rest.len();
        let length = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        let (line, after) = rest.split_at(length);
        rest = after;
        // One of spaces alone is none: the parser goes on with the header before it.
        if matches!(line, b"\n" | b"\r\n") {
            (in_head, in_content_type) = (false, false);
            continue;
        }
        if contains(line, b"--") {
            boundaries += 1;
            in_head = true;
        }
        if in_head {
            // A line without a colon is no header, unless it goes on with one.
            if line.starts_with(b" ") || line.starts_with(b"\t") || memchr(b':', line).is_some() {
                head_bytes += line.len();
            }
            let lower = line.to_ascii_lowercase();
            in_content_type |= contains(&lower, b"content-type");
            if in_content_type {
                for (word, shown) in &words {
                    nesting.extend(word.find_iter(&lower).map(|at| (start + at, *shown)));
                }
                multiparts += count(&lower, b"boundary");
                dashes += lower.windows(2).filter(|pair| pair == b"--").count();
            }
        }
        if head_bytes > HEAD_BYTES || boundaries > BOUNDARIES {
            return None;
        }
    }
    (multiparts.saturating_mul(dashes).saturating_mul(raw.len()) <= STEPS).then_some(nesting)
}

fn contains(line: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(line, word).is_some()
}

fn count(line: &[u8], word: &[u8]) -> usize {
    memchr::memmem::find_iter(line, word).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_whole(raw: &[u8]) -> bool {
        Readable::new(raw).whole
    }

    #[test]
    fn what_people_send_is_taken_apart() {
        let mut parts = b"Subject: x\r\nContent-Type: multipart/mixed;\r\n boundary=\"===============123==\"\r\n\r\n".to_vec();
        for number in 0..200 {
            parts.extend(
                format!("--===============123==\r\nContent-Type: text/plain; name=\"{number}\"\r\n\r\nHello: there -- you\r\n").bytes(),
            );
        }
        parts.extend(b"--===============123==--\r\n");
        assert!(is_whole(&parts));
        assert_eq!(Readable::new(&parts).parse().unwrap().parts.len(), 201);
        let mut large = parts.clone();
        large.extend(
            std::iter::repeat_n(*b"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5emFi\r\n", 600_000).flatten(),
        );
        assert!(is_whole(&large), "a file of 40 MB");
    }

    #[test]
    fn messages_in_messages_are_files_however_deep_they_lie() {
        // 200,000 of them ended the stack of whoever let go of them.
        let mut deep = b"Subject: deep\n".to_vec();
        for _ in 0..200_000 {
            deep.extend(b"Content-Type: message/rfc822\n\n");
        }
        let readable = Readable::new(&deep);
        let message = readable.parse().unwrap();
        assert_eq!(message.parts.len(), 1);
        assert_eq!(message.subject(), Some("deep"));
        for kind in [
            "message/rfc822",
            "Message / RFC822",
            "message/global",
            "multipart/digest; boundary=x",
            "message/(a comment)rfc822",
            "message/\n rfc822",
            "message/\n \n rfc822",
        ] {
            let whole = format!("Content-Type: {kind}\n\n--x\n\nSubject: inner\n\nx\n--x--\n");
            let part = format!(
                "Content-Type: multipart/mixed; boundary=y\n\n text --yContent-Type: {kind}\n\n--x\n\nSubject: inner\n\nx\n--x--\n--y--\n"
            );
            for raw in [whole, part] {
                let readable = Readable::new(raw.as_bytes());
                let nests = readable
                    .parse()
                    .is_some_and(|message| message.parts.iter().any(|part| matches!(part.body, mail_parser::PartType::Message(_))));
                assert!(!nests, "{raw}");
            }
        }
    }

    #[test]
    fn a_message_that_would_grow_without_bound_is_left_as_it_is() {
        let many = |line: &str, times: usize| format!("Subject: x\r\n{}\r\n\r\nbody", vec![line; times].join("\r\n")).into_bytes();
        assert!(!is_whole(&many("a: b", 200_000)), "headers");
        assert!(!is_whole(&many(&format!("To: {}", "a@b,".repeat(200_000)), 1)), "addresses");
        assert!(!is_whole(&many(&format!("References: {}", "<a@b> ".repeat(200_000)), 1)), "references");
        let mut parts = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n".to_vec();
        parts.extend(b"--x\r\n\r\n".repeat(100_000));
        assert!(!is_whole(&parts), "parts");
        let mut inner = b"Content-Type: multipart/mixed; boundary=x\n\n".to_vec();
        inner.extend(b"text --x\nContent-Type: multipart/mixed; boundary=never\n\n".repeat(8000));
        inner.extend(vec![b'y'; 2 << 20]);
        assert!(!is_whole(&inner), "parts whose ends are looked for again and again");
        let mut dashes = format!("Content-Type: multipart/mixed; boundary=\"{}x\"\n\n", "-".repeat(100_000)).into_bytes();
        dashes.extend(vec![b'-'; 1 << 20]);
        assert!(!is_whole(&dashes), "a boundary that begins anew at each of its characters");
        let readable = Readable::new(&dashes);
        assert!(readable.parse().is_none());
        let headed = many("a: b", 200_000);
        assert_eq!(Readable::new(&headed).headers().unwrap().subject(), Some("x"), "a list shows it by its subject all the same");
    }
}
