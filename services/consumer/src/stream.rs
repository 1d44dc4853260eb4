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

/// The limit of one read of a backlog from Kafka, which becomes one write.
const REPLAY: Limit = Limit {
    events: 500,
    bytes: 256 << 10,
};

/// The delay before Kafka is read again after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the server ends a stream.
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

    /// When the client should reconnect, in ms, with jitter.
    pub fn retry(&self) -> u64 {
        match self {
            // A full replica does not empty quickly.
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

/// A pending request to Kafka. It is kept, so that a cancelled wait does not repeat it.
type Reading<T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + Send + Sync>>;

/// One client's read through a topic.
pub struct Stream {
    topic: Arc<Topic>,
    encoding: Encoding,
    state: State,
    head: watch::Receiver<u64>,
    source: watch::Receiver<Source>,
    /// The reason last sent to the client, while the topic cannot be read.
    reported_down: Option<&'static str>,
}

/// What to do when there was nothing to write.
enum Step {
    /// Continue immediately in the current state.
    Continue,
    /// Wait until the ring or the state of Kafka changes.
    Wait,
    /// Kafka has no answer yet; retry after a pause.
    Retry,
}

enum State {
    /// Nothing was sent yet. `finding` looks up the start's vector in Kafka.
    Begin {
        start: Start,
        finding: Option<Reading<Vector>>,
    },
    /// The next event is older than the ring, or Kafka must confirm that the cursor belongs to this log.
    Replay {
        vector: Box<Vector>,
        verified: bool,
        reading: Option<Reading<Replayed>>,
    },
    Ring(RingReader),
}

/// The result of a read from Kafka.
enum Replayed {
    /// The number of partitions, for a client that has read more partitions than this replica.
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
        // A client that connects while Kafka is unavailable is notified immediately.
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

    /// The cursor after the last event taken. Empty before the first.
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

    /// Waits until there is something to write, and takes it. Cancel-safe: dropping the future loses nothing.
    pub async fn next(&mut self, batch: &mut Batch) {
        loop {
            self.report_source(batch);
            if !batch.frames.is_empty() {
                // Not delayed by the next step, which may have to wait for Kafka.
                return;
            }
            let step = match &mut self.state {
                State::Begin { .. } if *self.head.borrow_and_update() == 0 => Step::Wait,
                State::Begin { .. } => self.begin(batch).await,
                State::Replay { .. } => self.replay(batch).await,
                State::Ring(reader) => {
                    self.head.mark_unchanged();
                    match self.topic.feed.take(reader, self.encoding, batch) {
                        Ok(()) => Step::Wait,
                        // Slower than the topic: events that the ring has evicted come from Kafka.
                        Err(Lagged) => {
                            let cursor = self.topic.feed.cursor(reader);
                            let vector = Vector::decode(&cursor, &self.topic.name);
                            self.state = State::replay(vector.expect("the ring's own token"));
                            Step::Continue
                        }
                    }
                }
            };
            if !batch.frames.is_empty() {
                return;
            }
            match step {
                Step::Continue => {}
                // A change of Kafka's state wakes the ring's readers too. The sender lives as long as the process.
                Step::Wait => _ = self.head.changed().await,
                Step::Retry => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Finds the client's start position.
    async fn begin(&mut self, batch: &mut Batch) -> Step {
        let State::Begin { start, finding } = &mut self.state else {
            return Step::Continue;
        };
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        if finding.is_none() {
            let reader = match start {
                Start::Live => Some(feed.live()),
                // While Kafka is unavailable, fewer messages than requested are better than none; `start` has their position.
                Start::Last(count) => feed.newest(*count, self.topic.is_down()),
                Start::After(token) => match Vector::decode(token, name) {
                    Some(vector) => {
                        self.enter_at(vector, batch);
                        return Step::Continue;
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
                        return Step::Continue;
                    }
                },
                Start::Earliest | Start::Time(_) => None,
            };
            if let Some(reader) = reader {
                self.enter(reader, batch);
                return Step::Continue;
            }
            *finding = Some(find(start.clone(), feed.head(), log.clone()));
        }
        let Some(found) = finding else {
            return Step::Continue;
        };
        match found.await {
            Ok(vector) => {
                self.enter_at(vector, batch);
                Step::Continue
            }
            Err(error) => {
                *finding = None;
                let error = format!("{error:#}");
                tracing::debug!(topic = name, error, "cannot find a client's start position");
                Step::Retry
            }
        }
    }

    /// Starts after this vector.
    fn enter_at(&mut self, vector: Vector, batch: &mut Batch) {
        let cursor = vector.encode(&self.topic.name);
        self.state = match self.topic.feed.locate(&vector, false) {
            // The cursor is the client's own, not the ring's at that position: it describes what the client has.
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

    /// Reads a page of events older than the ring, or joins the ring.
    async fn replay(&mut self, batch: &mut Batch) -> Step {
        let State::Replay {
            vector,
            verified,
            reading,
        } = &mut self.state
        else {
            return Step::Continue;
        };
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        if let Some(reader) = feed.locate(vector, *verified) {
            self.state = State::Ring(reader);
            return Step::Continue;
        }
        let request = reading.get_or_insert_with(|| {
            // Read first, so that the head is never newer than what Kafka returns about the topic.
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
                // Complete but empty, twice: the ring is of another log than Kafka's current one, or it lags.
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
                if stuck { Step::Retry } else { Step::Continue }
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
                Step::Continue
            }
            // Another replica has already discovered partitions that this one has not.
            Ok(Replayed::Partitions(_)) => {
                self.topic.recheck.notify_one();
                Step::Retry
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::debug!(topic = name, error, "cannot read a client's backlog");
                Step::Retry
            }
        }
    }

    /// Sends `status` when the topic can no longer be read, and again when it can, to clients that were sent the first.
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

/// Looks up the vector of a start in Kafka.
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
