//! Socket.IO, with socketioxide: the events of the contract and our own.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use herald_runtime::http::{Connection, Permit, failure};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::{HeaderMap, Method, Request, Response as HttpResponse, StatusCode};
use serde_json::{Value as Json, json};
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::handler::ConnectHandler as _;
use socketioxide::layer::SocketIoLayer;
use socketioxide::{SendError, SocketError, SocketIo, TransportType};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};
use warp::Reply;
use warp::reply::Response;

use crate::app::{App, TopicError};
use crate::encode::{Encoding, Format, Frame};
use crate::feed::Batch;
use crate::query::{Start, StreamQuery};
use crate::sessions::{BYE_FLUSH, Sessions};
use crate::stream::{End, Stream};

/// The library's path.
pub const PATH: &str = "/socket.io";

/// While the library's queue is full because the client is slow: the first and the longest delay between two attempts.
const FULL: Duration = Duration::from_millis(1);
const MAX_FULL: Duration = Duration::from_millis(50);

/// Capacity of the library's queue per session, in packets. Pings share the queue, and one that finds it full ends the session,
/// so events fill only a part of it.
const QUEUE: usize = 32;
const EVENT_QUEUE: usize = 24;

/// Maximum bytes in flight, or one message: each packet is a copy of its own.
const MAX_IN_FLIGHT: u64 = 128 << 10;

/// Packets between two polls: python-socketio rejects a response of more than 16, and one may contain those of two polls, and
/// the `bye`.
const POLL_PACKETS: usize = 7;

/// A client that accepts nothing for this long is disconnected.
const STALLED: Duration = Duration::from_secs(10);

/// The layer around the other endpoints.
pub fn layer(app: Arc<App>) -> SocketIoLayer {
    let (layer, io) = SocketIo::builder()
        .ping_interval(Duration::from_secs(25))
        .ping_timeout(Duration::from_secs(20))
        .connect_timeout(Duration::from_secs(10))
        .max_buffer_size(QUEUE)
        .ws_read_buffer_size(1 << 10)
        .ws_max_message_size(64 << 10)
        .ws_max_frame_size(64 << 10)
        .build_layer();
    let check = app.clone();
    let reject_invalid = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        let app = check.clone();
        async move { open(&app, &socket, auth.ok()).map(|_| ()) }
    };
    let serve = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        serve(app.clone(), socket, auth.ok())
    };
    io.ns("/", serve.with(reject_invalid));
    layer
}

