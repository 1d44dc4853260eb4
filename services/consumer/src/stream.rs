//! One client's stream, the same on every transport: its start, its backlog, then the news.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use herald_runtime::kafka::Source;
use serde_json::{Map, Value as Json, json};
use tokio::sync::watch;

use crate::cursor::{Position, Vector};
use crate::encode::{self, Encoding, Frame, Kind, fields};
use crate::feed::{Batch, RingReader};
use crate::kafka::Log;
use crate::page::{Limit, MAX_PAGE, Page};
use crate::query::Start;
use crate::record::{Event, Gap, GapReason};
use crate::topic::Topic;

/// How much of a backlog is read from Kafka for one write.
const REPLAY: Limit = Limit {
    events: 500,
    bytes: 256 << 10,
};

/// After a failed attempt to read Kafka.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a stream is ended by us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Drain,
    Overload,
    Slow,
    Expired,
    /// What is wrong with the request.
    Invalid(String),
}

impl End {
    /// The name on the wire and in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Overload => "overload",
            Self::Slow => "slow",
            Self::Expired => "expired",
            Self::Invalid(_) => "invalid",
        }
    }

    /// The `bye` event. `retry` is in ms.
    pub fn frame(&self, cursor: &str, retry: u64, encoding: Encoding) -> Frame {
        let mut about = fields(json!({ "reason": self.reason(), "retry": retry }));
        if let Self::Invalid(detail) = self {
            about.insert("detail".into(), detail.as_str().into());
        }
        encode::control(Kind::Bye, cursor, about, encoding.format)
    }
}

/// A question to Kafka that is under way. It is kept, so that a wait that is dropped does not ask it again.
type Reading<T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + Send + Sync>>;

/// A client's way through a topic.
pub struct Stream {
    topic: Arc<Topic>,
    encoding: Encoding,
    at: State,
    head: watch::Receiver<u64>,
    source: watch::Receiver<Source>,
    reported_down: bool,
}

/// What to do when there was nothing to write.
enum Step {
    /// Go on at once, from where the stream is now.
    Next,
    /// Wait until the ring or the state of Kafka changes.
    News,
    /// Kafka cannot tell yet; ask again in a moment.
    Later,
}

enum State {
    /// Nothing was sent yet. `finding` asks Kafka for the vector of the start.
    Begin {
        start: Start,
        finding: Option<Reading<Vector>>,
    },
    /// What comes next is older than the ring, or Kafka must be asked whether the cursor is of this log.
    Replay {
        vector: Box<Vector>,
        verified: bool,
        reading: Option<Reading<Page>>,
    },
    Ring(RingReader),
}

impl Stream {
    pub fn new(topic: Arc<Topic>, start: Start, encoding: Encoding) -> Self {
        let head = topic.feed.watch();
        let mut source = topic.source.clone();
        // So that a client that comes while Kafka is away hears of it at once.
        source.mark_changed();
        Self {
            topic,
            encoding,
            at: State::Begin {
                start,
                finding: None,
            },
            head,
            source,
            reported_down: false,
        }
    }

    /// The newest cursor: what the client has, once it has what was taken. Empty before the first.
    pub fn cursor(&self) -> String {
        match &self.at {
            State::Begin {
                start: Start::After(cursor),
                ..
            } if Vector::decode(cursor, &self.topic.name).is_some() => cursor.clone(),
            State::Begin { .. } => String::new(),
            State::Replay { vector, .. } => vector.encode(&self.topic.name),
            State::Ring(reader) => self.topic.feed.cursor(reader),
        }
    }

