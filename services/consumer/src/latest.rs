//! The latest record of each key of a topic, for `from=latest-per-key`. It is read from Kafka on first use, once for all clients
//! that wait for it, and kept up to date from then on.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{Notify, watch};

use crate::cursor::{Position, Vector};
use crate::feed::Feed;
use crate::follower::Follower;
use crate::kafka::Topic;
use crate::keys::Keys;
use crate::record::{Event, GapReason, Message, Payload, Value};

/// How long an answer is waited for at once: while Kafka does not answer, a client is told so in between.
const WAIT: Duration = Duration::from_secs(2);

/// How long a topic whose records are over the limit is not read again.
const OVER_LIMIT: Duration = Duration::from_secs(60);

/// Approximate bytes of one entry on the heap, besides the record and its key.
const ENTRY_OVERHEAD: usize = 96;

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

/// The records of a start, and where the stream continues after them.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// In the order of a backlog: merged by timestamp, then partition, each partition's offsets ascending.
    pub events: VecDeque<Arc<Event>>,
    /// The vector before the first of them. A client that resumes between two of them receives at least the rest.
    pub before: Vector,
    /// The vector up to which nothing newer exists.
    pub after: Vector,
}

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
            *self.lock() = Index::default();
            self.progress.send_replace(Progress::OverLimit);
            tokio::time::sleep(OVER_LIMIT).await;
            self.progress.send_replace(Progress::Reading);
        }
    }

    /// Keeps the index until it is over its limit.
    async fn follow(&self, topic: Arc<Topic>) {
        let mut follower = Follower::new(topic);
        loop {
            let events = follower.next().await;
            if events.iter().any(|event| event.resets()) {
                // What was read is of another log, or was lost.
                *self.lock() = Index::default();
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
            if bytes > self.max_bytes {
                return;
            }
            if follower.has_caught_up()
                && let Some(number) = follower.number()
            {
                self.progress.send_replace(Progress::Before(number));
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
    records: HashMap<Box<[u8]>, Arc<Event>>,
    /// Gaps that may hide the latest record of any key.
    gaps: Vec<Arc<Event>>,
    bytes: usize,
    /// The vector after the last event.
    vector: Vector,
    complete: bool,
}

impl Index {
    fn add(&mut self, event: &Arc<Event>) {
        let message = match &event.payload {
            Payload::Message(message) => message,
            Payload::Gap(gap) => {
                if matches!(gap.reason, GapReason::TooLarge | GapReason::Unreadable) {
                    self.bytes += event.weight() + ENTRY_OVERHEAD;
                    self.gaps.push(event.clone());
                }
                return;
            }
        };
        let Some(key) = &message.key else { return };
        let weight = |event: &Event| event.weight() + key.len() + ENTRY_OVERHEAD;
        if let Some(old) = self.records.get_mut(key.as_slice()) {
            if !follows(event, message, old) {
                return;
            }
            self.bytes -= weight(old);
            if matches!(message.value, Value::Null) {
                self.records.remove(key.as_slice());
                return;
            }
            *old = event.clone();
        } else if matches!(message.value, Value::Null) {
            return;
        } else {
            self.records.insert(key.as_slice().into(), event.clone());
        }
        self.bytes += weight(event);
    }

    fn snapshot(&self, keys: Option<&Keys>) -> Snapshot {
        let mut events: Vec<Arc<Event>> = match keys {
            None => self.records.values().cloned().collect(),
            Some(keys) => {
                let found = keys.iter().filter_map(|key| self.records.get(key));
                found.cloned().collect()
            }
        };
        events.extend(self.gaps.iter().cloned());
        let mut before = self.vector.clone();
        let events = in_order(events);
        for event in events.iter().rev() {
            before.set(event.partition, Position::at(event.first_offset()));
        }
        Snapshot {
            events,
            before,
            after: self.vector.clone(),
        }
    }
}

/// Whether a record of a key is later than the one that was the latest: in another partition, by its timestamp.
fn follows(event: &Event, message: &Message, old: &Event) -> bool {
    let Payload::Message(former) = &old.payload else {
        return true;
    };
    event.partition == old.partition || message.timestamp >= former.timestamp
}

/// Merges by timestamp, then partition; within a partition offsets ascend.
fn in_order(mut events: Vec<Arc<Event>>) -> VecDeque<Arc<Event>> {
    events.sort_unstable_by_key(|event| (event.partition, event.next.offset));
    let mut time = (usize::MAX, i64::MIN);
    let mut timed: Vec<(i64, Arc<Event>)> = Vec::with_capacity(events.len());
    for event in events {
        let own = match &event.payload {
            Payload::Message(message) => message.timestamp.unwrap_or(i64::MIN),
            Payload::Gap(_) => i64::MIN,
        };
        // An event is never before its predecessor in the partition, whatever its timestamp.
        let since = if time.0 == event.partition {
            time.1
        } else {
            i64::MIN
        };
        time = (event.partition, own.max(since));
        timed.push((time.1, event));
    }
    // Stable: equal times keep the order by partition and offset.
    timed.sort_by_key(|(time, _)| *time);
    timed.into_iter().map(|(_, event)| event).collect()
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

    fn places(snapshot: &Snapshot) -> Vec<(usize, i64)> {
        let places = snapshot.events.iter();
        places
            .map(|event| (event.partition, event.first_offset()))
            .collect()
    }

    #[test]
    fn the_latest_record_of_each_key_is_found_in_the_order_of_a_backlog() {
        let index = index(&[
            record(0, 0, 10, "a", Some("old")),
            record(1, 0, 20, "b", Some("b")),
            record(0, 1, 30, "a", Some("new")),
            record(0, 2, 5, "c", Some("its time is before its predecessor's")),
        ]);
        let all = index.snapshot(None);
        assert_eq!(places(&all), [(1, 0), (0, 1), (0, 2)]);
        // A client that resumes before the first of them receives all of them.
        assert_eq!((all.before.get(0).offset, all.before.get(1).offset), (1, 0));
        assert_eq!((all.after.get(0).offset, all.after.get(1).offset), (3, 1));
        let keys = Keys::parse(&["a".to_owned(), "x".to_owned()]).unwrap();
        let one = index.snapshot(keys.as_ref());
        assert_eq!(places(&one), [(0, 1)]);
        assert_eq!((one.before.get(0).offset, one.before.get(1).offset), (1, 1));
    }

    #[test]
    fn a_tombstone_removes_its_key_and_gives_its_memory_back() {
        let events = [record(0, 0, 1, "a", Some("x")), record(0, 1, 2, "a", None)];
        let index = index(&events);
        assert!(index.records.is_empty());
        assert_eq!(index.bytes, 0);
    }

    #[test]
    fn a_record_that_was_too_large_may_be_the_latest_of_any_key() {
        let next = Position::at(2);
        let gap = Arc::new(Event::gap(GapReason::TooLarge, 0, 1, Some(2), next));
        let index = index(&[record(0, 0, 1, "a", Some("x")), gap]);
        let keys = Keys::parse(&["b".to_owned()]).unwrap();
        assert_eq!(places(&index.snapshot(keys.as_ref())), [(0, 1)]);
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
            let index = index(&events);
            let bytes: usize = model.iter().map(|(key, event)| event.weight() + key.len() + ENTRY_OVERHEAD).sum();
            prop_assert_eq!(index.bytes, bytes);
            let mut expected: Vec<_> = model.values().map(|event| (event.partition, event.first_offset())).collect();
            let snapshot = index.snapshot(None);
            let mut found = places(&snapshot);
            for partition in 0..3 {
                let offsets: Vec<_> = found.iter().filter(|place| place.0 == partition).collect();
                prop_assert!(offsets.is_sorted());
            }
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