/// Whether the Engine.IO library would handle this path: its own, and everything below it.
pub fn is_path(path: &str) -> bool {
    path.strip_prefix(PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The response to a request that must not reach the library.
pub fn reject(app: &App, request: &mut Request<Incoming>, end: Option<End>) -> Option<Response> {
    if request.uri().path().len() > PATH.len() + 1 {
        let sentence = "there is nothing at this address; Socket.IO is at /socket.io/";
        return Some(failure(StatusCode::NOT_FOUND, sentence));
    }
    let Some(sid) = session(request) else {
        if let Some(end) = end {
            return Some(app.rejection(&end));
        }
        // One connection can open many sessions.
        let connection = request.extensions().get::<Arc<Connection>>()?;
        let Some(slot) = app.sessions.reserve(connection, app.max_connections) else {
            return Some(app.rejection(&End::Overload));
        };
        request.extensions_mut().insert(slot);
        return None;
    };
    // A poll may still deliver the `bye`.
    (!is_poll(request) && app.sessions.has_ended(&sid)).then(unknown_session)
}

/// Lets the library answer, unless the server ends the session meanwhile.
pub async fn answer<S, B>(
    app: &App,
    service: S,
    mut request: Request<Incoming>,
) -> Result<Result<HttpResponse<B>, Response>, S::Error>
where
    S: Service<Request<Incoming>, Response = HttpResponse<B>>,
{
    let sid = session(&request);
    let polls = is_poll(&request);
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    detach(&mut request);
    let ended = async {
        match &sid {
            Some(sid) if polls => app.sessions.poll_ended(sid).await,
            _ => std::future::pending().await,
        }
    };
    let mut response = tokio::select! {
        biased;
        response = service.oneshot(request) => response?,
        () = ended => return Ok(Err(unknown_session())),
    };
    match (sid, connection) {
        (None, Some(connection)) if polls && Sessions::is_full(&connection) => {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        (Some(sid), Some(connection)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            app.sessions.upgraded(&sid, &connection);
        }
        (Some(sid), _) if polls && response.status() == StatusCode::OK => app.sessions.polled(&sid),
        _ => {}
    }
    Ok(Ok(response))
}

/// Copies the head of a request. Socket.IO keeps it with the session, and hyper's own head would retain the whole read buffer.
fn detach(request: &mut Request<Incoming>) {
    let mut headers = HeaderMap::with_capacity(request.headers().len());
    for (name, value) in request.headers() {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).expect("it was valid");
        headers.append(
            name,
            HeaderValue::from_bytes(value.as_bytes()).expect("it was valid"),
        );
    }
    *request.headers_mut() = headers;
    let uri = request.uri().to_string();
    *request.uri_mut() = uri.parse().expect("it was valid");
}

/// Whether a Socket.IO request polls, rather than sends or upgrades to a WebSocket.
fn is_poll(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET && !request.headers().contains_key(UPGRADE)
}

/// Engine.IO's own response to an unknown session; the client then opens a new one.
fn unknown_session() -> Response {
    warp::reply::with_status(
        warp::reply::json(&json!({ "code": 1, "message": "Session ID unknown" })),
        StatusCode::BAD_REQUEST,
    )
    .into_response()
}

/// The Engine.IO session of a request, parsed as the library does: a request without one opens a new session.
pub fn session(request: &Request<Incoming>) -> Option<String> {
    let mut parameters = request.uri().query()?.split('&');
    let sid = parameters.find_map(|parameter| parameter.strip_prefix("sid="));
    sid.map(str::to_owned)
}

/// Opens the stream of a client's parameters: `auth` takes precedence over the query of the URL.
///
/// # Errors
///
/// One sentence, which the client receives as `connect_error`.
fn open(
    app: &App,
    socket: &SocketRef,
    auth: Option<Json>,
) -> Result<(Stream, Encoding, Permit, String), String> {
    let query = socket.req_parts().uri.query().unwrap_or_default();
    let query: HashMap<String, String> = serde_urlencoded::from_str(query).unwrap_or_default();
    let given = |name: &str| match auth.as_ref().map(|auth| &auth[name]) {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Number(number)) => Some(number.to_string()),
        _ => query.get(name).cloned(),
    };
    let query = StreamQuery {
        topic: given("topic"),
        after: given("after"),
        from: given("from"),
        last: given("last"),
        binary: given("binary"),
        format: None,
        other: other(auth.as_ref(), &query),
    };
    let headers = &socket.req_parts().headers;
    let (topic, permit) = app
        .topic(query.topic.as_deref(), headers)
        .map_err(TopicError::sentence)?;
    let start: Start = query.start(None)?;
    let encoding = Encoding {
        format: Format::SocketIo,
        binary: query.binary()?,
    };
    let name = topic.name.clone();
    Ok((Stream::new(topic, start, encoding), encoding, permit, name))
}

/// The parameters that neither a stream nor Engine.IO defines.
fn other(auth: Option<&Json>, query: &HashMap<String, String>) -> HashMap<String, String> {
    const KNOWN: [&str; 10] = [
        "topic",
        "after",
        "from",
        "last",
        "binary",
        "EIO",
        "transport",
        "sid",
        "t",
        "b64",
    ];
    let auth = auth.and_then(Json::as_object).into_iter().flatten();
    let given = auth.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    let all = query.clone().into_iter().chain(given);
    all.filter(|(name, _)| !KNOWN.contains(&name.as_str()))
        .collect()
}

async fn serve(app: Arc<App>, socket: SocketRef, auth: Option<Json>) {
    // The middleware has accepted the same parameters.
    let Ok((mut stream, encoding, permit, topic)) = open(&app, &socket, auth) else {
        return;
    };
    app.sessions.join(socket.id.as_str());
    let disconnected = CancellationToken::new();
    let (owner, sid, notify) = (app.clone(), socket.id.to_string(), disconnected.clone());
    socket.on_disconnect(move || {
        owner.sessions.remove(&sid);
        notify.cancel();
        std::future::ready(())
    });
    if !socket.connected() {
        // It disconnected before `on_disconnect` was registered.
        return app.sessions.remove(socket.id.as_str());
    }
    let mut open = app.metrics.open(encoding.format);
    // Sent to this client on every connect: the page of the original contract shows them.
    for (event, data) in [("env", &topic), ("custom_header", &app.custom_header)] {
        if socket.emit(event, &json!({ "data": data })).is_err() {
            return;
        }
    }
    let mut drained = std::pin::pin!(app.drain.deadline());
    let mut expired = std::pin::pin!(permit.expired());
    // `env` and `custom_header` are already in the queue.
    let mut emitter = Emitter::new(socket.clone(), &app.sessions, 2);
    let mut batch = Batch::default();
    let end = loop {
        tokio::select! {
            biased;
            () = disconnected.cancelled() => break None,
            () = &mut drained => break Some(End::Drain),
            () = &mut expired => break Some(End::Expired),
            () = stream.next(&mut batch) => {
                let deadline = Instant::now() + STALLED;
                if let Err(end) = emitter.emit_all(&batch.frames, deadline).await {
                    break end;
                }
                app.metrics.delivered(encoding.format, &batch);
                batch.clear();
            }
        }
    };
    if let Some(end) = end {
        open.reason = end.reason();
        // Events left in the batch were not sent: the client keeps the cursor of the last event that it received.
        let cursor = if batch.frames.is_empty() {
            stream.cursor()
        } else {
            String::new()
        };
        emitter
            .finish(&end.frame(&cursor, end.retry(), encoding))
            .await;
        app.sessions.cut(&socket, end.reason());
    } else if let Some(reason) = app
        .sessions
        .connection(&socket)
        .and_then(|connection| connection.cut_reason())
    {
        open.reason = reason;
    }
}

/// Passes events to the library.
struct Emitter<'a> {
    socket: SocketRef,
    sessions: &'a Sessions,
    /// The number of answered polls at the last check, and what was emitted since.
    polls: u64,
    packets: usize,
    bytes: u64,
    /// On a WebSocket: the end of each emitted packet in the connection's byte stream.
    connection: Option<Arc<Connection>>,
    written: u64,
    ends: VecDeque<u64>,
}

