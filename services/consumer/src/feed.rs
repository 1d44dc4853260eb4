//! The ring: the newest events of a topic, each turned into bytes once for each door, and a position in it for each connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::cursor::{Position, Vector};
use crate::encode::{self, Door, Form, Frame, Kind};
use crate::kafka::{Limit, Page};
use crate::record::{Change, Gap, Reason, What};

/// At most so much is taken for one write, so that a backlog does not become one huge buffer.
const BATCH_EVENTS: usize = 512;
const BATCH_BYTES: usize = 128 << 10;

/// The newest events of one topic.
pub struct Feed {
    topic: String,
    limits: Limits,
    ring: RwLock<Ring>,
    /// Bytes of the frames that stand beside the records in the ring.
    frame_bytes: AtomicUsize,
    /// Several frames in one piece, for the range that was asked for last: connections that wake together want the same.
    joined: [Mutex<Option<Joined>>; Form::COUNT],
    /// The number of the next event; 0 until the ring is filled.
    head: watch::Sender<u64>,
}

/// How much of a topic is kept at hand.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub events: usize,
    /// Records and frames together.
    pub bytes: usize,
}

struct Ring {
    entries: VecDeque<Entry>,
    /// The number of the first entry. Numbers begin at 1.
    first: u64,
    /// Where clients may join by a cursor: behind the last `recreated`, before which offsets mean another log.
    joinable: u64,
    /// The vector before the entry `joinable`.
    tail: Vector,
    /// The vector after the last entry, and its token.
    head: Vector,
    head_cursor: String,
    record_bytes: usize,
}

struct Entry {
    change: Change,
    /// The token of the ring's vector after this change.
    cursor: String,
    frames: [OnceLock<Frame>; Form::COUNT],
}

struct Joined {
    from: u64,
    to: u64,
    bytes: Bytes,
}

/// Where a connection is in the ring.
#[derive(Debug)]
pub struct Place {
    /// The number of the next event.
    position: u64,
    /// Events from here on are news, not backlog.
    live_from: u64,
    /// Set until the connection's vector equals the ring's: another replica may have seen the partitions in another order.
    own: Option<Box<Own>>,
}

#[derive(Debug)]
struct Own {
    vector: Vector,
    /// Partitions of which the client has more than the ring before `position`.
    ahead: Vec<usize>,
}

/// What one write carries.
#[derive(Debug, Default)]
pub struct Batch {
    pub frames: Vec<Frame>,
    pub messages: usize,
    /// Kafka's timestamps of the messages that are news, in ms.
    pub stamps: Vec<i64>,
    pub gaps: Vec<Reason>,
}

/// The position has left the ring: the reader is slower than the topic.
#[derive(Debug)]
pub struct Left;

impl Feed {
    pub fn new(topic: String, limits: Limits) -> Self {
        let ring = Ring {
            entries: VecDeque::new(),
            first: 1,
            joinable: 1,
            tail: Vector::default(),
            head: Vector::default(),
            head_cursor: String::new(),
            record_bytes: 0,
        };
        Self {
            topic,
            limits,
            ring: RwLock::new(ring),
            frame_bytes: AtomicUsize::new(0),
            joined: Default::default(),
            head: watch::Sender::new(0),
        }
    }

    /// Wakes a connection whenever there is something new; the value is 0 until the ring is filled.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Sets where the ring begins, with the history before the first new event. Once, before any `push`.
    pub fn fill(&self, start: Vector, history: Vec<Change>) {
        {
            let mut ring = self.write();
            ring.head_cursor = start.encode(&self.topic);
            ring.tail = start.clone();
            ring.head = start;
        }
        self.push(history);
    }

    /// Names partitions that were added while the topic was read.
    pub fn grow(&self, partitions: usize) {
        let mut ring = self.write();
        if let Some(last) = partitions.checked_sub(1).filter(|last| ring.head.0.len() <= *last) {
            ring.head.set(last, Position::default());
            ring.tail.set(last, Position::default());
            ring.head_cursor = ring.head.encode(&self.topic);
        }
    }

    /// Appends events and wakes the connections once.
    pub fn push(&self, changes: Vec<Change>) {
        let mut ring = self.write();
        for change in changes {
            ring.head.set(change.partition, change.next);
            ring.head_cursor = ring.head.encode(&self.topic);
            ring.record_bytes += change.weight();
            let recreated = change.resets();
            let cursor = ring.head_cursor.clone();
            ring.entries.push_back(Entry { change, cursor, frames: Default::default() });
            if recreated {
                ring.joinable = ring.end();
                ring.tail = ring.head.clone();
            }
        }
        while ring.entries.len() > self.limits.events
            || (ring.record_bytes + self.frame_bytes.load(Ordering::Relaxed) > self.limits.bytes && ring.entries.len() > 1)
        {
            let entry = ring.entries.pop_front().expect("the ring is not empty");
            let frames: usize = entry.frames.iter().filter_map(OnceLock::get).map(|frame| frame.bytes.len()).sum();
            self.frame_bytes.fetch_sub(frames, Ordering::Relaxed);
            ring.record_bytes -= entry.change.weight();
            if ring.first == ring.joinable {
                ring.joinable += 1;
                ring.tail.set(entry.change.partition, entry.change.next);
            }
            ring.first += 1;
        }
        let end = ring.end();
        drop(ring);
        self.head.send_replace(end);
    }

