//! Whether a topic can be read, and which topic it is: what librdkafka's clients report, for each topic.

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

/// How many losses of a log's end are remembered, for clients that come back from before them.
const REMEMBERED_TRUNCATIONS: usize = 16;

/// How many ids are remembered that a topic had before it was recreated.
const REMEMBERED_IDS: usize = 16;

/// What is known of one topic.
pub struct Health {
    pub topic: String,
    source: watch::Sender<Source>,
    /// Set when the topic's id has changed, until the reader takes notice.
    pub recreated: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The id under which Kafka knows the topic, as librdkafka writes it.
    id: Option<String>,
    /// The id that a client of the pool was given, where it differs.
    other_id: Option<String>,
    /// The ids before. None of them comes back, but a broker that lags behind may still give one.
    former_ids: Vec<String>,
    tracker: HealthTracker,
    connection: Source,
    /// What keeps the topic, or one of its partitions, from being read, and since when.
    problems: BTreeMap<Scope, (SystemTime, &'static str)>,
    truncations: Vec<Truncation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Topic,
    Partition(usize),
}

/// The end of a partition's log was lost: what lay from `kept` to `end` is gone.
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
    pub fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
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

    /// Whether the topic can be read, now and from now on.
    pub fn source(&self) -> watch::Receiver<Source> {
        self.source.subscribe()
    }

    /// The topic's id, as far as it is known.
    pub fn topic_id(&self) -> TopicId {
        let state = self.lock();
        state.id.as_deref().map(TopicId::new).unwrap_or_default()
    }

    /// Whether a client was given another id than the live reader was.
    pub fn id_differs(&self) -> bool {
        let state = self.lock();
        state.other_id.is_some() && state.other_id != state.id
    }

    /// The id that any client was given last.
    pub fn newest_id(&self) -> TopicId {
        let state = self.lock();
        let id = state.other_id.as_deref().or(state.id.as_deref());
        id.map(TopicId::new).unwrap_or_default()
    }

    /// Takes the id over that a client of the pool was given, because the topic is read under it from now on.
    pub fn adopt_id(&self) {
        let mut state = self.lock();
        if let Some(id) = state.other_id.take() {
            state.adopt(id);
        }
    }

    /// Notes what keeps the topic from being read. It stays until it is [solved](Self::solve).
    pub fn fail(&self, scope: Scope, reason: &'static str) {
        let mut state = self.lock();
        let since = SystemTime::now();
        let problem = state.problems.entry(scope).or_insert((since, reason));
        problem.1 = reason;
        self.publish(&state);
    }

    /// Notes that it can be read again.
    pub fn solve(&self, scope: Scope) {
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

    /// Remembers a loss of a log's end.
    pub fn remember(&self, truncation: Truncation) {
        let mut state = self.lock();
        if state.truncations.len() == REMEMBERED_TRUNCATIONS {
            state.truncations.remove(0);
        }
        state.truncations.push(truncation);
    }

    /// Where a client goes on that has read a partition up to an offset which the log has lost since: the oldest position
    /// that is still of the same log.
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

    /// Forgets what was known of the log, because it is another one now.
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

    /// The client has lost all brokers: the next statistics only have to confirm it.
    fn suspect(&self) {
        self.lock().tracker.suspect(SystemTime::now());
    }

    /// A client was given this id with the topic's metadata. Only the live reader's client knows it before it fetches.
    fn identified(&self, id: &str, live: bool) {
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
                // That Kafka itself does not answer is logged once for the client, not for each topic.
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

/// The context of the clients that read: of the live reader, or of the pool.
#[derive(Clone)]
pub struct ReaderContext {
    pub connection: Context,
    pub topics: Arc<HashMap<String, Arc<Health>>>,
    pub metrics: Metrics,
    pub live: bool,
    /// Whether another client reads on instead: what this one says while it closes does not count.
    pub retired: Arc<AtomicBool>,
    /// How often librdkafka has called.
    pub calls: Arc<AtomicU64>,
}

impl ReaderContext {
    /// Has librdkafka call for all that waits in a client's own queue: log lines, statistics and errors. One poll takes one
    /// of them, and does not tell whether it took any.
    pub fn serve(client: &BaseConsumer<Self>) {
        let calls = || client.context().calls.load(Ordering::Relaxed);
        loop {
            let before = calls();
            if client.poll(Duration::ZERO).is_none() && calls() == before {
                return;
            }
        }
    }

    /// The context of the client that reads on instead of this one's.
    pub fn successor(&self) -> Self {
        self.retired.store(true, Ordering::Release);
        Self {
            retired: Arc::default(),
            calls: Arc::default(),
            ..self.clone()
        }
    }

    /// Whether what librdkafka calls for counts.
    fn called(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed);
        !self.retired.load(Ordering::Acquire)
    }
}

impl ClientContext for ReaderContext {
    /// A topic that is recreated under a reader is not reported by librdkafka 2.12 when the new log is the longer one: it
    /// reads on in its middle. It does write the topic's new id into its debug log, before it fetches from it.
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        if !self.called() {
            return;
        }
        if matches!(level, RDKafkaLogLevel::Debug)
            && let Some((topic, id)) = topic_id(message)
            && let Some(health) = self.topics.get(topic)
        {
            return health.identified(id, self.live);
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
            self.metrics.source(name, source);
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

/// Reads `[thrd:main]: Topic my-topic changed id from AAAA to BBBB`.
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
    fn the_id_of_a_topic_that_was_deleted_never_comes_back() {
        let health = Health::new("my-topic");
        health.identified("a", true);
        health.identified("b", false);
        assert!(health.id_differs());
        assert_eq!(health.newest_id(), TopicId::new("b"));
        assert_eq!(health.topic_id(), TopicId::new("a"));
        health.adopt_id();
        // A broker that lags behind gives the old one.
        health.identified("a", false);
        health.identified("a", true);
        assert_eq!(health.topic_id(), TopicId::new("b"));
        assert!(!health.id_differs() && !health.recreated.load(Ordering::Acquire));
        // A client of the pool has not heard yet what the live reader knows.
        health.identified("c", false);
        health.identified("d", true);
        assert_eq!(health.newest_id(), TopicId::new("d"));
        assert!(health.recreated.load(Ordering::Acquire));
    }

    #[test]
    fn a_topic_that_may_not_be_read_is_down_with_its_reason_until_that_is_solved() {
        let health = Health::new("my-topic");
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
        health.solve(Scope::Partition(0));
        assert_eq!(*health.source().borrow(), source);
        health.solve(Scope::Partition(1));
        assert_eq!(*health.source().borrow(), Source::Up);
    }

    #[test]
    fn the_loss_of_all_brokers_needs_one_confirmation_by_statistics() {
        let health = Health::new("my-topic");
        health.observe(true);
        health.suspect();
        assert_eq!(*health.source().borrow(), Source::Up);
        health.observe(false);
        assert!(matches!(*health.source().borrow(), Source::Down { .. }));
    }

    #[test]
    fn a_client_from_before_several_losses_goes_on_at_the_lowest_of_them() {
        let health = Health::new("my-topic");
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
