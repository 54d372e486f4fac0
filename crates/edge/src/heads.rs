//! Where the heads of requests lie in what one client sends, so that their targets reach hyper in a form that it reads.
//!
//! hyper refuses a target with `"`, `<`, `>`, a backtick or bytes that are no UTF-8; browsers' addresses have none of them, but programs that write
//! addresses by hand do, and nginx, HAProxy and Odoo take them. Such a byte becomes `%xx` before hyper sees it, which Odoo reads as the byte
//! (decision 28).
//!
//! hyper alone says where a message ends. A head is given to it up to its empty line and no further, so that nothing of what follows lies in its buffer;
//! then it says what follows ([`Heads::parsed`]): a body of so many bytes, chunks, or the next head. Only chunks are followed here as well, in their
//! plainest form. Whenever the two could see different ends, what comes is passed on as it is from there on, for good. No byte that ends or parts
//! anything (spaces, control characters, line ends) is ever written or taken away.

use bytes::{Buf, BytesMut};
use memchr::{memchr, memchr2};

/// What is kept of a head, for the words about one that cannot be read.
const KEPT: usize = 8 * 1024;

/// What comes after a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follows {
    /// A body of so many bytes, perhaps none, and then the next head.
    Length(u64),
    Chunks,
    /// Whatever Odoo makes of a handshake.
    Handshake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a head; empty lines are none of it.
    Start,
    Method,
    Target,
    /// The rest of the request line.
    Version,
    /// Of the line under way there is nothing yet, but a carriage return perhaps.
    Fields {
        empty: bool,
    },
    /// hyper has a whole head, and has not said yet what follows.
    Whole,
    Body(u64),
    Chunks(Chunks),
    /// Nothing has come since.
    Handshake,
    /// Not looked at any more.
    Opaque,
}

/// Chunks without extensions and trailers (RFC 9112, 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunks {
    Size { size: u64, digits: u8 },
    SizeEnd { size: u64 },
    Data(u64),
    DataReturn,
    DataEnd,
    LastReturn,
    LastEnd,
}

/// What one client connection has sent so far.
#[derive(Debug)]
pub(crate) struct Heads {
    at: At,
    /// A piece of a target in its new form, which goes before `unread`.
    written: BytesMut,
    /// Came from the socket and is not given to hyper yet.
    unread: BytesMut,
    /// The beginning of the head under way.
    head: Vec<u8>,
}

impl Default for Heads {
    fn default() -> Self {
        Self { at: At::Start, written: BytesMut::new(), unread: BytesMut::new(), head: Vec::new() }
    }
}

impl Heads {
    /// Whether bytes are to be taken from here ([`Heads::take`]) before the socket is read again.
    pub(crate) fn has_unread(&self) -> bool {
        !self.written.is_empty() || !self.unread.is_empty()
    }

    /// hyper asks for more.
    pub(crate) fn asked(&mut self) {
        // It does not take for a whole head what looks like one from here.
        if self.at == At::Whole {
            self.at = At::Opaque;
        }
    }

    /// hyper has read a head, and this comes after it.
    pub(crate) fn parsed(&mut self, follows: Follows) {
        self.head = Vec::new();
        self.at = match (self.at, follows) {
            (At::Whole, Follows::Length(0)) => At::Start,
            (At::Whole, Follows::Length(length)) => At::Body(length),
            (At::Whole, Follows::Chunks) => At::Chunks(Chunks::Size { size: 0, digits: 0 }),
            (At::Whole, Follows::Handshake) => At::Handshake,
            _ => At::Opaque,
        };
    }

    /// The handshake was not accepted: the next head follows, unless something has come already.
    pub(crate) fn refused(&mut self) {
        if self.at == At::Handshake {
            self.at = At::Start;
        }
    }

