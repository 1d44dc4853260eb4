//! The newest events of a topic, in the order in which this replica read them. Pure: without locks or I/O.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::index::Index;
use super::reader::{Divergence, Found, RingReader};
use crate::cursor::{Position, TopicId, Vector};
use crate::encode::{Encoding, Frame};
use crate::keys::Keys;
use crate::page::{Limit, Page};
use crate::record::{Event, Payload};

/// How much of a topic is kept in memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events that are kept regardless of their age.
    pub events: usize,
    /// Younger events are kept beyond that number.
    pub age: Duration,
    /// Maximum bytes of records and frames together, exceeded by at most one event.
    pub bytes: usize,
    /// Maximum number of events for one write.
    pub batch_events: u64,
}

pub struct Ring {
    topic: String,
    /// Boxed, because the deque allocates up to twice as many elements as it uses.
    entries: VecDeque<Box<Entry>>,
    /// The number of the first entry. Numbers begin at 1.
    pub first: u64,
    /// The first entry at which clients may join by a cursor: after the last reset, before which offsets belong to another log.
    joinable: u64,
    /// The vector before the entry `joinable`.
    tail: Vector,
    /// The vector after the last entry, and its token.
    pub head: Vector,
    pub head_cursor: Arc<str>,
    /// The first entry is the oldest of the log.
    begins_log: bool,
    /// Bytes of the entries without their frames, and of the index.
    pub record_bytes: usize,
    index: Index,
}

pub struct Entry {
    pub event: Arc<Event>,
    /// The token of the ring's vector after this event.
    pub cursor: Arc<str>,
    pub frames: [OnceLock<Box<Frame>>; Encoding::COUNT],
    /// The number of the event before this one with the same key; 0: none.
    previous: u64,
    added: Instant,
}

/// The numbers of events.
type Numbers<'a> = Box<dyn Iterator<Item = u64> + 'a>;

/// An event that the ring has evicted.
pub struct Evicted {
    pub event: Arc<Event>,
    pub number: u64,
    /// Bytes of its frames.
    pub frame_bytes: usize,
}

impl Entry {
    /// Bytes without the frames.
    fn weight(&self) -> usize {
        // An `Arc` stores two counters before its content.
        self.event.weight() + self.cursor.len() + 32 + size_of::<Self>()
    }

    fn frame_bytes(&self) -> usize {
        let frames = self.frames.iter().filter_map(OnceLock::get);
        frames.map(|frame| frame.weight()).sum()
    }
}

impl Ring {
    pub fn new(topic: String) -> Self {
        Self {
            topic,
            entries: VecDeque::new(),
            first: 1,
            joinable: 1,
            tail: Vector::default(),
            head: Vector::default(),
            head_cursor: "".into(),
            begins_log: false,
            record_bytes: 0,
            index: Index::default(),
        }
    }

    /// Sets where the ring begins.
    pub fn begin(&mut self, start: Vector, begins_log: bool) {
        self.head_cursor = start.encode(&self.topic).into();
        self.begins_log = begins_log;
        self.tail = start.clone();
        self.head = start;
    }

    /// Sets the topic id of all following cursors.
    pub fn set_topic_id(&mut self, topic_id: TopicId) {
        self.head.topic_id = topic_id;
        self.tail.topic_id = topic_id;
        self.head_cursor = self.head.encode(&self.topic).into();
    }

    /// Adds new partitions.
    pub fn grow(&mut self, partitions: usize) {
        if partitions > self.head.len() {
            self.head.set(partitions - 1, Position::default());
            self.tail.set(partitions - 1, Position::default());
            self.head_cursor = self.head.encode(&self.topic).into();
        }
    }

    /// Removes partitions that the topic no longer has.
    pub fn shrink(&mut self, partitions: usize) {
        self.head.positions.truncate(partitions);
        self.tail.positions.truncate(partitions);
        self.head_cursor = self.head.encode(&self.topic).into();
    }

    /// Appends an event.
    pub fn push(&mut self, event: Arc<Event>) {
        self.head.set(event.partition, event.next);
        self.head_cursor = self.head.encode(&self.topic).into();
        let resets = event.resets();
        let (previous, index_bytes) = self.index.push(&event, self.end());
        let entry = Entry {
            event,
            cursor: self.head_cursor.clone(),
            frames: Default::default(),
            previous,
            added: Instant::now(),
        };
        self.record_bytes += entry.weight() + index_bytes;
        self.entries.push_back(Box::new(entry));
        if resets {
            self.begins_log = false;
            self.joinable = self.end();
            self.tail = self.head.clone();
        }
    }

