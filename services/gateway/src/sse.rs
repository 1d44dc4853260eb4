//! Server-sent events that show the newest state of something. A client that is slow skips states and then gets all that has
//! changed since the last one that it was sent, so that it costs no more memory than one that is fast.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, stream};
use herald_runtime::http::drain::retry;
use herald_runtime::http::{Opened, Permit};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use prometheus::IntGauge;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};
use warp::Reply;
use warp::reply::Response;

use crate::App;

/// A comment is sent after this much silence, so that proxies and browsers keep the connection and a broken one is detected.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Answers with a stream that counts as one `of` these, and ends when the permit expires. `take` returns the events that a state
/// adds to what the client was sent, or nothing.
pub fn answer<S: Send + Sync + 'static>(
    app: &App,
    of: &str,
    permit: Permit,
    state: watch::Receiver<S>,
    take: impl FnMut(&S) -> Option<Bytes> + Send + Sync + 'static,
) -> Response {
    let opened = match permit.open("sse") {
        Ok(opened) => opened,
        Err(_) => return reject("overload"),
    };
    let gauge = app.metrics.streams.with_label_values(&[of]);
    gauge.inc();
    let writer = Writer {
        state,
        take,
        gauge,
        opened,
        reason: "client",
        end: Box::pin(end(app.drain.deadline(), permit.expired())),
        heartbeat: Box::pin(sleep(HEARTBEAT)),
        wrote: Instant::now(),
        started: false,
        ended: false,
    };
    event_stream(warp::reply::stream(stream::unfold(
        writer,
        |mut writer| async move {
            let block = writer.next().await?;
            Some((Ok::<_, Infallible>(block), writer))
        },
    )))
}

/// A response with only a `bye`: a browser reconnects only after a 200, and waits for its `retry`.
pub fn reject(reason: &str) -> Response {
    event_stream(bye(reason))
}

/// An event. `data` is JSON, which has no line breaks.
pub fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// The problem that a client was sent.
#[derive(Default)]
pub struct Status(Option<String>);

impl Status {
    /// The `status` event if the problem is another one than before: whether the `source` of the states answers, and if not, why.
    pub fn event(&mut self, problem: Option<&str>) -> Option<String> {
        if self.0.as_deref() == problem {
            return None;
        }
        self.0 = problem.map(str::to_owned);
        let data = match problem {
            Some(reason) => json!({"source": "down", "reason": reason}),
            None => json!({"source": "up"}),
        };
        Some(event("status", &data.to_string()))
    }
}

fn bye(reason: &str) -> String {
    let retry = retry();
    let data = json!({"reason": reason, "retry": retry}).to_string();
    format!("retry: {retry}\n{}", event("bye", &data))
}

fn event_stream(reply: impl Reply) -> Response {
    let mut response = reply.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (CACHE_CONTROL, "no-cache, no-transform"),
        // A client that reconnects over the same connection would reach the process that is shutting down.
        (CONNECTION, "close"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn end(drained: impl Future<Output = ()>, expired: impl Future<Output = ()>) -> &'static str {
    tokio::select! {
        biased;
        () = drained => "drain",
        () = expired => "expired",
    }
}

struct Writer<S, T> {
    state: watch::Receiver<S>,
    take: T,
    gauge: IntGauge,
    opened: Opened,
    /// Why it has ended.
    reason: &'static str,
    /// Why the server ends the stream.
    end: Pin<Box<dyn Future<Output = &'static str> + Send + Sync>>,
    /// Reset when it fires, not at each write.
    heartbeat: Pin<Box<Sleep>>,
    wrote: Instant,
    started: bool,
    ended: bool,
}

impl<S, T: FnMut(&S) -> Option<Bytes>> Writer<S, T> {
    /// The next block to write; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if !std::mem::replace(&mut self.started, true) {
            // Written immediately, so that proxies and browsers recognize a stream.
            return Some(format!("retry: {}\n\n", retry()).into());
        }
        let reason = loop {
            // First, or it would wait for as long as there is something to send.
            if let Some(reason) = self.end.as_mut().now_or_never() {
                break reason;
            }
            if let Some(block) = (self.take)(&self.state.borrow_and_update()) {
                self.wrote = Instant::now();
                return Some(block);
            }
            tokio::select! {
                biased;
                reason = &mut self.end => break reason,
                // The sender lives as long as the process.
                _ = self.state.changed() => {}
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
        self.reason = reason;
        Some(bye(reason).into())
    }
}

impl<S, T> Drop for Writer<S, T> {
    fn drop(&mut self) {
        self.gauge.dec();
        self.opened.end(self.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_block_of_lines() {
        assert_eq!(event("change", "[]"), "event: change\ndata: []\n\n");
        let down = "event: status\ndata: {\"reason\":\"a\",\"source\":\"down\"}\n\n";
        let mut status = Status::default();
        assert_eq!(status.event(None), None);
        assert_eq!(status.event(Some("a")).as_deref(), Some(down));
        assert_eq!(status.event(Some("a")), None);
        let up = "event: status\ndata: {\"source\":\"up\"}\n\n";
        assert_eq!(status.event(None).as_deref(), Some(up));
    }
}
