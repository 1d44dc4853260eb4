//! WebSocket: text frames from the client, each published to Kafka as it is.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use herald_events::{Frame, FrameError, Kind as EventKind, Limits};
use herald_runtime::http::{Permit, failure, finish, unavailable};
use hyper::StatusCode;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use serde_json::json;
use tokio::task::consume_budget;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tracing::{Instrument as _, Span};
use warp::Reply as _;
use warp::reply::Response;

use crate::App;
use crate::cursor::Cursor;
use crate::in_flight::{Answer, InFlight, Rejection};
use crate::kafka::Origin;
use crate::rates::{Client, Kind};

/// The interval between pings. A client that answers neither of two is considered disconnected.
const PING: Duration = Duration::from_secs(25);

/// The timeout of the closing handshake, and of one write.
const CLOSING: Duration = Duration::from_secs(2);

/// How often a frame is offered again while the queue to Kafka is full.
const FULL: Duration = Duration::from_millis(20);

/// How long a rate limit may delay a frame. A client that would have to wait longer receives an error instead.
const MAX_HELD: Duration = Duration::from_secs(5);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Answers the handshake; the frames are then read by a task of their own.
pub fn answer(
    app: &Arc<App>,
    origin: Origin,
    client: Client,
    permit: Permit,
    ack: bool,
    key: Option<HeaderValue>,
    upgrade: Option<OnUpgrade>,
) -> Response {
    let (Some(upgrade), Some(key)) = (upgrade, key) else {
        let sentence = "this endpoint requires a WebSocket handshake (version 13)";
        let mut response = failure(StatusCode::UPGRADE_REQUIRED, sentence);
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return response;
    };
    let opened = match permit.open("websocket") {
        Ok(opened) => opened,
        Err(sentence) => return unavailable(&sentence, 5),
    };
    let mut response = warp::reply().into_response();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .expect("base64 is a header value");
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));

    let app = app.clone();
    let tasks = app.tasks.clone();
    let serve = async move {
        let Ok(upgraded) = upgrade.await else {
            return opened.end("client");
        };
        let max = app.config.max_frame_bytes as usize;
        let config = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .write_buffer_size(4 << 10)
            .max_write_buffer_size(64 << 10)
            .max_message_size(Some(max))
            .max_frame_size(Some(max));
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config))
                .await;
        app.metrics.sockets.inc();
        let reader = Reader {
            app: app.clone(),
            origin,
            client,
            permit,
            ack,
            socket,
            in_flight: InFlight::new(app.metrics.unanswered.clone()),
            blocked: None,
            held: None,
            paused: None,
            ending: None,
            invalid: 0,
        };
        let reason = reader.run().await;
        app.metrics.sockets.dec();
        app.metrics.closed.with_label_values(&[reason]).inc();
        opened.end(reason);
    };
    tasks.spawn(serve.instrument(Span::current()));
    response
}

/// A frame that librdkafka's full queue did not take.
struct Blocked {
    text: Utf8Bytes,
    since: Instant,
    is_end: bool,
}

/// A frame that a rate limit delays.
struct Held {
    message: Message,
    /// See [`crate::rates::Rates::check`].
    passed: usize,
    since: Instant,
    until: Instant,
}

/// Counts a connection that is not read, because Kafka does not keep up.
struct Paused(IntGauge);

impl Paused {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Why a connection ends: the close code, the text for the client, and the label for metrics.
struct End(CloseCode, &'static str, &'static str);

const TRY_LATER: End = End(
    CloseCode::Again,
    "kafka does not accept frames; try again later",
    "kafka",
);

const EXPIRED: End = End(CloseCode::Library(4401), "the token has expired", "expired");

/// Reads one connection.
///
/// Every frame has at most one answer, and the answers have the order of the frames. A frame that breaks a rule, or that Kafka
/// rejects for what it is, has an error as its answer and leaves the others alone. If Kafka accepts none, the connection is closed
/// with code 1013, and nothing after the last answer is known: a frame may be in Kafka, may still be written later, or be lost.
/// The client sends it again; equal frames of a session count once.
struct Reader {
    app: Arc<App>,
    origin: Origin,
    client: Client,
    permit: Permit,
    ack: bool,
    socket: Socket,
    in_flight: InFlight,
    /// Nothing more is read before it is taken.
    blocked: Option<Blocked>,
    /// Nothing more is read before its time has come.
    held: Option<Held>,
    paused: Option<Paused>,
    /// How the connection ends once every frame is answered; nothing more is read.
    ending: Option<End>,
    /// Invalid frames in a row.
    invalid: u32,
}

impl Reader {
    /// Reads until the connection ends; returns the reason.
    async fn run(mut self) -> &'static str {
        match self.read().await {
            Ok(End(code, text, label)) => {
                let reason = Utf8Bytes::from_static(text);
                _ = timeout(CLOSING, self.close(CloseFrame { code, reason })).await;
                label
            }
            // What is in flight is still published.
            Err(label) => label,
        }
    }

