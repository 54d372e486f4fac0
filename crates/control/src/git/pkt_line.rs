//! Git's wire format: packets with a length in four hexadecimal digits, and three bands within them. (gitprotocol-common(5), gitprotocol-pack(5))

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest payload of a packet, and of a banded one.
const LONGEST: usize = 65516;
const LONGEST_BANDED: usize = LONGEST - 1;

pub(super) const FLUSH: &[u8] = b"0000";

/// The band of the report, of words for the terminal, and of the last word before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Band {
    Data = 1,
    Words = 2,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    Data(Bytes),
    Flush,
}

impl Packet {
    /// The payload without the line end that a sender may or may not add.
    pub(super) fn line(data: &[u8]) -> &[u8] {
        data.strip_suffix(b"\n").unwrap_or(data)
    }
}

/// Reads one packet and appends its bytes, as they came, to `raw`. `None` at the end of the stream.
pub(super) async fn read(reader: &mut (impl AsyncRead + Unpin), raw: &mut BytesMut) -> io::Result<Option<Packet>> {
    let mut head = [0; 4];
    let first = reader.read(&mut head[..1]).await?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut head[1..]).await?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "this is not Git's packet format");
    let length = std::str::from_utf8(&head).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok()).ok_or_else(malformed)?;
    raw.extend_from_slice(&head);
    match length {
        0 => Ok(Some(Packet::Flush)),
        5.. if length - 4 <= LONGEST => {
            let start = raw.len();
            raw.resize(start + length - 4, 0);
            reader.read_exact(&mut raw[start..]).await?;
            Ok(Some(Packet::Data(Bytes::copy_from_slice(&raw[start..]))))
        }
        // 4 is an empty packet; 1 to 3 are delimiters that a push does not have.
        4 => Ok(Some(Packet::Data(Bytes::new()))),
        _ => Err(malformed()),
    }
}

/// Takes the first packet off a buffer that fills bit by bit; `None` until it is whole.
pub(super) fn take(buffer: &mut BytesMut) -> io::Result<Option<Packet>> {
    let Some(head) = buffer.get(..4) else { return Ok(None) };
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "git wrote something else than packets");
    let length = std::str::from_utf8(head).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok()).ok_or_else(malformed)?;
    if length == 0 {
        let _ = buffer.split_to(4);
        return Ok(Some(Packet::Flush));
    }
    if length < 4 {
        return Err(malformed());
    }
    if buffer.len() < length {
        return Ok(None);
    }
    Ok(Some(Packet::Data(buffer.split_to(length).freeze().slice(4..))))
}

/// One packet with this payload, which fits.
pub(super) fn write(buffer: &mut BytesMut, payload: &[u8]) {
    buffer.put_slice(format!("{:04x}", payload.len() + 4).as_bytes());
    buffer.put_slice(payload);
}

/// As many packets of a band as the payload takes; an empty payload makes one empty packet, which keeps a connection alive.
pub(super) fn banded(band: Band, payload: &[u8]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(payload.len() + 5);
    let mut rest = payload;
    loop {
        let (chunk, after) = rest.split_at(rest.len().min(LONGEST_BANDED));
        buffer.put_slice(format!("{:04x}", chunk.len() + 5).as_bytes());
        buffer.put_u8(band as u8);
        buffer.put_slice(chunk);
        rest = after;
        if rest.is_empty() {
            return buffer.freeze();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn what_is_read_is_kept_as_it_came() {
        let wire = b"0008abcd00040000rest";
        let (mut reader, mut raw) = (&wire[..], BytesMut::new());
        assert_eq!(read(&mut reader, &mut raw).await.unwrap(), Some(Packet::Data(Bytes::from_static(b"abcd"))));
        assert_eq!(read(&mut reader, &mut raw).await.unwrap(), Some(Packet::Data(Bytes::new())));
        assert_eq!(read(&mut reader, &mut raw).await.unwrap(), Some(Packet::Flush));
        assert_eq!(&raw[..], b"0008abcd00040000");
        assert!(read(&mut reader, &mut raw).await.is_err());
        assert_eq!(read(&mut &b""[..], &mut raw).await.unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_banded_payload_comes_back_whole_however_it_is_cut(payload in proptest::collection::vec(any::<u8>(), 0..200_000), cut in 100usize..5000) {
            let wire = banded(Band::Words, &payload);
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for chunk in wire.chunks(cut) {
                buffer.extend_from_slice(chunk);
                while let Some(packet) = take(&mut buffer).unwrap() {
                    let Packet::Data(data) = packet else { panic!("no flush was written") };
                    prop_assert_eq!(data[0], 2);
                    got.extend_from_slice(&data[1..]);
                }
            }
            prop_assert_eq!(got, payload);
            prop_assert!(buffer.is_empty());
        }
    }
}
