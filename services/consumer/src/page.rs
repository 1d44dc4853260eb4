//! A page of the log, as `kafka` returns it and `feed` accepts it.

use std::sync::Arc;

use crate::cursor::Vector;
use crate::keys::Keys;
use crate::record::{Event, Payload};

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

impl Limit {
    /// What is left of the limit for the rest of a page.
    pub fn without(self, page: &Page) -> Self {
        Self {
            events: self.events.saturating_sub(page.messages()),
            bytes: self.bytes.saturating_sub(page.bytes()),
        }
    }

    /// Whether a page holds as much as it may.
    pub fn is_reached(self, page: &Page) -> bool {
        page.messages() >= self.events || page.bytes() >= self.bytes
    }
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

    /// Keeps the first events of these keys, up to a limit.
    pub fn first_of(self, keys: &Keys, limit: Limit) -> Self {
        let (mut events, mut messages, mut bytes) = (Vec::new(), 0, 0);
        let mut cut: Option<Vector> = None;
        let mut index = 0;
        self.walk(|event, vector| {
            let full = messages >= limit.events || bytes >= limit.bytes;
            if !full && keys.want(event) {
                messages += usize::from(matches!(event.payload, Payload::Message(_)));
                bytes += event.weight();
                events.push(self.events[index].clone());
            }
            let full = messages >= limit.events || bytes >= limit.bytes;
            if full && cut.is_none() && index + 1 < self.events.len() {
                cut = Some(vector.clone());
            }
            index += 1;
        });
        Self {
            events,
            complete: self.complete && cut.is_none(),
            after: cut.unwrap_or(self.after),
            before: self.before,
            from_start: self.from_start,
        }
    }

    /// Keeps the last events of these keys, up to a limit.
    pub fn last_of(self, keys: &Keys, limit: Limit) -> Self {
        let (mut first, mut messages, mut bytes) = (self.events.len(), 0, 0);
        while first > 0 && messages < limit.events && bytes < limit.bytes {
            first -= 1;
            let event = &self.events[first];
            if keys.want(event) {
                messages += usize::from(matches!(event.payload, Payload::Message(_)));
                bytes += event.weight();
            }
        }
        let (mut before, mut index) = (self.before.clone(), 0);
        self.walk(|_, vector| {
            index += 1;
            if index == first {
                before = vector.clone();
            }
        });
        let wanted = self.events[first..].iter();
        Self {
            events: wanted.filter(|event| keys.want(event)).cloned().collect(),
            before,
            after: self.after,
            complete: self.complete,
            from_start: self.from_start && first == 0,
        }
    }

    /// The number of messages.
    pub fn messages(&self) -> usize {
        let messages = self.events.iter();
        let messages = messages.filter(|event| matches!(event.payload, Payload::Message(_)));
        messages.count()
    }

    /// Bytes of the events in memory.
    pub fn bytes(&self) -> usize {
        self.events.iter().map(|event| event.weight()).sum()
    }
}