    /// As it was given to hyper, at most [`KEPT`] bytes; empty when the connection is not looked at any more.
    pub(crate) fn head(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.head)
    }

    /// Takes note of bytes from the socket, and tells how many of them go to hyper as they are. The others are kept.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> usize {
        let passed = self.pass(bytes);
        if let Some(rest) = bytes.get(passed..) {
            self.unread.extend_from_slice(rest);
        }
        passed
    }

    /// Of what is kept, the next bytes for hyper, at least one and at most `room`, which is not zero.
    pub(crate) fn take(&mut self, room: usize) -> BytesMut {
        if self.written.is_empty() {
            self.write_target();
        }
        if !self.written.is_empty() {
            let taken = self.written.split_to(self.written.len().min(room));
            self.pass(&taken);
            return taken;
        }
        let unread = std::mem::take(&mut self.unread);
        let passed = self.pass(&unread[..unread.len().min(room)]);
        self.unread = unread;
        self.unread.split_to(passed)
    }

    /// Where an unread part of a target begins, writes it anew.
    fn write_target(&mut self) {
        if self.at != At::Target {
            return;
        }
        let end = self.unread.iter().position(|byte| ends_target(*byte)).unwrap_or(self.unread.len());
        for byte in &self.unread[..end] {
            if is_unreadable(*byte) {
                let digit = |value: u8| b"0123456789ABCDEF"[usize::from(value)];
                self.written.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 0xf)]);
            } else {
                self.written.extend_from_slice(&[*byte]);
            }
        }
        self.unread.advance(end);
    }

    /// How many of the bytes hyper may get as they are: up to a byte that is to be written anew, and up to the end of a head.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while let Some(rest) = bytes.get(passed..).filter(|rest| !rest.is_empty()) {
            let is_head = matches!(self.at, At::Start | At::Method | At::Target | At::Version | At::Fields { .. });
            let count = self.step(rest);
            if is_head {
                let room = KEPT.saturating_sub(self.head.len());
                self.head.extend_from_slice(&rest[..count.min(room)]);
            }
            passed += count;
            if self.at == At::Whole || (count == 0 && self.at == At::Target) {
                break;
            }
        }
        passed
    }

    /// Goes on by one piece of one kind. It is empty only when something else begins, or a byte is to be written anew.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let length = bytes.len() as u64;
        match self.at {
            At::Start => {
                let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                if empty < bytes.len() {
                    self.at = At::Method;
                }
                empty
            }
            At::Method => match memchr2(b' ', b'\n', bytes) {
                Some(end) => {
                    // What has no target is no request.
                    self.at = if bytes[end] == b' ' { At::Target } else { At::Opaque };
                    end + 1
                }
                None => bytes.len(),
            },
            At::Target => {
                let end = bytes.iter().position(|byte| ends_target(*byte) || is_unreadable(*byte)).unwrap_or(bytes.len());
                if bytes.get(end).is_some_and(|byte| ends_target(*byte)) {
                    self.at = At::Version;
                }
                end
            }
            At::Version | At::Fields { empty: false } => match memchr(b'\n', bytes) {
                Some(end) => {
                    self.at = At::Fields { empty: true };
                    end + 1
                }
                None => bytes.len(),
            },
            At::Fields { empty: true } => {
                match bytes[0] {
                    b'\n' => self.at = At::Whole,
                    b'\r' => {}
                    _ => self.at = At::Fields { empty: false },
                }
                1
            }
            At::Body(left) => {
                let count = left.min(length);
                self.at = if count == left { At::Start } else { At::Body(left - count) };
                count as usize
            }
            At::Chunks(Chunks::Data(left)) => {
                let count = left.min(length);
                self.at = At::Chunks(if count == left { Chunks::DataReturn } else { Chunks::Data(left - count) });
                count as usize
            }
            At::Chunks(chunks) => {
                self.at = chunks.next(bytes[0]);
                1
            }
            At::Handshake => {
                self.at = At::Opaque;
                bytes.len()
            }
            At::Whole | At::Opaque => bytes.len(),
        }
    }
}

impl Chunks {
    /// After one byte that is none of a chunk's data.
    fn next(self, byte: u8) -> At {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        At::Chunks(match (self, byte, digit) {
            // Fifteen digits are no number that anybody counts to, and nobody's arithmetic overflows.
            (Self::Size { size, digits: digits @ 0..15 }, _, Some(digit)) => Self::Size { size: size * 16 + digit, digits: digits + 1 },
            (Self::Size { size, digits: 1.. }, b'\r', _) => Self::SizeEnd { size },
            (Self::SizeEnd { size: 0 }, b'\n', _) => Self::LastReturn,
            (Self::SizeEnd { size }, b'\n', _) => Self::Data(size),
            (Self::DataReturn, b'\r', _) => Self::DataEnd,
            (Self::DataEnd, b'\n', _) => Self::Size { size: 0, digits: 0 },
            (Self::LastReturn, b'\r', _) => Self::LastEnd,
            (Self::LastEnd, b'\n', _) => return At::Start,
            _ => return At::Opaque,
        })
    }
}