    /// Waits until there is something to write and takes all of it. May be dropped while it waits; nothing is lost by that.
    ///
    /// # Errors
    ///
    /// [`End::Slow`] when the news have left the ring before the client took them.
    pub async fn next(&mut self, batch: &mut Batch) -> Result<(), End> {
        loop {
            self.report_source(batch);
            if !batch.frames.is_empty() {
                // State once: what comes next may have to wait for Kafka.
                return Ok(());
            }
            let step = match &mut self.at {
                State::Begin { .. } if *self.head.borrow_and_update() == 0 => Step::News,
                State::Begin { .. } => self.begin(batch).await,
                State::Replay { .. } => self.replay(batch).await,
                State::Ring(reader) => {
                    self.head.mark_unchanged();
                    self.topic
                        .feed
                        .take(reader, self.encoding, batch)
                        .map_err(|_| End::Slow)?;
                    Step::News
                }
            };
            if !batch.frames.is_empty() {
                return Ok(());
            }
            match step {
                Step::Next => {}
                // Changes of Kafka's state wake the ring's readers too. The sender lives as long as the process.
                Step::News => _ = self.head.changed().await,
                Step::Later => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Finds the place where the client wants to start.
    async fn begin(&mut self, batch: &mut Batch) -> Step {
        let State::Begin { start, finding } = &mut self.at else {
            return Step::Next;
        };
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        if finding.is_none() {
            let reader = match start {
                Start::Live => Some(feed.live()),
                // While Kafka is away, fewer than were asked for are better than none; `start` says where they begin.
                Start::Last(count) => feed.newest(*count, self.topic.is_down()),
                Start::After(token) => match Vector::decode(token, name) {
                    Some(vector) => {
                        self.enter_at(vector, batch);
                        return Step::Next;
                    }
                    None => {
                        self.enter(feed.live(), batch);
                        let reason = GapReason::UnknownCursor;
                        batch.gaps.push(reason);
                        let about = encode::gap_fields(&Gap {
                            reason,
                            ranges: vec![],
                        });
                        let frame =
                            encode::control(Kind::Gap, &self.cursor(), about, self.encoding.format);
                        batch.frames.push(frame);
                        return Step::Next;
                    }
                },
                Start::Earliest | Start::Time(_) => None,
            };
            if let Some(reader) = reader {
                self.enter(reader, batch);
                return Step::Next;
            }
            *finding = Some(find(start.clone(), feed.head(), log.clone()));
        }
        let Some(found) = finding else {
            return Step::Next;
        };
        match found.await {
            Ok(vector) => {
                self.enter_at(vector, batch);
                Step::Next
            }
            Err(error) => {
                *finding = None;
                let error = format!("{error:#}");
                tracing::debug!(
                    topic = name,
                    error,
                    "cannot find where a client wants to start"
                );
                Step::Later
            }
        }
    }

    /// Starts after what this vector has.
    fn enter_at(&mut self, vector: Vector, batch: &mut Batch) {
        let cursor = vector.encode(&self.topic.name);
        self.at = match self.topic.feed.locate(&vector, false) {
            // The token is the client's own, not the ring's at that place: it names what the client has.
            Some(reader) => State::Ring(reader),
            None => State::Replay {
                vector: Box::new(vector),
                verified: false,
                reading: None,
            },
        };
        self.send_start(&cursor, batch);
    }

    fn enter(&mut self, reader: RingReader, batch: &mut Batch) {
        self.at = State::Ring(reader);
        self.send_start(&self.cursor(), batch);
    }

    fn send_start(&self, cursor: &str, batch: &mut Batch) {
        let about = fields(json!({ "topic": self.topic.name }));
        batch.frames.push(encode::control(
            Kind::Start,
            cursor,
            about,
            self.encoding.format,
        ));
    }

    /// Takes a piece of what is older than the ring, or joins the ring.
    async fn replay(&mut self, batch: &mut Batch) -> Step {
        let State::Replay {
            vector,
            verified,
            reading,
        } = &mut self.at
        else {
            return Step::Next;
        };
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        if let Some(reader) = feed.locate(vector, *verified) {
            self.at = State::Ring(reader);
            return Step::Next;
        }
        // Asked for in this order, the ring's head is never older than what was found out about the topic.
        let head = feed.head();
        if vector.0.len() > head.0.len() {
            match log.partitions().await {
                Ok(partitions) if partitions < vector.0.len() => {
                    for partition in partitions..vector.0.len() {
                        let gap = Gap::of(
                            GapReason::Recreated,
                            partition,
                            vector.get(partition).offset,
                            None,
                        );
                        if vector.get(partition).offset > 0 {
                            vector.set(partition, Default::default());
                            batch.gaps.push(gap.reason);
                            batch.frames.push(encode::control(
                                Kind::Gap,
                                &vector.encode(name),
                                encode::gap_fields(&gap),
                                self.encoding.format,
                            ));
                        }
                    }
                    vector.0.truncate(partitions);
                    return Step::Next;
                }
                // Another replica has seen partitions that this one is about to see.
                Ok(_) => {
                    self.topic.recheck.notify_one();
                    return Step::Later;
                }
                Err(error) => {
                    tracing::debug!(
                        topic = name,
                        error = format!("{error:#}"),
                        "cannot look at the topic"
                    );
                    return Step::Later;
                }
            }
        }
        let request = reading.get_or_insert_with(|| {
            let (log, from) = (log.clone(), (**vector).clone());
            Box::pin(async move { log.forward(from, head, REPLAY).await })
        });
        let read = request.await;
        *reading = None;
        match read {
            Ok(page) => {
                // Complete, and nothing came of it, twice: the ring is of another log than Kafka has now, or lags.
                let stuck = *verified && page.complete && page.events.is_empty();
                for event in &page.events {
                    vector.set(event.partition, event.next);
                    batch.count(event, false, self.encoding.binary);
                    batch
                        .frames
                        .push(encode::event(event, &vector.encode(name), self.encoding));
                }
                **vector = page.after;
                *verified = page.complete;
                if stuck || page.events.iter().any(Event::resets) {
                    self.topic.recheck.notify_one();
                }
                if stuck { Step::Later } else { Step::Next }
            }
            Err(error) => {
                tracing::debug!(
                    topic = name,
                    error = format!("{error:#}"),
                    "cannot read what a client missed"
                );
                Step::Later
            }
        }
    }

    /// Says that Kafka went away, or came back to those who were told that it had.
    fn report_source(&mut self, batch: &mut Batch) {
        if !self.source.has_changed().unwrap_or(false) {
            return;
        }
        let (down, since) = match *self.source.borrow_and_update() {
            Source::Down { since } => (true, since),
            Source::Up => (false, SystemTime::now()),
            Source::Unknown => return,
        };
        if std::mem::replace(&mut self.reported_down, down) != down {
            let about = status_fields(down, since);
            batch.frames.push(encode::control(
                Kind::Status,
                &self.cursor(),
                about,
                self.encoding.format,
            ));
        }
    }
}

/// Asks Kafka for the vector of a start.
fn find(start: Start, head: Vector, log: Arc<Log>) -> Reading<Vector> {
    Box::pin(async move {
        match start {
            Start::Last(events) => {
                let limit = Limit { events, ..MAX_PAGE };
                Ok(log.backward(head, limit).await?.before)
            }
            Start::Time(time) => log.at_time(time, head).await,
            _ => {
                let ends = log.ends(head.0.len()).await?;
                Ok(Vector(
                    ends.iter().map(|&(low, _)| Position::at(low)).collect(),
                ))
            }
        }
    })
}

fn status_fields(down: bool, since: SystemTime) -> Map<String, Json> {
    let since = jiff::Timestamp::try_from(since)
        .unwrap_or_default()
        .round(jiff::Unit::Millisecond)
        .unwrap_or_default();
    fields(json!({ "source": if down { "down" } else { "up" }, "since": since.to_string() }))
}
