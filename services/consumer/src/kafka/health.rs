//! Whether each topic can be read, and its id, as reported by librdkafka's clients.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use herald_runtime::kafka::source::{HealthTracker, Statistics, is_healthy, is_topic_healthy};
use herald_runtime::kafka::{Context, Source};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::util::Timeout;
use tokio::sync::watch;

use crate::cursor::{Position, TopicId};
use crate::metrics::Metrics;

/// The number of log truncations that are remembered, for clients that resume from before them.
const REMEMBERED_TRUNCATIONS: usize = 16;

/// The number of a topic's former ids that are remembered.
const REMEMBERED_IDS: usize = 16;

/// The state of one topic.
pub struct Health {
    pub topic: String,
    /// It may be missing, which is no problem then: set until it is read.
    pub optional: AtomicBool,
    source: watch::Sender<Source>,
    /// Set when the topic's id has changed, until the reader handles it.
    pub recreated: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The topic's id in Kafka, as librdkafka formats it.
    id: Option<String>,
    /// The id that a client of the pool received, if it differs.
    other_id: Option<String>,
    /// Former ids. None is ever reused, but a broker that lags behind may still return one.
    former_ids: Vec<String>,
    tracker: HealthTracker,
    connection: Source,
    /// Why the topic, or one of its partitions, cannot be read, and since when.
    problems: BTreeMap<Scope, (SystemTime, &'static str)>,
    truncations: Vec<Truncation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Topic,
    Partition(usize),
}

/// The end of a partition's log was lost: the records from `kept` to `end`.
#[derive(Clone, Copy, Debug)]
pub struct Truncation {
    pub partition: usize,
    pub kept: Position,
    pub end: i64,
}

impl State {
    fn adopt(&mut self, id: String) {
        if self.former_ids.len() == REMEMBERED_IDS {
            self.former_ids.remove(0);
        }
        self.former_ids.extend(self.id.replace(id));
        self.other_id = None;
    }
}

impl Health {
    pub fn new(topic: &str, optional: bool) -> Self {
        Self {
            topic: topic.to_owned(),
            optional: AtomicBool::new(optional),
            source: watch::Sender::new(Source::Unknown),
            recreated: AtomicBool::new(false),
            state: Mutex::new(State {
                id: None,
                other_id: None,
                former_ids: Vec::new(),
                tracker: HealthTracker::new(),
                connection: Source::Unknown,
                problems: BTreeMap::new(),
                truncations: Vec::new(),
            }),
        }
    }

    /// Watches whether the topic can be read.
    pub fn source(&self) -> watch::Receiver<Source> {
        self.source.subscribe()
    }

    /// The topic's id, if known.
    pub fn topic_id(&self) -> TopicId {
        let state = self.lock();
        state.id.as_deref().map(TopicId::new).unwrap_or_default()
    }

    /// Whether a client received another id than the live reader.
    pub fn id_differs(&self) -> bool {
        let state = self.lock();
        state.other_id.is_some() && state.other_id != state.id
    }

    /// The id that any client received last.
    pub fn newest_id(&self) -> TopicId {
        let state = self.lock();
        let id = state.other_id.as_deref().or(state.id.as_deref());
        id.map(TopicId::new).unwrap_or_default()
    }

    /// Adopts the id that a client of the pool received, because the topic is read under it from now on.
    pub fn adopt_id(&self) {
        let mut state = self.lock();
        if let Some(id) = state.other_id.take() {
            state.adopt(id);
        }
    }

    /// Records why the topic cannot be read, until it is [resolved](Self::resolve).
    pub fn fail(&self, scope: Scope, reason: &'static str) {
        let mut state = self.lock();
        let since = SystemTime::now();
        let problem = state.problems.entry(scope).or_insert((since, reason));
        problem.1 = reason;
        self.publish(&state);
    }

    /// Records that the topic or partition can be read again.
    pub fn resolve(&self, scope: Scope) {
        let mut state = self.lock();
        if state.problems.remove(&scope).is_some() {
            self.publish(&state);
        }
    }

    /// The partitions that cannot be read.
    pub fn failing(&self) -> Vec<usize> {
        let state = self.lock();
        let partition = |scope: &Scope| match scope {
            Scope::Topic => None,
            Scope::Partition(partition) => Some(*partition),
        };
        state.problems.keys().filter_map(partition).collect()
    }

    /// Remembers a truncation.
    pub fn remember(&self, truncation: Truncation) {
        let mut state = self.lock();
        if state.truncations.len() == REMEMBERED_TRUNCATIONS {
            state.truncations.remove(0);
        }
        state.truncations.push(truncation);
    }

