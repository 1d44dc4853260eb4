//! Server-sent events: one endless response, written one block per wake-up.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use herald_runtime::http::drain::retry;
use herald_runtime::http::{Caller, Connection, failure};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use tokio::time::{Sleep, sleep};
use warp::Reply;
use warp::reply::Response;

use crate::app::App;
use crate::encode::{Encoding, Format};
use crate::feed::Batch;
use crate::metrics::{Metrics, Open};
use crate::query::StreamQuery;
use crate::stream::{End, Stream};

/// A comment is sent after this much silence, so that proxies and browsers keep the connection and a broken one is detected.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Answers `GET /events`.
pub fn answer(
    app: &App,
    query: &StreamQuery,
    headers: &HeaderMap,
    caller: &Caller,
    connection: Option<Arc<Connection>>,
) -> Response {
    let principal = app.principal(caller, headers);
    let found = principal.and_then(|principal| app.topic(query.topic.as_deref(), &principal));
    let (topic, permit) = match found {
        Ok(found) => found,
        Err(error) => return error.response(),
    };
    // A header that is not text becomes an unknown cursor rather than a 400, which would end an EventSource for good.
    let last_event_id = headers
        .get("last-event-id")
        .map(|id| id.to_str().unwrap_or("?"));
    let read = || {
        let (start, keys) = (query.start(last_event_id)?, query.keys()?);
        Ok::<_, String>((start, keys, query.json()?, query.binary()?))
    };
    let (start, keys, json, binary) = match read() {
        Ok(read) => read,
        Err(sentence) => return failure(StatusCode::BAD_REQUEST, &sentence),
    };
    let encoding = Encoding {
        format: if json {
            Format::SseJson
        } else {
            Format::SseText
        },
        binary,
    };
    let open = match app.metrics.open(&permit, encoding.format, keys.is_some()) {
        Ok(open) => open,
        Err(end) => return reject(&end),
    };
    let writer = Writer {
        open,
        stream: Stream::new(topic, start, keys, encoding),
        encoding,
        batch: Batch::default(),
        metrics: app.metrics.clone(),
        connection,
        expired: Box::pin(permit.expired()),
        heartbeat: Box::pin(sleep(HEARTBEAT)),
        wrote: Instant::now(),
        started: false,
        written: false,
        ended: false,
    };
    let drained = Box::pin(app.drain.deadline());
    event_stream(warp::reply::stream(stream::unfold(
        (writer, drained),
        |(mut writer, mut drained)| async move {
            let block = writer.next(&mut drained).await?;
            Some((Ok::<_, Infallible>(block), (writer, drained)))
        },
    )))
}

/// A response with only a `bye`: an `EventSource` reconnects only after a 200, and waits for its `retry`.
pub fn reject(end: &End) -> Response {
    let encoding = Encoding {
        format: Format::SseText,
        binary: false,
    };
    event_stream(bye(end, "", encoding).to_vec())
}

fn event_stream(reply: impl Reply) -> Response {
    let mut response = reply.into_response();
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    // One stream per connection: a client that reconnects over a kept-alive one would reach the process that is shutting down.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn bye(end: &End, cursor: &str, encoding: Encoding) -> Bytes {
    let retry = end.retry();
    let mut block = BytesMut::from(format!("retry: {retry}\n").as_bytes());
    block.extend_from_slice(&end.frame(cursor, retry, encoding).bytes);
    block.freeze()
}

struct Writer {
    stream: Stream,
    encoding: Encoding,
    batch: Batch,
    open: Open,
    metrics: Metrics,
    connection: Option<Arc<Connection>>,
    expired: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// Reset when it fires, not at each write.
    heartbeat: Pin<Box<Sleep>>,
    wrote: Instant,
    started: bool,
    /// The batch was returned as a block.
    written: bool,
    ended: bool,
}

impl Writer {
    /// The next block to write; `None` after the last.
    async fn next(&mut self, drained: &mut (impl Future<Output = ()> + Unpin)) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        // The previous block has reached the socket, or nearly so: only then is the body polled for more.
        if std::mem::take(&mut self.written) {
            self.metrics.delivered(self.encoding.format, &self.batch);
            self.batch.clear();
        }
        if !std::mem::replace(&mut self.started, true) {
            // Written immediately, so that proxies and browsers recognize a stream.
            return Some(Bytes::from(format!("retry: {}\n\n", retry())));
        }
        let end = loop {
            tokio::select! {
                biased;
                () = &mut *drained => break End::Drain,
                () = &mut self.expired => break End::Expired,
                taken = self.stream.next(&mut self.batch) => {
                    if let Err(end) = taken {
                        break *end;
                    }
                    self.written = true;
                    self.wrote = Instant::now();
                    return Some(self.batch.block());
                }
                () = self.heartbeat.as_mut() => {
                    let silent = self.wrote.elapsed() >= HEARTBEAT;
                    if silent {
                        self.wrote = Instant::now();
                    }
                    self.heartbeat.as_mut().reset((self.wrote + HEARTBEAT).into());
                    if silent {
                        return Some(Bytes::from_static(b":\n\n"));
                    }
                }
            }
        };
        self.ended = true;
        self.open.reason = end.reason();
        Some(bye(&end, &self.stream.cursor(), self.encoding))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(reason) = self
            .connection
            .as_ref()
            .and_then(|connection| connection.cut_reason())
        {
            self.open.reason = reason;
        }
    }
}
