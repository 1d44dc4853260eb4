//! One client's stream, the same on every transport: its start, its backlog, then live events.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use herald_runtime::http::drain;
use herald_runtime::kafka::Source;
use serde_json::{Map, Value as Json, json};
use tokio::sync::watch;

use crate::cursor::{Position, Vector};
use crate::encode::{self, Encoding, Frame, Kind, fields};
use crate::feed::{Batch, Lagged, RingReader};
use crate::kafka::{Log, Purpose, Topic};
use crate::page::{Limit, MAX_PAGE, Page};
use crate::query::Start;
use crate::record::{Event, Gap, GapReason};

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

    /// When the client should come back, in ms: each at its own moment.
    pub fn retry(&self) -> u64 {
        match self {
            // A full replica stays full for a while.
            Self::Overload => rand::random_range(2_000..10_000),
            _ => drain::retry(),
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
    state: State,
    head: watch::Receiver<u64>,
    source: watch::Receiver<Source>,
    /// The reason that the client was sent, while the topic cannot be read.
    reported_down: Option<&'static str>,
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
        reading: Option<Reading<Replayed>>,
    },
    Ring(RingReader),
}

/// What Kafka answered.
enum Replayed {
    /// The number of partitions, for a client that has read more of them than this replica.
    Partitions(usize),
    Page(Page),
}

impl State {
    fn replay(vector: Vector) -> Self {
        Self::Replay {
            vector: Box::new(vector),
            verified: false,
            reading: None,
        }
    }
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
            state: State::Begin {
                start,
                finding: None,
            },
            head,
            source,
            reported_down: None,
        }
    }

    /// The newest cursor: what the client has, once it has what was taken. Empty before the first.
    pub fn cursor(&self) -> String {
        match &self.state {
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
    pub async fn next(&mut self, batch: &mut Batch) {
        loop {
            self.report_source(batch);
            if !batch.frames.is_empty() {
                // At once: what comes next may have to wait for Kafka.
                return;
            }
            let step = match &mut self.state {
                State::Begin { .. } if *self.head.borrow_and_update() == 0 => Step::News,
                State::Begin { .. } => self.begin(batch).await,
                State::Replay { .. } => self.replay(batch).await,
                State::Ring(reader) => {
                    self.head.mark_unchanged();
                    match self.topic.feed.take(reader, self.encoding, batch) {
                        Ok(()) => Step::News,
                        // Slower than the topic: what the ring has dropped comes from Kafka.
                        Err(Lagged) => {
                            let cursor = self.topic.feed.cursor(reader);
                            let vector = Vector::decode(&cursor, &self.topic.name);
                            self.state = State::replay(vector.expect("the ring's own token"));
                            Step::Next
                        }
                    }
                }
            };
            if !batch.frames.is_empty() {
                return;
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
        let State::Begin { start, finding } = &mut self.state else {
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
        self.state = match self.topic.feed.locate(&vector, false) {
            // The token is the client's own, not the ring's at that place: it names what the client has.
            Some(reader) => State::Ring(reader),
            None => State::replay(vector),
        };
        self.send_start(&cursor, batch);
    }

    fn enter(&mut self, reader: RingReader, batch: &mut Batch) {
        self.state = State::Ring(reader);
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
        } = &mut self.state
        else {
            return Step::Next;
        };
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        if let Some(reader) = feed.locate(vector, *verified) {
            self.state = State::Ring(reader);
            return Step::Next;
        }
        let request = reading.get_or_insert_with(|| {
            // In this order, the ring's head is never older than what is found out about the topic.
            let head = feed.head();
            let (log, from) = (log.clone(), (**vector).clone());
            Box::pin(async move {
                if from.len() > head.len() {
                    return Ok(Replayed::Partitions(log.partitions(Purpose::Replay).await?));
                }
                Ok(Replayed::Page(
                    log.forward(from, head, REPLAY, Purpose::Replay).await?,
                ))
            })
        });
        let replayed = request.await;
        *reading = None;
        match replayed {
            Ok(Replayed::Page(page)) => {
                // Complete, and nothing came of it, twice: the ring is of another log than Kafka has now, or lags.
                let stuck = *verified && page.complete && page.events.is_empty();
                page.walk(|event, vector| {
                    batch.count(event, false, self.encoding.binary);
                    let frame = encode::event(event, &vector.encode(name), self.encoding);
                    batch.frames.push(frame);
                });
                if page.events.is_empty() && page.after != **vector {
                    let cursor = page.after.encode(name);
                    let frame =
                        encode::control(Kind::Position, &cursor, Map::new(), self.encoding.format);
                    batch.frames.push(frame);
                }
                if stuck || page.events.iter().any(|event| event.resets()) {
                    self.topic.recheck.notify_one();
                }
                *verified = page.complete;
                **vector = page.after;
                if stuck { Step::Later } else { Step::Next }
            }
            Ok(Replayed::Partitions(partitions)) if partitions < vector.len() => {
                for partition in partitions..vector.len() {
                    let from = vector.get(partition).offset;
                    if from > 0 {
                        vector.set(partition, Position::default());
                        let event = Event::gap(
                            GapReason::Recreated,
                            partition,
                            from,
                            None,
                            Position::default(),
                        );
                        batch.count(&event, false, self.encoding.binary);
                        let frame = encode::event(&event, &vector.encode(name), self.encoding);
                        batch.frames.push(frame);
                    }
                }
                vector.positions.truncate(partitions);
                Step::Next
            }
            // Another replica has seen partitions that this one is about to see.
            Ok(Replayed::Partitions(_)) => {
                self.topic.recheck.notify_one();
                Step::Later
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::debug!(topic = name, error, "cannot read what a client missed");
                Step::Later
            }
        }
    }

    /// Reports that the topic cannot be read, and to clients that were sent that, that it can be again.
    fn report_source(&mut self, batch: &mut Batch) {
        if !self.source.has_changed().unwrap_or(false) {
            return;
        }
        let source = *self.source.borrow_and_update();
        let down = match source {
            Source::Down { reason, .. } => Some(reason),
            Source::Up => None,
            Source::Unknown => return,
        };
        if std::mem::replace(&mut self.reported_down, down) != down {
            let cursor = self.cursor();
            let fields = status_fields(source);
            let frame = encode::control(Kind::Status, &cursor, fields, self.encoding.format);
            batch.frames.push(frame);
        }
    }
}

/// Asks Kafka for the vector of a start.
fn find(start: Start, head: Vector, log: Arc<Log>) -> Reading<Vector> {
    Box::pin(async move {
        match start {
            Start::Last(events) => {
                let limit = Limit { events, ..MAX_PAGE };
                Ok(log.backward(head, limit, Purpose::Replay).await?.before)
            }
            Start::Time(time) => log.at_time(time, head, Purpose::Replay).await,
            _ => {
                let ends = log.ends(head.len(), Purpose::Replay).await?;
                Ok(Vector::new(
                    ends.iter().map(|&(low, _)| Position::at(low)).collect(),
                ))
            }
        }
    })
}

fn status_fields(source: Source) -> Map<String, Json> {
    let text = |time: SystemTime| {
        let time = jiff::Timestamp::try_from(time).unwrap_or_default();
        let rounded = time.round(jiff::Unit::Millisecond);
        rounded.unwrap_or_default().to_string()
    };
    fields(match source {
        Source::Down { since, reason } => {
            json!({ "source": "down", "since": text(since), "reason": reason })
        }
        _ => json!({ "source": "up", "since": text(SystemTime::now()) }),
    })
}
