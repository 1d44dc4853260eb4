//! The latest record of each key of a topic, for `from=latest-per-key`. It is read from Kafka on first use, once for all clients
//! that wait for it, and kept up to date from then on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::sync::{Notify, watch};

use crate::cursor::{Position, Vector};
use crate::feed::Feed;
use crate::follower::Follower;
use crate::kafka::{Purpose, Topic};
use crate::keys::Keys;
use crate::record::{Event, GapReason, Message, Payload, Value};

/// How long an answer is waited for at once: while Kafka does not answer, a client is notified in between.
const WAIT: Duration = Duration::from_secs(2);

/// How long a topic whose records are over the limit is not read again.
const OVER_LIMIT: Duration = Duration::from_secs(60);

/// Approximate bytes of one entry on the heap, besides the record and its key.
const ENTRY_OVERHEAD: usize = 120;

/// The latest records of one topic.
pub struct Latest {
    max_bytes: usize,
    wanted: Notify,
    index: Mutex<Index>,
    progress: watch::Sender<Progress>,
}

/// How far the index has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It is not complete.
    Reading,
    /// It holds everything before the event of the ring with this number.
    Before(u64),
    OverLimit,
}

/// The records of a start that are still to be sent, and where the stream continues after them.
#[derive(Debug)]
pub struct Snapshot {
    /// The vector before the next of them. A client that resumes between two of them receives at least the rest.
    pub before: Vector,
    /// The vector up to which nothing newer exists.
    pub after: Vector,
    /// There is at least one record.
    pub moved: bool,
    records: Records,
}

#[derive(Debug)]
enum Records {
    /// Those of some keys.
    Own(Events),
    /// All. They stay in the index, because copies for slow clients would together be much larger than it. A record that is
    /// replaced before it was sent is not sent: the one that replaces it is after the snapshot.
    Shared { generation: u64 },
}

/// Events by partition and offset.
type Events = BTreeMap<(usize, i64), Arc<Event>>;

/// What a client receives.
pub enum Answer {
    Snapshot(Snapshot),
    /// The records are over the limit: one sentence.
    OverLimit(String),
}