    /// Where a client continues that has read a partition up to an offset that the log has since lost: the oldest position
    /// that is still valid.
    pub fn kept(&self, partition: usize, offset: i64) -> Option<Position> {
        let state = self.lock();
        let lost = |truncation: &&Truncation| {
            truncation.partition == partition
                && (truncation.kept.offset + 1..=truncation.end).contains(&offset)
        };
        let kept = state
            .truncations
            .iter()
            .filter(lost)
            .map(|truncation| truncation.kept);
        kept.min_by_key(|kept| kept.offset)
    }

    /// Discards all state of the log, because the topic was recreated.
    pub fn forget_log(&self) {
        let mut state = self.lock();
        state.truncations.clear();
        state.problems.clear();
        self.publish(&state);
    }

    fn observe(&self, healthy: bool) {
        let mut state = self.lock();
        state.connection = state.tracker.observe(healthy, SystemTime::now());
        self.publish(&state);
    }

    /// The client has lost all brokers; the next statistics must confirm it.
    fn suspect(&self) {
        self.lock().tracker.suspect(SystemTime::now());
    }

    /// Records the id that a client received with the topic's metadata. Only the live reader's client receives it before it
    /// fetches.
    fn observe_id(&self, id: &str, live: bool) {
        let mut state = self.lock();
        match &state.id {
            Some(known) if known == id => state.other_id = None,
            Some(_) if state.former_ids.iter().any(|former| former == id) => {}
            Some(_) if live => {
                state.adopt(id.to_owned());
                self.recreated.store(true, Ordering::Release);
            }
            Some(_) => state.other_id = Some(id.to_owned()),
            None => state.id = Some(id.to_owned()),
        }
    }

