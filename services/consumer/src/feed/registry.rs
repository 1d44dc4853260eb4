//! The connections that wait for some keys only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::keys::Keys;
use crate::record::{Event, Payload};

/// The keys that are waited for. A message wakes the connections of its key, and no others.
#[derive(Default)]
pub struct Registry(Mutex<State>);

#[derive(Default)]
struct State {
    keys: HashMap<Box<[u8]>, Waiting>,
    /// All connections.
    connections: HashMap<u64, Arc<Notify>>,
    /// The number of the newest gap that the ring has evicted.
    gap_evicted: u64,
    /// The number of the next subscription.
    next: u64,
}

/// The connections that requested one key.
#[derive(Default)]
struct Waiting {
    connections: HashMap<u64, Arc<Notify>>,
    /// The number of the newest event with this key that the ring has evicted since the first of them requested it.
    evicted: u64,
}

/// A connection's registration, until it is dropped.
pub struct Subscription {
    registry: Arc<Registry>,
    number: u64,
    keys: Keys,
    notify: Arc<Notify>,
}

impl Registry {
    pub fn subscribe(self: &Arc<Self>, keys: Keys) -> Subscription {
        let notify = Arc::new(Notify::new());
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.connections.insert(number, notify.clone());
        for key in keys.iter() {
            let waiting = match state.keys.get_mut(key) {
                Some(waiting) => waiting,
                None => state.keys.entry(key.into()).or_default(),
            };
            waiting.connections.insert(number, notify.clone());
        }
        drop(state);
        Subscription {
            registry: self.clone(),
            number,
            keys,
            notify,
        }
    }

    /// Wakes the connections that requested the keys of these events; a gap wakes all.
    pub fn notify(&self, events: &[Arc<Event>]) {
        let state = self.lock();
        if state.connections.is_empty() {
            return;
        }
        for event in events {
            let Payload::Message(message) = &event.payload else {
                return wake(&state.connections);
            };
            let key = message.key.as_deref();
            if let Some(waiting) = key.and_then(|key| state.keys.get(key)) {
                wake(&waiting.connections);
            }
        }
    }

    /// Wakes all connections.
    pub fn notify_all(&self) {
        wake(&self.lock().connections);
    }

