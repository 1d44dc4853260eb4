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
    place: Place,
    head: watch::Receiver<u64>,
    /// It has caught up once it has read the ring up to this number, the end when it joined the ring.
    target: u64,
}

enum Place {
    Start,
    Log { vector: Vector, verified: bool },
    Ring(RingReader),
}

impl Follower {
    pub fn new(topic: Arc<Topic>) -> Self {
        Self {
            head: topic.feed.watch(),
            topic,
            place: Place::Start,
            target: u64::MAX,
        }
    }

    /// Reads the log from its start again.
    pub fn restart(&mut self) {
        self.place = Place::Start;
        self.target = u64::MAX;
    }

    /// The number of the next event in the ring, if that is where it reads.
    pub fn number(&self) -> Option<u64> {
        match &self.place {
            Place::Ring(reader) => Some(reader.position()),
            _ => None,
        }
    }

    /// Whether it has read the whole log up to the end that the ring had when it joined it.
    pub fn has_caught_up(&self) -> bool {
        self.number().is_some_and(|number| number >= self.target)
    }

    /// The vector after the last event.
    pub fn vector(&self) -> Vector {
        match &self.place {
            Place::Start => Vector::default(),
            Place::Log { vector, .. } => vector.clone(),
            Place::Ring(reader) => {
                let cursor = self.topic.feed.cursor(reader);
                Vector::decode(&cursor, &self.topic.name).expect("the ring's own token")
            }
        }
    }

    /// Waits for the next events. None are returned when it has joined the ring. A failure to read Kafka is not an error: it
    /// tries again.
    pub async fn next(&mut self) -> Vec<Arc<Event>> {
        loop {
            match &mut self.place {
                Place::Start => {
                    // The sender lives as long as the topic.
                    _ = self.head.wait_for(|end| *end > 0).await;
                    let partitions = self.topic.feed.partitions();
                    match self.topic.log.ends(partitions, Purpose::Index).await {
                        Ok(ends) => {
                            let starts = ends.iter().map(|&(low, _)| Position::at(low)).collect();
                            self.place = Place::Log {
                                vector: Vector::new(starts),
                                verified: false,
                            };
                        }
                        Err(error) => self.pause(&error).await,
                    }
                }
                Place::Log { vector, verified } => {
                    let feed = &self.topic.feed;
                    if let Some(reader) = feed.locate(vector, *verified) {
                        self.target = feed.end();
                        self.place = Place::Ring(reader);
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
                            if stuck {
                                self.topic.recheck.notify_one();
                                tokio::time::sleep(PAUSE).await;
                            } else if !page.events.is_empty() {
                                return page.events;
                            }
                        }
                        Err(error) => self.pause(&error).await,
                    }
                }
                Place::Ring(reader) => {
                    self.head.mark_unchanged();
                    match self.topic.feed.take_events(reader, TAKE) {
                        Ok(events) if events.is_empty() => _ = self.head.changed().await,
                        Ok(events) => return events,
                        Err(Lagged) => {
                            let (vector, verified) = (self.vector(), false);
                            self.place = Place::Log { vector, verified };
                        }
                    }
                }
            }
        }
    }

    async fn pause(&self, error: &anyhow::Error) {
        let (topic, error) = (&self.topic.name, format!("{error:#}"));
        tracing::debug!(topic, error, "cannot read the whole log; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}