    /// The vector after the newest event.
    pub fn head(&self) -> Vector {
        self.read().head.clone()
    }

    /// Events and bytes (records and frames) held now.
    pub fn size(&self) -> (usize, usize) {
        let ring = self.read();
        (ring.entries.len(), ring.record_bytes + self.frame_bytes.load(Ordering::Relaxed))
    }

    /// The place of a client that wants news only.
    pub fn live(&self) -> Place {
        let end = self.read().end();
        Place { position: end, live_from: end, own: None }
    }

    /// The place before the newest `count` messages; `None` when the ring holds fewer.
    pub fn newest(&self, count: usize) -> Option<Place> {
        let ring = self.read();
        let mut position = ring.end();
        let mut left = count;
        while left > 0 {
            if position == ring.joinable {
                return None;
            }
            position -= 1;
            left -= usize::from(matches!(ring.entry(position).change.what, What::Message(_)));
        }
        Some(Place { position, live_from: ring.end(), own: None })
    }

    /// The place of a client that has read as far as `vector`; `None` when the ring cannot continue it without a hole, or
    /// cannot tell that it is of the same log. `verified` says that Kafka was asked: what the ring has not yet read then waits.
    pub fn locate(&self, vector: &Vector, verified: bool) -> Option<Place> {
        let ring = self.read();
        let partitions = ring.head.0.len();
        if vector.0.iter().skip(partitions).any(|position| position.offset > 0) {
            return None;
        }
        let mut ahead = Vec::new();
        for partition in 0..partitions {
            let (mine, oldest, newest) = (vector.get(partition), ring.tail.get(partition), ring.head.get(partition));
            if mine.offset < oldest.offset || (mine.offset > newest.offset && !verified) {
                return None;
            }
            if (mine.offset == oldest.offset && !mine.agrees(oldest)) || (mine.offset == newest.offset && !mine.agrees(newest)) {
                return None;
            }
            if mine.offset > newest.offset {
                ahead.push(partition);
            }
        }
        // Backwards until, in every partition, an event that the client has; within one, offsets ascend.
        let mut settled: Vec<bool> = (0..partitions).map(|p| vector.get(p).offset >= ring.head.get(p).offset).collect();
        let mut position = ring.end();
        let mut number = ring.end();
        while number > ring.joinable && settled.contains(&false) {
            number -= 1;
            let &Change { partition, next, .. } = &ring.entry(number).change;
            let mine = vector.get(partition);
            if next.offset > mine.offset {
                position = number;
                continue;
            }
            if next.offset == mine.offset && !mine.agrees(next) {
                return None;
            }
            settled[partition] = true;
        }
        for number in position..ring.end() {
            let &Change { partition, next, .. } = &ring.entry(number).change;
            if next.offset <= vector.get(partition).offset && !ahead.contains(&partition) {
                ahead.push(partition);
            }
        }
        let own = (!ahead.is_empty()).then(|| Box::new(Own { vector: vector.clone(), ahead }));
        Some(Place { position, live_from: ring.end(), own })
    }

    /// The token of a place.
    pub fn cursor(&self, place: &Place) -> String {
        match &place.own {
            Some(own) => own.vector.encode(&self.topic),
            None => self.read().cursor_before(place.position, &self.topic),
        }
    }

    /// The newest page, and whether the ring holds as much as was asked for.
    pub fn newest_page(&self, limit: Limit) -> (Page, bool) {
        let ring = self.read();
        let (mut position, mut messages, mut bytes) = (ring.end(), 0, 0);
        while position > ring.joinable && messages < limit.events && bytes < limit.bytes {
            position -= 1;
            let change = &ring.entry(position).change;
            messages += usize::from(matches!(change.what, What::Message(_)));
            bytes += change.weight();
        }
        let changes = (position..ring.end()).map(|number| ring.entry(number).change.clone()).collect();
        let before = Vector::decode(&ring.cursor_before(position, &self.topic), &self.topic).expect("the ring's own token");
        let page = Page { changes, before, after: ring.head.clone(), ..Page::default() };
        (page, messages == limit.events || bytes >= limit.bytes)
    }

