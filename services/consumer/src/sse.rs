//! Server-sent events: one response that does not end, written one block per wake-up.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use tokio::time::{Sleep, sleep};
use warp::Reply;
use warp::reply::Response;

use crate::access::Permit;
use crate::drain::retry;
use crate::encode::{Door, Form};
use crate::feed::Batch;
use crate::http::{App, failure};
use crate::metrics::{Metrics, Open};
use crate::server::Connection;
use crate::start::Asked;
use crate::stream::{End, Stream};

/// A comment after so much silence: proxies and browsers see that the line is alive, we see when it is not.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Answers `GET /events`.
pub fn answer(
    app: &App,
    asked: &Asked,
    headers: &HeaderMap,
    permit: Permit,
    connection: Option<Arc<Connection>>,
) -> Response {
    let topic = match app.topic(asked.topic.as_deref()) {
        Ok(topic) => topic,
        Err(sentence) => return failure(StatusCode::NOT_FOUND, &sentence),
    };
    // What is not text in this header is no cursor of ours: garbled, not refused, since a 400 ends an EventSource for good.
    let last_event_id = headers
        .get("last-event-id")
        .map(|id| id.to_str().unwrap_or("?"));
    let read = || Ok::<_, String>((asked.start(last_event_id)?, asked.json()?, asked.binary()?));
    let (start, json, binary) = match read() {
        Ok(read) => read,
        Err(sentence) => return failure(StatusCode::BAD_REQUEST, &sentence),
    };
    let form = Form {
        door: if json { Door::SseJson } else { Door::SseText },
        binary,
    };
    let writer = Writer {
        stream: Stream::new(topic, start, form),
        form,
        batch: Batch::default(),
        open: app.metrics.open(form.door),
        metrics: app.metrics.clone(),
        connection,
        permit,
        heartbeat: Box::pin(sleep(HEARTBEAT)),
        wrote: Instant::now(),
        begun: false,
        written: false,
        ended: false,
    };
    let turn = Box::pin(app.drain.turn());
    event_stream(warp::reply::stream(stream::unfold(
        (writer, turn),
        |(mut writer, mut turn)| async move {
            let block = writer.next(&mut turn).await?;
            Some((Ok::<_, Infallible>(block), (writer, turn)))
        },
    )))
}

/// An answer of one `bye`: an `EventSource` comes back after 200 and its own `retry`, and after nothing else.
pub fn turn_away(end: &End) -> Response {
    let form = Form {
        door: Door::SseText,
        binary: false,
    };
    event_stream(bye(end, "", form).to_vec())
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
    // One stream per connection: who comes back over a kept-alive one would find the process that is leaving.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn bye(end: &End, cursor: &str, form: Form) -> Bytes {
    let retry = retry();
    let mut block = BytesMut::from(format!("retry: {retry}\n").as_bytes());
    block.extend_from_slice(&end.frame(cursor, retry, form).bytes);
    block.freeze()
}

struct Writer {
    stream: Stream,
    form: Form,
    batch: Batch,
    open: Open,
    metrics: Metrics,
    connection: Option<Arc<Connection>>,
    permit: Permit,
    /// Set anew when it has gone off, not at each write.
    heartbeat: Pin<Box<Sleep>>,
    wrote: Instant,
    begun: bool,
    /// The batch was handed out.
    written: bool,
    ended: bool,
}

impl Writer {
    /// The next block to write; `None` after the last.
    async fn next(&mut self, turn: &mut (impl Future<Output = ()> + Unpin)) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        // What was handed out before is at the socket by now, or close to it: the body is asked for more only then.
        if std::mem::take(&mut self.written) {
            self.metrics.delivered(self.form.door, &self.batch);
            self.batch.clear();
        }
        if !std::mem::replace(&mut self.begun, true) {
            // A first write at once: proxies and browsers then know that this is a stream.
            return Some(Bytes::from(format!("retry: {}\n\n", retry())));
        }
        let end = loop {
            tokio::select! {
                biased;
                () = &mut *turn => break End::Drain,
                () = self.permit.expired() => break End::Expired,
                taken = self.stream.next(&mut self.batch) => match taken {
                    Ok(()) => {
                        self.written = true;
                        self.wrote = Instant::now();
                        return Some(self.batch.block());
                    }
                    Err(end) => break end,
                },
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
        Some(bye(&end, &self.stream.cursor(), self.form))
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
