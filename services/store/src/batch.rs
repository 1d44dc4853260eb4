//! What a projection writes in one transaction.

use std::collections::BTreeMap;

use herald_events::{Kind, SessionId};

use crate::Counts;

/// How far a projection has read one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The next offset to read.
    pub next: i64,
    /// The fingerprint of the record at `next - 1`, if there was one.
    pub fingerprint: Option<u16>,
    /// The latest timestamp of the records read so far, in milliseconds since 1970; it never decreases.
    pub record_time: i64,
    /// How often the log was recreated: its offsets began again.
    pub epoch: u32,
}

/// A step of one partition's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    pub partition: i32,
    /// Where the projection began to read. The step fails if another projector has moved the position since.
    pub from: Position,
    pub to: Position,
}

/// The place of an event among all events of a session, in the order of arrival. It depends on the records alone, so it is the
/// same when the results are computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// [`Position::record_time`] at its record: comparable across partitions, and never decreasing within one.
    pub record_time: i64,
    pub epoch: u32,
    pub partition: i32,
    pub offset: i64,
    /// The index in the frame.
    pub index: u32,
}

impl Arrival {
    /// Bytes in the same order as the values.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(28);
        bytes.extend((self.record_time ^ i64::MIN).to_be_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend((self.partition ^ i32::MIN).to_be_bytes());
        bytes.extend((self.offset ^ i64::MIN).to_be_bytes());
        bytes.extend(self.index.to_be_bytes());
        bytes
    }
}

/// An event to store.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub kind: Kind,
    pub timestamp: f64,
    pub arrival: Arrival,
    /// The event as it was sent, as JSON.
    pub json: String,
}

/// What a batch adds to one session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionChanges {
    /// When its latest record was written, in milliseconds since 1970.
    pub touched: i64,
    /// By identity; an event that is the same as a stored one is kept once, with the earlier arrival.
    pub events: BTreeMap<[u8; 16], NewEvent>,
}

/// The results of some records, and the positions after them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// In the order of the partitions, each once.
    pub advances: Vec<Advance>,
    pub sessions: BTreeMap<SessionId, SessionChanges>,
    pub counts: Counts,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arrivals() -> impl Strategy<Value = Arrival> {
        let offsets = prop_oneof![-3..3i64, any::<i64>()];
        (offsets.clone(), 0..3u32, -1..3i32, offsets, 0..300u32).prop_map(
            |(record_time, epoch, partition, offset, index)| Arrival {
                record_time,
                epoch,
                partition,
                offset,
                index,
            },
        )
    }

    proptest! {
        #[test]
        fn the_bytes_of_arrivals_are_in_their_order(a in arrivals(), b in arrivals()) {
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        }
    }
}
