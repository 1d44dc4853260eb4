//! Decides where a topic is read: at startup, when a position cannot be read, and when the topic was recreated.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use herald_runtime::kafka::Source;
use tokio::sync::{mpsc, watch};

use super::Topic;
use super::commands::{Command, Commands, Problem};
use super::decode::recreated;
use super::fault::Denied;
use super::health::{Health, Scope, Truncation};
use super::pool::Purpose;
use crate::config::Config;
use crate::cursor::{MAX_PARTITIONS, Position, TopicId, Vector};
use crate::feed::Feed;
use crate::page::Limit;
use crate::record::{Event, GapReason};

/// The interval at which the record before the position is reread and compared, and new partitions are discovered.
const AUDIT_EVERY: Duration = Duration::from_secs(10);

/// The interval at which a topic that cannot be read is retried.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The delay after a failed attempt.
const PAUSE: Duration = Duration::from_millis(500);

/// The delay between two attempts to find a topic that need not exist.
const OPTIONAL_PAUSE: Duration = Duration::from_secs(5);

/// The number of failed attempts before clients and operators are notified that a topic does not exist: it may be created
/// shortly after the service starts.
const MAX_DENIALS: usize = 10;

const TOO_MANY_PARTITIONS: &str =
    "the topic has more than 256 partitions, the maximum that a cursor can contain";

/// Supervises one topic.
pub struct Supervisor {
    number: usize,
    topic: Arc<Topic>,
    health: Arc<Health>,
    commands: Commands,
    /// How much history the ring is filled with at startup.
    history: Limit,
}

impl Supervisor {
    /// `number` is the topic's index in the configuration.
    pub fn new(
        number: usize,
        topic: Arc<Topic>,
        health: Arc<Health>,
        commands: Commands,
        config: &Config,
    ) -> Self {
        let history = Limit {
            events: config.ring_messages.min(1000),
            bytes: config.ring_bytes / 4,
        };
        Self {
            number,
            topic,
            health,
            commands,
            history,
        }
    }

    pub fn source(&self) -> watch::Receiver<Source> {
        self.health.source()
    }

    pub fn feed(&self) -> Arc<Feed> {
        self.topic.feed.clone()
    }

    /// Fills the ring, has the topic read, and resolves problems. Returns only when the reader stops.
    pub async fn run(self, mut problems: mpsc::UnboundedReceiver<Problem>) -> anyhow::Result<()> {
        self.fill().await;
        let mut anchors = self.topic.feed.head();
        let mut source = self.source();
        loop {
            // With jitter, so that many topics are not audited at once.
            let wait = match self.health.failing().is_empty() {
                true => AUDIT_EVERY.mul_f64(rand::random_range(0.9..1.1)),
                false => RETRY_EVERY,
            };
            tokio::select! {
                problem = problems.recv() => match problem {
                    Some(problem) => self.resolve(problem).await,
                    None => return Ok(()),
                },
                () = tokio::time::sleep(wait) => {
                    self.audit(&mut anchors).await;
                    self.retry().await;
                }
                _ = source.changed() => self.audit(&mut anchors).await,
                () = self.topic.recheck.notified() => self.audit(&mut anchors).await,
            }
        }
    }

    /// Fills the ring with the newest history, as soon as Kafka and the topic are available, and has the topic read from there.
    async fn fill(&self) {
        // Count only denials by Kafka itself: while it does not answer, the topic may exist.
        let mut denied = 0;
        loop {
            let Err(error) = self.try_fill().await else {
                return;
            };
            denied += usize::from(error.is::<Denied>());
            let known = denied >= MAX_DENIALS;
            if known && !self.topic.optional {
                self.record_denial(&error);
            }
            let error = format!("{error:#}");
            tracing::debug!(topic = self.topic.name, error, "waiting for the topic");
            let rare = known && self.topic.optional;
            tokio::time::sleep(if rare { OPTIONAL_PAUSE } else { PAUSE }).await;
        }
    }

    async fn try_fill(&self) -> anyhow::Result<()> {
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        let partitions = self.servable_partitions(Purpose::Replay).await?;
        let ends = log.ends(partitions, Purpose::Replay).await?;
        let before = Vector::new(ends.iter().map(|&(_, high)| Position::at(high)).collect());
        let page = log.backward(before, self.history, Purpose::Replay).await?;
        tracing::info!(
            topic = name,
            partitions,
            history = page.events.len(),
            "reading topic"
        );
        self.health.resolve(Scope::Topic);
        self.health.optional.store(false, Ordering::Relaxed);
        feed.fill(page);
        self.command(vec![], None, Some(partitions), 0..partitions);
        Ok(())
    }