/// A space, or what hyper refuses in any case.
fn ends_target(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7f
}

/// What hyper's `Uri` does not take in a path or in a query.
fn is_unreadable(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`' | 0x80..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What hyper gets of what a client sends in pieces, when it says each time what follows.
    fn passed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, room: usize, follows: impl Fn(&[u8]) -> Follows) -> Vec<u8> {
        let (mut heads, mut given, mut said) = (Heads::default(), Vec::new(), 0);
        let mut hears = |heads: &mut Heads, given: &[u8]| {
            if heads.at == At::Whole {
                heads.parsed(follows(&given[said..]));
                said = given.len();
            }
        };
        for piece in pieces {
            heads.asked();
            let count = heads.read(piece);
            given.extend_from_slice(&piece[..count]);
            hears(&mut heads, &given);
            while heads.has_unread() {
                heads.asked();
                let taken = heads.take(room);
                assert!((1..=room).contains(&taken.len()), "an end that is none");
                given.extend_from_slice(&taken);
                hears(&mut heads, &given);
            }
        }
        given
    }

    fn by_head(head: &[u8]) -> Follows {
        let head = String::from_utf8_lossy(head);
        match head.split_once("Length: ") {
            Some((_, length)) => Follows::Length(length.split_once("\r\n").unwrap().0.parse().unwrap()),
            None if head.contains("chunked") => Follows::Chunks,
            None if head.contains("websocket") => Follows::Handshake,
            None => Follows::Length(0),
        }
    }

    #[test]
    fn hyper_reads_every_target_in_its_new_form_and_most_as_they_are() {
        for byte in 0x21..=0xff_u8 {
            for (before, after) in [("/a", "b"), ("/a?b=", "c"), ("http://shop.example/", "?")] {
                let target = [before.as_bytes(), &[byte], after.as_bytes()].concat();
                let request = [b"GET ", &target[..], b" HTTP/1.1\r\n\r\n"].concat();
                let given = passed([&request[..]], 4096, by_head);
                let new = &given[4..given.len() - 13];
                let reads = |target: &[u8]| http::Uri::try_from(target).is_ok();
                assert_eq!(reads(new), byte != 0x7f, "{byte:#x} {}", String::from_utf8_lossy(new));
                if byte < 0x80 && reads(&target) && byte != b'"' && byte != b'`' {
                    assert_eq!(new, target, "{byte:#x}");
                } else if byte != 0x7f {
                    let text = String::from_utf8(new.to_vec()).unwrap();
                    assert_eq!(text, format!("{before}%{byte:02X}{after}"));
                }
            }
        }
    }

    #[test]
    fn only_targets_are_written_anew() {
        let body = "GET /<in a body> HTTP/1.1\r\n\r\n";
        let length = body.len();
        let quoted = "\"<>`\u{e9}";
        let sent = [
            "\r\nGET /<a>?\"b\" HTTP/1.1\r\nX: <\"`>\r\n\r\n".to_owned(),
            format!("POST /{quoted} HTTP/1.1\r\nLength: {length}\r\n\r\n{body}"),
            format!("POST /<c> HTTP/1.1\r\nX: chunked\r\n\r\n{length:x}\r\n{body}\r\n3\r\n<\"`\r\n0\r\n\r\n"),
            "<ET /` HTTP/1.1\nX: y\n\n".to_owned(),
            "GET /<d>\u{e9} HTTP/1.1\r\nX: websocket\r\n\r\nGET /<frames> \"HTTP/1.1\r\n\r\n<\"`>".to_owned(),
        ];
        let expected = [
            "\r\nGET /%3Ca%3E?%22b%22 HTTP/1.1\r\nX: <\"`>\r\n\r\n".to_owned(),
            format!("POST /%22%3C%3E%60%C3%A9 HTTP/1.1\r\nLength: {length}\r\n\r\n{body}"),
            format!("POST /%3Cc%3E HTTP/1.1\r\nX: chunked\r\n\r\n{length:x}\r\n{body}\r\n3\r\n<\"`\r\n0\r\n\r\n"),
            "<ET /%60 HTTP/1.1\nX: y\n\n".to_owned(),
            "GET /%3Cd%3E%C3%A9 HTTP/1.1\r\nX: websocket\r\n\r\nGET /<frames> \"HTTP/1.1\r\n\r\n<\"`>".to_owned(),
        ];
        let (sent, expected) = (sent.concat(), expected.concat());
        for size in [1, 2, 3, 7, 64, 100_000] {
            for room in [1, 2, 5, 100_000] {
                let given = passed(sent.as_bytes().chunks(size), room, by_head);
                assert_eq!(String::from_utf8_lossy(&given), expected, "in pieces of {size}, taken by {room}");
            }
        }
    }

    #[test]
    fn where_two_ends_could_be_seen_nothing_is_touched_any_more() {
        let next = "GET /<> HTTP/1.1\r\n\r\n";
        for body in [
            "3;x=<\r\nabc\r\n0\r\n\r\n",
            "3 \r\nabc\r\n0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "\r\nabc\r\n0\r\n\r\n",
            "0000000000000003\r\nabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "0\r\nX: <trailer>\r\n\r\n",
            "0\r\n\n",
        ] {
            let sent = format!("POST /a HTTP/1.1\r\nX: chunked\r\n\r\n{body}{next}");
            assert_eq!(String::from_utf8_lossy(&passed([sent.as_bytes()], 4096, by_head)), sent, "{body:?}");
        }
        // hyper takes for a head what is none here, or the other way round.
        let mut heads = Heads::default();
        assert_eq!(heads.read(b"GET /a HTTP/1.1\r\n"), 17);
        heads.parsed(Follows::Length(0));
        assert_eq!((heads.at, heads.read(next.as_bytes())), (At::Opaque, next.len()));
        let mut heads = Heads::default();
        assert_eq!(heads.read(format!("GET /a HTTP/1.1\r\n\r\n{next}").as_bytes()), 19);
        heads.asked();
        assert_eq!(heads.take(4096), next);
    }

    #[test]
    fn after_a_handshake_that_is_refused_the_next_head_follows() {
        let mut heads = Heads::default();
        let handshake = b"GET /websocket HTTP/1.1\r\n\r\n";
        assert_eq!(heads.read(handshake), handshake.len());
        heads.parsed(Follows::Handshake);
        heads.refused();
        assert_eq!(heads.read(b"GET /<"), 5);
        let mut early = Heads::default();
        early.read(handshake);
        early.parsed(Follows::Handshake);
        assert_eq!(early.read(b"\x81<"), 2);
        early.refused();
        assert_eq!(early.read(b"GET /<"), 6, "a frame that came early is no head");
    }

    proptest! {
        /// Nothing is lost, and no byte but those of a target becomes another one.
        #[test]
        fn decoded_it_is_what_was_sent(
            parts in proptest::collection::vec(prop_oneof!["[ -~]{0,9}", "[\\x00-\\xff]{0,9}", Just("\r\n".to_owned()), Just("\r\n\r\n".to_owned()), Just("GET /<".to_owned())], 0..30),
            sizes in proptest::collection::vec(1_usize..20, 1..40),
            room in 1_usize..30,
            length in 0_u64..20,
        ) {
            let sent = parts.concat().replace('%', "");
            let (mut pieces, mut rest, mut sizes) = (Vec::new(), sent.as_bytes(), sizes.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            let given = passed(pieces, room, |head| if head.len() % 2 == 0 { Follows::Length(length) } else { Follows::Chunks });
            let (mut decoded, mut left) = (Vec::new(), &given[..]);
            while let Some((&byte, after)) = left.split_first() {
                left = after;
                if byte == b'%' {
                    let value = u8::from_str_radix(std::str::from_utf8(&left[..2]).unwrap(), 16).unwrap();
                    prop_assert!(is_unreadable(value));
                    decoded.push(value);
                    left = &left[2..];
                } else {
                    decoded.push(byte);
                }
            }
            prop_assert_eq!(decoded, sent.as_bytes());
        }
    }
}