impl<'a> Emitter<'a> {
    /// `packets` were emitted already.
    fn new(socket: SocketRef, sessions: &'a Sessions, packets: usize) -> Self {
        Self {
            socket,
            sessions,
            polls: 0,
            packets,
            bytes: 0,
            connection: None,
            written: 0,
            ends: VecDeque::new(),
        }
    }

    /// Emits all frames. Waits while the queue is full, as long as the client makes progress.
    ///
    /// # Errors
    ///
    /// `None` if the client has disconnected, [`End::Slow`] if it accepted nothing until the deadline. Each byte that it accepts
    /// extends the deadline, because a large message takes a slow client longer.
    async fn emit_all(
        &mut self,
        frames: &[Frame],
        mut deadline: Instant,
    ) -> Result<(), Option<End>> {
        let answered = self.sessions.answered(self.socket.id.as_str());
        for frame in frames {
            let payload = frame
                .value
                .as_deref()
                .expect("frames of this format have one");
            let mut pause = FULL;
            loop {
                if self.has_room() {
                    match self.socket.emit(frame.kind.name(), payload) {
                        Ok(()) => break,
                        Err(SendError::Socket(SocketError::InternalChannelFull)) => {}
                        Err(error) => {
                            tracing::debug!(%error, "socket.io client has disconnected");
                            return Err(None);
                        }
                    }
                }
                if self.has_progressed() {
                    deadline = deadline.max(Instant::now() + STALLED);
                }
                if Instant::now() > deadline {
                    return Err(Some(End::Slow));
                }
                _ = tokio::time::timeout(pause, answered.notified()).await;
                pause = (pause * 2).min(MAX_FULL);
            }
            self.record_emitted(packet_bytes(frame));
            deadline = deadline.max(Instant::now() + STALLED);
        }
        Ok(())
    }