    /// Takes everything between a place and the head, up to the size of one write, and moves the place behind it.
    ///
    /// # Errors
    ///
    /// [`Left`] when the place has left the ring.
    pub fn take(&self, place: &mut Place, form: Form, batch: &mut Batch) -> Result<(), Left> {
        let ring = self.read();
        if place.position < ring.first {
            return Err(Left);
        }
        let mut bytes = 0;
        let mut next = place.position;
        while place.own.is_some() && next < ring.end() && batch.frames.len() < BATCH_EVENTS && bytes < BATCH_BYTES {
            bytes += self.take_own(ring.entry(next), place, form, batch);
            next += 1;
        }
        place.position = next;
        while next < ring.end() && (next - place.position) < BATCH_EVENTS as u64 && bytes < BATCH_BYTES {
            let entry = ring.entry(next);
            bytes += self.frame(entry, form).bytes.len();
            batch.count(&entry.change, next >= place.live_from, form.binary);
            next += 1;
        }
        let range = place.position..next;
        place.position = next;
        let one_piece = matches!(form.door, Door::SseText | Door::SseJson);
        if one_piece && range.end - range.start > 1 {
            batch.frames.push(Frame { kind: Kind::Message, bytes: self.join(&ring, range.start, range.end, form) });
        } else {
            batch.frames.extend(range.map(|number| self.frame(ring.entry(number), form).clone()));
        }
        Ok(())
    }

    /// Takes one event for a connection whose vector is not yet the ring's. Returns the bytes taken.
    fn take_own(&self, entry: &Entry, place: &mut Place, form: Form, batch: &mut Batch) -> usize {
        let Some(own) = &mut place.own else { return 0 };
        let &Change { partition, next, .. } = &entry.change;
        let mine = own.vector.get(partition);
        let reset = entry.change.resets();
        if next.offset >= mine.offset || reset {
            own.ahead.retain(|ahead| *ahead != partition);
        }
        let mut taken = 0;
        if next.offset > mine.offset || reset {
            own.vector.set(partition, next);
            let cursor = own.vector.encode(&self.topic);
            let frame = match &entry.change.what {
                // The ring's gap begins where the ring was; this client's where it is.
                What::Gap(gap) if gap.ranges.iter().any(|range| range.from != mine.offset) => {
                    let to = gap.ranges.first().and_then(|range| range.to);
                    let gap = Gap::of(gap.reason, partition, if reset { mine.offset } else { mine.offset.max(gap.ranges[0].from) }, to);
                    encode::change(&Change { what: What::Gap(gap), ..entry.change }, &cursor, form)
                }
                _ => encode::with_cursor(self.frame(entry, form), &entry.cursor, &cursor, form.door),
            };
            batch.count(&entry.change, false, form.binary);
            taken = frame.bytes.len();
            batch.frames.push(frame);
        }
        if own.ahead.is_empty() {
            place.own = None;
        }
        taken
    }

    /// The frame of an event, made when it is first asked for.
    fn frame<'a>(&self, entry: &'a Entry, form: Form) -> &'a Frame {
        entry.frames[form.index()].get_or_init(|| {
            let frame = encode::change(&entry.change, &entry.cursor, form);
            self.frame_bytes.fetch_add(frame.bytes.len(), Ordering::Relaxed);
            frame
        })
    }

    /// The frames of a range in one piece.
    fn join(&self, ring: &Ring, from: u64, to: u64, form: Form) -> Bytes {
        let mut joined = self.joined[form.index()].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(joined) = joined.as_ref().filter(|joined| joined.from == from && joined.to == to) {
            return joined.bytes.clone();
        }
        let mut bytes = BytesMut::new();
        for number in from..to {
            bytes.extend_from_slice(&self.frame(ring.entry(number), form).bytes);
        }
        let bytes = bytes.freeze();
        *joined = Some(Joined { from, to, bytes: bytes.clone() });
        bytes
    }

    fn read(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Ring> {
        self.ring.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// The number of the next event.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn entry(&self, number: u64) -> &Entry {
        &self.entries[(number - self.first) as usize]
    }

    /// The token of the vector before an event.
    fn cursor_before(&self, number: u64, topic: &str) -> String {
        if number == self.end() {
            self.head_cursor.clone()
        } else if number <= self.joinable {
            self.tail.encode(topic)
        } else {
            self.entry(number - 1).cursor.clone()
        }
    }
}

impl Batch {
    /// Forgets what was written. A connection keeps no more room than a quiet topic needs.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.stamps.clear();
        self.gaps.clear();
        self.frames.shrink_to(4);
        self.stamps.shrink_to(4);
        self.messages = 0;
    }

    pub fn count(&mut self, change: &Change, live: bool, binary: bool) {
        match encode::seen(change, binary).as_ref() {
            What::Gap(gap) => self.gaps.push(gap.reason),
            What::Message(message) => {
                self.messages += 1;
                self.stamps.extend(message.timestamp.filter(|_| live));
            }
        }
    }
}
