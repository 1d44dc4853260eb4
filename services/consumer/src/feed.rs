//! The feed of a topic: a ring of its newest events, each encoded once per encoding and shared by all connections.

mod batch;
mod index;
mod reader;
mod registry;
mod ring;

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

pub use self::batch::Batch;
use self::reader::Found;
pub use self::reader::RingReader;
use self::registry::Registry;
pub use self::registry::Subscription;
pub use self::ring::Limits;
use self::ring::{Entry, Ring};
use crate::cursor::{Position, TopicId, Vector};
use crate::encode::{self, Encoding, Format, Frame, Kind};
use crate::keys::Keys;
use crate::page::{Limit, Page};
use crate::record::Event;

/// The most bytes taken for one write: a slow client keeps them in memory until the socket has accepted all of them.
const BATCH_BYTES: usize = 32 << 10;

/// The newest events of one topic.
pub struct Feed {
    topic: String,
    limits: Limits,
    ring: RwLock<Ring>,
    /// Bytes of the frames that are cached beside the records in the ring.
    frame_bytes: AtomicUsize,
    /// The last requested range of frames, joined: connections that wake together need the same one.
    joined: [Mutex<Option<Joined>>; Encoding::COUNT],
    /// The number of the next event; 0 until the ring is filled.
    head: watch::Sender<u64>,
    /// The connections that do not watch `head`, but wait for some keys.
    registry: Arc<Registry>,
}

struct Joined {
    from: u64,
    to: u64,
    bytes: Bytes,
}

/// The position was evicted from the ring: the connection is slower than the topic.
#[derive(Debug)]
pub struct Lagged;

impl Feed {
    pub fn new(topic: String, limits: Limits) -> Self {
        Self {
            ring: RwLock::new(Ring::new(topic.clone())),
            topic,
            limits,
            frame_bytes: AtomicUsize::new(0),
            joined: Default::default(),
            head: watch::Sender::new(0),
            registry: Arc::default(),
        }
    }

    /// Wakes a connection whenever there is something new; the value is 0 until the ring is filled.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Wakes a connection whenever there is something new for these keys, and when the ring is filled.
    pub fn subscribe(&self, keys: Keys) -> Subscription {
        self.registry.subscribe(keys)
    }

    /// Whether the ring has been filled.
    pub fn is_filled(&self) -> bool {
        *self.head.borrow() > 0
    }

    /// Wakes all connections without a new event, so that they check the state of Kafka.
    pub fn wake(&self) {
        self.head.send_modify(|_| {});
        self.registry.notify_all();
    }

    /// Sets where the ring begins, with the history before the first live event. Called once, before any `push`.
    pub fn fill(&self, page: Page) {
        let mut ring = self.write();
        ring.begin(page.before, page.from_start);
        self.append(ring, page.events);
        self.registry.notify_all();
    }

    /// Adds partitions that were created while the topic was read.
    pub fn grow(&self, partitions: usize) {
        self.write().grow(partitions);
    }

    /// Removes partitions that the topic no longer has, after their end was announced.
    pub fn shrink(&self, partitions: usize) {
        self.write().shrink(partitions);
    }

    /// Appends events and wakes the connections once.
    pub fn push(&self, events: Vec<Event>) {
        self.append(self.write(), events.into_iter().map(Arc::new).collect());
    }

    /// Appends the events that end the log of one topic, and continues with a recreated topic of the same name.
    pub fn restart(&self, mut events: Vec<Event>, topic_id: TopicId) {
        let mut ring = self.write();
        // Until the last event, some partitions still belong to the old log: a cursor with the new id would hide that.
        let last = events.pop();
        for event in events {
            ring.push(Arc::new(event));
        }
        ring.set_topic_id(topic_id);
        self.append(ring, last.into_iter().map(Arc::new).collect());
        self.registry.notify_all();
    }

    fn append(&self, mut ring: RwLockWriteGuard<'_, Ring>, events: Vec<Arc<Event>>) {
        for event in &events {
            ring.push(event.clone());
        }
        while let Some(evicted) = ring.evict(&self.limits, self.frame_bytes.load(Ordering::Relaxed))
        {
            self.frame_bytes
                .fetch_sub(evicted.frame_bytes, Ordering::Relaxed);
            self.registry.evicted(&evicted.event, evicted.number);
        }
        let end = ring.end();
        drop(ring);
        self.head.send_replace(end);
        self.registry.notify(&events);
    }