    /// Whether a WebSocket has accepted any bytes since the last call.
    fn has_progressed(&mut self) -> bool {
        let connection = self.connection.as_ref();
        let written = connection.map_or(0, |connection| connection.written());
        std::mem::replace(&mut self.written, written) != written
    }

    /// Emits the last frame, and waits until it has been written, as far as that is observable, or a second has passed.
    async fn finish(&mut self, bye: &Frame) {
        let deadline = Instant::now() + Duration::from_secs(1);
        let sid = self.socket.id.as_str();
        let polls = self.sessions.polls(sid);
        let payload = bye
            .value
            .as_deref()
            .expect("frames of this format have one");
        // The queue and a response to a poll have room for it beside the events that fill their share.
        if self.socket.emit(bye.kind.name(), payload).is_err() {
            return;
        }
        self.record_emitted(packet_bytes(bye));
        tokio::time::sleep(BYE_FLUSH).await;
        while Instant::now() < deadline {
            let written = match (&self.connection, self.ends.back()) {
                (Some(connection), Some(end)) => connection.written() >= *end,
                // A client that is between two polls receives it with the next one.
                _ if self.socket.transport_type() == TransportType::Polling => {
                    self.sessions.polls(self.socket.id.as_str()) != polls
                }
                _ => true,
            };
            if written {
                return;
            }
            tokio::time::sleep(MAX_FULL).await;
        }
    }

    fn record_emitted(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
        if let Some(connection) = &self.connection {
            let begin = self
                .ends
                .back()
                .copied()
                .unwrap_or_default()
                .max(connection.written());
            self.ends.push_back(begin + bytes);
        }
    }

    /// Whether the client can accept one more packet now.
    fn has_room(&mut self) -> bool {
        if self.socket.transport_type() == TransportType::Polling {
            if self.packets < POLL_PACKETS && self.bytes < MAX_IN_FLIGHT {
                return true;
            }
            let polls = self.sessions.polls(self.socket.id.as_str());
            let polled = std::mem::replace(&mut self.polls, polls) != polls;
            if polled {
                (self.packets, self.bytes) = (0, 0);
            }
            return polled || !self.socket.connected();
        }
        if self.connection.is_none() {
            self.connection = self.sessions.connection(&self.socket);
        }
        let Some(connection) = &self.connection else {
            return true;
        };
        let written = connection.written();
        while self.ends.front().is_some_and(|end| *end <= written) {
            self.ends.pop_front();
        }
        let in_flight = self.ends.back().map_or(0, |end| end - written);
        self.ends.len() < EVENT_QUEUE && in_flight < MAX_IN_FLIGHT
    }
}

/// The bytes of an event's packet on a WebSocket: `42["message",…]` in a frame (RFC 6455, section 5.2).
fn packet_bytes(frame: &Frame) -> u64 {
    let text = frame.bytes.len() + frame.kind.name().len() + r#"42["",]"#.len();
    let head = match text {
        ..126 => 2,
        126..0x1_0000 => 4,
        _ => 10,
    };
    (text + head) as u64
}
