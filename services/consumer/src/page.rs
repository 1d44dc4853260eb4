//! A page of the log, as `kafka` returns it and `feed` accepts it.

use std::sync::Arc;

use crate::cursor::Vector;
use crate::record::Event;

/// The most messages that a page may hold.
pub const MAX_MESSAGES: usize = 500;

/// The limits of any page of history.
pub const MAX_PAGE: Limit = Limit {
    events: MAX_MESSAGES,
    bytes: 1 << 20,
};

/// The limits of one page.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub events: usize,
    pub bytes: usize,
}

/// Events merged by timestamp, then partition; each partition's order is kept.
#[derive(Debug, Default)]
pub struct Page {
    pub events: Vec<Arc<Event>>,
    /// The vector before the first event.
    pub before: Vector,
    /// The vector after the last one.
    pub after: Vector,
    /// Nothing remains between `after` and the read's target.
    pub complete: bool,
    /// Nothing remains before `before`.
    pub from_start: bool,
}

impl Page {
    /// Visits each event with the vector after it.
    pub fn walk(&self, mut visit: impl FnMut(&Event, &Vector)) {
        let mut vector = self.before.clone();
        // Until the last reset, some partitions still belong to the old log: a cursor with the new id would hide that.
        let last_reset = self.events.iter().rposition(|event| event.resets());
        if last_reset.is_none() {
            vector.topic_id = self.after.topic_id;
        }
        for (index, event) in self.events.iter().enumerate() {
            vector.set(event.partition, event.next);
            if last_reset == Some(index) {
                vector.topic_id = self.after.topic_id;
            }
            visit(event, &vector);
        }
    }
}
