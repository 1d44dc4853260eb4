//! One client's stream, the same on every transport: its start, its backlog, then live events.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use herald_runtime::http::{Refusal, drain};
use herald_runtime::kafka::Source;
use serde_json::{Map, Value as Json, json};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use crate::cursor::{Position, Vector};
use crate::encode::{self, Encoding, Frame, Kind, fields};
use crate::feed::{Batch, Feed, Lagged, RingReader, Subscription};
use crate::kafka::{Purpose, Topic};
use crate::keys::{self, Keys};
use crate::latest::{Answer, Snapshot};
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

/// How often a client of some keys, for which nothing arrives, is sent a new cursor if others have received something: its own
/// must not grow so old that Kafka deletes what follows it.
const POSITION_EVERY: Duration = Duration::from_secs(60);

/// The most bytes of the latest records that are written at once.
const SNAPSHOT_BYTES: usize = 32 << 10;

/// Why the server ends a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Drain,
    Overload,
    Slow,
    Expired,
    /// Nobody knows who the client is, or it may not read the topic.
    Refused(Refusal),
    /// A limit of this replica, for what the client requested.
    OverLimit(String),
    /// What is wrong with the request.
    Invalid(String),
}

impl End {
    /// The name on the wire and in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Overload | Self::OverLimit(_) | Self::Refused(Refusal::Unavailable(_)) => {
                "overload"
            }
            Self::Slow => "slow",
            Self::Expired => "expired",
            Self::Refused(Refusal::Unauthenticated(_)) => "unauthenticated",
            Self::Refused(Refusal::Forbidden(_)) => "forbidden",
            Self::Invalid(_) => "invalid",
        }
    }

    /// When the client should reconnect, in ms, with jitter.
    pub fn retry(&self) -> u64 {
        match self {
            // A full replica does not empty quickly.
            Self::Overload | Self::OverLimit(_) | Self::Refused(Refusal::Unavailable(_)) => {
                rand::random_range(2_000..10_000)
            }
            _ => drain::retry(),
        }
    }

    /// The `bye` event. `retry` is in ms.
    pub fn frame(&self, cursor: &str, retry: u64, encoding: Encoding) -> Frame {
        let mut about = fields(json!({ "reason": self.reason(), "retry": retry }));
        let detail = match self {
            Self::Invalid(detail) | Self::OverLimit(detail) => Some(detail.as_str()),
            Self::Refused(refusal) => Some(refusal.sentence()),
            _ => None,
        };
        if let Some(detail) = detail {
            about.insert("detail".into(), detail.into());
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
    news: News,
    source: watch::Receiver<Source>,
    /// The reason last sent to the client, while the topic cannot be read.
    reported_down: Option<&'static str>,
}

/// What wakes a stream.
enum News {
    /// Every event.
    All(watch::Receiver<u64>),
    /// An event that concerns the client's keys, or the time for a new cursor.
    Keys {
        subscription: Subscription,
        timer: Pin<Box<Sleep>>,
        due: bool,
    },
}

impl News {
    fn new(feed: &Feed, keys: Option<Keys>) -> Self {
        match keys {
            None => Self::All(feed.watch()),
            Some(keys) => Self::Keys {
                subscription: feed.subscribe(keys),
                timer: Box::pin(sleep(position_interval())),
                due: false,
            },
        }
    }

    fn keys(&self) -> Option<&Keys> {
        match self {
            Self::All(_) => None,
            Self::Keys { subscription, .. } => Some(subscription.keys()),
        }
    }

    /// Everything up to now is about to be taken.
    fn mark_seen(&mut self) {
        if let Self::All(head) = self {
            head.mark_unchanged();
        }
    }

    async fn wait(&mut self) {
        match self {
            // The sender lives as long as the process.
            Self::All(head) => _ = head.changed().await,
            Self::Keys {
                subscription,
                timer,
                due,
            } => tokio::select! {
                () = subscription.changed() => {}
                () = timer.as_mut() => {
                    *due = true;
                    timer.as_mut().reset(tokio::time::Instant::now() + position_interval());
                }
            },
        }
    }

    /// Takes what is new from the ring. Returns whether the client needs a new cursor, although there is nothing for it.
    fn take(
        &mut self,
        feed: &Feed,
        reader: &mut RingReader,
        encoding: Encoding,
        batch: &mut Batch,
    ) -> Result<bool, Lagged> {
        match self {
            Self::All(_) => feed.take(reader, encoding, batch).map(|()| false),
            Self::Keys {
                subscription, due, ..
            } => {
                feed.take_keys(reader, subscription, encoding, batch)?;
                let needed = std::mem::take(due) && batch.frames.is_empty();
                Ok(needed && reader.is_unannounced())
            }
        }
    }
}

/// With jitter, so that the connections that a replica accepted at once are not served at once for ever.
fn position_interval() -> Duration {
    POSITION_EVERY.mul_f64(rand::random_range(0.9..1.1))
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
    /// Nothing was sent yet. `finding` looks up the start in Kafka.
    Begin {
        start: Start,
        finding: Option<Reading<Found>>,
    },
    /// The latest records of the client's keys.
    Snapshot(Box<Snapshot>),
    /// The next event is older than the ring, or Kafka must confirm that the cursor belongs to this log.
    Replay {
        vector: Box<Vector>,
        verified: bool,
        /// The newest cursor that the client was sent is older than `vector`: what follows it has other keys.
        unannounced: bool,
        reading: Option<Reading<Replayed>>,
    },
    Ring(RingReader),
}

/// Where a stream starts.
enum Found {
    Vector(Vector),
    Latest(Answer),
}

/// The result of a read from Kafka.
enum Replayed {
    /// The number of partitions, for a client that has read more partitions than this replica.
    Partitions(usize),
    Page(Page),
}

impl State {
    /// `unannounced`: the newest cursor that the client was sent is older than the vector.
    fn replay(vector: Vector, unannounced: bool) -> Self {
        Self::Replay {
            vector: Box::new(vector),
            verified: false,
            unannounced,
            reading: None,
        }
    }
}

impl Stream {
    /// With keys, the stream has only records with one of them.
    pub fn new(topic: Arc<Topic>, start: Start, keys: Option<Keys>, encoding: Encoding) -> Self {
        let news = News::new(&topic.feed, keys);
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
            news,
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
            State::Snapshot(snapshot) => snapshot.before.encode(&self.topic.name),
            State::Replay { vector, .. } => vector.encode(&self.topic.name),
            State::Ring(reader) => self.topic.feed.cursor(reader),
        }
    }

    /// Waits until there is something to write, and takes it. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// If the stream cannot be served. (Boxed, because it is rare.)
    pub async fn next(&mut self, batch: &mut Batch) -> Result<(), Box<End>> {
        loop {
            self.report_source(batch);
            if !batch.frames.is_empty() {
                // Not delayed by the next step, which may have to wait for Kafka.
                return Ok(());
            }
            self.news.mark_seen();
            let step = match &mut self.state {
                State::Begin { .. } if !self.topic.feed.is_filled() => Step::Wait,
                State::Begin { .. } => self.begin(batch).await?,
                State::Snapshot(_) => self.send_latest(batch),
                State::Replay { .. } => self.replay(batch).await,
                State::Ring(reader) => {
                    let feed = &self.topic.feed;
                    match self.news.take(feed, reader, self.encoding, batch) {
                        Ok(true) => {
                            reader.announce();
                            self.send_position(batch);
                            Step::Wait
                        }
                        Ok(false) => Step::Wait,
                        // Slower than the topic: events that the ring has evicted come from Kafka.
                        Err(Lagged) => {
                            let cursor = self.topic.feed.cursor(reader);
                            let vector = Vector::decode(&cursor, &self.topic.name);
                            let keyed = self.news.keys().is_some();
                            let unannounced = keyed && reader.is_unannounced();
                            let vector = vector.expect("the ring's own token");
                            self.state = State::replay(vector, unannounced);
                            Step::Continue
                        }
                    }
                }
            };
            if !batch.frames.is_empty() {
                return Ok(());
            }
            match step {
                Step::Continue => {}
                // A change of Kafka's state wakes the ring's readers too.
                Step::Wait => self.news.wait().await,
                Step::Retry => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Finds the client's start position.
    async fn begin(&mut self, batch: &mut Batch) -> Result<Step, Box<End>> {
        let State::Begin { start, finding } = &mut self.state else {
            return Ok(Step::Continue);
        };
        let Topic { name, feed, .. } = &*self.topic;
        let keys = self.news.keys();
        if finding.is_none() {
            let reader = match start {
                Start::Live => Some(feed.live()),
                // While Kafka is unavailable, fewer messages than requested are better than none; `start` has their position.
                Start::Last(count) => feed.newest(*count, self.topic.is_down(), keys),
                Start::After(token) => match Vector::decode(token, name) {
                    Some(vector) => {
                        self.enter_at(vector, batch);
                        return Ok(Step::Continue);
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
                        return Ok(Step::Continue);
                    }
                },
                Start::Earliest | Start::Time(_) | Start::LatestPerKey => None,
            };
            if let Some(reader) = reader {
                self.enter(reader, batch);
                return Ok(Step::Continue);
            }
            *finding = Some(find(start.clone(), self.topic.clone(), keys.cloned()));
        }
        let Some(found) = finding else {
            return Ok(Step::Continue);
        };
        Ok(match found.await {
            Ok(Found::Vector(vector)) => {
                self.enter_at(vector, batch);
                Step::Continue
            }
            Ok(Found::Latest(Answer::Snapshot(snapshot))) => {
                let cursor = snapshot.before.encode(name);
                self.state = State::Snapshot(Box::new(snapshot));
                self.send_start(&cursor, batch);
                Step::Continue
            }
            Ok(Found::Latest(Answer::OverLimit(sentence))) => {
                return Err(Box::new(End::OverLimit(sentence)));
            }
            Err(error) => {
                *finding = None;
                let error = format!("{error:#}");
                tracing::debug!(topic = name, error, "cannot find a client's start position");
                Step::Retry
            }
        })
    }

    /// Takes the next of the latest records; after the last, a cursor that is after everything that was skipped, and then what
    /// is new.
    fn send_latest(&mut self, batch: &mut Batch) -> Step {
        let State::Snapshot(snapshot) = &mut self.state else {
            return Step::Continue;
        };
        let Topic {
            name, feed, latest, ..
        } = &*self.topic;
        let mut vector = snapshot.before.clone();
        let Some(events) = latest.take(snapshot, SNAPSHOT_BYTES) else {
            // The log was replaced, or its records are over the limit: the backlog has the rest.
            self.state = State::replay(vector, false);
            return Step::Continue;
        };
        for event in &events {
            vector.set(event.partition, event.next);
            let frame = encode::event(event, &vector.encode(name), self.encoding);
            batch.count(event, false, self.encoding.binary);
            batch.frames.push(frame);
        }
        if events.is_empty() {
            let after = std::mem::take(&mut snapshot.after);
            let moved = snapshot.moved;
            self.state = match feed.locate(&after, false) {
                Some(reader) => State::Ring(reader),
                None => State::replay(after, false),
            };
            if moved {
                self.send_position(batch);
            }
        }
        Step::Continue
    }

    fn send_position(&self, batch: &mut Batch) {
        let (cursor, format) = (self.cursor(), self.encoding.format);
        let frame = encode::control(Kind::Position, &cursor, Map::new(), format);
        batch.frames.push(frame);
    }

    /// Starts after this vector.
    fn enter_at(&mut self, vector: Vector, batch: &mut Batch) {
        let cursor = vector.encode(&self.topic.name);
        self.state = match self.topic.feed.locate(&vector, false) {
            // The cursor is the client's own, not the ring's at that position: it describes what the client has.
            Some(reader) => State::Ring(reader),
            None => State::replay(vector, false),
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
            unannounced,
            reading,
        } = &mut self.state
        else {
            return Step::Continue;
        };
        let Topic {
            name, feed, log, ..
        } = &*self.topic;
        let keys = self.news.keys();
        if let Some(reader) = feed.locate(vector, *verified) {
            let unannounced = *unannounced;
            self.state = State::Ring(reader);
            if unannounced {
                self.send_position(batch);
            }
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
                    if !keys::want(keys, event) {
                        return;
                    }
                    batch.count(event, false, self.encoding.binary);
                    let frame = encode::event(event, &vector.encode(name), self.encoding);
                    batch.frames.push(frame);
                });
                if let Some(last) = page.events.last() {
                    *unannounced = !keys::want(keys, last);
                }
                if batch.frames.is_empty() && page.after != **vector {
                    *unannounced = false;
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

/// Looks up a start in Kafka.
fn find(start: Start, topic: Arc<Topic>, keys: Option<Keys>) -> Reading<Found> {
    let head = topic.feed.head();
    Box::pin(async move {
        let log = &topic.log;
        Ok(Found::Vector(match start {
            Start::LatestPerKey => {
                let answer = topic.latest.of(&topic.feed, keys).await?;
                return Ok(Found::Latest(answer));
            }
            Start::Last(events) => {
                let limit = Limit { events, ..MAX_PAGE };
                // Fewer than requested if their keys are rare: the search ends after 5 s, and the stream starts there.
                let page = log.backward_of(keys.as_ref(), head, limit, Purpose::Replay);
                page.await?.before
            }
            Start::Time(time) => log.at_time(time, head, Purpose::Replay).await?,
            _ => {
                let ends = log.ends(head.len(), Purpose::Replay).await?;
                Vector::new(ends.iter().map(|&(low, _)| Position::at(low)).collect())
            }
        }))
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

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::config::Config;
    use crate::encode::Format;
    use crate::kafka::Reader;
    use crate::metrics::Metrics;
    use crate::record::{Message, Payload, Value};

    fn event(offset: i64, key: &str) -> Event {
        let message = Message {
            offset,
            timestamp: Some(offset),
            key: Some(key.as_bytes().to_vec()),
            headers: vec![],
            value: Value::Null,
        };
        Event {
            partition: 0,
            next: Position::after(offset, Some(offset), None),
            payload: Payload::Message(message),
        }
    }

    /// Makes the time for a new cursor come now.
    fn make_due(stream: &mut Stream) {
        if let News::Keys { timer, .. } = &mut stream.news {
            timer.as_mut().reset(Instant::now());
        }
    }

    #[tokio::test]
    async fn a_client_for_whose_keys_nothing_comes_is_sent_a_new_cursor_if_others_received_something()
     {
        let args = ["consumer", "--kafka-bootstrap-servers", "127.0.0.1:1"];
        let config: Config = herald_runtime::config::parse_from(&args).unwrap();
        let reader = Reader::new(&config, Metrics::new().unwrap()).unwrap();
        let topic = reader.topics()[0].clone();
        topic.feed.fill(Page {
            before: Vector::new(vec![Position::default()]),
            ..Page::default()
        });
        let encoding = Encoding {
            format: Format::WebSocket,
            binary: false,
        };
        let keys = Keys::parse(&["a".to_owned()]).unwrap();
        let mut stream = Stream::new(topic.clone(), Start::Live, keys, encoding);
        let mut next = async |due: bool| {
            if due {
                make_due(&mut stream);
            }
            let mut batch = Batch::default();
            let taken = timeout(Duration::from_millis(50), stream.next(&mut batch)).await;
            let kinds: Vec<Kind> = batch.frames.iter().map(|frame| frame.kind).collect();
            (taken.is_ok(), kinds, stream.cursor())
        };
        assert_eq!(next(false).await.1, [Kind::Start]);
        assert!(!next(true).await.0, "nothing has passed");
        topic.feed.push(vec![event(0, "b"), event(1, "b")]);
        assert!(!next(false).await.0, "it is not woken");
        let head = topic.feed.head().encode(&topic.name);
        assert_eq!(next(true).await, (true, vec![Kind::Position], head));
        assert!(!next(true).await.0, "its cursor is new");
        topic.feed.push(vec![event(2, "a")]);
        assert_eq!(next(false).await.1, [Kind::Message]);
        assert!(!next(true).await.0, "its cursor is new");
    }
}
