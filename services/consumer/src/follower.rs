//! Reads every event of a topic, from the start of its log and then live, for what the process itself keeps of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::cursor::{Position, Vector};
use crate::feed::{Lagged, RingReader};
use crate::kafka::{Purpose, Topic};
use crate::page::Limit;
use crate::record::Event;

/// The limit of one read from Kafka.
const READ: Limit = Limit {
    events: 5_000,
    bytes: 4 << 20,
};

/// The most events that are taken from the ring at once.
const TAKE: usize = 512;

/// The delay before Kafka is read again after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// One reader of a whole topic.
pub struct Follower {
    topic: Arc<Topic>,
    position: ReadPosition,
    head: watch::Receiver<u64>,
    /// It has caught up once it has read the ring up to this number, the end when it joined the ring.
    target: u64,
    /// Why Kafka could not be read the last time.
    problem: Option<String>,
}

/// Where it reads.
enum ReadPosition {
    Start,
    Log { vector: Vector, verified: bool },
    Ring(RingReader),
}

impl Follower {
    pub fn new(topic: Arc<Topic>) -> Self {
        Self {
            head: topic.feed.watch(),
            topic,
            position: ReadPosition::Start,
            target: u64::MAX,
            problem: None,
        }
    }

    /// Reads the log from its start again.
    pub fn restart(&mut self) {
        self.position = ReadPosition::Start;
        self.target = u64::MAX;
    }

    /// The number of the next event in the ring, if that is where it reads.
    pub fn number(&self) -> Option<u64> {
        match &self.position {
            ReadPosition::Ring(reader) => Some(reader.position()),
            _ => None,
        }
    }

    /// Whether it has read the whole log up to the end that the ring had when it joined it.
    pub fn has_caught_up(&self) -> bool {
        self.number().is_some_and(|number| number >= self.target)
    }

    /// The vector after the last event.
    pub fn vector(&self) -> Vector {
        match &self.position {
            ReadPosition::Start => Vector::default(),
            ReadPosition::Log { vector, .. } => vector.clone(),
            ReadPosition::Ring(reader) => {
                let cursor = self.topic.feed.cursor(reader);
                Vector::decode(&cursor, &self.topic.name).expect("the ring's own token")
            }
        }
    }

    /// Why the log could not be read the last time that it was tried, if it could not.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Waits for the next events. None are returned when it has joined the ring, and when Kafka could not be read: the next
    /// call tries again.
    pub async fn next(&mut self) -> Vec<Arc<Event>> {
        loop {
            match &mut self.position {
                ReadPosition::Start => {
                    // The sender lives as long as the topic.
                    _ = self.head.wait_for(|end| *end > 0).await;
                    let partitions = self.topic.feed.partitions();
                    match self.topic.log.ends(partitions, Purpose::Index).await {
                        Ok(ends) => {
                            let starts = ends.iter().map(|&(low, _)| Position::at(low)).collect();
                            self.position = ReadPosition::Log {
                                vector: Vector::new(starts),
                                verified: false,
                            };
                            self.recovered();
                        }
                        Err(error) => return self.failed(&error).await,
                    }
                }
                ReadPosition::Log { vector, verified } => {
                    let feed = &self.topic.feed;
                    if let Some(reader) = feed.locate(vector, *verified) {
                        self.target = feed.end();
                        self.position = ReadPosition::Ring(reader);
                        return Vec::new();
                    }
                    let head = feed.head();
                    // Partitions that the topic no longer has.
                    vector.positions.truncate(head.len());
                    let read = self
                        .topic
                        .log
                        .forward(vector.clone(), head, READ, Purpose::Index);
                    match read.await {
                        Ok(page) => {
                            let stuck = *verified && page.complete && page.events.is_empty();
                            (*vector, *verified) = (page.after, page.complete);
                            self.recovered();
                            if stuck {
                                self.topic.recheck.notify_one();
                                tokio::time::sleep(PAUSE).await;
                            } else if !page.events.is_empty() {
                                return page.events;
                            }
                        }
                        Err(error) => return self.failed(&error).await,
                    }
                }
                ReadPosition::Ring(reader) => {
                    self.head.mark_unchanged();
                    match self.topic.feed.take_events(reader, TAKE) {
                        Ok(events) if events.is_empty() => _ = self.head.changed().await,
                        Ok(events) => return events,
                        Err(Lagged) => {
                            let (vector, verified) = (self.vector(), false);
                            self.position = ReadPosition::Log { vector, verified };
                        }
                    }
                }
            }
        }
    }

    /// Logs a problem when it begins, and pauses before the next attempt.
    async fn failed(&mut self, error: &anyhow::Error) -> Vec<Arc<Event>> {
        let (topic, error) = (&self.topic.name, format!("{error:#}"));
        if self.problem.is_none() {
            tracing::warn!(topic, error, "cannot read the whole log; trying again");
        } else {
            tracing::debug!(topic, error, "still cannot read the whole log");
        }
        self.problem = Some(error);
        tokio::time::sleep(PAUSE).await;
        Vec::new()
    }

    fn recovered(&mut self) {
        if self.problem.take().is_some() {
            tracing::info!(topic = self.topic.name, "the whole log can be read again");
        }
    }
}
