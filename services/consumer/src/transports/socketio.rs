//! Socket.IO, by socketioxide: the contract's events, and ours beside them.

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

use crate::app::{App, Refused};
use crate::encode::{Encoding, Format, Frame};
use crate::feed::Batch;
use crate::query::{Start, StreamQuery};
use crate::sessions::{LAST_WORD, Sessions};
use crate::stream::{End, Stream};

/// Where the library answers.
pub const PATH: &str = "/socket.io";

/// The library's queue is full: its reader is slower than we are. It is asked again after so long, and less and less often.
const FULL: Duration = Duration::from_millis(1);
const FULL_AT_MOST: Duration = Duration::from_millis(50);

/// Packets that the library's queue takes for each session. Its pings wait in it too, and one that finds no room ends the
/// session, so some of it stays free.
const QUEUE: usize = 32;
const QUEUE_OF_EVENTS: usize = 24;

/// Bytes that are handed over before the first of them are taken, or one message: each packet is a copy of its own.
const HANDED_BYTES: u64 = 128 << 10;

/// Packets between two polls: python-socketio gives up on an answer of more than 16, and two polls' worth may meet in one.
const POLL_PACKETS: usize = 7;

/// A reader that takes nothing for so long is ended.
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
    let refuse_invalid = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        let app = check.clone();
        async move { open(&app, &socket, auth.ok()).map(|_| ()) }
    };
    let serve = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        serve(app.clone(), socket, auth.ok())
    };
    io.ns("/", serve.with(refuse_invalid));
    layer
}

