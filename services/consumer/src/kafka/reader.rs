//! The live reader: one thread that polls one topic into its ring, and notices what librdkafka does not say.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use herald_runtime::kafka::{Context, Source};
use herald_runtime::telemetry::Sampler;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, ClientContext, Statistics};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Log;
use super::decode::{event, recreated};
use crate::config::Config;
use crate::cursor::{MAX_PARTITIONS, Position, Vector};
use crate::feed::{Feed, Limits};
use crate::metrics::Metrics;
use crate::page::{Limit, Page};
use crate::record::{Event, Gap, GapReason, Payload, Value};

/// How often the record before the position is read again and compared, and new partitions are looked for.
const AUDIT_EVERY: Duration = Duration::from_secs(10);

/// How often a topic is looked for, every half second, before its absence is worth a warning.
const TOPIC_PATIENCE: usize = 10;

/// At most so many messages become visible at once; more would delay the first of them.
const BATCH: usize = 512;

/// One topic, from Kafka into its ring.
pub struct Live {
    pub topic: String,
    pub feed: Arc<Feed>,
    pub log: Arc<Log>,
    pub metrics: Metrics,
    config: ClientConfig,
    max_value: usize,
    /// Events to fill the ring with at start.
    history: Limit,
    context: LiveContext,
    grown: AtomicBool,
    /// How often the topic was found to be another one.
    resets: AtomicU64,
    /// Asks for an audit now: a client's cursor and the ring do not fit.
    pub recheck: Arc<Notify>,
    received: Sampler,
}

impl Live {
    /// A reader that does not run yet.
    ///
    /// # Errors
    ///
    /// When the Kafka properties cannot be used.
    pub fn new(config: &Config, topic: &str, metrics: Metrics) -> anyhow::Result<Self> {
        let mut client = config.kafka_client()?;
        let max_value = config.max_message_bytes;
        // One context, so that what is wrong with Kafka is said once, not by each client.
        let context = Context::new();
        let log = Log::new(
            topic,
            &client,
            context.clone(),
            max_value,
            config.replay_readers,
        );
        // The topic's id is told nowhere but in librdkafka's debug log; see `LiveContext::log`.
        let debug = client
            .get("debug")
            .map_or("topic".to_owned(), |given| format!("{given},topic"));
        client
            .set("debug", debug)
            .set_log_level(RDKafkaLogLevel::Debug)
            .set("enable.partition.eof", "true");
        let limits = Limits {
            events: config.ring_messages,
            bytes: config.ring_bytes,
            write_events: 512,
        };
        Ok(Self {
            topic: topic.to_owned(),
            feed: Arc::new(Feed::new(topic.to_owned(), limits)),
            log: Arc::new(log),
            metrics: metrics.clone(),
            config: client,
            max_value,
            history: Limit {
                events: config.ring_messages.min(1000),
                bytes: config.ring_bytes / 4,
            },
            context: LiveContext::new(context, topic, metrics),
            grown: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            recheck: Arc::default(),
            received: Sampler::new(10),
        })
    }

    /// Whether Kafka can be read now.
    pub fn source(&self) -> watch::Receiver<Source> {
        self.context.inner.source()
    }