    /// Evicts the oldest event if the ring is over its limits. `frame_bytes` is the total of all frames.
    pub fn evict(&mut self, limits: &Limits, frame_bytes: usize) -> Option<Evicted> {
        let oldest = self.entries.front()?;
        let many = self.entries.len() > limits.events && oldest.added.elapsed() > limits.age;
        let large = self.record_bytes + frame_bytes > limits.bytes && self.entries.len() > 1;
        if !many && !large {
            return None;
        }
        let entry = self.entries.pop_front()?;
        let number = self.first;
        self.record_bytes -= entry.weight() + self.index.evict(&entry.event, number);
        self.begins_log = false;
        if self.first == self.joinable {
            self.joinable += 1;
            self.tail.set(entry.event.partition, entry.event.next);
        }
        self.first += 1;
        Some(Evicted {
            frame_bytes: entry.frame_bytes(),
            event: entry.event,
            number,
        })
    }

    /// The number of the next event.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn entry(&self, number: u64) -> &Entry {
        &self.entries[(number - self.first) as usize]
    }

    /// The numbers of the events from `from` on that concern these keys, ascending.
    pub fn numbers(&self, keys: &Keys, from: u64) -> Vec<u64> {
        let from = from.max(self.first);
        self.index
            .numbers(keys, from, |number| self.entry(number).previous)
    }

    /// The numbers of the events that clients may join at and that concern these keys, newest first.
    fn newest_first<'a>(&'a self, keys: Option<&'a Keys>) -> Numbers<'a> {
        let from = self.joinable;
        match keys {
            None => Box::new((from..self.end()).rev()),
            Some(keys) => {
                let previous = |number| self.entry(number).previous;
                Box::new(self.index.newest_first(keys, from, previous))
            }
        }
    }

    /// Where a client starts that wants only live events.
    pub fn live(&self) -> RingReader {
        RingReader {
            position: self.end(),
            cursor: self.head_cursor.clone(),
            live_from: self.end(),
            announced: self.end(),
            found: Found::default(),
            divergence: None,
        }
    }

    /// Before the newest `count` messages with these keys. If the ring holds fewer: before all of them if `fewer` is acceptable,
    /// else `None`.
    pub fn newest(&self, count: usize, fewer: bool, keys: Option<&Keys>) -> Option<RingReader> {
        let mut position = self.end();
        let mut missing = count;
        let mut numbers = self.newest_first(keys);
        while missing > 0 {
            let Some(number) = numbers.next() else {
                if !fewer && !self.begins_log {
                    return None;
                }
                position = self.joinable;
                break;
            };
            position = number;
            let message = matches!(self.entry(number).event.payload, Payload::Message(_));
            missing -= usize::from(message);
        }
        Some(RingReader {
            position,
            cursor: self.cursor_before(position),
            live_from: self.end(),
            announced: position,
            found: Found::default(),
            divergence: None,
        })
    }

    /// Where a client that has read up to `vector` continues; `None` if the ring cannot continue without a hole, or cannot
    /// confirm that the vector is of the same log. `verified`: Kafka has confirmed it, so the client may be ahead of the ring.
    pub fn locate(&self, vector: &Vector, verified: bool) -> Option<RingReader> {
        let partitions = self.head.len();
        let mut unknown = vector.positions.iter().skip(partitions);
        if unknown.any(|position| position.offset > 0)
            || vector.topic_id.differs(self.head.topic_id)
        {
            return None;
        }
        let mut ahead = Vec::new();
        for partition in 0..partitions {
            let client = vector.get(partition);
            let (oldest, newest) = (self.tail.get(partition), self.head.get(partition));
            if client.offset < oldest.offset || (client.offset > newest.offset && !verified) {
                return None;
            }
            if (client.offset == oldest.offset && !client.agrees(oldest))
                || (client.offset == newest.offset && !client.agrees(newest))
            {
                return None;
            }
            if client.offset > newest.offset {
                ahead.push(partition);
            }
        }
        // Search backwards until every partition has an event that the client has; within a partition, offsets ascend.
        let mut settled: Vec<bool> = (0..partitions)
            .map(|p| vector.get(p).offset >= self.head.get(p).offset)
            .collect();
        let mut unsettled = settled.iter().filter(|settled| !**settled).count();
        let mut position = self.end();
        let mut number = self.end();
        while number > self.joinable && unsettled > 0 {
            number -= 1;
            let event = &self.entry(number).event;
            let client = vector.get(event.partition);
            if event.next.offset > client.offset {
                position = number;
                continue;
            }
            if event.next.offset == client.offset && !client.agrees(event.next) {
                return None;
            }
            if !std::mem::replace(&mut settled[event.partition], true) {
                unsettled -= 1;
            }
        }
        for number in position..self.end() {
            let event = &self.entry(number).event;
            let has = event.next.offset <= vector.get(event.partition).offset;
            if has && !ahead.contains(&event.partition) {
                ahead.push(event.partition);
            }
        }
        let divergence = (!ahead.is_empty()).then(|| {
            let vector = vector.clone();
            Box::new(Divergence { vector, ahead })
        });
        Some(RingReader {
            position,
            cursor: vector.encode(&self.topic).into(),
            live_from: self.end(),
            announced: position,
            found: Found::default(),
            divergence,
        })
    }

    /// The newest page of these keys, and whether the ring holds as much as was requested.
    pub fn newest_page(&self, limit: Limit, keys: Option<&Keys>) -> (Page, bool) {
        let (mut position, mut messages, mut bytes) = (self.end(), 0, 0);
        let mut events = Vec::new();
        let mut numbers = self.newest_first(keys);
        while messages < limit.events && bytes < limit.bytes {
            let Some(number) = numbers.next() else {
                position = self.joinable;
                break;
            };
            position = number;
            let event = &self.entry(number).event;
            messages += usize::from(matches!(event.payload, Payload::Message(_)));
            bytes += event.weight();
            events.push(event.clone());
        }
        events.reverse();
        let page = Page {
            events,
            before: self.vector_before(position),
            after: self.head.clone(),
            complete: true,
            from_start: self.begins_log && position == self.joinable,
        };
        let whole = messages == limit.events || bytes >= limit.bytes || page.from_start;
        (page, whole)
    }

    /// The page of these keys after a vector; `None` if the ring cannot continue from it.
    pub fn page_after(&self, vector: &Vector, limit: Limit, keys: Option<&Keys>) -> Option<Page> {
        let mut position = self.locate(vector, false)?.position;
        let mut after = vector.clone();
        after.topic_id = self.head.topic_id;
        let (mut events, mut bytes) = (Vec::new(), 0);
        let numbers: Numbers = match keys {
            None => Box::new(position..self.end()),
            Some(keys) => Box::new(self.numbers(keys, position).into_iter()),
        };
        for number in numbers {
            if events.len() == limit.events || bytes >= limit.bytes {
                break;
            }
            position = number + 1;
            let event = &self.entry(number).event;
            // Of another replica's order, the client may have some of these.
            if event.next.offset > vector.get(event.partition).offset {
                bytes += event.weight();
                events.push(event.clone());
            }
        }
        if events.len() < limit.events && bytes < limit.bytes {
            position = self.end();
        }
        let ring = self.vector_before(position);
        for (partition, &next) in ring.positions.iter().enumerate() {
            if next.offset > after.get(partition).offset {
                after.set(partition, next);
            }
        }
        Some(Page {
            events,
            before: vector.clone(),
            after,
            complete: position == self.end(),
            from_start: false,
        })
    }

    /// The positions of one partition that the ring knows, ascending and all of the current log.
    pub fn positions(&self, partition: usize) -> Vec<Position> {
        let entries = (self.joinable..self.end()).map(|number| self.entry(number));
        let events = entries
            .map(|entry| &entry.event)
            .filter(|event| event.partition == partition);
        let known = std::iter::once(self.tail.get(partition)).chain(events.map(|event| event.next));
        known
            .filter(|position| position.fingerprint.is_some())
            .collect()
    }

    /// The token of the vector before an event that is in the ring, or before the next one; `None` if it is not known, because
    /// the ring begins before a reset.
    pub fn token_before(&self, number: u64) -> Option<Arc<str>> {
        if number == self.end() {
            Some(self.head_cursor.clone())
        } else if number > self.first {
            Some(self.entry(number - 1).cursor.clone())
        } else {
            (self.first == self.joinable).then(|| self.tail.encode(&self.topic).into())
        }
    }

    /// The vector before an event.
    fn vector_before(&self, number: u64) -> Vector {
        if number == self.end() {
            return self.head.clone();
        }
        if number <= self.joinable {
            return self.tail.clone();
        }
        Vector::decode(&self.entry(number - 1).cursor, &self.topic).expect("the ring's own token")
    }

    /// The token of the vector before an event.
    fn cursor_before(&self, number: u64) -> Arc<str> {
        if number == self.end() {
            self.head_cursor.clone()
        } else if number <= self.joinable {
            self.tail.encode(&self.topic).into()
        } else {
            self.entry(number - 1).cursor.clone()
        }
    }
}
