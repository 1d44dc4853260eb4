//! The events that are read from Kafka: a message, or a gap where one cannot be delivered.

use serde::Serialize;

use crate::cursor::Position;

/// One event of a partition, and where reading continues after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub partition: usize,
    /// The position after this event.
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
    /// Milliseconds since 1970, set by the producer or by the broker (the topic's `message.timestamp.type`).
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
    /// Not UTF-8: a gap, or base64 for clients that request it.
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

/// Messages that will not be delivered, and why.
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

/// Offsets of one partition. The range bounds the missing messages; it does not count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    pub partition: usize,
    pub from: i64,
    /// Exclusive; `None` if the end of the log that was read is no longer known.
    pub to: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// Kafka deleted the records before they were read.
    Retention,
    /// The topic was deleted and recreated.
    Recreated,
    /// The topic lost the end of its log; offsets continue from `from` again.
    Truncated,
    /// A batch that cannot be decompressed, or whose checksum is wrong.
    Unreadable,
    /// The cursor is malformed, or of another topic.
    UnknownCursor,
    /// The value is over the limit.
    TooLarge,
    /// The value is not UTF-8, and base64 was not requested.
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
    /// A gap in one partition; reading continues at `next`.
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

    /// The reason, if the event is a gap.
    pub fn gap_reason(&self) -> Option<GapReason> {
        match &self.payload {
            Payload::Gap(gap) => Some(gap.reason),
            Payload::Message(_) => None,
        }
    }

    /// Whether offsets restart with this event: offsets before it cannot be compared with those after it.
    pub fn resets(&self) -> bool {
        let reason = self.gap_reason();
        matches!(reason, Some(GapReason::Recreated | GapReason::Truncated))
    }

    /// The first offset that the event covers.
    pub fn first_offset(&self) -> i64 {
        match &self.payload {
            Payload::Message(message) => message.offset,
            Payload::Gap(gap) => gap
                .ranges
                .first()
                .map_or(self.next.offset - 1, |range| range.from),
        }
    }

    /// The approximate bytes that the record occupies in memory, for bounding a buffer.
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
    fn every_gap_reason_has_one_name_on_the_wire_in_metrics_in_the_docs_and_on_the_page() {
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