    /// Reads until `shutdown`. `caught_up` is called once, when the ring holds what was the end of the log at the start.
    ///
    /// # Errors
    ///
    /// When the topic cannot be served at all. An absent broker or topic is waited for.
    pub async fn run(
        self: Arc<Self>,
        caught_up: impl FnOnce() + Send + 'static,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let consumer: BaseConsumer<LiveContext> = self
            .config
            .create_with_context(self.context.clone())
            .context("cannot create a Kafka consumer")?;
        let (mut source, feed) = (self.source(), self.feed.clone());
        tokio::spawn(async move {
            while source.changed().await.is_ok() {
                feed.wake();
            }
        });
        let live = self.clone();
        let stop = shutdown.clone();
        // The thread polls from the start, since librdkafka reports its state only to those who poll.
        let (begin, begun) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("kafka {}", self.topic))
            .spawn(move || live.poll(&consumer, &begun, caught_up, &stop))
            .context("cannot start a thread")?;
        let Some(ends) = shutdown
            .run_until_cancelled(self.fill())
            .await
            .transpose()?
        else {
            return Ok(());
        };
        // The thread ends only with `shutdown`, so it is there to take this.
        _ = begin.send(ends);
        shutdown.run_until_cancelled(self.audit()).await;
        tokio::task::spawn_blocking(move || thread.join())
            .await?
            .map_err(|_| anyhow::anyhow!("the reader of topic {:?} panicked", self.topic))
    }

    /// Fills the ring with the newest history, as soon as Kafka and the topic are there.
    ///
    /// Returns the end of each partition at that time.
    async fn fill(&self) -> anyhow::Result<Vec<i64>> {
        let mut absent = 0;
        loop {
            let attempt = async {
                let partitions = self.log.partitions().await?;
                if partitions > MAX_PARTITIONS {
                    return Ok((partitions, vec![], Page::default()));
                }
                let ends = self.log.ends(partitions).await?;
                let ends: Vec<i64> = ends.iter().map(|&(_, high)| high).collect();
                let before = Vector(ends.iter().copied().map(Position::at).collect());
                let page = self.log.backward(before, self.history).await?;
                anyhow::Ok((partitions, ends, page))
            };
            match attempt.await {
                Ok((partitions, ends, page)) => {
                    ensure!(
                        partitions <= MAX_PARTITIONS,
                        "topic {:?} has {partitions} partitions, more than the {MAX_PARTITIONS} that a cursor can name",
                        self.topic
                    );
                    tracing::info!(
                        topic = self.topic,
                        partitions,
                        history = page.events.len(),
                        "reading topic"
                    );
                    self.feed.fill(page);
                    return Ok(ends);
                }
                // That Kafka itself is away was said by its client; a topic may come a moment after it.
                Err(error) if *self.source().borrow() == Source::Up && absent < TOPIC_PATIENCE => {
                    absent += 1;
                    if absent == TOPIC_PATIENCE {
                        let error = format!("{error:#}");
                        tracing::warn!(topic = self.topic, error, "waiting for the topic");
                    }
                }
                Err(error) => tracing::debug!(
                    topic = self.topic,
                    error = format!("{error:#}"),
                    "still waiting"
                ),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn poll(
        &self,
        consumer: &BaseConsumer<LiveContext>,
        begun: &std::sync::mpsc::Receiver<Vec<i64>>,
        caught_up: impl FnOnce(),
        shutdown: &CancellationToken,
    ) {
        // What is left to be read of the log as it was at the start: an end for each partition that is not there yet.
        let mut unread: Option<Vec<Option<i64>>> = None;
        let mut caught_up = Some(caught_up);
        let mut pending = Vec::new();
        while !shutdown.is_cancelled() {
            if let Ok(ends) = begun.try_recv() {
                unread = Some(ends.into_iter().map(Some).collect());
                self.assign(consumer);
            }
            let mut lost = false;
            let mut wait = Duration::from_millis(50);
            while let Some(polled) = consumer.poll(wait) {
                wait = Duration::ZERO;
                match polled {
                    Ok(message) => pending.push(event(&message, self.max_value)),
                    Err(KafkaError::PartitionEOF(partition)) => {
                        let ends = unread.as_mut();
                        if let Some(end) = ends.and_then(|ends| ends.get_mut(partition as usize)) {
                            *end = None;
                        }
                    }
                    Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                        lost = true;
                        break;
                    }
                    // librdkafka goes on by itself after these; `status` tells the clients.
                    Err(error) => {
                        tracing::debug!(topic = self.topic, %error, "error while polling")
                    }
                }
                if pending.len() >= BATCH {
                    break;
                }
            }
            if self.context.recreated.swap(false, Ordering::AcqRel) {
                // What was polled may already be of the new log, from somewhere in its middle.
                pending.clear();
                self.recover(consumer, true, shutdown);
            } else if lost {
                self.deliver(&mut pending);
                self.recover(consumer, false, shutdown);
            }
            if self.grown.swap(false, Ordering::AcqRel) {
                self.deliver(&mut pending);
                self.assign(consumer);
            }
            self.deliver(&mut pending);
            if let (Some(ends), true) = (&unread, caught_up.is_some()) {
                let head = self.feed.head();
                let behind = |(partition, end): (usize, &Option<i64>)| {
                    end.is_some_and(|end| head.get(partition).offset < end)
                };
                if !ends.iter().enumerate().any(behind)
                    && let Some(caught_up) = caught_up.take()
                {
                    caught_up();
                }
            }
        }
    }

    /// Puts what was read into the ring.
    fn deliver(&self, pending: &mut Vec<Event>) {
        let head = self.feed.head();
        // After a new assignment librdkafka may hand out once more what was already in its queue.
        pending
            .retain(|event| event.resets() || event.next.offset > head.get(event.partition).offset);
        if pending.is_empty() {
            return;
        }
        self.metrics.consumed(&self.topic, pending);
        self.log_received(pending);
        self.feed.push(std::mem::take(pending));
        let (events, bytes) = self.feed.size();
        self.metrics.ring(&self.topic, events, bytes);
    }

    /// The contract's log lines: up to ten a second, then the number of those left out.
    fn log_received(&self, events: &[Event]) {
        for event in events {
            let Payload::Message(message) = &event.payload else {
                continue;
            };
            let Value::Text(text) = &message.value else {
                continue;
            };
            if let Some(skipped) = self.received.admit() {
                tracing::info!(
                    topic = self.topic,
                    partition = event.partition,
                    offset = message.offset,
                    skipped = (skipped > 0).then_some(skipped),
                    "Received: {text}"
                );
            }
        }
    }

    /// Reads on from where the ring ends, in all partitions.
    fn assign(&self, consumer: &BaseConsumer<LiveContext>) {
        let mut list = TopicPartitionList::new();
        for (partition, position) in self.feed.head().0.iter().enumerate() {
            list.add_partition_offset(
                &self.topic,
                partition as i32,
                Offset::Offset(position.offset),
            )
            .expect("an offset of Kafka's is valid");
        }
        if let Err(error) = consumer.assign(&list) {
            tracing::error!(topic = self.topic, %error, "cannot assign the partitions");
        }
    }

    /// A position is not in the log any more: tells what is missing and reads on from the start of the log. With `anew` the
    /// topic is known to be another one, whatever its offsets are.
    fn recover(
        &self,
        consumer: &BaseConsumer<LiveContext>,
        anew: bool,
        shutdown: &CancellationToken,
    ) {
        let mut events = Vec::new();
        let head = self.feed.head();
        let mut partition = 0;
        let mut left = head.0.len();
        while partition < head.0.len() && !shutdown.is_cancelled() {
            let position = head.get(partition);
            match consumer.fetch_watermarks(&self.topic, partition as i32, Duration::from_secs(1)) {
                Ok((low, high)) => {
                    if anew || position.offset > high {
                        tracing::warn!(
                            topic = self.topic,
                            partition,
                            "the topic was deleted and made anew; reading it from its start"
                        );
                        events.push(recreated(partition, position, low));
                    } else if position.offset < low {
                        tracing::warn!(
                            topic = self.topic,
                            partition,
                            from = position.offset,
                            to = low,
                            "Kafka deleted records before they were read"
                        );
                        let gap =
                            Gap::of(GapReason::Retention, partition, position.offset, Some(low));
                        events.push(Event {
                            partition,
                            next: Position::at(low),
                            payload: Payload::Gap(gap),
                        });
                    }
                    partition += 1;
                }
                // The new topic has fewer partitions; this one begins at 0 should it ever come back.
                Err(_) if partition > 0 && self.has_at_most(consumer, partition) => {
                    left = left.min(partition);
                    events.push(recreated(partition, position, 0));
                    partition += 1;
                }
                Err(error) => {
                    tracing::debug!(topic = self.topic, partition, %error, "the ends of the log are not to be had yet");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
        // Who has read nothing of a log misses nothing of it. This also keeps a second look at the same change silent.
        events.retain(|event| !event.resets() || head.get(event.partition).offset > 0);
        if anew || events.iter().any(Event::resets) {
            self.resets.fetch_add(1, Ordering::AcqRel);
        }
        self.deliver(&mut events);
        if left < head.0.len() {
            self.feed.shrink(left);
        }
        self.assign(consumer);
    }

    /// Whether Kafka says that the topic has no more partitions than that.
    fn has_at_most(&self, consumer: &BaseConsumer<LiveContext>, partitions: usize) -> bool {
        let metadata = consumer.fetch_metadata(Some(&self.topic), Duration::from_secs(1));
        metadata.is_ok_and(|metadata| {
            let count = metadata
                .topics()
                .first()
                .map(|topic| topic.partitions().len());
            count.is_some_and(|count| count > 0 && count <= partitions)
        })
    }

    /// From time to time, and after every reconnect: is it still the same log, and are there new partitions?
    async fn audit(&self) {
        let mut resets = self.resets.load(Ordering::Acquire);
        let mut anchors = self.feed.head();
        let mut source = self.source();
        loop {
            tokio::select! {
                _ = tokio::time::sleep(AUDIT_EVERY) => {}
                _ = source.changed() => {}
                _ = self.recheck.notified() => {}
            }
            match self.log.partitions().await {
                Ok(partitions) if partitions > MAX_PARTITIONS => {
                    tracing::error!(
                        topic = self.topic,
                        partitions,
                        "more partitions than a cursor can name; the new ones are not read"
                    );
                }
                Ok(partitions) if partitions > self.feed.head().0.len() => {
                    tracing::info!(topic = self.topic, partitions, "partitions were added");
                    self.feed.grow(partitions);
                    self.grown.store(true, Ordering::Release);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(
                        topic = self.topic,
                        error = format!("{error:#}"),
                        "the topic cannot be looked at"
                    );
                    continue;
                }
            }
            // An older position is compared too: the newest may already be of a log that was recreated.
            let now = self.resets.load(Ordering::Acquire);
            let newest = self.feed.head();
            if std::mem::replace(&mut resets, now) != now {
                anchors.clone_from(&newest);
            }
            let limit = Limit {
                events: 1,
                bytes: 1,
            };
            for vector in [&anchors, &newest] {
                match self
                    .log
                    .forward(vector.clone(), vector.clone(), limit)
                    .await
                {
                    Ok(page)
                        if page.events.iter().any(Event::resets)
                            && self.resets.load(Ordering::Acquire) == now =>
                    {
                        self.context.recreated.store(true, Ordering::Release);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(
                        topic = self.topic,
                        error = format!("{error:#}"),
                        "the log cannot be compared"
                    ),
                }
            }
            anchors = newest;
        }
    }
}

/// Listens to the client of the live reader.
#[derive(Clone)]
struct LiveContext {
    inner: Context,
    topic: String,
    metrics: Metrics,
    /// The id under which Kafka knows the topic, once librdkafka has said it.
    id: Arc<Mutex<Option<String>>>,
    recreated: Arc<AtomicBool>,
}

impl LiveContext {
    fn new(inner: Context, topic: &str, metrics: Metrics) -> Self {
        Self {
            inner,
            topic: topic.to_owned(),
            metrics,
            id: Arc::default(),
            recreated: Arc::default(),
        }
    }
}

impl ClientContext for LiveContext {
    /// A topic recreated under a reader is not reported by librdkafka 2.12 when the new log is the longer one: it reads on in
    /// its middle. It does write the topic's new id into its debug log, before it fetches from it.
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        if !matches!(level, RDKafkaLogLevel::Debug) {
            return self.inner.log(level, fac, message);
        }
        let Some(id) = topic_id(message, &self.topic) else {
            return self.inner.log(level, fac, message);
        };
        let mut known = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        if known
            .replace(id.to_owned())
            .is_some_and(|known| known != id)
        {
            self.recreated.store(true, Ordering::Release);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.inner.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.inner.stats_raw(statistics);
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else {
            return;
        };
        for (number, partition) in statistics
            .topics
            .get(&self.topic)
            .iter()
            .flat_map(|topic| &topic.partitions)
        {
            // -1 is not a partition, negative offsets are unknown ones. The position is behind markers too.
            if *number >= 0 && partition.ls_offset >= 0 && partition.next_offset >= 0 {
                let unread =
                    (partition.ls_offset - partition.next_offset).max(0) + partition.fetchq_cnt;
                self.metrics
                    .log(&self.topic, *number, partition.ls_offset, unread);
            }
        }
        self.metrics
            .source(&self.topic, *self.inner.source().borrow());
    }
}

impl ConsumerContext for LiveContext {
    fn main_queue_min_poll_interval(&self) -> Timeout {
        self.inner.main_queue_min_poll_interval()
    }
}

/// Reads `[thrd:main]: Topic my-topic changed id from AAAA to BBBB`.
fn topic_id<'a>(message: &'a str, topic: &str) -> Option<&'a str> {
    let (_, rest) = message.split_once("Topic ")?;
    let (_, id) = rest
        .strip_prefix(topic)?
        .strip_prefix(" changed id from ")?
        .split_once(" to ")?;
    Some(id.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_id_of_a_topic_is_read_from_the_log() {
        let line = "[thrd:main]: Topic my-topic changed id from AAAAAAAAAAAAAAAAAAAAAA to l4NnrqAYRzWUlDG9sSEtLg";
        assert_eq!(topic_id(line, "my-topic"), Some("l4NnrqAYRzWUlDG9sSEtLg"));
        assert_eq!(topic_id(line, "my"), None);
    }
}
