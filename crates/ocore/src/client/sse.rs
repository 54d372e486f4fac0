//! Server-sent events, read line by line.

use futures::StreamExt;

/// One event of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    pub id: Option<String>,
    pub kind: String,
    pub data: String,
}

/// Takes a stream's text apart; pieces may break anywhere.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    event: Event,
    has_data: bool,
}

impl Parser {
    /// The events that are whole after this piece.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<Event> {
        self.buffer.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            events.extend(self.line(line.trim_end_matches(['\r', '\n'])));
        }
        events
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event.kind),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        None
    }
}

/// Calls `handle` for each event until it says stop or the stream ends. `Ok(true)` when it said stop.
pub async fn read(response: reqwest::Response, mut handle: impl FnMut(Event) -> bool) -> reqwest::Result<bool> {
    let mut pieces = response.bytes_stream();
    let mut parser = Parser::default();
    while let Some(piece) = pieces.next().await {
        for event in parser.feed(&piece?) {
            if !handle(event) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_arrive_in_any_pieces_are_put_together() {
        let text = b": hello\n\nid: 4.2\nevent: line\ndata: a\ndata: b\n\ndata:{}\r\n\r\n";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let events: Vec<Event> = text.chunks(size).flat_map(|piece| parser.feed(piece)).collect();
            assert_eq!(events.len(), 2, "pieces of {size}");
            assert_eq!(events[0], Event { id: Some("4.2".into()), kind: "line".into(), data: "a\nb".into() });
            assert_eq!(events[1].data, "{}");
        }
    }
}
