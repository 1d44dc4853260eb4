//! What is read from Kafka, as the transports need it: a message, or a gap where one cannot be delivered.

use serde::Serialize;

use crate::cursor::Position;

/// One step of a partition: what happened, and where reading goes on after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub partition: usize,
    /// The position after this change.
    pub next: Position,
    pub payload: Payload,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    Message(Message),
    Gap(Gap),
}

/// One Kafka record.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub offset: i64,
    /// Milliseconds since 1970, as Kafka has it (set by the producer or by the broker, as the topic says).
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A tombstone: the record has no value.
    Null,
    Text(String),
    /// Not UTF-8: a gap, or base64 for clients that ask for it.
    Binary(Vec<u8>),
}

impl Value {
    pub fn new(bytes: Option<&[u8]>) -> Self {
        match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
            None => Self::Null,
            Some((_, Ok(text))) => Self::Text(text.to_owned()),
            Some((bytes, Err(_))) => Self::Binary(bytes.to_owned()),
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// What will not come, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub reason: GapReason,
    pub ranges: Vec<Range>,
}

impl Gap {
    pub fn of(reason: GapReason, partition: usize, from: i64, to: Option<i64>) -> Self {
        Self {
            reason,
            ranges: vec![Range {
                partition,
                from,
                to,
            }],
        }
    }
}

/// Offsets of one partition. It bounds what is missing, it does not count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    pub partition: usize,
    pub from: i64,
    /// Exclusive; `None` when the log that was read has no end any more.
    pub to: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// Kafka deleted the records before they were read.
    Retention,
    /// The topic was deleted and recreated.
    Recreated,
    /// The cursor is garbled, or of another topic.
    UnknownCursor,
    /// The value is over the limit.
    TooLarge,
    /// The value is not UTF-8, and base64 was not asked for.
    NotUtf8,
}

impl GapReason {
    /// The name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Recreated => "recreated",
            Self::UnknownCursor => "unknown-cursor",
            Self::TooLarge => "too-large",
            Self::NotUtf8 => "not-utf8",
        }
    }
}

impl Event {
    /// Whether offsets begin anew with this change: the topic was deleted and made again.
    pub fn resets(&self) -> bool {
        matches!(&self.payload, Payload::Gap(gap) if gap.reason == GapReason::Recreated)
    }

    /// The bytes that the record holds in memory, near enough to bound a buffer by.
    pub fn weight(&self) -> usize {
        let content = match &self.payload {
            Payload::Gap(_) => 0,
            Payload::Message(message) => {
                let headers = message
                    .headers
                    .iter()
                    .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len) + 48);
                message.value.len()
                    + message.key.as_ref().map_or(0, Vec::len)
                    + headers.sum::<usize>()
            }
        };
        content + size_of::<Self>()
    }
}
