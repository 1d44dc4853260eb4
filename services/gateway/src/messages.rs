//! `GET /windows/<window>/<start>/<identifier>/messages`: the likes that a result was counted from.

mod result;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use herald_runtime::http::{Action, Principal, Resource, failure, method_not_allowed, unavailable};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sync_wrapper::SyncStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use warp::Reply as _;
use warp::reply::Response;

use self::result::{Failure, Found, Window, check, find, rfc3339};
use crate::kafka::log::{Client, Limit, Log, Record, Unavailable};
use crate::{App, rates};

/// Responses that may be read from Kafka at the same time; the others wait for this long. A response whose client is slow is not
/// read meanwhile.
const READERS: usize = 4;
const WAIT: Duration = Duration::from_secs(10);

/// Responses that may be open at once, each with a thread and a client of Kafka: of all clients, and of one address.
const RESPONSES: usize = 64;
const ADDRESS_RESPONSES: usize = 16;

/// The time within which the next message must come from Kafka, and within which a client must accept the next block.
const PROGRESS: Duration = Duration::from_secs(10);

/// Bytes of messages that are written at once; there are at most four such blocks in memory.
const BLOCK: usize = 32 << 10;

/// Reads the messages of results.
pub struct Messages {
    log: Log,
    readers: Arc<Semaphore>,
    /// The number of open responses of each address.
    responses: Arc<Mutex<HashMap<u128, usize>>>,
}

impl Messages {
    pub fn new(log: Log) -> Self {
        Self {
            log,
            readers: Arc::new(Semaphore::new(READERS)),
            responses: Arc::default(),
        }
    }

    /// Counts one more response; `None` if there are too many.
    fn open(&self, client: &rates::Client) -> Option<Opened> {
        let address = client.address();
        let mut responses = lock(&self.responses);
        let own = responses.get(&address).copied().unwrap_or(0);
        if own >= ADDRESS_RESPONSES || responses.values().sum::<usize>() >= RESPONSES {
            return None;
        }
        responses.insert(address, own + 1);
        drop(responses);
        Some(Opened {
            responses: self.responses.clone(),
            address,
        })
    }
}

/// A response that counts as open until this is dropped.
struct Opened {
    responses: Arc<Mutex<HashMap<u128, usize>>>,
    address: u128,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut responses = lock(&self.responses);
        if let Entry::Occupied(mut own) = responses.entry(self.address) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers with the result and its messages.
pub async fn answer(
    app: &App,
    segments: [&str; 3],
    method: &Method,
    client: &rates::Client,
    principal: &Principal,
) -> Response {
    match respond(app, segments, method, client, principal).await {
        Ok(response) | Err(response) => response,
    }
}

async fn respond(
    app: &App,
    segments: [&str; 3],
    method: &Method,
    client: &rates::Client,
    principal: &Principal,
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
    let permit = principal.may(Action::Read, Resource::Room(&window.id));
    permit.map_err(|refusal| refusal.response())?;
    let likes = config.partitioned_likes_topic.clone();
    if Timestamp::now().as_millisecond() < window.end() {
        let end = rfc3339(window.end());
        let sentence = format!("this window is not closed: it ends at {end}");
        return Err(failure(StatusCode::NOT_FOUND, &sentence));
    }
    let too_many = || {
        let sentence = "too many clients read messages of windows; try again in a moment";
        unavailable(sentence, 5)
    };
    let opened = app.messages.open(client).ok_or_else(too_many)?;
    let reader = app.messages.readers.clone().acquire_owned();
    let Ok(Ok(reader)) = timeout(WAIT, reader).await else {
        return Err(too_many());
    };
    let log = app.messages.log.clone();
    let found = tokio::task::spawn_blocking(move || -> Result<_, Failure> {
        let client = log.open()?;
        let result = find(&client, &window, &likes)?;
        check(&client, &likes, &result)?;
        let reading = Reading {
            client,
            window,
            likes,
            result,
        };
        Ok((reading, reader, opened))
    });
    let found = tokio::select! {
        found = found => found.unwrap_or_else(|panic| Err(Failure::Kafka(panic.into()))),
        () = app.drain.deadline() => {
            let sentence = "this replica is shutting down; try again in a moment";
            return Err(unavailable(sentence, 2));
        }
    };
    let (reading, reader, opened) = found.map_err(|failed| failed.response())?;
    let (blocks, received) = mpsc::channel(2);
    let readers = app.messages.readers.clone();
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let _opened = opened;
        let mut reader = Some(reader);
        let read = reading.run(|block| {
            // Others read while this client is slow.
            reader = None;
            let is_last = block.is_last;
            let sent = timeout(PROGRESS, blocks.send(block));
            let is_sent = matches!(runtime.block_on(sent), Ok(Ok(())));
            if is_last || !is_sent {
                return is_sent;
            }
            let next = timeout(WAIT, readers.clone().acquire_owned());
            reader = runtime.block_on(next).ok().and_then(Result::ok);
            reader.is_some()
        });
        if let Err(error) = read {
            tracing::warn!(
                error = format!("{error:#}"),
                "the messages of a window are incomplete"
            );
        }
    });
    let body = stream::unfold(
        (received, false),
        |(mut received, is_complete)| async move {
            match received.recv().await {
                Some(Block { bytes, is_last }) => Some((Ok(bytes), (received, is_last))),
                None if is_complete => None,
                // The client notices that the response is cut off.
                None => Some((Err(anyhow!("it is incomplete")), (received, true))),
            }
        },
    );
    let mut response = warp::reply::stream(SyncStream::new(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A part of a response.
struct Block {
    bytes: Bytes,
    is_last: bool,
}

/// A result whose messages are being read.
struct Reading {
    client: Client,
    window: Window,
    likes: String,
    result: Found,
}

impl Reading {
    /// Sends the response in blocks, until the client is gone.
    fn run(&self, mut send: impl FnMut(Block) -> bool) -> anyhow::Result<()> {
        let Found { range, json } = &self.result;
        let mut block = format!(r#"{{"result":{json},"messages":["#).into_bytes();
        let mut is_first = true;
        let starts = match range.from < range.to {
            true => vec![(range.partition, range.from)],
            false => vec![],
        };
        let mut is_connected = true;
        let limit = Limit::Pause(PROGRESS);
        let read = self.client.read(&self.likes, &starts, limit, |record| {
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
                is_connected = send(Block {
                    bytes: std::mem::take(&mut block).into(),
                    is_last: false,
                });
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
            send(Block {
                bytes: block.into(),
                is_last: true,
            });
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
