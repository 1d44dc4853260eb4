//! A connection's position in the ring.

use std::sync::Arc;

use crate::cursor::Vector;
use crate::encode::{self, Encoding, Frame};
use crate::record::{Event, Gap, GapReason, Payload};

/// Where a connection is in the ring.
#[derive(Debug)]
pub struct RingReader {
    /// The number of the next event.
    pub(super) position: u64,
    /// The token of what the client has. It is kept, since the ring may forget it before the client has to resume.
    pub(super) cursor: Arc<str>,
    /// Events from here on are live, not backlog.
    pub(super) live_from: u64,
    /// Set until the connection's vector equals the ring's.
    pub(super) divergence: Option<Box<Divergence>>,
}

/// Another replica may have read the partitions in another order. A client that comes from there has more of some
/// partitions than this ring had at the same position, so it is given a vector and cursors of its own:
///
/// ```text
/// ring      0/7  1/3  0/8  1/4  0/9 …      (partition/offset)
/// client    has 0/8 and 1/3: position before 0/8, ahead in partition 0
///           skips 0/8, takes 1/4 with a cursor of its own; both vectors are now equal, and frames are shared from 0/9 on
/// ```
#[derive(Debug)]
pub struct Divergence {
    pub(super) vector: Vector,
    /// Partitions of which the client has more than the ring before its position.
    pub(super) ahead: Vec<usize>,
}

impl Divergence {
    /// What the client is sent of the ring's next event; `None` when it has it. `frame` makes the ring's own frame of it.
    pub(super) fn take(
        &mut self,
        event: &Event,
        ring_cursor: &str,
        topic: &str,
        encoding: Encoding,
        frame: impl FnOnce() -> Frame,
    ) -> Option<Frame> {
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
            // The ring's vectors name the topic of after the reset; so does this client's from here on.
            if let Some(vector) = Vector::decode(ring_cursor, topic) {
                self.vector.topic_id = vector.topic_id;
            }
        }
        let cursor = self.vector.encode(topic);
        let Payload::Gap(gap) = &event.payload else {
            return Some(encode::with_cursor(
                &frame(),
                ring_cursor,
                &cursor,
                encoding.format,
            ));
        };
        // The ring's gap begins, or ends, where the ring was; this client's where it is.
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
