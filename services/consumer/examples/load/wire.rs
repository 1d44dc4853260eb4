//! The protocols as a client reads them, and no more of them than a measurement needs.

use anyhow::{Context as _, bail, ensure};

use crate::pieces;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Blocks of `text/event-stream`, without HTTP: the floor.
    Bare,
    Sse,
    WebSocket,
    SocketIo,
}

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The stream has started: what is published now is delivered.
    Ready,
    /// A message, by its number.
    Message(u64),
}

/// The payload of a message: its number, and padding up to `bytes`. No server writes a `#` of its own.
pub fn payload(number: u64, bytes: usize) -> String {
    format!("{:x<bytes$}", format!("#{number:012} "))
}

impl Protocol {
    /// What the client says first; with a key, it wants only the messages with that key.
    pub fn request(self, key: Option<u64>) -> String {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let (path, headers) = match self {
            Self::Bare => return String::new(),
            Self::Sse => ("/events", "Accept: text/event-stream\r\n"),
            Self::WebSocket => ("/ws", upgrade),
            Self::SocketIo => ("/socket.io/?EIO=4&transport=websocket", upgrade),
        };
        let query = key.map(|key| {
            let separator = if path.contains('?') { '&' } else { '?' };
            format!("{separator}key={key}")
        });
        let query = query.unwrap_or_default();
        format!("GET {path}{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
    }
}

/// One connection's input.
pub struct Decoder {
    protocol: Protocol,
    /// The head of the HTTP response is still to come.
    head: bool,
    /// What is not yet whole.
    rest: Vec<u8>,
}

impl Decoder {
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            head: protocol != Protocol::Bare,
            rest: Vec::new(),
        }
    }

    /// Reads what came. `answer` gets what the protocol wants to be said in return.
    ///
    /// # Errors
    ///
    /// When the server refuses, ends the stream or says something that this client does not know.
    pub fn read(
        &mut self,
        input: &[u8],
        answer: &mut Vec<u8>,
        mut tell: impl FnMut(Told),
    ) -> anyhow::Result<()> {
        let mut rest = std::mem::take(&mut self.rest);
        pieces::read(&mut rest, input, |bytes| {
            self.piece(bytes, answer, &mut tell)
        })?;
        self.rest = rest;
        Ok(())
    }

    /// Reads one piece from the start of `bytes` and says how long it is; `None` when it is not whole.
    fn piece(
        &mut self,
        bytes: &[u8],
        answer: &mut Vec<u8>,
        tell: &mut impl FnMut(Told),
    ) -> anyhow::Result<Option<usize>> {
        if self.head {
            let Some(end) = find(bytes, b"\r\n\r\n") else {
                return Ok(None);
            };
            let status = String::from_utf8_lossy(&bytes[..end]);
            ensure!(
                status.starts_with("HTTP/1.1 200") || status.starts_with("HTTP/1.1 101"),
                "the server answers {status:?}"
            );
            self.head = false;
            return Ok(Some(end + 4));
        }
        match self.protocol {
            Protocol::Bare => {
                let Some(end) = find(bytes, b"\n\n") else {
                    return Ok(None);
                };
                tell_of(&bytes[..end], b"event: start", tell);
                Ok(Some(end + 2))
            }
            Protocol::Sse => chunk(bytes, tell),
            Protocol::WebSocket | Protocol::SocketIo => self.frame(bytes, answer, tell),
        }
    }

    /// A WebSocket frame.
    fn frame(
        &self,
        bytes: &[u8],
        answer: &mut Vec<u8>,
        tell: &mut impl FnMut(Told),
    ) -> anyhow::Result<Option<usize>> {
        let &[first, second, ref more @ ..] = bytes else {
            return Ok(None);
        };
        let (head, length) = match (second, more) {
            (length @ ..126, _) => (2, length as usize),
            (126, &[high, low, ..]) => (4, u16::from_be_bytes([high, low]) as usize),
            (126, _) => return Ok(None),
            _ => bail!("a frame of over 64 KiB"),
        };
        let Some(payload) = bytes.get(head..head + length) else {
            return Ok(None);
        };
        match (first & 0xf, self.protocol, payload) {
            (1, Protocol::SocketIo, [b'0', ..]) => say(answer, 1, b"40"),
            (1, Protocol::SocketIo, b"2") => say(answer, 1, b"3"),
            (1, Protocol::SocketIo, _) => tell_of(payload, b"42[\"start\"", tell),
            (1, _, _) => tell_of(payload, b"\"type\":\"start\"", tell),
            (9, ..) => say(answer, 10, payload),
            (8, ..) => bail!("the server closes"),
            _ => {}
        }
        Ok(Some(head + length))
    }
}

/// A chunk of HTTP's; it holds whole events.
fn chunk(bytes: &[u8], tell: &mut impl FnMut(Told)) -> anyhow::Result<Option<usize>> {
    let Some(line) = find(bytes, b"\r\n") else {
        return Ok(None);
    };
    let size = std::str::from_utf8(&bytes[..line])
        .ok()
        .and_then(|size| usize::from_str_radix(size, 16).ok());
    let size = size.context("not a chunk")?;
    ensure!(size > 0, "the stream has ended");
    let body = line + 2;
    if bytes.len() < body + size + 2 {
        return Ok(None);
    }
    let mut events = &bytes[body..body + size];
    while let Some(end) = find(events, b"\n\n") {
        tell_of(&events[..end], b"event: start", tell);
        events = &events[end + 2..];
    }
    Ok(Some(body + size + 2))
}

/// A message has a number, the first event this `start`; there is more that does not matter here.
fn tell_of(event: &[u8], start: &[u8], tell: &mut impl FnMut(Told)) {
    match event.iter().position(|byte| *byte == b'#') {
        Some(at) => {
            let digits = event[at + 1..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit());
            tell(Told::Message(digits.fold(0, |number, digit| {
                number * 10 + u64::from(digit - b'0')
            })));
        }
        None if find(event, start).is_some() => tell(Told::Ready),
        None => {}
    }
}

/// A short frame of a client, masked with zeros.
fn say(answer: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    answer.extend([0x80 | kind, 0x80 | payload.len() as u8, 0, 0, 0, 0]);
    answer.extend(payload);
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        from += bytes[from..].iter().position(|byte| *byte == wanted[0])?;
        if bytes[from..].starts_with(wanted) {
            return Some(from);
        }
        from += 1;
    }
}