    /// The number of the next event; 0 until the ring is filled.
    pub fn end(&self) -> u64 {
        *self.head.borrow()
    }

    /// The vector after the newest event.
    pub fn head(&self) -> Vector {
        self.read().head.clone()
    }

    /// The position after the newest event of a partition.
    pub fn position(&self, partition: usize) -> Position {
        self.read().head.get(partition)
    }

    /// The number of partitions that are read.
    pub fn partitions(&self) -> usize {
        self.read().head.len()
    }

    /// The positions of one partition that the ring knows, ascending.
    pub fn positions(&self, partition: usize) -> Vec<Position> {
        self.read().positions(partition)
    }

    /// Events and bytes (records and frames) held now.
    pub fn size(&self) -> (usize, usize) {
        let ring = self.read();
        let frames = self.frame_bytes.load(Ordering::Relaxed);
        (ring.len(), ring.record_bytes + frames)
    }

    /// Where a client starts that wants only live events.
    pub fn live(&self) -> RingReader {
        self.read().live()
    }

    /// Before the newest `count` messages; see [`Ring::newest`].
    pub fn newest(&self, count: usize, fewer: bool, keys: Option<&Keys>) -> Option<RingReader> {
        self.read().newest(count, fewer, keys)
    }

    /// Where a client that has read up to `vector` continues; see [`Ring::locate`].
    pub fn locate(&self, vector: &Vector, verified: bool) -> Option<RingReader> {
        self.read().locate(vector, verified)
    }

    /// The newest page of these keys, and whether the ring holds as much as was requested.
    pub fn newest_page(&self, limit: Limit, keys: Option<&Keys>) -> (Page, bool) {
        self.read().newest_page(limit, keys)
    }

    /// The page of these keys after a vector; `None` if the ring cannot continue from it.
    pub fn page_after(&self, vector: &Vector, limit: Limit, keys: Option<&Keys>) -> Option<Page> {
        self.read().page_after(vector, limit, keys)
    }

    /// The cursor of a connection.
    pub fn cursor(&self, reader: &RingReader) -> String {
        match &reader.divergence {
            Some(divergence) => divergence.vector.encode(&self.topic),
            None => reader.cursor.as_ref().to_owned(),
        }
    }