impl Latest {
    /// `max_bytes` limits the memory for the records and their keys.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            wanted: Notify::new(),
            index: Mutex::default(),
            progress: watch::Sender::new(Progress::Reading),
        }
    }

    /// The latest records of these keys, or of all, at least as new as the ring is now.
    ///
    /// # Errors
    ///
    /// If they could not be read from Kafka yet.
    pub async fn of(&self, feed: &Feed, keys: Option<Keys>) -> anyhow::Result<Answer> {
        self.wanted.notify_one();
        let end = feed.end();
        let mut progress = self.progress.subscribe();
        let ready = progress.wait_for(|progress| match progress {
            Progress::Reading => false,
            Progress::Before(number) => *number >= end,
            Progress::OverLimit => true,
        });
        let ready = *tokio::time::timeout(WAIT, ready)
            .await
            .context("the topic is still being read")?
            .context("the index is gone")?;
        if ready == Progress::OverLimit {
            return Ok(Answer::OverLimit(format!(
                "the latest records of this topic's keys are over {} bytes together; the server's --latest-bytes limits them",
                self.max_bytes
            )));
        }
        let index = self.lock();
        anyhow::ensure!(index.complete, "the topic is being read again");
        Ok(Answer::Snapshot(index.snapshot(keys.as_ref())))
    }

    /// Takes the next records of a snapshot, about this many bytes, in the order of a backlog: merged by timestamp, then
    /// partition, each partition's offsets ascending. None are left if there are none; `None` if the index was read again since.
    pub fn take(&self, snapshot: &mut Snapshot, bytes: usize) -> Option<Vec<Arc<Event>>> {
        let Snapshot {
            before,
            after,
            records,
            ..
        } = snapshot;
        match records {
            Records::Own(events) => Some(take_merged(events, before, after, bytes)),
            Records::Shared { generation } => {
                let index = self.lock();
                let same = index.generation == *generation;
                same.then(|| take_merged(&index.events, before, after, bytes))
            }
        }
    }

    /// Keeps the index, once it is wanted. Never returns.
    pub async fn run(&self, topic: Arc<Topic>) {
        loop {
            self.wanted.notified().await;
            self.follow(topic.clone()).await;
            tracing::warn!(
                topic = topic.name,
                limit = self.max_bytes,
                "the latest records of the topic's keys are over the limit; from=latest-per-key is rejected"
            );
            self.lock().reset();
            self.progress.send_replace(Progress::OverLimit);
            tokio::time::sleep(OVER_LIMIT).await;
            self.allow_again();
        }
    }

    /// Lets the topic be read again, for the next client that wants it: those that came meanwhile have been answered.
    fn allow_again(&self) {
        _ = self.wanted.notified().now_or_never();
        self.progress.send_replace(Progress::Reading);
    }

    /// Keeps the index until it is over its limit.
    async fn follow(&self, topic: Arc<Topic>) {
        let mut follower = Follower::new(topic.clone());
        loop {
            let events = follower.next().await;
            if events.iter().any(|event| event.resets()) {
                // What was read is of another log, or was lost.
                self.lock().reset();
                self.progress.send_replace(Progress::Reading);
                follower.restart();
                continue;
            }
            let bytes = {
                let mut index = self.lock();
                for event in &events {
                    index.add(event);
                }
                index.vector = follower.vector();
                index.complete |= follower.has_caught_up();
                index.bytes
            };
            if bytes > self.max_bytes && !self.fits_without_deleted(&topic).await {
                return;
            }
            if follower.has_caught_up()
                && let Some(number) = follower.number()
            {
                self.progress.send_replace(Progress::Before(number));
            }
        }
    }

    /// Removes the records that Kafka has deleted since they were read. Returns whether the others are within the limit.
    async fn fits_without_deleted(&self, topic: &Topic) -> bool {
        let ends = topic.log.ends(topic.feed.partitions(), Purpose::Index);
        match ends.await {
            Ok(ends) => {
                let mut index = self.lock();
                for (partition, (low, _)) in ends.into_iter().enumerate() {
                    index.remove_before(partition, low);
                }
                index.bytes <= self.max_bytes
            }
            Err(error) => {
                let (topic, error) = (&topic.name, format!("{error:#}"));
                tracing::warn!(topic, error, "cannot find the start of the log");
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records. Pure: without locks or I/O.
#[derive(Default)]
struct Index {
    /// The latest record of each key, and gaps that may hide the latest record of any key.
    events: Events,
    /// The partition and offset of each key's record.
    newest: HashMap<Box<[u8]>, (usize, i64)>,
    /// Those of the gaps.
    gaps: BTreeSet<(usize, i64)>,
    bytes: usize,
    /// The vector after the last event.
    vector: Vector,
    complete: bool,
    /// How often it was read again.
    generation: u64,
}

impl Index {
    /// Removes everything.
    fn reset(&mut self) {
        *self = Self {
            generation: self.generation + 1,
            ..Self::default()
        };
    }

    fn add(&mut self, event: &Arc<Event>) {
        let position = (event.partition, event.first_offset());
        let message = match &event.payload {
            Payload::Message(message) => message,
            Payload::Gap(gap) => {
                if matches!(gap.reason, GapReason::TooLarge | GapReason::Unreadable) {
                    self.gaps.insert(position);
                    self.insert(position, event);
                }
                return;
            }
        };
        let Some(key) = &message.key else { return };
        let removes = matches!(message.value, Value::Null);
        if let Some(newest) = self.newest.get_mut(key.as_slice()) {
            let old = *newest;
            if self
                .events
                .get(&old)
                .is_some_and(|old| !follows(event, message, old))
            {
                return;
            }
            if removes {
                self.newest.remove(key.as_slice());
            } else {
                *newest = position;
            }
            self.remove(old);
        } else if !removes {
            self.newest.insert(key.as_slice().into(), position);
        }
        if !removes {
            self.insert(position, event);
        }
    }

    fn insert(&mut self, position: (usize, i64), event: &Arc<Event>) {
        self.bytes += weight(event);
        if let Some(old) = self.events.insert(position, event.clone()) {
            self.bytes -= weight(&old);
        }
    }

    fn remove(&mut self, position: (usize, i64)) -> Option<Arc<Event>> {
        let event = self.events.remove(&position)?;
        self.bytes -= weight(&event);
        Some(event)
    }

    /// Removes the events of a partition before this offset.
    fn remove_before(&mut self, partition: usize, low: i64) {
        let older = self.events.range((partition, i64::MIN)..(partition, low));
        let deleted = older.filter(|(_, event)| event.next.offset <= low);
        let deleted: Vec<_> = deleted.map(|(position, _)| *position).collect();
        for position in deleted {
            self.gaps.remove(&position);
            let event = self.remove(position);
            if let Some(key) = event.as_deref().and_then(key) {
                self.newest.remove(key);
            }
        }
    }

    fn snapshot(&self, keys: Option<&Keys>) -> Snapshot {
        let records = match keys {
            None => Records::Shared {
                generation: self.generation,
            },
            Some(keys) => {
                let found = keys.iter().filter_map(|key| self.newest.get(key));
                let all = found.chain(&self.gaps).filter_map(|position| {
                    let event = self.events.get(position)?;
                    Some((*position, event.clone()))
                });
                Records::Own(all.collect())
            }
        };
        let events = match &records {
            Records::Own(events) => events,
            Records::Shared { .. } => &self.events,
        };
        let mut before = self.vector.clone();
        for partition in 0..self.vector.len() {
            let mut range = events.range((partition, i64::MIN)..=(partition, i64::MAX));
            if let Some((&(_, offset), _)) = range.next() {
                before.set(partition, Position::at(offset));
            }
        }
        Snapshot {
            moved: before != self.vector,
            before,
            after: self.vector.clone(),
            records,
        }
    }
}

fn weight(event: &Event) -> usize {
    event.weight() + key(event).map_or(0, <[u8]>::len) + ENTRY_OVERHEAD
}

fn key(event: &Event) -> Option<&[u8]> {
    match &event.payload {
        Payload::Message(message) => message.key.as_deref(),
        Payload::Gap(_) => None,
    }
}

/// Whether a record of a key is later than the one that was the latest: in another partition, by its timestamp.
fn follows(event: &Event, message: &Message, old: &Event) -> bool {
    let Payload::Message(former) = &old.payload else {
        return true;
    };
    event.partition == old.partition || message.timestamp >= former.timestamp
}

/// The next events after `from` and before `until`, about this many bytes: merged by timestamp, then partition; within a
/// partition offsets ascend. `from` becomes the vector after them.
fn take_merged(
    events: &Events,
    from: &mut Vector,
    until: &Vector,
    bytes: usize,
) -> Vec<Arc<Event>> {
    let mut partitions: Vec<_> = (0..until.len())
        .map(|partition| {
            let end = until.get(partition).offset;
            let begin = from.get(partition).offset.min(end);
            let range = events.range((partition, begin)..(partition, end));
            range.map(|(_, event)| event).peekable()
        })
        .collect();
    let time = |event: &Event| match &event.payload {
        Payload::Message(message) => message.timestamp.unwrap_or(i64::MIN),
        Payload::Gap(_) => i64::MIN,
    };
    let mut next: BinaryHeap<_> = (partitions.iter_mut().enumerate())
        .filter_map(|(partition, events)| Some(Reverse((time(events.peek()?), partition))))
        .collect();
    let (mut taken, mut total) = (Vec::new(), 0);
    while total < bytes
        && let Some(Reverse((_, partition))) = next.pop()
    {
        let events = &mut partitions[partition];
        if let Some(event) = events.next() {
            from.set(partition, event.next);
            total += event.weight();
            taken.push(event.clone());
        }
        if let Some(event) = events.peek() {
            next.push(Reverse((time(event), partition)));
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(
        partition: usize,
        offset: i64,
        time: i64,
        key: &str,
        value: Option<&str>,
    ) -> Arc<Event> {
        let message = Message {
            offset,
            timestamp: Some(time),
            key: Some(key.as_bytes().to_vec()),
            headers: vec![],
            value: Value::new(value.map(str::as_bytes)),
        };
        Arc::new(Event {
            partition,
            next: Position::after(offset, Some(time), value.map(str::as_bytes)),
            payload: Payload::Message(message),
        })
    }

    fn index(events: &[Arc<Event>]) -> Index {
        let mut index = Index::default();
        for event in events {
            index.add(event);
            index.vector.set(event.partition, event.next);
        }
        index
    }

    /// The partitions and offsets of a snapshot's records, taken one by one.
    fn positions(latest: &Latest, snapshot: &mut Snapshot) -> Vec<(usize, i64)> {
        let mut positions = Vec::new();
        loop {
            let events = latest.take(snapshot, 1).expect("the same index");
            if events.is_empty() {
                return positions;
            }
            positions.extend(
                events
                    .iter()
                    .map(|event| (event.partition, event.first_offset())),
            );
        }
    }

    fn latest(events: &[Arc<Event>]) -> Latest {
        let latest = Latest::new(usize::MAX);
        *latest.lock() = index(events);
        latest
    }

    fn snapshot(latest: &Latest, keys: &[&str]) -> Snapshot {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        latest.lock().snapshot(Keys::parse(&keys).unwrap().as_ref())
    }

    #[test]
    fn the_latest_record_of_each_key_is_found_in_the_order_of_a_backlog() {
        let latest = latest(&[
            record(0, 0, 10, "a", Some("old")),
            record(1, 0, 20, "b", Some("b")),
            record(0, 1, 30, "a", Some("new")),
            record(0, 2, 5, "c", Some("its time is before its predecessor's")),
        ]);
        let mut all = snapshot(&latest, &[]);
        // A client that resumes before the first of them receives all of them.
        assert_eq!((all.before.get(0).offset, all.before.get(1).offset), (1, 0));
        assert_eq!((all.after.get(0).offset, all.after.get(1).offset), (3, 1));
        assert_eq!(positions(&latest, &mut all), [(1, 0), (0, 1), (0, 2)]);
        assert_eq!(all.before, all.after);
        let mut one = snapshot(&latest, &["a", "x"]);
        assert_eq!((one.before.get(0).offset, one.before.get(1).offset), (1, 1));
        assert_eq!(positions(&latest, &mut one), [(0, 1)]);
    }

    #[test]
    fn a_record_that_is_replaced_before_it_was_sent_comes_after_the_snapshot() {
        let latest = latest(&[
            record(0, 0, 10, "a", Some("a")),
            record(0, 1, 20, "b", Some("old")),
            record(0, 2, 30, "c", Some("c")),
        ]);
        let mut all = snapshot(&latest, &[]);
        assert_eq!(latest.take(&mut all, 1).map(|events| events.len()), Some(1));
        latest.lock().add(&record(0, 3, 40, "b", Some("new")));
        assert_eq!(positions(&latest, &mut all), [(0, 2)]);
        assert_eq!(all.after.get(0).offset, 3);
        latest.lock().reset();
        assert!(latest.take(&mut all, 1).is_none());
    }

    #[test]
    fn a_tombstone_removes_its_key_and_gives_its_memory_back() {
        let events = [record(0, 0, 1, "a", Some("x")), record(0, 1, 2, "a", None)];
        let index = index(&events);
        assert!(index.events.is_empty() && index.newest.is_empty());
        assert_eq!(index.bytes, 0);
    }

    #[test]
    fn records_that_kafka_has_deleted_give_their_memory_back() {
        let gap = |offset| {
            let next = Position::at(offset + 1);
            Arc::new(Event::gap(
                GapReason::TooLarge,
                0,
                offset,
                Some(offset + 1),
                next,
            ))
        };
        let mut left = index(&[
            record(0, 0, 1, "a", Some("deleted")),
            gap(1),
            record(0, 2, 2, "b", Some("kept")),
            record(1, 0, 3, "c", Some("of another partition")),
        ]);
        left.remove_before(0, 2);
        assert_eq!(left.newest.len(), 2);
        assert!(left.gaps.is_empty());
        left.remove_before(1, 1);
        left.remove_before(0, 3);
        assert_eq!(
            (left.bytes, left.events.len(), left.newest.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn the_limit_is_that_of_the_memory() {
        let mut held = None;
        let measured = allocation_counter::measure(|| {
            let mut index = Index::default();
            for number in 0..10_000 {
                let key = format!("93f98662-8907-4f43-bb4c-{number:012}");
                index.add(&record(0, number, number, &key, Some("a value")));
            }
            held = Some(index);
        });
        let bytes = held.expect("it was filled").bytes;
        let ratio = measured.bytes_current as f64 / bytes as f64;
        assert!((0.7..1.2).contains(&ratio), "held {ratio:.2} times");
    }

    #[tokio::test]
    async fn a_topic_that_was_over_the_limit_is_not_read_again_before_a_client_wants_it() {
        let latest = Latest::new(0);
        latest.wanted.notify_one();
        latest.allow_again();
        assert!(latest.wanted.notified().now_or_never().is_none());
        assert_eq!(*latest.progress.borrow(), Progress::Reading);
    }

    #[test]
    fn a_record_that_was_too_large_may_be_the_latest_of_any_key() {
        let next = Position::at(2);
        let gap = Arc::new(Event::gap(GapReason::TooLarge, 0, 1, Some(2), next));
        let latest = latest(&[record(0, 0, 1, "a", Some("x")), gap]);
        assert_eq!(positions(&latest, &mut snapshot(&latest, &["b"])), [(0, 1)]);
    }

    proptest! {
        #[test]
        fn the_index_holds_what_a_map_of_all_records_would_and_counts_its_bytes(
            records in proptest::collection::vec((0..3usize, 0..6u8, 0..4u8, any::<bool>()), 0..80),
        ) {
            let mut next = [0; 3];
            let mut model: HashMap<String, Arc<Event>> = HashMap::new();
            let mut events = Vec::new();
            for (time, (partition, key, length, tombstone)) in records.into_iter().enumerate() {
                let key = format!("key {key}");
                let value = "x".repeat(length.into());
                let event = record(partition, next[partition], time as i64, &key, (!tombstone).then_some(&*value));
                next[partition] += 1;
                match tombstone {
                    true => model.remove(&key),
                    false => model.insert(key, event.clone()),
                };
                events.push(event);
            }
            let latest = latest(&events);
            let bytes: usize = model.values().map(|event| weight(event)).sum();
            prop_assert_eq!(latest.lock().bytes, bytes);
            let mut expected: Vec<_> = model.values().map(|event| (event.partition, event.first_offset())).collect();
            let mut found = positions(&latest, &mut snapshot(&latest, &[]));
            for partition in 0..3 {
                let offsets: Vec<_> = found.iter().filter(|position| position.0 == partition).collect();
                prop_assert!(offsets.is_sorted());
            }
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