/// Whether Engine.IO's library would take this path: its own, and everything below it.
pub fn is_path(path: &str) -> bool {
    path.strip_prefix(PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The answer to a request that the library is not to take.
pub fn reject(app: &App, request: &mut Request<Incoming>, end: Option<End>) -> Option<Response> {
    if request.uri().path().len() > PATH.len() + 1 {
        let sentence = "there is nothing at this address; Socket.IO is at /socket.io/";
        return Some(failure(StatusCode::NOT_FOUND, sentence));
    }
    let Some(sid) = session(request) else {
        if let Some(end) = end {
            return Some(app.refusal(&end));
        }
        // One connection can open many sessions.
        let connection = request.extensions().get::<Arc<Connection>>()?;
        let Some(slot) = app.sessions.reserve(connection, app.max_connections) else {
            return Some(app.refusal(&End::Overload));
        };
        request.extensions_mut().insert(slot);
        return None;
    };
    // A poll may still carry the `bye`.
    (!is_poll(request) && app.sessions.has_ended(&sid)).then(unknown_session)
}

/// Lets the library answer, unless the session is ended by us while it does.
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
    let over = async {
        match &sid {
            Some(sid) if polls => app.sessions.poll_is_over(sid).await,
            _ => std::future::pending().await,
        }
    };
    let mut response = tokio::select! {
        biased;
        response = service.oneshot(request) => response?,
        () = over => return Ok(Err(unknown_session())),
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

/// Copies the head of a request. Socket.IO keeps it with the session, and as hyper gives it, it holds the buffer it was read into.
fn detach(request: &mut Request<Incoming>) {
    let mut headers = HeaderMap::with_capacity(request.headers().len());
    for (name, value) in request.headers() {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).expect("it was one");
        headers.append(
            name,
            HeaderValue::from_bytes(value.as_bytes()).expect("it was one"),
        );
    }
    *request.headers_mut() = headers;
    let uri = request.uri().to_string();
    *request.uri_mut() = uri.parse().expect("it was one");
}

/// Whether a request of Socket.IO polls, rather than sends or goes on as a WebSocket.
fn is_poll(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET && !request.headers().contains_key(UPGRADE)
}

/// Engine.IO's own answer to a session it does not know; the client then opens a new one.
fn unknown_session() -> Response {
    warp::reply::with_status(
        warp::reply::json(&json!({ "code": 1, "message": "Session ID unknown" })),
        StatusCode::BAD_REQUEST,
    )
    .into_response()
}

/// The Engine.IO session that a request belongs to, read as the library reads it: a request in which it finds none opens one.
pub fn session(request: &Request<Incoming>) -> Option<String> {
    let mut parameters = request.uri().query()?.split('&');
    let sid = parameters.find_map(|parameter| parameter.strip_prefix("sid="));
    sid.map(str::to_owned)
}

/// Reads what a client asks for: `auth` on the client, or the query of the URL where `auth` is silent.
///
/// # Errors
///
/// One sentence, which the client gets as `connect_error`.
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
    let wanted = StreamQuery {
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
        .topic(wanted.topic.as_deref(), headers)
        .map_err(Refused::sentence)?;
    let start: Start = wanted.start(None)?;
    let encoding = Encoding {
        format: Format::SocketIo,
        binary: wanted.binary()?,
    };
    let name = topic.name.clone();
    Ok((Stream::new(topic, start, encoding), encoding, permit, name))
}

/// What was given beside the parameters that have a meaning, without Engine.IO's own.
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
    // The middleware has let it in with the same words.
    let Ok((mut stream, encoding, permit, topic)) = open(&app, &socket, auth) else {
        return;
    };
    app.sessions.join(socket.id.as_str());
    let gone = CancellationToken::new();
    let (of, sid, told) = (app.clone(), socket.id.to_string(), gone.clone());
    socket.on_disconnect(move || {
        of.sessions.forget(&sid);
        told.cancel();
        std::future::ready(())
    });
    if !socket.connected() {
        // It left before there was anyone to be told.
        return app.sessions.forget(socket.id.as_str());
    }
    let mut open = app.metrics.open(encoding.format);
    // To this client alone, at every connect: the page of the contract's original shows them.
    for (event, data) in [("env", &topic), ("custom_header", &app.custom_header)] {
        if socket.emit(event, &json!({ "data": data })).is_err() {
            return;
        }
    }
    let mut drained = std::pin::pin!(app.drain.deadline());
    let mut expired = std::pin::pin!(permit.expired());
    // `env` and `custom_header` are on their way.
    let mut emitter = Emitter::new(socket.clone(), &app.sessions, 2);
    let mut batch = Batch::default();
    let end = loop {
        tokio::select! {
            biased;
            () = gone.cancelled() => break None,
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
        // What is left in the batch was not handed over: the client keeps the cursor of the last event that it got.
        let cursor = if batch.frames.is_empty() {
            stream.cursor()
        } else {
            String::new()
        };
        let bye = [end.frame(&cursor, end.retry(), encoding)];
        let handed_over = emitter.emit_all(&bye, Instant::now() + LAST_WORD);
        _ = tokio::time::timeout(LAST_WORD, handed_over).await;
        emitter.taken().await;
        app.sessions.cut(&socket, end.reason());
    } else if let Some(reason) = app
        .sessions
        .connection(&socket)
        .and_then(|connection| connection.cut_reason())
    {
        open.reason = reason;
    }
}

/// Hands events to the library.
struct Emitter<'a> {
    socket: SocketRef,
    sessions: &'a Sessions,
    /// Polls that were answered when it was looked the last time, and what was handed over since.
    polls: u64,
    packets: usize,
    bytes: u64,
    /// Over a WebSocket: where in the bytes of the connection each packet that was handed over ends.
    connection: Option<Arc<Connection>>,
    written: u64,
    ends: VecDeque<u64>,
}

impl<'a> Emitter<'a> {
    /// `packets` were handed over already.
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

    /// Hands over all of them. No room means to wait, as long as anything moves.
    ///
    /// # Errors
    ///
    /// `None` when the client is gone, [`End::Slow`] when it took nothing until the deadline. A large message takes a slow reader
    /// longer: each byte of it puts the deadline off.
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
                            tracing::debug!(%error, "socket.io client is gone");
                            return Err(None);
                        }
                    }
                }
                if self.has_moved() {
                    deadline = deadline.max(Instant::now() + STALLED);
                }
                if Instant::now() > deadline {
                    return Err(Some(End::Slow));
                }
                _ = tokio::time::timeout(pause, answered.notified()).await;
                pause = (pause * 2).min(FULL_AT_MOST);
            }
            self.handed_over(packet_bytes(frame));
            deadline = deadline.max(Instant::now() + STALLED);
        }
        Ok(())
    }

    /// Whether a WebSocket has taken anything since this was last asked.
    fn has_moved(&mut self) -> bool {
        let connection = self.connection.as_ref();
        let written = connection.map_or(0, |connection| connection.written());
        std::mem::replace(&mut self.written, written) != written
    }

    /// Waits until the client has taken everything, as far as that can be seen, or a second has passed.
    async fn taken(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        tokio::time::sleep(LAST_WORD).await;
        while let (Some(connection), Some(end)) = (&self.connection, self.ends.back())
            && connection.written() < *end
            && Instant::now() < deadline
        {
            tokio::time::sleep(FULL_AT_MOST).await;
        }
    }

    fn handed_over(&mut self, bytes: u64) {
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

    /// Whether the client can take one more packet now.
    fn has_room(&mut self) -> bool {
        if self.socket.transport_type() == TransportType::Polling {
            if self.packets < POLL_PACKETS && self.bytes < HANDED_BYTES {
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
        let waiting = self.ends.back().map_or(0, |end| end - written);
        self.ends.len() < QUEUE_OF_EVENTS && waiting < HANDED_BYTES
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