    /// Takes the events between a connection's position and the head, up to the size of one write, and advances the position.
    ///
    /// # Errors
    ///
    /// [`Lagged`] if the position has been evicted from the ring.
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
        let begin = reader.position;
        let has_room = |next: u64, bytes: usize| {
            next < ring.end() && next - begin < self.limits.batch_events && bytes < BATCH_BYTES
        };
        while let Some(divergence) = &mut reader.divergence
            && has_room(reader.position, bytes)
        {
            let entry = ring.entry(reader.position);
            reader.position += 1;
            let frame = || self.frame(&ring, entry, encoding).into_owned();
            let taken = divergence.take(&entry.event, &entry.cursor, &self.topic, encoding, frame);
            if let Some(frame) = taken {
                batch.count(&entry.event, false, encoding.binary);
                bytes += frame.bytes.len();
                batch.frames.push(frame);
            }
            if divergence.ahead.is_empty() {
                reader.cursor = divergence.vector.encode(&self.topic).into();
                reader.divergence = None;
            }
        }
        if reader.divergence.is_some() {
            return Ok(());
        }
        // Only a connection whose vector equals the ring's may use the ring's cursors.
        let from = reader.position;
        let mut next = from;
        while has_room(next, bytes) {
            let entry = ring.entry(next);
            bytes += self.frame(&ring, entry, encoding).bytes.len();
            batch.count(&entry.event, next >= reader.live_from, encoding.binary);
            next += 1;
        }
        if next == from {
            return Ok(());
        }
        reader.cursor = ring.entry(next - 1).cursor.clone();
        reader.position = next;
        reader.announced = next;
        if encoding.format != Format::SocketIo && next - from > 1 {
            batch.frames.push(Frame {
                kind: Kind::Message,
                bytes: self.join(&ring, from, next, encoding),
                value: None,
            });
        } else {
            let frames = (from..next)
                .map(|number| self.frame(&ring, ring.entry(number), encoding).into_owned());
            batch.frames.extend(frames);
        }
        Ok(())
    }

    /// Like [`take`](Self::take), but only the events that concern the keys of a subscription; the position advances past the
    /// others. It may have been evicted, unless an event of these keys was.
    ///
    /// # Errors
    ///
    /// [`Lagged`] if an event of these keys has been evicted from the ring before it was taken.
    pub fn take_keys(
        &self,
        reader: &mut RingReader,
        subscription: &Subscription,
        encoding: Encoding,
        batch: &mut Batch,
    ) -> Result<(), Lagged> {
        let ring = self.read();
        if reader.position < ring.first && subscription.has_evicted(reader.position) {
            return Err(Lagged);
        }
        let (mut taken, mut bytes) = (0, 0);
        while taken < self.limits.batch_events && bytes < BATCH_BYTES {
            if reader.found.numbers.is_empty() && reader.found.until < ring.end() {
                let from = reader.position.max(reader.found.until);
                reader.found = Found::new(ring.numbers(subscription.keys(), from), ring.end());
            }
            let Some(number) = reader.found.numbers.pop_front() else {
                break;
            };
            let entry = ring.entry(number);
            let frame = || self.frame(&ring, entry, encoding).into_owned();
            let (frame, live) = match &mut reader.divergence {
                None => (Some(frame()), number >= reader.live_from),
                Some(divergence) => {
                    if let Some(before) = self.vector_before(&ring, number) {
                        divergence.pass(&before);
                    }
                    let (event, cursor) = (&entry.event, &entry.cursor);
                    let taken = divergence.take(event, cursor, &self.topic, encoding, frame);
                    (taken, false)
                }
            };
            if let Some(frame) = frame {
                batch.count(&entry.event, live, encoding.binary);
                taken += 1;
                bytes += frame.bytes.len();
                batch.frames.push(frame);
                reader.announced = number + 1;
            }
        }
        // What lies before the next one has other keys.
        let next = reader.found.numbers.front().copied();
        let next = next.unwrap_or(reader.found.until);
        if let Some(divergence) = &mut reader.divergence {
            if let Some(before) = self.vector_before(&ring, next) {
                divergence.pass(&before);
            }
            if divergence.ahead.is_empty() {
                reader.cursor = divergence.vector.encode(&self.topic).into();
                reader.divergence = None;
            }
        } else if let Some(cursor) = ring.token_before(next) {
            reader.cursor = cursor;
        }
        reader.position = reader.position.max(next);
        Ok(())
    }

    /// Takes up to `count` events as they are, for a reader within the process.
    ///
    /// # Errors
    ///
    /// [`Lagged`] if the position has been evicted from the ring.
    pub fn take_events(
        &self,
        reader: &mut RingReader,
        count: usize,
    ) -> Result<Vec<Arc<Event>>, Lagged> {
        let ring = self.read();
        if reader.position < ring.first {
            return Err(Lagged);
        }
        let mut events = Vec::new();
        while reader.position < ring.end() && events.len() < count {
            let entry = ring.entry(reader.position);
            reader.position += 1;
            if let Some(divergence) = &mut reader.divergence {
                let accepted = divergence.accept(&entry.event, &entry.cursor, &self.topic);
                if accepted.is_some() {
                    events.push(entry.event.clone());
                }
                reader.cursor = divergence.vector.encode(&self.topic).into();
                if divergence.ahead.is_empty() {
                    reader.divergence = None;
                }
            } else {
                events.push(entry.event.clone());
                reader.cursor = entry.cursor.clone();
            }
        }
        Ok(events)
    }

    fn vector_before(&self, ring: &Ring, number: u64) -> Option<Vector> {
        let token = ring.token_before(number)?;
        Vector::decode(&token, &self.topic)
    }

    /// The frame of an event, encoded on first use.
    fn frame<'a>(&self, ring: &Ring, entry: &'a Entry, encoding: Encoding) -> Cow<'a, Frame> {
        let slot = &entry.frames[encoding.index()];
        if let Some(frame) = slot.get() {
            return Cow::Borrowed(frame);
        }
        let frame = encode::event(&entry.event, &entry.cursor, encoding);
        // With backlogs read in every encoding, the frames alone could fill the ring's share of memory.
        let held = ring.record_bytes + self.frame_bytes.load(Ordering::Relaxed);
        if held < self.limits.bytes && slot.set(Box::new(frame.clone())).is_ok() {
            self.frame_bytes
                .fetch_add(frame.weight(), Ordering::Relaxed);
        }
        Cow::Owned(frame)
    }

    /// The frames of a range, joined.
    fn join(&self, ring: &Ring, from: u64, to: u64, encoding: Encoding) -> Bytes {
        let slot = || {
            let slot = &self.joined[encoding.index()];
            slot.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let known = |joined: &&Joined| joined.from == from && joined.to == to;
        if let Some(joined) = slot().as_ref().filter(known) {
            return joined.bytes.clone();
        }
        // Copied without holding the lock, which all connections of this encoding need.
        let frames: Vec<_> = (from..to)
            .map(|number| self.frame(ring, ring.entry(number), encoding))
            .collect();
        let mut bytes = BytesMut::with_capacity(frames.iter().map(|frame| frame.bytes.len()).sum());
        for frame in frames {
            bytes.extend_from_slice(&frame.bytes);
        }
        let bytes = bytes.freeze();
        *slot() = Some(Joined {
            from,
            to,
            bytes: bytes.clone(),
        });
        bytes
    }

    fn read(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Ring> {
        self.ring.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::record::{Gap, GapReason, Message, Payload, Value};

    pub const TOPIC: &str = "my-topic";
    /// The transport whose events are sent one by one.
    pub const ENCODING: Encoding = Encoding {
        format: Format::SocketIo,
        binary: false,
    };

    fn record(partition: usize, offset: i64) -> Event {
        keyed(partition, offset, None)
    }

    pub fn keyed(partition: usize, offset: i64, key: Option<&str>) -> Event {
        let text = format!("{partition}/{offset}");
        let next = Position::after(offset, Some(offset), Some(text.as_bytes()));
        let value = Value::Text(text);
        let message = Message {
            offset,
            timestamp: Some(offset),
            key: key.map(|key| key.as_bytes().to_vec()),
            headers: vec![],
            value,
        };
        Event {
            partition,
            next,
            payload: Payload::Message(message),
        }
    }

    pub fn feed(events: usize, partitions: usize) -> Feed {
        let feed = Feed::new(
            TOPIC.to_owned(),
            Limits {
                events,
                age: Duration::ZERO,
                bytes: usize::MAX,
                batch_events: 3,
            },
        );
        let before = Vector::new(vec![Position::default(); partitions]);
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

    /// A client that resumes with its cursor, and what it has received: the next offset of each partition.
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
                        self.receive(
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
                self.receive(
                    partition,
                    offset,
                    object["cursor"].as_str().expect("a cursor"),
                );
            }
            moved
        }

        fn receive(&mut self, partition: usize, offset: i64, cursor: &str) {
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
            assert_eq!(offsets, self.next, "the cursor matches what the client has");
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
        fn a_client_that_moves_between_replicas_receives_every_record_once_and_in_order(
            partitions in 1..5usize,
            picks in proptest::collection::vec(0..12usize, 0..60),
            shuffled in any::<prop::sample::Index>(),
            sizes in [1..30usize, 1..30usize],
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            // The second replica read the same partitions in another order: rotated, each partition's own order kept.
            let mut rotated = picks.clone();
            if !rotated.is_empty() {
                rotated.rotate_left(shuffled.index(picks.len()));
            }
            let mut replicas = [picks, rotated].map(|picks| order(&picks, partitions)).into_iter().zip(sizes).map(|(order, size)| {
                Replica { feed: feed(size, partitions), order, read: 0 }
            }).collect::<Vec<_>>();
            let start = Vector::new(vec![Position::default(); partitions]);
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
    fn a_reader_whose_position_was_evicted_has_lagged_and_keeps_its_cursor() {
        let feed = feed(3, 1);
        feed.push(vec![record(0, 0)]);
        let mut reader = feed.newest(1, false, None).unwrap();
        feed.take(&mut reader, ENCODING, &mut Batch::default())
            .unwrap();
        feed.push((1..6).map(|offset| record(0, offset)).collect());
        assert!(
            feed.take(&mut reader, ENCODING, &mut Batch::default())
                .is_err()
        );
        let has = Vector::decode(&feed.cursor(&reader), TOPIC);
        assert_eq!(has, Some(Vector::new(vec![record(0, 0).next])));
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
                (batch.frames.len(), batch.messages, batch.timestamps.len()),
                (1, 3, 3)
            );
            batch.frames.remove(0).bytes
        });
        assert_eq!(taken[0].as_ptr(), taken[1].as_ptr());
    }

    #[test]
    fn a_cursor_of_another_log_is_not_located() {
        let feed = feed(10, 1);
        feed.push((0..4).map(|offset| record(0, offset)).collect());
        let other = Vector::new(vec![Position::after(1, Some(77), Some(b"of another log"))]);
        assert!(feed.locate(&other, true).is_none());
        assert!(
            feed.locate(&Vector::new(vec![record(0, 1).next]), false)
                .is_some()
        );
    }

    #[test]
    fn no_client_joins_the_ring_before_a_recreation() {
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
            feed.locate(&Vector::new(vec![record(0, 3).next]), false)
                .is_none()
        );
        assert!(
            feed.newest(2, false, None).is_none(),
            "older events belong to another log"
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
                age: Duration::ZERO,
                bytes: 100_000,
                batch_events: 512,
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
        assert!(events > 50 && events < 200, "{events}");
        // The last frame was encoded after the limit was last checked.
        assert!(bytes < 102_000, "{bytes}");
    }

    const RING: usize = 1 << 20;

    /// Fills a ring of `RING` bytes several times over with values of this size, and encodes every event for these transports.
    fn full_ring(value: usize, encodings: &[Encoding]) -> Feed {
        let limits = Limits {
            events: usize::MAX,
            age: Duration::ZERO,
            bytes: RING,
            batch_events: 1_000,
        };
        let feed = Feed::new(TOPIC.to_owned(), limits);
        feed.fill(Page {
            before: Vector::new(vec![Position::default(); 3]),
            ..Page::default()
        });
        let mut readers: Vec<_> = encodings.iter().map(|_| feed.live()).collect();
        for offset in 0..3 * RING as i64 / (value as i64 + 200) {
            let text = "x".repeat(value);
            let next = Position::after(offset, Some(offset), Some(text.as_bytes()));
            let message = Message {
                offset,
                timestamp: Some(offset),
                key: Some(format!("key {offset}").into_bytes()),
                headers: vec![("name".to_owned(), Some(b"value".to_vec()))],
                value: Value::Text(text),
            };
            let payload = Payload::Message(message);
            let partition = (offset % 3) as usize;
            feed.push(vec![Event {
                partition,
                next,
                payload,
            }]);
            for (reader, encoding) in readers.iter_mut().zip(encodings) {
                let mut batch = Batch::default();
                feed.take(reader, *encoding, &mut batch)
                    .expect("the reader keeps up");
            }
        }
        feed
    }

    #[test]
    fn a_full_ring_holds_its_bytes_within_a_fifth() {
        let encoding = |format| Encoding {
            format,
            binary: false,
        };
        let all = [
            Format::SseText,
            Format::SseJson,
            Format::WebSocket,
            Format::SocketIo,
        ];
        for value in [1, 1_000, 20_000] {
            for encodings in [&[][..], &[encoding(Format::SseText)], &all.map(encoding)] {
                let mut feed = None;
                let held = allocation_counter::measure(|| feed = Some(full_ring(value, encodings)));
                let (_, bytes) = feed.expect("it was filled").size();
                let ratio = held.bytes_current as f64 / bytes as f64;
                let transports = encodings.len();
                assert!(
                    (0.8..1.2).contains(&ratio)
                        && (RING * 4 / 5..RING + 8 * value + 4_096).contains(&bytes),
                    "values of {value} bytes, {transports} transports: {bytes} bytes, held {ratio:.2} times"
                );
            }
        }
    }
}