    fn publish(&self, state: &State) {
        let problem = state.problems.values().min();
        let source = match (state.connection, problem) {
            (down @ Source::Down { .. }, _) => down,
            (_, Some(&(since, reason))) => Source::Down { since, reason },
            (connection, None) => connection,
        };
        self.source.send_if_modified(|before| {
            if *before == source {
                return false;
            }
            let topic = &self.topic;
            match (*before, source) {
                // An unreachable Kafka is logged once by the client, not for each topic.
                (_, Source::Down { reason, .. })
                    if problem.is_some_and(|problem| problem.1 == reason) =>
                {
                    tracing::warn!(topic, reason, "the topic cannot be read");
                }
                (Source::Down { .. }, Source::Up) => {
                    tracing::info!(topic, "the topic can be read again")
                }
                _ => {}
            }
            *before = source;
            true
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The context of the clients of the live reader and of the pool.
#[derive(Clone)]
pub struct ReaderContext {
    pub connection: Context,
    pub topics: Arc<HashMap<String, Arc<Health>>>,
    pub metrics: Metrics,
    pub live: bool,
    /// Whether another client has replaced this one, whose callbacks while it closes are ignored.
    pub retired: Arc<AtomicBool>,
    /// The number of callbacks from librdkafka.
    pub calls: Arc<AtomicU64>,
}

impl ReaderContext {
    /// Runs the callbacks for everything in a client's own queue: log lines, statistics and errors. One poll handles one of them,
    /// and does not return whether it did.
    pub fn serve(client: &BaseConsumer<Self>) {
        let calls = || client.context().calls.load(Ordering::Relaxed);
        loop {
            let before = calls();
            if client.poll(Duration::ZERO).is_none() && calls() == before {
                return;
            }
        }
    }

    /// The context of the client that replaces this one's.
    pub fn successor(&self) -> Self {
        self.retired.store(true, Ordering::Release);
        Self {
            retired: Arc::default(),
            calls: Arc::default(),
            ..self.clone()
        }
    }

    /// Counts a callback; returns whether to handle it.
    fn called(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed);
        !self.retired.load(Ordering::Acquire)
    }
}

impl ClientContext for ReaderContext {
    /// librdkafka 2.12 does not report that a topic was recreated if the new log is longer than the old: it continues in the
    /// middle of it. But it writes the topic's new id to its debug log before it fetches from it.
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        if !self.called() {
            return;
        }
        if matches!(level, RDKafkaLogLevel::Debug)
            && let Some((topic, id)) = topic_id(message)
            && let Some(health) = self.topics.get(topic)
        {
            return health.observe_id(id, self.live);
        }
        self.connection.log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if !self.called() {
            return;
        }
        if self.live && error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.topics.values().for_each(|health| health.suspect());
        }
        self.connection.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if !self.called() {
            return;
        }
        let statistics: Statistics = match serde_json::from_slice(statistics) {
            Ok(statistics) => statistics,
            Err(error) => return tracing::warn!(%error, "cannot read librdkafka's statistics"),
        };
        self.connection.observe(is_healthy(&statistics));
        for (name, health) in self.topics.iter() {
            health.observe(is_topic_healthy(&statistics, name));
            let source = *health.source.borrow();
            if !health.optional.load(Ordering::Relaxed) {
                self.metrics.source(name, source);
            }
            let partitions = statistics.topics.get(name).map(|topic| &topic.partitions);
            for (number, partition) in partitions.into_iter().flatten() {
                // -1 is not a partition.
                let Some(number) = number.parse::<usize>().ok().filter(|_| partition.desired)
                else {
                    continue;
                };
                self.metrics.log(name, number, partition, source);
            }
        }
    }
}

impl ConsumerContext for ReaderContext {
    fn main_queue_min_poll_interval(&self) -> Timeout {
        self.connection.main_queue_min_poll_interval()
    }
}

/// Parses `[thrd:main]: Topic my-topic changed id from AAAA to BBBB`.
fn topic_id(message: &str) -> Option<(&str, &str)> {
    let (_, rest) = message.split_once("Topic ")?;
    let (topic, rest) = rest.split_once(" changed id from ")?;
    let (_, id) = rest.split_once(" to ")?;
    Some((topic, id.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_id_of_a_topic_is_read_from_the_log() {
        let line = "[thrd:main]: Topic my-topic changed id from AAAAAAAAAAAAAAAAAAAAAA to l4NnrqAYRzWUlDG9sSEtLg";
        assert_eq!(topic_id(line), Some(("my-topic", "l4NnrqAYRzWUlDG9sSEtLg")));
        assert_eq!(topic_id("[thrd:main]: Topic my-topic partition 0"), None);
    }

    #[test]
    fn the_id_of_a_deleted_topic_is_never_adopted_again() {
        let health = Health::new("my-topic", false);
        health.observe_id("a", true);
        health.observe_id("b", false);
        assert!(health.id_differs());
        assert_eq!(health.newest_id(), TopicId::new("b"));
        assert_eq!(health.topic_id(), TopicId::new("a"));
        health.adopt_id();
        // A broker that lags behind returns the old one.
        health.observe_id("a", false);
        health.observe_id("a", true);
        assert_eq!(health.topic_id(), TopicId::new("b"));
        assert!(!health.id_differs() && !health.recreated.load(Ordering::Acquire));
        // A client of the pool does not know yet what the live reader knows.
        health.observe_id("c", false);
        health.observe_id("d", true);
        assert_eq!(health.newest_id(), TopicId::new("d"));
        assert!(health.recreated.load(Ordering::Acquire));
    }

    #[test]
    fn a_topic_that_may_not_be_read_is_down_with_its_reason_until_that_is_resolved() {
        let health = Health::new("my-topic", false);
        health.observe(true);
        assert_eq!(*health.source().borrow(), Source::Up);
        health.fail(Scope::Partition(1), "not authorized");
        health.observe(true);
        let source = *health.source().borrow();
        assert!(
            matches!(
                source,
                Source::Down {
                    reason: "not authorized",
                    ..
                }
            ),
            "{source:?}"
        );
        health.resolve(Scope::Partition(0));
        assert_eq!(*health.source().borrow(), source);
        health.resolve(Scope::Partition(1));
        assert_eq!(*health.source().borrow(), Source::Up);
    }

    #[test]
    fn the_loss_of_all_brokers_must_be_confirmed_once_by_statistics() {
        let health = Health::new("my-topic", false);
        health.observe(true);
        health.suspect();
        assert_eq!(*health.source().borrow(), Source::Up);
        health.observe(false);
        assert!(matches!(*health.source().borrow(), Source::Down { .. }));
    }

    #[test]
    fn a_client_from_before_several_truncations_continues_at_the_lowest_of_them() {
        let health = Health::new("my-topic", false);
        for (kept, end) in [(15, 20), (12, 18)] {
            let kept = Position::at(kept);
            health.remember(Truncation {
                partition: 0,
                kept,
                end,
            });
        }
        let kept = |offset| health.kept(0, offset).map(|kept| kept.offset);
        assert_eq!(
            [kept(12), kept(14), kept(17), kept(20), kept(21)],
            [None, Some(12), Some(12), Some(15), None]
        );
        assert_eq!(health.kept(1, 17).map(|kept| kept.offset), None);
    }
}
