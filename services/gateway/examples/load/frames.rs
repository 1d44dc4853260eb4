//! The frames that are sent, and the acknowledgements that come back, with no more of WebSocket than a measurement needs.

use anyhow::{Context as _, bail, ensure};

use crate::pieces;

/// The digits of a frame's number in the timestamp of its first event: no two frames are equal.
const NUMBER: std::ops::Range<usize> = 15..27;

/// A session's frame of events.
pub struct Frames {
    /// With the header of a masked text frame. The mask is zero; the server applies it all the same.
    frame: Vec<u8>,
    header: usize,
    number: u64,
}

impl Frames {
    pub fn new(events: usize) -> Self {
        let event = |index| {
            format!(
                r#"{{"timestamp":1{index:012},"type":"EVENT","name":"button-clicked","x":1{index:02},"y":200}}"#
            )
        };
        let events: Vec<String> = (0..events).map(event).collect();
        let payload = format!("[{}]", events.join(","));
        let mut frame = vec![0x81];
        match u16::try_from(payload.len()) {
            Ok(length @ ..126) => frame.push(0x80 | length as u8),
            Ok(length) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        let header = frame.len();
        frame.extend(payload.as_bytes());
        Self {
            frame,
            header,
            number: 0,
        }
    }

    /// Adds the next frame.
    pub fn write(&mut self, output: &mut Vec<u8>) {
        self.advance();
        output.extend_from_slice(&self.frame);
    }

    /// The text of the next frame.
    pub fn text(&mut self) -> String {
        self.advance();
        String::from_utf8_lossy(&self.frame[self.header..]).into_owned()
    }

    fn advance(&mut self) {
        self.number += 1;
        let mut rest = self.number;
        let digits = &mut self.frame[self.header..][NUMBER];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
}

/// The request that opens the connection of a session.
pub fn handshake(session: usize) -> String {
    format!(
        "GET /websocket?session_id=session-{session}&ack=1 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The connection is open.
    Open,
    /// The oldest frame in flight is in Kafka.
    Acknowledged,
}

/// One connection's input.
#[derive(Default)]
pub struct Decoder {
    is_open: bool,
    /// What is not yet whole.
    rest: Vec<u8>,
}

impl Decoder {
    /// Reads what came. `answer` gets the pongs.
    ///
    /// # Errors
    ///
    /// If the server rejects the connection or a frame, or closes the connection.
    pub fn read(
        &mut self,
        input: &[u8],
        answer: &mut Vec<u8>,
        mut each: impl FnMut(Input),
    ) -> anyhow::Result<()> {
        let mut rest = std::mem::take(&mut self.rest);
        pieces::read(&mut rest, input, |bytes| {
            self.piece(bytes, answer, &mut each)
        })?;
        self.rest = rest;
        Ok(())
    }

    /// Reads one piece from the start of `bytes` and returns its length; `None` if it is not whole.
    fn piece(
        &mut self,
        bytes: &[u8],
        answer: &mut Vec<u8>,
        each: &mut impl FnMut(Input),
    ) -> anyhow::Result<Option<usize>> {
        if !self.is_open {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
            let Some(end) = end else { return Ok(None) };
            let head = String::from_utf8_lossy(&bytes[..end]);
            ensure!(
                head.starts_with("HTTP/1.1 101"),
                "the server answers {head:?}"
            );
            self.is_open = true;
            each(Input::Open);
            return Ok(Some(end + 4));
        }
        let &[first, second, ref more @ ..] = bytes else {
            return Ok(None);
        };
        let (head, length) = match (second, more) {
            (length @ ..126, _) => (2, usize::from(length)),
            (126, &[high, low, ..]) => (4, usize::from(u16::from_be_bytes([high, low]))),
            (126, _) => return Ok(None),
            _ => bail!("a frame of over 64 KiB"),
        };
        let Some(payload) = bytes.get(head..head + length) else {
            return Ok(None);
        };
        match first & 0xf {
            1 => {
                let text = std::str::from_utf8(payload).context("not UTF-8")?;
                ensure!(
                    text.contains(r#""type":"ack""#),
                    "the server answers {text}"
                );
                each(Input::Acknowledged);
            }
            9 => {
                answer.extend([0x8a, 0x80 | length as u8, 0, 0, 0, 0]);
                answer.extend(payload);
            }
            8 => bail!(
                "the server closes the connection: {}",
                String::from_utf8_lossy(payload.get(2..).unwrap_or_default())
            ),
            _ => {}
        }
        Ok(Some(head + length))
    }
}
