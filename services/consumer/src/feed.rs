//! The ring: the newest events of a topic, each turned into bytes once for each transport, and a position in it for each connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::cursor::{Position, Vector};
use crate::encode::{self, Encoding, Format, Frame, Kind};
use crate::page::{Limit, Page};
use crate::record::{Event, Gap, GapReason, Payload};

/// At most so much is taken for one write, so that a backlog does not become one huge buffer.
const BATCH_BYTES: usize = 128 << 10;

/// The newest events of one topic.
pub struct Feed {
    topic: String,
    limits: Limits,
    ring: RwLock<Ring>,
    /// Bytes of the frames that stand beside the records in the ring.
    frame_bytes: AtomicUsize,
    /// Several frames in one piece, for the range that was asked for last: connections that wake together want the same.
    joined: [Mutex<Option<Joined>>; Encoding::COUNT],
    /// The number of the next event; 0 until the ring is filled.
    head: watch::Sender<u64>,
}

/// How much of a topic is kept at hand.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub events: usize,
    /// Records and frames together.
    pub bytes: usize,
    /// Events that are taken for one write.
    pub write_events: usize,
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
    head_cursor: Arc<str>,
    /// Nothing is older than the first entry.
    begins_log: bool,
    record_bytes: usize,
}

struct Entry {
    event: Event,
    /// The token of the ring's vector after this change.
    cursor: Arc<str>,
    frames: [OnceLock<Frame>; Encoding::COUNT],
}

struct Joined {
    from: u64,
    to: u64,
    bytes: Bytes,
}

/// Where a connection is in the ring.
#[derive(Debug)]
pub struct RingReader {
    /// The number of the next event.
    position: u64,
    /// The token of what the client has. It is kept, since the ring may forget it before the client is told to come back.
    cursor: Arc<str>,
    /// Events from here on are news, not backlog.
    live_from: u64,
    /// Set until the connection's vector equals the ring's: another replica may have seen the partitions in another order.
    divergence: Option<Box<Divergence>>,
}

#[derive(Debug)]
struct Divergence {
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
    pub gaps: Vec<GapReason>,
}

/// The position has left the ring: the reader is slower than the topic.
#[derive(Debug)]
pub struct Lagged;

