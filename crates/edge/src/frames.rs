//! Where one websocket frame ends and the next one begins (RFC 6455, 5.2), so that a word of our own can be put between two of Odoo's.

/// What is known of the frame that passes at the moment.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// The bytes of its header that have passed.
    header: [u8; HEADER],
    seen: usize,
    /// Of its payload, once the header has passed.
    remaining: u64,
}

/// Two bytes, eight of a long length, four of a mask.
const HEADER: usize = 14;

impl Frames {
    /// Bytes of the stream that have been passed on.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.remaining > 0 {
                let taken = self.remaining.min(bytes.len() as u64);
                self.remaining -= taken;
                bytes = bytes.get(taken as usize..).unwrap_or_default();
                continue;
            }
            let Some((first, rest)) = bytes.split_first() else { return };
            if let Some(place) = self.header.get_mut(self.seen) {
                *place = *first;
            }
            self.seen += 1;
            bytes = rest;
            if let Some(length) = self.length() {
                self.remaining = length;
                self.seen = 0;
            }
        }
    }

    /// Nothing of a frame has passed of which the rest has not.
    pub(crate) fn is_between(&self) -> bool {
        self.seen == 0 && self.remaining == 0
    }

    /// Of the payload, when the header is whole.
    fn length(&self) -> Option<u64> {
        if self.seen < 2 {
            return None;
        }
        let [_, second, rest @ ..] = &self.header;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let width = match second & 0x7f {
            126 => 2,
            127 => 8,
            length => return (self.seen >= 2 + mask).then_some(length.into()),
        };
        (self.seen >= 2 + width + mask).then(|| rest.iter().take(width).fold(0, |length, byte| length << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_frame_is_found_however_it_arrives() {
        let frame = |length: usize, masked: bool| {
            let mask = if masked { 0x80 } else { 0 };
            let mut frame = vec![0x82];
            match length {
                0..126 => frame.push(mask | length as u8),
                126..65536 => {
                    frame.push(mask | 0x7e);
                    frame.extend((length as u16).to_be_bytes());
                }
                _ => {
                    frame.push(mask | 127);
                    frame.extend((length as u64).to_be_bytes());
                }
            }
            frame.extend(std::iter::repeat_n(0xff, length + if masked { 4 } else { 0 }));
            frame
        };
        for length in [0, 1, 125, 126, 127, 65535, 65536, 70000] {
            for masked in [false, true] {
                let frame = frame(length, masked);
                for step in [1, 3, 7, 4096, frame.len()] {
                    let mut frames = Frames::default();
                    let mut passed = 0;
                    for part in frame.chunks(step) {
                        assert_eq!(frames.is_between(), passed == 0, "{length} {masked} {step} {passed}");
                        frames.pass(part);
                        passed += part.len();
                    }
                    assert!(frames.is_between(), "{length} {masked} {step}");
                }
            }
        }
        let mut frames = Frames::default();
        frames.pass(&[frame(5, false), frame(300, false), vec![0x81]].concat());
        assert!(!frames.is_between());
        frames.pass(&[0x00]);
        assert!(frames.is_between());
    }
}
