//! The three protocols as a client reads them, and no more of them than a measurement needs.

use anyhow::{bail, ensure};

/// What a connection speaks.
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
    /// What the client says first.
    pub fn request(self) -> &'static [u8] {
        const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        match self {
            Self::Bare => b"",
            Self::Sse => b"GET /events HTTP/1.1\r\nHost: herald\r\nAccept: text/event-stream\r\n\r\n",
            Self::WebSocket => concat_request!("GET /ws HTTP/1.1\r\nHost: herald\r\n"),
            Self::SocketIo => concat_request!("GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: herald\r\n"),
        }
    }
}