    /// The number of the topic's partitions; too many are an error.
    async fn servable_partitions(&self, purpose: Purpose) -> anyhow::Result<usize> {
        let partitions = self.topic.log.partitions(purpose).await?;
        if partitions > MAX_PARTITIONS {
            self.health.fail(Scope::Topic, TOO_MANY_PARTITIONS);
            anyhow::bail!("{partitions} partitions");
        }
        Ok(partitions)
    }

    /// Records why the topic cannot be read, if the error requires an operator to intervene.
    fn record_denial(&self, error: &anyhow::Error) {
        if let Some(&Denied(reason)) = error.downcast_ref() {
            self.health.fail(Scope::Topic, reason);
        }
    }

    async fn resolve(&self, problem: Problem) {
        loop {
            let resolved = match problem {
                Problem::Recreated => self.recreated().await,
                Problem::OutOfRange(partition) => self.out_of_range(partition).await,
                Problem::Unreadable(partition) => self.unreadable(partition).await,
                // Retried once a second.
                Problem::Denied => Ok(()),
            };
            let Err(error) = resolved else { return };
            self.record_denial(&error);
            let error = format!("{error:#}");
            tracing::debug!(
                topic = self.topic.name,
                ?problem,
                error,
                "cannot resolve a problem with the topic; retrying"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The topic was deleted and recreated: announces it, and has the new log read from its start.
    async fn recreated(&self) -> anyhow::Result<()> {
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        let partitions = self.servable_partitions(Purpose::Audit).await?;
        let ends = log.ends(partitions, Purpose::Audit).await?;
        let (head, topic_id) = (feed.head(), self.health.newest_id());
        if head.topic_id.is(topic_id) {
            // The recreation was detected twice, and announced the first time.
            self.command(vec![], None, Some(partitions), 0..partitions);
            return Ok(());
        }
        tracing::warn!(
            topic = name,
            "the topic was deleted and recreated; reading it from its start"
        );
        // A client that has read nothing of the old log misses nothing of it.
        let read = (0..head.len()).filter(|&partition| head.get(partition).offset > 0);
        let low = |partition: usize| ends.get(partition).map_or(0, |&(low, _)| low);
        let events =
            read.map(|partition| recreated(partition, head.get(partition), low(partition)));
        self.health.forget_log();
        log.invalidate_pages();
        self.command(
            events.collect(),
            Some(topic_id),
            Some(partitions),
            0..partitions,
        );
        self.announced(topic_id).await;
        Ok(())
    }

    /// Waits until the feed continues with a recreated topic. Several partitions may report the recreation at once; the second
    /// report must find that it is announced.
    async fn announced(&self, topic_id: TopicId) {
        let known = topic_id != TopicId::default();
        let begun = Instant::now();
        while known
            && !self.topic.feed.head().topic_id.is(topic_id)
            && begun.elapsed() < RETRY_EVERY
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn out_of_range(&self, partition: usize) -> anyhow::Result<()> {
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        let (low, high) = log.end(partition).await?;
        let position = feed.position(partition);
        if position.offset > high {
            return self.lost_end(partition).await;
        }
        let mut events = Vec::new();
        if position.offset < low {
            let (from, to) = (position.offset, low);
            tracing::warn!(
                topic = name,
                partition,
                from,
                to,
                "Kafka deleted records before they were read"
            );
            events.push(Event::gap(
                GapReason::Retention,
                partition,
                from,
                Some(to),
                Position::at(to),
            ));
        }
        self.command(events, None, None, [partition]);
        Ok(())
    }

    /// The log no longer holds what was read from it. Either the topic was recreated, or its log has lost its end (a leader
    /// that was behind, a disk that lost its last writes).
    async fn lost_end(&self, partition: usize) -> anyhow::Result<()> {
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        // This also fetches the topic's id.
        let partitions = log.partitions(Purpose::Audit).await?;
        if partitions <= partition || self.is_recreated() {
            return self.recreated().await;
        }
        let (low, high) = log.end(partition).await?;
        let position = feed.position(partition);
        let kept = log
            .last_agreeing(partition, feed.positions(partition))
            .await?;
        let known = self.health.topic_id() != TopicId::default();
        let (from, next) = match kept {
            Some(kept) => (kept.offset, kept),
            None if known => (low, Position::at(high.min(position.offset))),
            None => return self.recreated().await,
        };
        let to = position.offset;
        let mut events = Vec::new();
        if from < to {
            tracing::warn!(
                topic = name,
                partition,
                from,
                to,
                "the topic lost the end of its log"
            );
            self.health.remember(Truncation {
                partition,
                kept: next,
                end: to,
            });
            log.invalidate_pages();
            events.push(Event::gap(
                GapReason::Truncated,
                partition,
                from,
                Some(to),
                next,
            ));
        }
        self.command(events, None, None, [partition]);
        Ok(())
    }

    /// Whether a client has received another id than that of the log in the ring. The live reader may have done so, but not have
    /// reported it yet.
    fn is_recreated(&self) -> bool {
        let read = self.topic.feed.head().topic_id;
        self.health.id_differs() || read.differs(self.health.newest_id())
    }

    async fn unreadable(&self, partition: usize) -> anyhow::Result<()> {
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        let from = feed.position(partition).offset;
        let to = log.first_readable(partition, from).await?;
        let mut events = Vec::new();
        if to > from {
            tracing::warn!(
                topic = name,
                partition,
                from,
                to,
                "skipping a batch in Kafka that cannot be decompressed or has a wrong checksum"
            );
            events.push(Event::gap(
                GapReason::Unreadable,
                partition,
                from,
                Some(to),
                Position::at(to),
            ));
        } else {
            // The reader's own client disagrees; limit how often it retries.
            tokio::time::sleep(PAUSE).await;
        }
        self.command(events, None, None, [partition]);
        Ok(())
    }

    /// Retries the partitions that cannot be read.
    async fn retry(&self) {
        for partition in self.health.failing() {
            let position = self.topic.feed.position(partition);
            if self
                .topic
                .log
                .first_readable(partition, position.offset)
                .await
                .is_ok()
            {
                self.health.resolve(Scope::Partition(partition));
                self.command(vec![], None, None, [partition]);
            }
        }
    }

    /// Periodically and after every reconnect: checks whether the log is still the same, and whether there are new partitions.
    async fn audit(&self, anchors: &mut Vector) {
        if let Err(error) = self.try_audit(anchors).await {
            self.record_denial(&error);
            let error = format!("{error:#}");
            tracing::debug!(topic = self.topic.name, error, "cannot audit the log");
        }
    }

    async fn try_audit(&self, anchors: &mut Vector) -> anyhow::Result<()> {
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        let partitions = log.partitions(Purpose::Audit).await?;
        let read = feed.partitions();
        if partitions > MAX_PARTITIONS {
            self.health.fail(Scope::Topic, TOO_MANY_PARTITIONS);
        } else {
            self.health.resolve(Scope::Topic);
            if partitions < read || self.is_recreated() {
                return self.recreated().await;
            }
            if partitions > read {
                tracing::info!(topic = name, partitions, "partitions were added");
                self.command(vec![], None, Some(partitions), read..partitions);
            }
        }
        let limit = Limit {
            events: 1,
            bytes: 1,
        };
        // An older position is compared too: the newest may already be from the recreated log.
        let newest = feed.head();
        if anchors.topic_id != newest.topic_id || anchors.len() > newest.len() {
            anchors.clone_from(&newest);
        }
        for vector in [anchors.clone(), newest.clone()] {
            let page = log
                .forward(vector.clone(), vector, limit, Purpose::Audit)
                .await?;
            let mut resets = page.events.iter().filter(|event| event.resets());
            if let Some(event) = resets.next() {
                let reason = event.gap_reason();
                anchors.clone_from(&newest);
                return match reason {
                    Some(GapReason::Recreated) => self.recreated().await,
                    _ => self.lost_end(event.partition).await,
                };
            }
        }
        *anchors = newest;
        Ok(())
    }

    fn command(
        &self,
        events: Vec<Event>,
        recreated: Option<TopicId>,
        partitions: Option<usize>,
        read: impl IntoIterator<Item = usize>,
    ) {
        self.commands.send(Command {
            topic: self.number,
            events,
            recreated,
            partitions,
            read: read.into_iter().collect(),
        });
    }
}
