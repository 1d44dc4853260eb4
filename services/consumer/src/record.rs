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
    /// The topic lost the end of its log; offsets go on from `from` again.
    Truncated,
    /// A batch that cannot be unpacked, or whose checksum is wrong.
    Unreadable,
    /// The cursor is garbled, or of another topic.
    UnknownCursor,
    /// The value is over the limit.
    TooLarge,
    /// The value is not UTF-8, and base64 was not asked for.
    NotUtf8,
}

impl GapReason {
    /// All of them, for tables.
    #[cfg(test)]
    pub const ALL: [Self; 7] = [
        Self::Retention,
        Self::Recreated,
        Self::Truncated,
        Self::Unreadable,
        Self::UnknownCursor,
        Self::TooLarge,
        Self::NotUtf8,
    ];

    /// The name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Recreated => "recreated",
            Self::Truncated => "truncated",
            Self::Unreadable => "unreadable",
            Self::UnknownCursor => "unknown-cursor",
            Self::TooLarge => "too-large",
            Self::NotUtf8 => "not-utf8",
        }
    }
}

impl Event {
    /// What will not come of one partition; reading goes on at `next`.
    pub fn gap(
        reason: GapReason,
        partition: usize,
        from: i64,
        to: Option<i64>,
        next: Position,
    ) -> Self {
        Self {
            partition,
            next,
            payload: Payload::Gap(Gap::of(reason, partition, from, to)),
        }
    }

    /// Why something will not come, if that is what the event says.
    pub fn gap_reason(&self) -> Option<GapReason> {
        match &self.payload {
            Payload::Gap(gap) => Some(gap.reason),
            Payload::Message(_) => None,
        }
    }

    /// Whether offsets begin again with this event: nothing before it can be compared with what comes after.
    pub fn resets(&self) -> bool {
        let reason = self.gap_reason();
        matches!(reason, Some(GapReason::Recreated | GapReason::Truncated))
    }

    /// The first offset that the event speaks of.
    pub fn first_offset(&self) -> i64 {
        match &self.payload {
            Payload::Message(message) => message.offset,
            Payload::Gap(gap) => gap
                .ranges
                .first()
                .map_or(self.next.offset - 1, |range| range.from),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_reason_is_named_the_same_on_the_wire_in_metrics_in_the_docs_and_on_the_page() {
        let protocol = include_str!("../../../docs/protocol.md");
        let openapi = include_str!("openapi.json");
        let page = include_str!("page/words.js");
        for reason in GapReason::ALL {
            let name = reason.name();
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("{name:?}"));
            assert!(
                protocol.contains(&format!("| `{name}` |")),
                "protocol.md: {name}"
            );
            assert!(
                openapi.contains(&format!("\"{name}\"")),
                "openapi.json: {name}"
            );
            let key = [format!("  {name}:"), format!("  \"{name}\":")];
            assert!(key.iter().any(|key| page.contains(key)), "words.js: {name}");
        }
    }
}