impl Feed {
    pub fn new(topic: String, limits: Limits) -> Self {
        let ring = Ring {
            entries: VecDeque::new(),
            first: 1,
            joinable: 1,
            tail: Vector::default(),
            head: Vector::default(),
            head_cursor: "".into(),
            begins_log: false,
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

    /// Wakes all connections, though there is nothing new: they look at the state of Kafka too.
    pub fn wake(&self) {
        self.head.send_modify(|_| {});
    }

    /// Sets where the ring begins, with the history before the first new event. Once, before any `push`.
    pub fn fill(&self, page: Page) {
        let start = page.before;
        {
            let mut ring = self.write();
            ring.head_cursor = start.encode(&self.topic).into();
            ring.begins_log = page.from_start;
            ring.tail = start.clone();
            ring.head = start;
        }
        self.push(page.events);
    }

    /// Names partitions that were added while the topic was read.
    pub fn grow(&self, partitions: usize) {
        let mut ring = self.write();
        if let Some(last) = partitions
            .checked_sub(1)
            .filter(|last| ring.head.0.len() <= *last)
        {
            ring.head.set(last, Position::default());
            ring.tail.set(last, Position::default());
            ring.head_cursor = ring.head.encode(&self.topic).into();
        }
    }

    /// Forgets partitions that the topic has no more, after their end was told.
    pub fn shrink(&self, partitions: usize) {
        let mut ring = self.write();
        ring.head.0.truncate(partitions);
        ring.tail.0.truncate(partitions);
        ring.head_cursor = ring.head.encode(&self.topic).into();
    }

    /// Appends events and wakes the connections once.
    pub fn push(&self, events: Vec<Event>) {
        let mut ring = self.write();
        for event in events {
            ring.head.set(event.partition, event.next);
            ring.head_cursor = ring.head.encode(&self.topic).into();
            ring.record_bytes += event.weight();
            let recreated = event.resets();
            let cursor = ring.head_cursor.clone();
            ring.entries.push_back(Entry {
                event,
                cursor,
                frames: Default::default(),
            });
            if recreated {
                ring.begins_log = false;
                ring.joinable = ring.end();
                ring.tail = ring.head.clone();
            }
        }
        while ring.entries.len() > self.limits.events
            || (ring.record_bytes + self.frame_bytes.load(Ordering::Relaxed) > self.limits.bytes
                && ring.entries.len() > 1)
        {
            let entry = ring.entries.pop_front().expect("the ring is not empty");
            let frames: usize = entry
                .frames
                .iter()
                .filter_map(OnceLock::get)
                .map(|frame| frame.bytes.len())
                .sum();
            self.frame_bytes.fetch_sub(frames, Ordering::Relaxed);
            ring.record_bytes -= entry.event.weight();
            ring.begins_log = false;
            if ring.first == ring.joinable {
                ring.joinable += 1;
                ring.tail.set(entry.event.partition, entry.event.next);
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
        (
            ring.entries.len(),
            ring.record_bytes + self.frame_bytes.load(Ordering::Relaxed),
        )
    }

    /// The place of a client that wants news only.
    pub fn live(&self) -> RingReader {
        let ring = self.read();
        let end = ring.end();
        RingReader {
            position: end,
            cursor: ring.head_cursor.clone(),
            live_from: end,
            divergence: None,
        }
    }

    /// The place before the newest `count` messages. When the ring holds fewer, the place before all of them if `fewer` will
    /// do, else `None`.
    pub fn newest(&self, count: usize, fewer: bool) -> Option<RingReader> {
        let ring = self.read();
        let mut position = ring.end();
        let mut left = count;
        while left > 0 {
            if position == ring.joinable {
                if fewer || ring.begins_log {
                    break;
                }
                return None;
            }
            position -= 1;
            left -= usize::from(matches!(
                ring.entry(position).event.payload,
                Payload::Message(_)
            ));
        }
        Some(RingReader {
            position,
            cursor: ring.cursor_before(position, &self.topic),
            live_from: ring.end(),
            divergence: None,
        })
    }

    /// The place of a client that has read as far as `vector`; `None` when the ring cannot continue it without a hole, or
    /// cannot tell that it is of the same log. `verified` says that Kafka was asked: what the ring has not yet read then waits.
    pub fn locate(&self, vector: &Vector, verified: bool) -> Option<RingReader> {
        let ring = self.read();
        let partitions = ring.head.0.len();
        if vector
            .0
            .iter()
            .skip(partitions)
            .any(|position| position.offset > 0)
        {
            return None;
        }
        let mut ahead = Vec::new();
        for partition in 0..partitions {
            let (mine, oldest, newest) = (
                vector.get(partition),
                ring.tail.get(partition),
                ring.head.get(partition),
            );
            if mine.offset < oldest.offset || (mine.offset > newest.offset && !verified) {
                return None;
            }
            if (mine.offset == oldest.offset && !mine.agrees(oldest))
                || (mine.offset == newest.offset && !mine.agrees(newest))
            {
                return None;
            }
            if mine.offset > newest.offset {
                ahead.push(partition);
            }
        }
        // Backwards until, in every partition, an event that the client has; within one, offsets ascend.
        let mut settled: Vec<bool> = (0..partitions)
            .map(|p| vector.get(p).offset >= ring.head.get(p).offset)
            .collect();
        let mut position = ring.end();
        let mut number = ring.end();
        while number > ring.joinable && settled.contains(&false) {
            number -= 1;
            let &Event {
                partition, next, ..
            } = &ring.entry(number).event;
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
            let &Event {
                partition, next, ..
            } = &ring.entry(number).event;
            if next.offset <= vector.get(partition).offset && !ahead.contains(&partition) {
                ahead.push(partition);
            }
        }
        let divergence = (!ahead.is_empty()).then(|| {
            Box::new(Divergence {
                vector: vector.clone(),
                ahead,
            })
        });
        Some(RingReader {
            position,
            cursor: vector.encode(&self.topic).into(),
            live_from: ring.end(),
            divergence,
        })
    }

    /// The token of a place.
    pub fn cursor(&self, reader: &RingReader) -> String {
        match &reader.divergence {
            Some(divergence) => divergence.vector.encode(&self.topic),
            None => reader.cursor.as_ref().to_owned(),
        }
    }

    /// The newest page, and whether the ring holds as much as was asked for.
    pub fn newest_page(&self, limit: Limit) -> (Page, bool) {
        let ring = self.read();
        let (mut position, mut messages, mut bytes) = (ring.end(), 0, 0);
        while position > ring.joinable && messages < limit.events && bytes < limit.bytes {
            position -= 1;
            let event = &ring.entry(position).event;
            messages += usize::from(matches!(event.payload, Payload::Message(_)));
            bytes += event.weight();
        }
        let events = (position..ring.end())
            .map(|number| ring.entry(number).event.clone())
            .collect();
        let before = Vector::decode(&ring.cursor_before(position, &self.topic), &self.topic)
            .expect("the ring's own token");
        let page = Page {
            events,
            before,
            after: ring.head.clone(),
            complete: true,
            from_start: ring.begins_log && position == ring.joinable,
        };
        let whole = messages == limit.events || bytes >= limit.bytes || page.from_start;
        (page, whole)
    }

    /// Takes everything between a place and the head, up to the size of one write, and moves the place behind it.
    ///
    /// # Errors
    ///
    /// [`Lagged`] when the place has left the ring.
    pub fn take(
        &self,
        reader: &mut RingReader,
        encoding: Encoding,
        batch: &mut Batch,
    ) -> Result<(), Lagged> {
        let ring = self.read();
        if reader.position < ring.first {
            return Err(Lagged);
        }
        let mut bytes = 0;
        let mut next = reader.position;
        while reader.divergence.is_some()
            && next < ring.end()
            && batch.frames.len() < self.limits.write_events
            && bytes < BATCH_BYTES
        {
            bytes += self.take_diverged(ring.entry(next), reader, encoding, batch);
            next += 1;
        }
        reader.position = next;
        // Only a connection whose vector is the ring's may have the ring's cursors.
        while reader.divergence.is_none()
            && next < ring.end()
            && (next - reader.position) < self.limits.write_events as u64
            && bytes < BATCH_BYTES
        {
            let entry = ring.entry(next);
            bytes += self.frame(entry, encoding).bytes.len();
            batch.count(&entry.event, next >= reader.live_from, encoding.binary);
            next += 1;
        }
        let range = reader.position..next;
        if !range.is_empty() {
            reader.cursor = ring.entry(next - 1).cursor.clone();
        }
        reader.position = next;
        let one_piece = encoding.format != Format::SocketIo;
        if one_piece && range.end - range.start > 1 {
            batch.frames.push(Frame {
                kind: Kind::Message,
                bytes: self.join(&ring, range.start, range.end, encoding),
                value: None,
            });
        } else {
            batch
                .frames
                .extend(range.map(|number| self.frame(ring.entry(number), encoding)));
        }
        Ok(())
    }

    /// Takes one event for a connection whose vector is not yet the ring's. Returns the bytes taken.
    fn take_diverged(
        &self,
        entry: &Entry,
        reader: &mut RingReader,
        encoding: Encoding,
        batch: &mut Batch,
    ) -> usize {
        let Some(divergence) = &mut reader.divergence else {
            return 0;
        };
        let &Event {
            partition, next, ..
        } = &entry.event;
        let mine = divergence.vector.get(partition);
        let reset = entry.event.resets();
        if next.offset >= mine.offset || reset {
            divergence.ahead.retain(|ahead| *ahead != partition);
        }
        let mut taken = 0;
        if next.offset > mine.offset || reset {
            divergence.vector.set(partition, next);
            let cursor = divergence.vector.encode(&self.topic);
            let frame = match &entry.event.payload {
                // The ring's gap begins where the ring was; this client's where it is.
                Payload::Gap(gap) if gap.ranges.iter().any(|range| range.from != mine.offset) => {
                    let to = gap.ranges.first().and_then(|range| range.to);
                    let gap = Gap::of(
                        gap.reason,
                        partition,
                        if reset {
                            mine.offset
                        } else {
                            mine.offset.max(gap.ranges[0].from)
                        },
                        to,
                    );
                    encode::event(
                        &Event {
                            payload: Payload::Gap(gap),
                            ..entry.event
                        },
                        &cursor,
                        encoding,
                    )
                }
                _ => encode::with_cursor(
                    &self.frame(entry, encoding),
                    &entry.cursor,
                    &cursor,
                    encoding.format,
                ),
            };
            batch.count(&entry.event, false, encoding.binary);
            taken = frame.bytes.len();
            batch.frames.push(frame);
        }
        if divergence.ahead.is_empty() {
            reader.cursor = divergence.vector.encode(&self.topic).into();
            reader.divergence = None;
        }
        taken
    }

    /// The frame of an event, made when it is first asked for.
    fn frame(&self, entry: &Entry, encoding: Encoding) -> Frame {
        let slot = &entry.frames[encoding.index()];
        if let Some(frame) = slot.get() {
            return frame.clone();
        }
        let frame = encode::event(&entry.event, &entry.cursor, encoding);
        // Where backlogs are read in every form, the frames alone could fill the ring's share of memory.
        if self.frame_bytes.load(Ordering::Relaxed) < self.limits.bytes
            && slot.set(frame.clone()).is_ok()
        {
            self.frame_bytes
                .fetch_add(frame.bytes.len(), Ordering::Relaxed);
        }
        frame
    }

    /// The frames of a range in one piece.
    fn join(&self, ring: &Ring, from: u64, to: u64, encoding: Encoding) -> Bytes {
        let mut joined = self.joined[encoding.index()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(joined) = joined
            .as_ref()
            .filter(|joined| joined.from == from && joined.to == to)
        {
            return joined.bytes.clone();
        }
        let mut bytes = BytesMut::new();
        for number in from..to {
            bytes.extend_from_slice(&self.frame(ring.entry(number), encoding).bytes);
        }
        let bytes = bytes.freeze();
        *joined = Some(Joined {
            from,
            to,
            bytes: bytes.clone(),
        });
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
    fn cursor_before(&self, number: u64, topic: &str) -> Arc<str> {
        if number == self.end() {
            self.head_cursor.clone()
        } else if number <= self.joinable {
            self.tail.encode(topic).into()
        } else {
            self.entry(number - 1).cursor.clone()
        }
    }
}

impl Batch {
    /// Everything that was taken, in one piece.
    pub fn block(&self) -> Bytes {
        match &*self.frames {
            [frame] => frame.bytes.clone(),
            frames => {
                let length = frames.iter().map(|frame| frame.bytes.len()).sum();
                let mut block = BytesMut::with_capacity(length);
                frames
                    .iter()
                    .for_each(|frame| block.extend_from_slice(&frame.bytes));
                block.freeze()
            }
        }
    }

    /// Forgets what was written. A connection keeps no more room than a quiet topic needs.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.stamps.clear();
        self.gaps.clear();
        self.frames.shrink_to(4);
        self.stamps.shrink_to(4);
        self.messages = 0;
    }

    pub fn count(&mut self, event: &Event, live: bool, binary: bool) {
        match encode::as_seen_by(event, binary).as_ref() {
            Payload::Gap(gap) => self.gaps.push(gap.reason),
            Payload::Message(message) => {
                self.messages += 1;
                self.stamps.extend(message.timestamp.filter(|_| live));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Message, Value};

    const TOPIC: &str = "my-topic";
    /// The transport whose events come one by one.
    const ENCODING: Encoding = Encoding {
        format: Format::SocketIo,
        binary: false,
    };

    fn record(partition: usize, offset: i64) -> Event {
        let text = format!("{partition}/{offset}");
        let next = Position::after(offset, Some(offset), Some(text.as_bytes()));
        let value = Value::Text(text);
        let message = Message {
            offset,
            timestamp: Some(offset),
            key: None,
            headers: vec![],
            value,
        };
        Event {
            partition,
            next,
            payload: Payload::Message(message),
        }
    }

    fn feed(events: usize, partitions: usize) -> Feed {
        let feed = Feed::new(
            TOPIC.to_owned(),
            Limits {
                events,
                bytes: usize::MAX,
                write_events: 3,
            },
        );
        let before = Vector(vec![Position::default(); partitions]);
        feed.fill(Page {
            before,
            ..Page::default()
        });
        feed
    }

    /// A replica that has read the first `read` records of its own order of the log.
    struct Replica {
        feed: Feed,
        order: Vec<Event>,
        read: usize,
    }

    impl Replica {
        fn read(&mut self, count: usize) {
            let end = (self.read + count).min(self.order.len());
            self.feed.push(self.order[self.read..end].to_vec());
            self.read = end;
        }
    }

    /// A client that returns its cursor, and what it has got: the next offset of each partition.
    struct Client {
        cursor: String,
        next: Vec<i64>,
        reader: Option<RingReader>,
    }

    impl Client {
        fn resume(&mut self, replica: &Replica) {
            let mut vector = Vector::decode(&self.cursor, TOPIC).expect("our own cursor");
            let mut reader = replica.feed.locate(&vector, false);
            if reader.is_none() {
                // What `replay` does: everything up to the head comes from Kafka, which has it all.
                for event in &replica.order[..replica.read] {
                    if event.next.offset > vector.get(event.partition).offset {
                        vector.set(event.partition, event.next);
                        self.got(
                            event.partition,
                            event.next.offset - 1,
                            &vector.encode(TOPIC),
                        );
                    }
                }
                reader = replica.feed.locate(&vector, true);
            }
            self.reader = Some(reader.expect("the ring continues what was read up to its head"));
        }

        /// Whether there was anything to take.
        fn take(&mut self, replica: &Replica) -> bool {
            let reader = self.reader.as_mut().expect("connected");
            let mut batch = Batch::default();
            let before = reader.position;
            if replica.feed.take(reader, ENCODING, &mut batch).is_err() {
                self.resume(replica);
                return true;
            }
            let moved = reader.position > before;
            for frame in batch.frames {
                let object: serde_json::Value = serde_json::from_slice(&frame.bytes).expect("JSON");
                let partition = object["partition"].as_u64().expect("a partition") as usize;
                let offset = object["offset"].as_i64().expect("an offset");
                self.got(
                    partition,
                    offset,
                    object["cursor"].as_str().expect("a cursor"),
                );
            }
            moved
        }

        fn got(&mut self, partition: usize, offset: i64, cursor: &str) {
            assert_eq!(
                offset, self.next[partition],
                "partition {partition}: in order, each once"
            );
            self.next[partition] += 1;
            self.cursor = cursor.to_owned();
            let named = Vector::decode(cursor, TOPIC).expect("our own cursor");
            let offsets: Vec<i64> = (0..self.next.len())
                .map(|partition| named.get(partition).offset)
                .collect();
            assert_eq!(offsets, self.next, "the cursor says what the client has");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Read(usize, usize),
        Take,
        MoveTo(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2usize, 1..8usize).prop_map(|(replica, count)| Step::Read(replica, count)),
            2 => Just(Step::Take),
            1 => (0..2usize).prop_map(Step::MoveTo),
        ]
    }

    /// The order of one replica: any interleaving of the partitions.
    fn order(picks: &[usize], partitions: usize) -> Vec<Event> {
        let mut next = vec![0; partitions];
        let pick = |pick: &usize| {
            let partition = pick % partitions;
            next[partition] += 1;
            record(partition, next[partition] - 1)
        };
        picks.iter().map(pick).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn a_client_between_replicas_gets_every_record_once_and_in_order(
            partitions in 1..5usize,
            picks in proptest::collection::vec(0..12usize, 0..60),
            shuffled in any::<prop::sample::Index>(),
            sizes in [1..30usize, 1..30usize],
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            // The second replica saw the same partitions in another order: rotated, each partition's own order kept.
            let mut rotated = picks.clone();
            if !rotated.is_empty() {
                rotated.rotate_left(shuffled.index(picks.len()));
            }
            let mut replicas = [picks, rotated].map(|picks| order(&picks, partitions)).into_iter().zip(sizes).map(|(order, size)| {
                Replica { feed: feed(size, partitions), order, read: 0 }
            }).collect::<Vec<_>>();
            let start = Vector(vec![Position::default(); partitions]);
            let mut client = Client { cursor: start.encode(TOPIC), next: vec![0; partitions], reader: None };
            let mut at = 0;
            client.resume(&replicas[at]);
            for step in steps {
                match step {
                    Step::Read(replica, count) => replicas[replica].read(count),
                    Step::Take => _ = client.take(&replicas[at]),
                    Step::MoveTo(other) => {
                        at = other;
                        client.resume(&replicas[at]);
                    }
                }
            }
            replicas[at].read(usize::MAX / 2);
            while client.take(&replicas[at]) {}
            let mut all = vec![0; partitions];
            replicas[at].order.iter().for_each(|event| all[event.partition] += 1);
            prop_assert_eq!(client.next, all);
        }
    }

    #[test]
    fn a_reader_that_lags_is_told_that_its_place_is_gone_and_keeps_its_cursor() {
        let feed = feed(3, 1);
        feed.push(vec![record(0, 0)]);
        let mut reader = feed.newest(1, false).unwrap();
        feed.take(&mut reader, ENCODING, &mut Batch::default())
            .unwrap();
        feed.push((1..6).map(|offset| record(0, offset)).collect());
        assert!(
            feed.take(&mut reader, ENCODING, &mut Batch::default())
                .is_err()
        );
        let has = Vector::decode(&feed.cursor(&reader), TOPIC);
        assert_eq!(has, Some(Vector(vec![record(0, 0).next])));
    }

    #[test]
    fn connections_that_wake_together_share_the_same_bytes() {
        let feed = feed(10, 1);
        let encoding = Encoding {
            format: Format::SseText,
            binary: false,
        };
        let (mut one, mut other) = (feed.live(), feed.live());
        feed.push((0..3).map(|offset| record(0, offset)).collect());
        let taken = [&mut one, &mut other].map(|reader| {
            let mut batch = Batch::default();
            feed.take(reader, encoding, &mut batch).unwrap();
            assert_eq!(
                (batch.frames.len(), batch.messages, batch.stamps.len()),
                (1, 3, 3)
            );
            batch.frames.remove(0).bytes
        });
        assert_eq!(taken[0].as_ptr(), taken[1].as_ptr());
    }

    #[test]
    fn a_cursor_of_a_log_that_was_made_anew_does_not_fit() {
        let feed = feed(10, 1);
        feed.push((0..4).map(|offset| record(0, offset)).collect());
        let other = Vector(vec![Position::after(1, Some(77), Some(b"of another log"))]);
        assert!(feed.locate(&other, true).is_none());
        assert!(
            feed.locate(&Vector(vec![record(0, 1).next]), false)
                .is_some()
        );
    }

    #[test]
    fn nobody_joins_before_the_log_was_made_anew() {
        let feed = feed(10, 1);
        feed.push((0..4).map(|offset| record(0, offset)).collect());
        let mut watching = feed.live();
        let gap = Gap::of(GapReason::Recreated, 0, 4, None);
        feed.push(vec![Event {
            partition: 0,
            next: Position::at(0),
            payload: Payload::Gap(gap),
        }]);
        feed.push(vec![record(0, 0)]);
        assert!(
            feed.locate(&Vector(vec![record(0, 3).next]), false)
                .is_none()
        );
        assert!(
            feed.newest(2, false).is_none(),
            "what is older is of another log"
        );
        let mut batch = Batch::default();
        feed.take(&mut watching, ENCODING, &mut batch).unwrap();
        assert_eq!(
            (batch.gaps.as_slice(), batch.messages),
            ([GapReason::Recreated].as_slice(), 1)
        );
    }

    #[test]
    fn the_ring_counts_its_bytes_and_stays_below_its_limit() {
        let feed = Feed::new(
            TOPIC.to_owned(),
            Limits {
                events: 1000,
                bytes: 10_000,
                write_events: 512,
            },
        );
        feed.fill(Page::default());
        for offset in 0..500 {
            let mut reader = feed.live();
            feed.push(vec![record(0, offset)]);
            feed.take(&mut reader, ENCODING, &mut Batch::default())
                .unwrap();
        }
        let (events, bytes) = feed.size();
        assert!(events > 5 && events < 100, "{events}");
        // The last frame was made after the last look at the limit.
        assert!(bytes < 11_000, "{bytes}");
    }
}