    /// Records that the ring has evicted an event. The caller holds the ring's lock for writing.
    pub fn evicted(&self, event: &Event, number: u64) {
        let mut state = self.lock();
        let Payload::Message(message) = &event.payload else {
            state.gap_evicted = number;
            return;
        };
        let key = message.key.as_deref();
        if let Some(waiting) = key.and_then(|key| state.keys.get_mut(key)) {
            waiting.evicted = number;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(connections: &HashMap<u64, Arc<Notify>>) {
    connections.values().for_each(|notify| notify.notify_one());
}

impl Subscription {
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Waits until there may be something new. A notification that nobody waits for is kept.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Whether the ring has evicted an event of these keys with this number or a later one. The caller holds the ring's lock.
    pub fn has_evicted(&self, number: u64) -> bool {
        let state = self.registry.lock();
        let evicted = |key: &[u8]| state.keys.get(key).is_some_and(|key| key.evicted >= number);
        state.gap_evicted >= number || self.keys.iter().any(evicted)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        state.connections.remove(&self.number);
        for key in self.keys.iter() {
            if let Some(waiting) = state.keys.get_mut(key) {
                waiting.connections.remove(&self.number);
                if waiting.connections.is_empty() {
                    state.keys.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use crate::cursor::{Position, Vector};
    use crate::encode::Kind;
    use crate::feed::tests::{ENCODING, TOPIC, feed, keyed};
    use crate::feed::{Batch, Feed, RingReader};
    use crate::keys::Keys;
    use crate::page::Page;
    use crate::record::{Event, GapReason};

    use super::*;

    fn keys(keys: &[&str]) -> Keys {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        Keys::parse(&keys).unwrap().unwrap()
    }

    /// Key `None`: a record without one. `too-large`: a gap.
    fn event(partition: usize, offset: i64, key: Option<&str>) -> Event {
        let event = keyed(partition, offset, key);
        if key != Some("too-large") {
            return event;
        }
        let (from, to) = (offset, Some(offset + 1));
        Event::gap(GapReason::TooLarge, partition, from, to, event.next)
    }

    #[test]
    fn a_message_wakes_only_the_connections_of_its_key_and_a_gap_wakes_all() {
        let feed = feed(100, 1);
        let rooms: Vec<String> = (0..1_000).map(|room| format!("room {room}")).collect();
        let mut connections: Vec<Subscription> = rooms
            .iter()
            .map(|room| feed.subscribe(keys(&[room])))
            .collect();
        connections.push(feed.subscribe(keys(&["room 7", "room 8"])));
        let woken = || -> Vec<usize> {
            let woken = connections.iter().enumerate();
            let woken =
                woken.filter(|(_, connection)| connection.changed().now_or_never().is_some());
            woken.map(|(number, _)| number).collect()
        };
        assert_eq!(woken(), [0; 0]);
        feed.push(vec![event(0, 0, Some("room 7"))]);
        assert_eq!(woken(), [7, 1_000]);
        feed.push(vec![event(0, 1, Some("another")), event(0, 2, None)]);
        assert_eq!(woken(), [0; 0]);
        feed.push(vec![
            event(0, 3, Some("room 8")),
            event(0, 4, Some("room 3")),
        ]);
        assert_eq!(woken(), [3, 8, 1_000]);
        feed.push(vec![event(0, 5, Some("too-large"))]);
        assert_eq!(woken().len(), 1_001);
        feed.wake();
        assert_eq!(woken().len(), 1_001);
        drop(connections);
        let state = feed.registry.lock();
        assert!(state.keys.is_empty() && state.connections.is_empty());
    }

    #[test]
    fn a_connection_shares_the_frames_of_its_key_with_the_others() {
        let feed = feed(100, 1);
        let (one, other) = (
            feed.subscribe(keys(&["a"])),
            feed.subscribe(keys(&["a", "b"])),
        );
        let mut readers = [feed.live(), feed.live()];
        feed.push(vec![event(0, 0, Some("c")), event(0, 1, Some("a"))]);
        let taken: Vec<_> = readers
            .iter_mut()
            .zip([one, other])
            .map(|(reader, subscription)| {
                let mut batch = Batch::default();
                feed.take_keys(reader, &subscription, ENCODING, &mut batch)
                    .unwrap();
                assert_eq!((batch.frames.len(), batch.messages), (1, 1));
                batch.frames.remove(0).bytes.as_ptr()
            })
            .collect();
        assert_eq!(taken[0], taken[1]);
    }

    #[test]
    fn a_quiet_connection_goes_on_when_its_position_was_evicted_unless_an_event_of_its_keys_was() {
        let feed = feed(3, 1);
        let subscription = feed.subscribe(keys(&["a"]));
        let mut reader = feed.live();
        let take = |reader: &mut RingReader| {
            let mut batch = Batch::default();
            let taken = feed.take_keys(reader, &subscription, ENCODING, &mut batch);
            taken.map(|()| batch.frames.len())
        };
        feed.push((0..10).map(|offset| event(0, offset, Some("b"))).collect());
        assert_eq!(take(&mut reader).unwrap(), 0);
        assert!(reader.is_unannounced());
        feed.push((10..20).map(|offset| event(0, offset, Some("b"))).collect());
        feed.push(vec![event(0, 20, Some("a"))]);
        assert_eq!(take(&mut reader).unwrap(), 1);
        assert!(!reader.is_unannounced());
        assert_eq!(feed.cursor(&reader), feed.head().encode(TOPIC));
        feed.push(vec![event(0, 21, Some("a"))]);
        feed.push((22..30).map(|offset| event(0, offset, Some("b"))).collect());
        assert!(take(&mut reader).is_err());
        // A gap may hide a record of any key.
        let mut reader = feed.live();
        feed.push(vec![event(0, 30, Some("too-large"))]);
        feed.push((31..40).map(|offset| event(0, offset, Some("b"))).collect());
        assert!(take(&mut reader).is_err());
    }

    #[test]
    fn the_newest_messages_and_pages_of_a_key_are_found_in_the_ring() {
        use crate::page::Limit;

        let feed = feed(100, 1);
        let of = |offset: i64| if offset % 5 == 0 { "a" } else { "b" };
        feed.push(
            (0..50)
                .map(|offset| event(0, offset, Some(of(offset))))
                .collect(),
        );
        let a = keys(&["a"]);
        let subscription = feed.subscribe(a.clone());
        let mut reader = feed.newest(2, false, Some(&a)).unwrap();
        let mut batch = Batch::default();
        feed.take_keys(&mut reader, &subscription, ENCODING, &mut batch)
            .unwrap();
        assert_eq!(batch.frames.len(), 2);
        assert!(feed.newest(11, false, Some(&a)).is_none());
        assert!(feed.newest(10, false, Some(&a)).is_some());
        let limit = Limit {
            events: 3,
            bytes: usize::MAX,
        };
        let offsets = |page: Page| -> Vec<i64> {
            page.events
                .iter()
                .map(|event| event.first_offset())
                .collect()
        };
        assert_eq!(offsets(feed.newest_page(limit, Some(&a)).0), [35, 40, 45]);
        let after = Vector::new(vec![event(0, 10, Some("a")).next]);
        assert_eq!(
            offsets(feed.page_after(&after, limit, Some(&a)).unwrap()),
            [15, 20, 25]
        );
    }

    proptest! {
        #[test]
        fn the_newest_messages_and_the_pages_of_a_key_are_those_among_all_events_of_the_ring(
            events in proptest::collection::vec((0..2usize, 0..4usize), 0..60),
            held in 1..30usize,
            count in 1..8usize,
        ) {
            use crate::page::Limit;

            let feed = feed(held, 2);
            let mut next = [0; 2];
            for (partition, key) in events {
                let key = [Some("a"), Some("b"), None, Some("too-large")][key];
                feed.push(vec![event(partition, next[partition], key)]);
                next[partition] += 1;
            }
            let a = keys(&["a", "never"]);
            let all = Limit { events: usize::MAX, bytes: usize::MAX };
            let all = feed.newest_page(all, None).0;
            let expected: Vec<_> = all.events.iter().filter(|event| a.want(event)).cloned().collect();
            let messages = |events: &[Arc<Event>]| {
                events.iter().filter(|event| event.gap_reason().is_none()).count()
            };
            let limit = Limit { events: count, bytes: usize::MAX };
            let (page, whole) = feed.newest_page(limit, Some(&a));
            prop_assert!(expected.ends_with(&page.events));
            prop_assert_eq!(messages(&page.events), messages(&expected).min(count));
            prop_assert_eq!(whole, messages(&expected) >= count);
            prop_assert!(whole || (page.events.len() == expected.len() && page.before == all.before));
            let (mut found, mut vector) = (Vec::new(), all.before.clone());
            loop {
                let page = feed.page_after(&vector, limit, Some(&a)).expect("the ring holds it");
                prop_assert!(page.events.len() <= count);
                found.extend(page.events);
                vector = page.after;
                if page.complete {
                    break;
                }
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(vector, feed.head());
            let reader = feed.newest(count, false, Some(&a));
            prop_assert_eq!(reader.is_some(), whole);
            let subscription = feed.subscribe(a);
            let mut reader = feed.newest(count, true, subscription.keys().into()).expect("fewer are enough");
            let mut taken = 0;
            while reader.position() < feed.end() {
                let mut batch = Batch::default();
                prop_assert!(feed.take_keys(&mut reader, &subscription, ENCODING, &mut batch).is_ok());
                taken += batch.messages;
            }
            prop_assert_eq!(taken, messages(&expected).min(count));
        }
    }

    /// A replica that has read the first `read` records of its own order of the log.
    struct Replica {
        feed: Feed,
        order: Vec<Event>,
        read: usize,
    }

    /// A client of some keys that resumes with its cursor, and what it has received: partition and offset.
    struct Client {
        keys: Keys,
        cursor: String,
        received: Vec<(usize, i64)>,
        connection: Option<(RingReader, Subscription)>,
    }

    impl Client {
        fn resume(&mut self, replica: &Replica) {
            let mut vector = Vector::decode(&self.cursor, TOPIC).expect("our own cursor");
            let subscription = replica.feed.subscribe(self.keys.clone());
            let mut reader = replica.feed.locate(&vector, false);
            if reader.is_none() {
                // What `replay` does: everything up to the head comes from Kafka, which has it all.
                for event in &replica.order[..replica.read] {
                    if event.next.offset > vector.get(event.partition).offset {
                        vector.set(event.partition, event.next);
                        if self.keys.want(event) {
                            self.receive(
                                replica,
                                event.partition,
                                event.first_offset(),
                                &vector.encode(TOPIC),
                            );
                        }
                    }
                }
                reader = replica.feed.locate(&vector, true);
            }
            let reader = reader.expect("the ring continues what was read up to its head");
            self.connection = Some((reader, subscription));
        }

        /// Whether there was anything to take.
        fn take(&mut self, replica: &Replica) -> bool {
            let (mut reader, subscription) = self.connection.take().expect("connected");
            let mut batch = Batch::default();
            let before = reader.position();
            let taken = replica
                .feed
                .take_keys(&mut reader, &subscription, ENCODING, &mut batch);
            if taken.is_err() {
                self.cursor_of(replica, &replica.feed.cursor(&reader));
                self.resume(replica);
                return true;
            }
            for frame in batch.frames {
                let object: serde_json::Value = serde_json::from_slice(&frame.bytes).expect("JSON");
                let found = match frame.kind {
                    Kind::Gap => &object["ranges"][0],
                    _ => &object,
                };
                let offset = found["offset"].as_i64().or(found["from"].as_i64());
                let partition = found["partition"].as_u64().expect("a partition") as usize;
                let cursor = object["cursor"].as_str().expect("a cursor");
                self.receive(replica, partition, offset.expect("an offset"), cursor);
            }
            // What a `position` would carry.
            self.cursor_of(replica, &replica.feed.cursor(&reader));
            let moved = reader.position() > before;
            self.connection = Some((reader, subscription));
            moved
        }

        fn receive(&mut self, replica: &Replica, partition: usize, offset: i64, cursor: &str) {
            assert!(
                !self.received.contains(&(partition, offset)),
                "{partition}/{offset} twice"
            );
            let earlier = |&(of, before): &(usize, i64)| of == partition && before > offset;
            assert!(
                !self.received.iter().any(earlier),
                "{partition}/{offset} out of order"
            );
            self.received.push((partition, offset));
            self.cursor_of(replica, cursor);
        }

        /// A cursor names exactly what the client has received.
        fn cursor_of(&mut self, replica: &Replica, cursor: &str) {
            let vector = Vector::decode(cursor, TOPIC).expect("our own cursor");
            for event in replica.order.iter().filter(|event| self.keys.want(event)) {
                let position = (event.partition, event.first_offset());
                let named = position.1 < vector.get(position.0).offset;
                assert_eq!(
                    named,
                    self.received.contains(&position),
                    "{position:?} in {vector:?}"
                );
            }
            self.cursor = cursor.to_owned();
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

    /// The order of one replica: any interleaving of the partitions. A partition's records have the same keys in every order.
    fn order(picks: &[usize], partitions: usize, keys: &[usize]) -> Vec<Event> {
        const KEYS: [Option<&str>; 6] = [
            Some("a"),
            Some("b"),
            Some("c"),
            Some("d"),
            None,
            Some("too-large"),
        ];
        let mut next = vec![0; partitions];
        let pick = |pick: &usize| {
            let partition = pick % partitions;
            let offset = next[partition];
            next[partition] += 1;
            let key = keys[(partition * 7 + offset as usize) % keys.len()];
            event(partition, offset, KEYS[key])
        };
        picks.iter().map(pick).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn a_client_of_some_keys_receives_each_of_their_events_once_and_in_order(
            partitions in 1..5usize,
            picks in proptest::collection::vec(0..12usize, 0..60),
            of_keys in proptest::collection::vec(0..6usize, 1..40),
            wanted in proptest::sample::subsequence(vec!["a", "b", "c", "none"], 1..4),
            shuffled in any::<prop::sample::Index>(),
            sizes in [1..30usize, 1..30usize],
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let mut rotated = picks.clone();
            if !rotated.is_empty() {
                rotated.rotate_left(shuffled.index(picks.len()));
            }
            let mut replicas = [picks, rotated].map(|picks| order(&picks, partitions, &of_keys)).into_iter().zip(sizes).map(|(order, size)| {
                Replica { feed: feed(size, partitions), order, read: 0 }
            }).collect::<Vec<_>>();
            let start = Vector::new(vec![Position::default(); partitions]);
            let mut client = Client {
                keys: keys(&wanted),
                cursor: start.encode(TOPIC),
                received: vec![],
                connection: None,
            };
            let mut at = 0;
            client.resume(&replicas[at]);
            for step in steps {
                match step {
                    Step::Read(replica, count) => {
                        let replica = &mut replicas[replica];
                        let end = (replica.read + count).min(replica.order.len());
                        replica.feed.push(replica.order[replica.read..end].to_vec());
                        replica.read = end;
                    }
                    Step::Take => _ = client.take(&replicas[at]),
                    Step::MoveTo(other) => {
                        at = other;
                        client.resume(&replicas[at]);
                    }
                }
            }
            let replica = &mut replicas[at];
            replica.feed.push(replica.order[replica.read..].to_vec());
            replica.read = replica.order.len();
            while client.take(&replicas[at]) {}
            let wanted = replicas[at].order.iter().filter(|event| client.keys.want(event));
            prop_assert_eq!(client.received.len(), wanted.count());
        }
    }
}
