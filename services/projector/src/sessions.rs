//! The projection of session events: what a record changes, without Kafka and without a database.
//!
//! The changes of a set of records are the same in every order and however often a record occurs: of equal events the one that
//! arrived first is kept, and the arrival depends on the record alone.

use std::collections::BTreeMap;

use herald_events::{Frame, KeyFormat, Limits, SessionId};
use store::{Arrival, NewEvent, Position, SessionChanges};

use crate::projection::Malformed;
use crate::record::Record;

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

#[cfg(test)]
mod tests;
