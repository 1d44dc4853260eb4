//! The projection of session events: what a record changes, without Kafka and without a database.
//!
//! The changes of a set of records are the same in every order and however often a record occurs: of equal events the one that
//! arrived first is kept, and the arrival depends on the record alone.

use std::collections::BTreeMap;
use std::fmt;

use herald_events::{Frame, FrameError, KeyError, KeyFormat, Limits, SessionId};
use store::{Arrival, NewEvent, Position, SessionChanges};

/// A record of the topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds since 1970.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The id of the request that the record came with, for the log.
    pub fn request_id(&self) -> &str {
        let is_id = |(name, _): &&(String, _)| name.eq_ignore_ascii_case("x-request-id");
        let header = self.headers.iter().find(is_id);
        let value = header.and_then(|(_, value)| value.as_deref());
        std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default()
    }

    /// Two bytes that distinguish the record from the one at the same offset of a topic that was recreated.
    pub fn fingerprint(&self) -> u16 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.timestamp.unwrap_or(-1).to_le_bytes());
        hasher.update(self.value.as_deref().unwrap_or_default());
        let sum = hasher.finalize();
        (sum >> 16) as u16 ^ sum as u16
    }

    /// The position after the record, which was read at `position`.
    pub fn after(&self, position: Position) -> Position {
        let time = self.timestamp.unwrap_or(position.record_time);
        Position {
            next: self.offset + 1,
            fingerprint: Some(self.fingerprint()),
            record_time: position.record_time.max(time),
            epoch: position.epoch,
        }
    }
}

/// Adds the changes of a record to those of its batch, and returns its session. `after` is the position after the record.
///
/// # Errors
///
/// If the record is not a frame of a session; then nothing is changed.
pub fn add(
    sessions: &mut BTreeMap<SessionId, SessionChanges>,
    record: &Record,
    after: Position,
    key: KeyFormat,
) -> Result<SessionId, Malformed> {
    let id = key.decode(record.key.as_deref()).map_err(Malformed::Key)?;
    let value = record.value.as_deref().ok_or(Malformed::NoValue)?;
    let frame = Frame::parse(value, Limits::NONE).map_err(Malformed::Frame)?;
    let changes = sessions.entry(id.clone()).or_default();
    // Not the time that never decreases: one record from the future would keep all later sessions forever.
    let time = record.timestamp.unwrap_or(after.record_time);
    changes.touched = changes.touched.max(time);
    for (index, (identity, event)) in (0..).zip(frame.identities().zip(&frame.events)) {
        let arrival = Arrival {
            record_time: after.record_time,
            epoch: after.epoch,
            partition: record.partition,
            offset: record.offset,
            index,
        };
        let earlier = changes.events.get(&identity);
        if earlier.is_some_and(|earlier| earlier.arrival <= arrival) {
            continue;
        }
        let event = NewEvent {
            kind: event.kind,
            timestamp: event.timestamp,
            arrival,
            json: event.json.to_owned(),
        };
        changes.events.insert(identity, event);
    }
    Ok(id)
}

/// Why a record is not a frame of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Key(KeyError),
    NoValue,
    Frame(FrameError),
}

impl Malformed {
    /// A label for metrics, of a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::NoValue => "no-value",
            Self::Frame(error) => error.rule.label(),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(error) => write!(f, "{error}"),
            Self::NoValue => f.write_str("the record has no value"),
            Self::Frame(error) => write!(f, "{error}"),
        }
    }
}

#[cfg(test)]
mod tests;
