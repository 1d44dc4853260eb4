//! Passes events to the Socket.IO library, no faster than the client accepts them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use herald_runtime::http::Connection;
use serde_json::value::RawValue;
use socketioxide::extract::SocketRef;
use socketioxide::{SendError, SocketError, TransportType};

use crate::encode::Frame;
use crate::sessions::{BYE_FLUSH, Sessions};
use crate::stream::End;
use crate::transports::rooms::Sent;

/// While the library's queue is full because the client is slow: the first and the longest delay between two attempts.
const FULL: Duration = Duration::from_millis(1);
const MAX_FULL: Duration = Duration::from_millis(50);

/// The part of the library's queue that events fill, in packets.
const EVENT_QUEUE: usize = 24;

/// Maximum bytes in flight, or one message: each packet is a copy of its own.
const MAX_IN_FLIGHT: u64 = 128 << 10;

/// Packets between two polls: python-socketio rejects a response of more than 16, and one may contain those of two polls, and
/// the `bye`.
const POLL_PACKETS: usize = 7;

/// A client that accepts nothing for this long is disconnected.
pub const STALLED: Duration = Duration::from_secs(10);

/// Passes events to the library.
pub struct Emitter<'a> {
    socket: SocketRef,
    sessions: &'a Sessions,
    /// The number of answered polls at the last check, and what was emitted since.
    polls: u64,
    packets: usize,
    bytes: u64,
    /// On a WebSocket: the end of each emitted packet in the connection's byte stream.
    connection: Option<Arc<Connection>>,
    written: u64,
    ends: VecDeque<u64>,
}

impl<'a> Emitter<'a> {
    /// `packets` were emitted already.
    pub fn new(socket: SocketRef, sessions: &'a Sessions, packets: usize) -> Self {
        Self {
            socket,
            sessions,
            polls: 0,
            packets,
            bytes: 0,
            connection: None,
            written: 0,
            ends: VecDeque::new(),
        }
    }

    /// Emits all frames. Waits while the queue is full, as long as the client makes progress.
    ///
    /// # Errors
    ///
    /// `None` if the client has disconnected, [`End::Slow`] if it accepted nothing until the deadline. Each byte that it accepts
    /// extends the deadline, because a large message takes a slow client longer.
    pub async fn emit_all(
        &mut self,
        frames: &[Frame],
        mut deadline: Instant,
    ) -> Result<(), Option<End>> {
        for frame in frames {
            let payload = frame
                .value
                .as_deref()
                .expect("frames of this format have one");
            self.emit(frame.kind.name(), payload, &mut deadline).await?;
            deadline = deadline.max(Instant::now() + STALLED);
        }
        Ok(())
    }

    /// Emits what a member of rooms receives, with the same patience.
    ///
    /// # Errors
    ///
    /// As [`emit_all`](Self::emit_all).
    pub async fn emit_results(&mut self, events: Vec<Sent>) -> Result<(), Option<End>> {
        for event in events {
            let mut deadline = Instant::now() + STALLED;
            let (name, payload) = (event.name(), event.payload());
            self.emit(name, payload, &mut deadline).await?;
            event.delivered();
        }
        Ok(())
    }

    async fn emit(
        &mut self,
        event: &str,
        payload: &RawValue,
        deadline: &mut Instant,
    ) -> Result<(), Option<End>> {
        let answered = self.sessions.answered(self.socket.id.as_str());
        let mut pause = FULL;
        loop {
            if self.has_room() {
                match self.socket.emit(event, payload) {
                    Ok(()) => break,
                    Err(SendError::Socket(SocketError::InternalChannelFull)) => {}
                    Err(error) => {
                        tracing::debug!(%error, "socket.io client has disconnected");
                        return Err(None);
                    }
                }
            }
            if self.has_progressed() {
                *deadline = (*deadline).max(Instant::now() + STALLED);
            }
            if Instant::now() > *deadline {
                return Err(Some(End::Slow));
            }
            _ = tokio::time::timeout(pause, answered.notified()).await;
            pause = (pause * 2).min(MAX_FULL);
        }
        self.record_emitted(packet_bytes(event, payload));
        Ok(())
    }

    /// Whether a WebSocket has accepted any bytes since the last call.
    fn has_progressed(&mut self) -> bool {
        let connection = self.connection.as_ref();
        let written = connection.map_or(0, |connection| connection.written());
        std::mem::replace(&mut self.written, written) != written
    }

    /// Emits the last frame, and waits until it has been written, as far as that is observable, or a second has passed.
    pub async fn finish(&mut self, bye: &Frame) {
        let deadline = Instant::now() + Duration::from_secs(1);
        let sid = self.socket.id.as_str();
        let polls = self.sessions.polls(sid);
        let payload = bye
            .value
            .as_deref()
            .expect("frames of this format have one");
        // The queue and a response to a poll have room for it beside the events that fill their share.
        if self.socket.emit(bye.kind.name(), payload).is_err() {
            return;
        }
        self.record_emitted(packet_bytes(bye.kind.name(), payload));
        tokio::time::sleep(BYE_FLUSH).await;
        while Instant::now() < deadline {
            let written = match (&self.connection, self.ends.back()) {
                (Some(connection), Some(end)) => connection.written() >= *end,
                // A client that is between two polls receives it with the next one.
                _ if self.socket.transport_type() == TransportType::Polling => {
                    self.sessions.polls(self.socket.id.as_str()) != polls
                }
                _ => true,
            };
            if written {
                return;
            }
            tokio::time::sleep(MAX_FULL).await;
        }
    }

    fn record_emitted(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
        if let Some(connection) = &self.connection {
            let begin = self
                .ends
                .back()
                .copied()
                .unwrap_or_default()
                .max(connection.written());
            self.ends.push_back(begin + bytes);
        }
    }

    /// Whether the client can accept one more packet now.
    fn has_room(&mut self) -> bool {
        if self.socket.transport_type() == TransportType::Polling {
            if self.packets < POLL_PACKETS && self.bytes < MAX_IN_FLIGHT {
                return true;
            }
            let polls = self.sessions.polls(self.socket.id.as_str());
            let polled = std::mem::replace(&mut self.polls, polls) != polls;
            if polled {
                (self.packets, self.bytes) = (0, 0);
            }
            return polled || !self.socket.connected();
        }
        if self.connection.is_none() {
            self.connection = self.sessions.connection(&self.socket);
        }
        let Some(connection) = &self.connection else {
            return true;
        };
        let written = connection.written();
        while self.ends.front().is_some_and(|end| *end <= written) {
            self.ends.pop_front();
        }
        let in_flight = self.ends.back().map_or(0, |end| end - written);
        self.ends.len() < EVENT_QUEUE && in_flight < MAX_IN_FLIGHT
    }
}

/// The bytes of an event's packet on a WebSocket: `42["message",…]` in a frame (RFC 6455, section 5.2).
fn packet_bytes(event: &str, payload: &RawValue) -> u64 {
    let text = payload.get().len() + event.len() + r#"42["",]"#.len();
    let head = match text {
        ..126 => 2,
        126..0x1_0000 => 4,
        _ => 10,
    };
    (text + head) as u64
}