    /// Closes the connection, and waits until the client has closed it too.
    async fn close(&mut self, frame: CloseFrame) -> Result<(), Error> {
        self.socket.close(Some(frame)).await?;
        while let Some(Ok(_)) = self.socket.next().await {}
        // A frame that is too large has not been read to its end.
        Ok(finish(self.socket.get_mut()).await?)
    }

    async fn read(&mut self) -> Result<End, &'static str> {
        let mut drained = std::pin::pin!(self.app.drain.deadline());
        let mut expired = std::pin::pin!(self.permit.expired());
        let mut next_ping = Instant::now() + PING;
        let mut unanswered = 0;
        loop {
            if self.in_flight.is_empty()
                && self.blocked.is_none()
                && let Some(end) = self.ending.take()
            {
                return Ok(end);
            }
            let config = &self.app.config;
            let buffer = config.session_buffer_bytes as usize;
            let room = self.in_flight.bytes() < buffer && self.blocked.is_none();
            if room {
                self.paused = None;
            } else if self.paused.is_none() {
                self.paused = Some(Paused::new(&self.app.metrics.paused));
            }
            let room = room && self.held.is_none();
            let held_until = self.held.as_ref().map(|held| held.until);
            let oldest = self.in_flight.since();
            let oldest = oldest.or(self.blocked.as_ref().map(|frame| frame.since));
            let expiry = oldest.map(|since| since + config.publish_timeout);
            tokio::select! {
                () = &mut drained, if self.ending.is_none() => {
                    self.ending = Some(End(CloseCode::Away, "this replica is shutting down", "drain"));
                }
                () = &mut expired, if self.ending.is_none() => self.ending = Some(EXPIRED),
                answer = self.in_flight.next() => {
                    if let Some(end) = self.answer_ready(answer).await? {
                        return Ok(end);
                    }
                }
                () = sleep_until(expiry.unwrap_or(next_ping)), if expiry.is_some() => return Ok(TRY_LATER),
                () = sleep(FULL), if self.blocked.is_some() => {
                    if let Some(frame) = self.blocked.take() {
                        self.publish(frame);
                    }
                }
                () = sleep_until(held_until.unwrap_or(next_ping)), if held_until.is_some() && self.ending.is_none() => {
                    if let Some(held) = self.held.take() {
                        self.admit(held).await?;
                    }
                }
                incoming = self.socket.next(), if room && self.ending.is_none() => {
                    unanswered = 0;
                    match incoming {
                        Some(Ok(Message::Close(_))) => {
                            _ = timeout(CLOSING, async { while let Some(Ok(_)) = self.socket.next().await {} }).await;
                            return Err("client");
                        }
                        Some(Ok(message)) => {
                            // Hundreds of frames may have come in one read; timers and other connections have their turn between them.
                            consume_budget().await;
                            let now = Instant::now();
                            self.admit(Held { message, passed: 0, since: now, until: now }).await?;
                        }
                        Some(Err(Error::Capacity(_))) => {
                            self.app.metrics.invalid.with_label_values(&["too-large"]).inc();
                            self.ending = Some(End(CloseCode::Size, "the frame is too large", "too-large"));
                        }
                        Some(Err(Error::Utf8(_))) => {
                            self.app.metrics.invalid.with_label_values(&["not-utf8"]).inc();
                            self.ending = Some(End(CloseCode::Invalid, "the frame is not UTF-8", "not-utf8"));
                        }
                        Some(Err(_)) | None => return Err("client"),
                    }
                }
                () = sleep_until(next_ping) => {
                    // While the socket is not read, neither are the pongs.
                    if room && unanswered == 2 {
                        return Err("timeout");
                    }
                    unanswered += u32::from(room);
                    next_ping = Instant::now() + PING;
                    self.send(Message::Ping(Default::default())).await?;
                }
            }
        }
    }

    /// Handles a frame as soon as the rate limits allow it. A ping counts like any frame: it costs an answer.
    async fn admit(&mut self, mut held: Held) -> Result<(), &'static str> {
        let costs = [(Kind::Frames, 1), (Kind::Bytes, held.message.len())];
        let rates = self.app.rates.clone();
        let Err(exceeded) = rates.check(&self.client, &costs, &mut held.passed) else {
            match held.message {
                Message::Text(text) => self.frame(text),
                Message::Binary(_) => self.reject(Rejection {
                    element: None,
                    label: "binary",
                    sentence: "a frame must be text, not binary".to_owned(),
                }),
                _ => self.flush().await?,
            }
            return Ok(());
        };
        if held.until == held.since {
            rates.count(&exceeded);
        }
        held.until = Instant::now() + exceeded.wait;
        if held.until <= held.since + MAX_HELD {
            self.held = Some(held);
            return Ok(());
        }
        let rejection = Rejection {
            element: None,
            label: "rate-limit",
            sentence: exceeded.sentence(),
        };
        self.in_flight.rejected(rejection, false);
        let text = "too many frames or bytes per second";
        self.ending = Some(End(CloseCode::Policy, text, "rate-limit"));
        Ok(())
    }

    /// Checks and publishes a frame.
    fn frame(&mut self, text: Utf8Bytes) {
        let limits = Limits {
            events: self.app.config.max_frame_events as usize,
        };
        let checked = Frame::parse(text.as_bytes(), limits).map(|frame| {
            frame
                .events
                .last()
                .is_some_and(|event| event.kind == EventKind::End)
        });
        match checked {
            Err(FrameError { element, rule }) => self.reject(Rejection {
                element,
                label: rule.label(),
                sentence: rule.to_string(),
            }),
            Ok(is_end) => {
                self.invalid = 0;
                if is_end {
                    self.ending = Some(End(
                        CloseCode::Normal,
                        "the session has ended",
                        "session-end",
                    ));
                }
                let since = Instant::now();
                self.publish(Blocked {
                    text,
                    since,
                    is_end,
                });
            }
        }
    }

    fn publish(&mut self, frame: Blocked) {
        let (bytes, since, is_end) = (frame.text.len(), frame.since, frame.is_end);
        match self.app.kafka.publish(&self.origin, &frame.text) {
            Ok(Some(delivery)) => self.in_flight.sent(delivery, bytes, since, is_end),
            Ok(None) => self.blocked = Some(frame),
            Err(error) => match Rejection::of(&error) {
                Some(rejection) => self.in_flight.rejected(rejection, is_end),
                None => self.in_flight.failed(error.to_string()),
            },
        }
    }

    /// Rejects an invalid frame, in its turn.
    fn reject(&mut self, rejection: Rejection) {
        self.in_flight.rejected(rejection, false);
        self.invalid += 1;
        if self.invalid >= self.app.config.max_invalid_frames {
            let text = "too many invalid frames in a row";
            self.ending = Some(End(CloseCode::Policy, text, "invalid"));
        }
    }

    /// Writes the answer to the first frame in flight and those that are ready too, all at once. Returns how the connection ends, if
    /// it does now.
    async fn answer_ready(&mut self, first: Answer) -> Result<Option<End>, &'static str> {
        let mut ready = Some(first);
        while let Some(answer) = ready {
            if let Some(end) = self.answer(answer).await? {
                return Ok(Some(end));
            }
            ready = self.in_flight.next().now_or_never();
        }
        self.flush().await?;
        Ok(None)
    }

    /// Queues the answer to a frame. Returns how the connection ends, if it does now.
    async fn answer(&mut self, answer: Answer) -> Result<Option<End>, &'static str> {
        match answer {
            Answer::Acknowledged(delivery) => {
                self.app.metrics.published.inc();
                if self.ack {
                    let (partition, offset) = (delivery.partition, delivery.offset);
                    let topic = &self.app.config.events_topic;
                    let time = delivery.timestamp.to_millis().unwrap_or_default();
                    let cursor = Cursor::new(topic, partition, offset, time).to_string();
                    let ack = json!({"type": "ack", "partition": partition, "offset": offset, "cursor": cursor});
                    self.feed(Message::text(ack.to_string())).await?;
                }
                Ok(None)
            }
            Answer::Rejected { rejection, is_end } => {
                let Rejection {
                    element,
                    label,
                    sentence,
                } = rejection;
                self.app.metrics.invalid.with_label_values(&[label]).inc();
                let error = json!({"type": "error", "element": element, "error": sentence});
                self.feed(Message::text(error.to_string())).await?;
                if is_end {
                    // The end is not in Kafka, so the session goes on.
                    self.ending = None;
                }
                Ok(None)
            }
            Answer::Failed(error) => {
                tracing::warn!(error, "cannot publish a frame");
                Ok(Some(TRY_LATER))
            }
        }
    }

    /// Writes when several kilobytes are queued, or at the next flush.
    async fn feed(&mut self, message: Message) -> Result<(), &'static str> {
        match timeout(CLOSING, self.socket.feed(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("client"),
            Err(_) => Err("slow"),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), &'static str> {
        match timeout(CLOSING, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("client"),
            Err(_) => Err("slow"),
        }
    }

    /// Writes what tungstenite has queued, such as a pong.
    async fn flush(&mut self) -> Result<(), &'static str> {
        match timeout(CLOSING, self.socket.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("client"),
            Err(_) => Err("slow"),
        }
    }
}
