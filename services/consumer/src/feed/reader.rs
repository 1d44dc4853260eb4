//! A connection's position in the ring.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cursor::{Position, Vector};
use crate::encode::{self, Encoding, Frame};
use crate::record::{Event, Gap, GapReason, Payload};

/// A connection's position in the ring.
#[derive(Debug)]
pub struct RingReader {
    /// The number of the next event.
    pub(super) position: u64,
    /// The cursor of the last event taken. It is kept here, because the ring may evict that event before the client resumes.
    pub(super) cursor: Arc<str>,
    /// Events from here on are live, not backlog.
    pub(super) live_from: u64,
    /// The client knows a cursor that is after all events before this one.
    pub(super) announced: u64,
    /// The next events of its keys.
    pub(super) found: Found,
    /// Set until the connection's vector equals the ring's.
    pub(super) divergence: Option<Box<Divergence>>,
}

/// The most numbers of events that a connection keeps.
const MAX_FOUND: usize = 1_000;

/// The events of a connection's keys that were found in the ring and not taken yet: finding them costs as much as there are, and
/// a connection that is far behind takes a few at a time.
#[derive(Debug, Default)]
pub struct Found {
    /// Ascending.
    pub(super) numbers: VecDeque<u64>,
    /// There are no others before this number.
    pub(super) until: u64,
}

impl Found {
    /// `numbers` are all before `end`.
    pub(super) fn new(mut numbers: Vec<u64>, end: u64) -> Self {
        let until = numbers.get(MAX_FOUND).copied().unwrap_or(end);
        if numbers.len() > MAX_FOUND {
            numbers.truncate(MAX_FOUND);
            numbers.shrink_to_fit();
        }
        Self {
            numbers: numbers.into(),
            until,
        }
    }
}

impl RingReader {
    /// The number of the next event.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the newest cursor that the client was sent is older than its position: what lies between has other keys.
    pub fn is_unannounced(&self) -> bool {
        self.position > self.announced
    }

    /// Records that the client was sent the cursor of its position.
    pub fn announce(&mut self) {
        self.announced = self.position;
    }
}

/// Another replica may have read the partitions in another order. A client that comes from there is ahead of this ring's
/// position in some partitions, so it gets its own vector and cursors until the two are equal:
///
/// ```text
/// ring      0/7  1/3  0/8  1/4  0/9 …      (partition/offset)
/// client    has 0/8 and 1/3: position before 0/8, ahead in partition 0
///           skips 0/8, takes 1/4 with its own cursor; both vectors are now equal, and frames are shared from 0/9
/// ```
#[derive(Debug)]
pub struct Divergence {
    pub(super) vector: Vector,
    /// Partitions in which the client is ahead of its position in the ring.
    pub(super) ahead: Vec<usize>,
}

impl Divergence {
    /// Records the ring's next event. Returns the client's position before it; `None` if the client already has it.
    pub(super) fn accept(
        &mut self,
        event: &Event,
        ring_cursor: &str,
        topic: &str,
    ) -> Option<Position> {
        let (partition, next) = (event.partition, event.next);
        let client = self.vector.get(partition);
        let resets = event.resets();
        if next.offset >= client.offset || resets {
            self.ahead.retain(|ahead| *ahead != partition);
        }
        if next.offset <= client.offset && !resets {
            return None;
        }
        self.vector.set(partition, next);
        if resets {
            // The ring's vectors have the topic id after the reset; from here, this client's has it too.
            if let Some(vector) = Vector::decode(ring_cursor, topic) {
                self.vector.topic_id = vector.topic_id;
            }
        }
        Some(client)
    }

    /// Records that the client needs nothing else of the ring up to this vector of the ring: what it has not taken has other
    /// keys.
    pub(super) fn pass(&mut self, ring: &Vector) {
        self.ahead.clear();
        for (partition, &position) in ring.positions.iter().enumerate() {
            if position.offset >= self.vector.get(partition).offset {
                self.vector.set(partition, position);
            } else {
                self.ahead.push(partition);
            }
        }
    }

    /// The frame of the ring's next event for this client; `None` if the client already has it. `frame` returns the ring's own
    /// frame.
    pub(super) fn take(
        &mut self,
        event: &Event,
        ring_cursor: &str,
        topic: &str,
        encoding: Encoding,
        frame: impl FnOnce() -> Frame,
    ) -> Option<Frame> {
        let (partition, next) = (event.partition, event.next);
        let client = self.accept(event, ring_cursor, topic)?;
        let cursor = self.vector.encode(topic);
        let Payload::Gap(gap) = &event.payload else {
            return Some(encode::with_cursor(
                &frame(),
                ring_cursor,
                &cursor,
                encoding.format,
            ));
        };
        // The ring's gap begins, or ends, at the ring's position; this client's at its own.
        let own = Gap {
            reason: gap.reason,
            ranges: gap
                .ranges
                .iter()
                .map(|range| {
                    let mut range = *range;
                    match gap.reason {
                        GapReason::Recreated => range.from = client.offset,
                        GapReason::Truncated => range.to = Some(client.offset),
                        _ => range.from = range.from.max(client.offset),
                    }
                    range
                })
                .collect(),
        };
        let event = Event {
            partition,
            next,
            payload: Payload::Gap(own),
        };
        Some(encode::event(&event, &cursor, encoding))
    }
}
