//! `GET /windows/<window>/<start>/<identifier>/messages`: the likes that a result was counted from.

mod result;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use herald_runtime::http::{Action, authorize, failure, unavailable};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sync_wrapper::SyncStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout_at;
use warp::Reply as _;
use warp::reply::Response;

use self::result::{Failure, Found, Window, check, find, rfc3339};
use crate::App;
use crate::http::method_not_allowed;
use crate::kafka::log::{Client, Log, Record, Unavailable};

/// Requests that may read Kafka at once, each with a thread; others wait for this long.
const READERS: usize = 4;
const TURN: Duration = Duration::from_secs(10);

/// The time within which the messages must have been sent.
const SEND: Duration = Duration::from_secs(60);

/// Bytes of messages that are written at once; there are at most four such blocks in memory.
const BLOCK: usize = 32 << 10;

/// Reads the messages of results.
pub struct Messages {
    log: Log,
    turns: Arc<Semaphore>,
}

impl Messages {
    pub fn new(log: Log) -> Self {
        Self {
            log,
            turns: Arc::new(Semaphore::new(READERS)),
        }
    }
}

/// Answers with the result and its messages.
pub async fn answer(
    app: &App,
    segments: [&str; 3],
    method: &Method,
    headers: &HeaderMap,
) -> Response {
    match respond(app, segments, method, headers).await {
        Ok(response) | Err(response) => response,
    }
}

async fn respond(
    app: &App,
    segments: [&str; 3],
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Response> {
    if method != Method::GET {
        return Err(method_not_allowed("GET"));
    }
    let config = &app.config;
    if config.likes_topic.is_empty() {
        let sentence = "this gateway has no likes; set --likes-topic";
        return Err(failure(StatusCode::NOT_FOUND, sentence));
    }
    let window = Window::parse(config, segments);
    let window = window.map_err(|sentence| failure(StatusCode::BAD_REQUEST, &sentence))?;
    let likes = config.partitioned_likes_topic.clone();
    for topic in [&window.topic, &likes] {
        authorize(headers, Action::Read, topic)
            .map_err(|sentence| failure(StatusCode::FORBIDDEN, &sentence))?;
    }
    if Timestamp::now().as_millisecond() < window.end() {
        let end = rfc3339(window.end());
        let sentence = format!("this window is not closed: it ends at {end}");
        return Err(failure(StatusCode::NOT_FOUND, &sentence));
    }
    let turn = app.messages.turns.clone().acquire_owned();
    let Ok(Ok(turn)) = tokio::time::timeout(TURN, turn).await else {
        let sentence = "too many clients read messages of windows; try again in a moment";
        return Err(unavailable(sentence, 5));
    };
    let log = app.messages.log.clone();
    let found = tokio::task::spawn_blocking(move || -> Result<_, Failure> {
        let client = log.open()?;
        let result = find(&client, &window)?;
        check(&client, &likes, &result)?;
        Ok(Reading {
            client,
            window,
            likes,
            result,
            _turn: turn,
        })
    });
    let found = tokio::select! {
        found = found => found.unwrap_or_else(|panic| Err(Failure::Kafka(panic.into()))),
        () = app.drain.deadline() => {
            let sentence = "this replica is shutting down; try again in a moment";
            return Err(unavailable(sentence, 2));
        }
    };
    let reading = found.map_err(|failed| failed.response())?;
    let (blocks, received) = mpsc::channel(2);
    let deadline = Instant::now() + SEND;
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let send = |block: anyhow::Result<Bytes>| {
            let sent = timeout_at(deadline.into(), blocks.send(block));
            matches!(runtime.block_on(sent), Ok(Ok(())))
        };
        if let Err(error) = reading.run(deadline, &send) {
            tracing::warn!(
                error = format!("{error:#}"),
                "the messages of a window are incomplete"
            );
            // The client notices that the response is cut off.
            send(Err(error));
        }
    });
    let body = stream::unfold(received, |mut received| async {
        let block = received.recv().await?;
        Some((block, received))
    });
    let mut response = warp::reply::stream(SyncStream::new(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A result whose messages are being read.
struct Reading {
    client: Client,
    window: Window,
    likes: String,
    result: Found,
    _turn: OwnedSemaphorePermit,
}

impl Reading {
    /// Sends the response in blocks, until the client is gone.
    fn run(
        &self,
        deadline: Instant,
        send: &impl Fn(anyhow::Result<Bytes>) -> bool,
    ) -> anyhow::Result<()> {
        let Found { range, json } = &self.result;
        let mut block = format!(r#"{{"result":{json},"messages":["#).into_bytes();
        let mut is_first = true;
        let starts = match range.from < range.to {
            true => vec![(range.partition, range.from)],
            false => vec![],
        };
        let mut is_connected = true;
        let read = self.client.read(&self.likes, &starts, deadline, |record| {
            if record.offset >= range.to {
                return ControlFlow::Break(());
            }
            if self.contains(record) {
                if !std::mem::take(&mut is_first) {
                    block.push(b',');
                }
                block.extend_from_slice(message(record).to_string().as_bytes());
            }
            if block.len() >= BLOCK {
                is_connected = send(Ok(std::mem::take(&mut block).into()));
            }
            match is_connected && record.offset + 1 < range.to {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        read.map_err(|error| match error.is::<Unavailable>() {
            true => error.context("the messages were deleted while they were read"),
            false => error,
        })?;
        if is_connected {
            block.extend_from_slice(b"]}");
            send(Ok(block.into()));
        }
        Ok(())
    }

    /// Whether the result counted this like.
    fn contains(&self, record: &Record) -> bool {
        let window = &self.window;
        let times = window.start..window.end();
        record.key == window.id.as_bytes() && times.contains(&record.timestamp)
    }
}

/// A record, as the history of the consumer has it.
fn message(record: &Record) -> Value {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    };
    let mut headers = Map::new();
    for (name, value) in record.headers() {
        let name = String::from_utf8_lossy(name).into_owned();
        let value = value.map_or(Value::Null, text);
        match headers.get_mut(&name) {
            None => _ = headers.insert(name, value),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    json!({
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": text(record.key),
        "headers": headers,
        "data": text(record.value),
    })
}
