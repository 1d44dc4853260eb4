//! Socket.IO, with socketioxide: the events of the contract and our own.

mod emitter;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use herald_runtime::http::{Caller, Connection, Permit, Principal, failure};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::{HeaderMap, Method, Request, Response as HttpResponse, StatusCode};
use serde_json::{Value as Json, json};
use socketioxide::SocketIo;
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::handler::ConnectHandler as _;
use socketioxide::layer::SocketIoLayer;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};
use warp::Reply;
use warp::reply::Response;

pub(super) use self::emitter::{Emitter, STALLED};
use super::rooms::{self, Sent};
use crate::app::App;
use crate::encode::{Encoding, Format};
use crate::feed::Batch;
use crate::query::{KEY, Start, StreamQuery, UNREADABLE_QUERY, parse};
use crate::sessions::Sessions;
use crate::stream::{End, Stream};

/// The name of a client's token in `auth`.
const TOKEN: &str = "token";

/// The library's path.
pub const PATH: &str = "/socket.io";

/// Capacity of the library's queue per session, in packets. Pings share the queue, and one that finds it full ends the session,
/// so events fill only a part of it (see `emitter`).
const QUEUE: usize = 32;

/// The protocol's default.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// As the original's server of rooms had it.
const ROOMS_PING_TIMEOUT: Duration = Duration::from_secs(60);

/// The layer around the other endpoints.
pub fn layer(app: Arc<App>) -> SocketIoLayer {
    let (layer, io) = library(PING_TIMEOUT);
    let check = app.clone();
    // Before the client is notified that it is connected, so that nothing that it sends then is missed.
    let reject_invalid = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        let app = check.clone();
        async move {
            let auth = auth.ok();
            let principal = principal(&app, &socket, auth.as_ref())?;
            open(&app, &socket, auth, &principal)?;
            if let Some(rooms) = &app.rooms {
                rooms::admit(rooms, &socket, principal.clone());
            }
            socket.extensions.insert(principal);
            Ok::<_, String>(())
        }
    };
    let serve = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        serve(app.clone(), socket, auth.ok())
    };
    io.ns("/", serve.with(reject_invalid));
    layer
}

/// The layer of an address that has nothing but rooms.
pub fn rooms_layer(app: Arc<App>) -> SocketIoLayer {
    let (layer, io) = library(ROOMS_PING_TIMEOUT);
    let check = app.clone();
    let admit = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        let app = check.clone();
        async move {
            let principal = principal(&app, &socket, auth.ok().as_ref())?;
            if let Some(rooms) = &app.rooms {
                rooms::admit(rooms, &socket, principal.clone());
            }
            socket.extensions.insert(principal);
            Ok::<_, String>(())
        }
    };
    let serve = move |socket: SocketRef| rooms::serve(app.clone(), socket);
    io.ns("/", serve.with(admit));
    layer
}

fn library(ping_timeout: Duration) -> (SocketIoLayer, SocketIo) {
    SocketIo::builder()
        .ping_interval(Duration::from_secs(25))
        .ping_timeout(ping_timeout)
        .connect_timeout(Duration::from_secs(10))
        .max_buffer_size(QUEUE)
        .ws_read_buffer_size(1 << 10)
        .ws_max_message_size(64 << 10)
        .ws_max_frame_size(64 << 10)
        .build_layer()
}

/// Whether the Engine.IO library would handle this path: its own, and everything below it.
pub fn is_path(path: &str) -> bool {
    path.strip_prefix(PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The response to a request that must not reach the library.
pub fn reject(app: &App, request: &mut Request<Incoming>, end: Option<End>) -> Option<Response> {
    if request.uri().path().len() > PATH.len() + 1 {
        let prefix = &app.path_prefix;
        let sentence =
            format!("there is nothing at this address; Socket.IO is at {prefix}/socket.io/");
        return Some(failure(StatusCode::NOT_FOUND, &sentence));
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

/// The client, by `token` in its `auth`, or else by the headers of its session's first request.
///
/// # Errors
///
/// One sentence, which the client receives as `connect_error`.
fn principal(app: &App, socket: &SocketRef, auth: Option<&Json>) -> Result<Principal, String> {
    let token = auth.and_then(|auth| auth[TOKEN].as_str());
    let request = socket.req_parts();
    let caller = request.extensions.get::<Caller>();
    let caller = caller.ok_or_else(|| "internal error: who called is not known".to_owned())?;
    let principal = app.access.principal(caller, &request.headers, token);
    principal.map_err(|refusal| refusal.sentence().to_owned())
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
    principal: &Principal,
) -> Result<Opened, String> {
    let query = socket.req_parts().uri.query().unwrap_or_default();
    let (keys, query) =
        parse::<HashMap<String, String>>(query).ok_or_else(|| UNREADABLE_QUERY.to_owned())?;
    let given = |name: &str| match auth.as_ref().map(|auth| &auth[name]) {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Number(number)) => Some(number.to_string()),
        _ => query.get(name).cloned(),
    };
    let query = StreamQuery {
        key: match auth.as_ref().map(|auth| &auth[KEY]) {
            None | Some(Json::Null) => keys,
            Some(given) => keys_of(given)?,
        },
        topic: given("topic"),
        after: given("after"),
        from: given("from"),
        last: given("last"),
        binary: given("binary"),
        format: None,
        other: other(auth.as_ref(), &query),
    };
    let (topic, permit) = app
        .topic(query.topic.as_deref(), principal)
        .map_err(|error| error.sentence().to_owned())?;
    let start: Start = query.start(None)?;
    let encoding = Encoding {
        format: Format::SocketIo,
        binary: query.binary()?,
    };
    let keys = query.keys()?;
    Ok(Opened {
        topic: topic.name.clone(),
        keyed: keys.is_some(),
        stream: Stream::new(topic, start, keys, encoding),
        encoding,
        permit,
    })
}

/// A stream that is ready to be served.
struct Opened {
    topic: String,
    keyed: bool,
    stream: Stream,
    encoding: Encoding,
    permit: Permit,
}

/// The keys in `auth`: a string or an array of strings, as numbers too.
fn keys_of(given: &Json) -> Result<Vec<String>, String> {
    let text = |value: &Json| match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let keys: Option<Vec<String>> = match given {
        Json::Array(keys) => keys.iter().map(text).collect(),
        key => text(key).map(|key| vec![key]),
    };
    let keys = keys.ok_or_else(|| "key must be a string or an array of strings".to_owned())?;
    if keys.is_empty() {
        // Without a key, the client would receive all records.
        return Err("key is an empty array; give at least one key, or leave it out".to_owned());
    }
    Ok(keys)
}

/// The parameters that neither a stream nor Engine.IO defines.
fn other(auth: Option<&Json>, query: &HashMap<String, String>) -> HashMap<String, String> {
    const KNOWN: [&str; 12] = [
        KEY,
        TOKEN,
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

/// What a client receives next.
enum Next {
    Results(Vec<Sent>),
    Events,
}

async fn serve(app: Arc<App>, socket: SocketRef, auth: Option<Json>) {
    // Its rooms are left when this ends, however early.
    let member = rooms::member(&socket);
    // The middleware has accepted the same client, with the same parameters.
    let Some(principal) = socket.extensions.get::<Principal>() else {
        return;
    };
    let Ok(opened) = open(&app, &socket, auth, &principal) else {
        return;
    };
    let Opened {
        topic,
        keyed,
        mut stream,
        encoding,
        permit,
    } = opened;
    let Some(disconnected) = join(&app, &socket) else {
        return;
    };
    let mut open = match app.metrics.open(&permit, encoding.format, keyed) {
        Ok(open) => open,
        Err(end) => {
            let emitter = Emitter::new(socket.clone(), &app.sessions, 0);
            return end_session(&app, &socket, emitter, &end, "").await;
        }
    };
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
            next = async {
                // In random order: neither delays the other for long.
                tokio::select! {
                    results = member.next() => Ok(Next::Results(results)),
                    taken = stream.next(&mut batch) => taken.map(|()| Next::Events),
                }
            } => {
                let emitted = match next {
                    Err(end) => break Some(*end),
                    Ok(next) => tokio::select! {
                        biased;
                        // A slow client may take long for one batch.
                        () = &mut drained => break Some(End::Drain),
                        () = &mut expired => break Some(End::Expired),
                        emitted = emit(&mut emitter, next, &batch) => emitted,
                    },
                };
                if let Err(end) = emitted {
                    break end;
                }
                app.metrics.delivered(encoding.format, &batch);
                batch.clear();
            }
        }
    };
    let Some(end) = end else {
        open.reason = cut_reason(&app, &socket).unwrap_or(open.reason);
        return;
    };
    open.reason = end.reason();
    // Events left in the batch were not sent: the client keeps the cursor of the last event that it received.
    let cursor = if batch.frames.is_empty() {
        stream.cursor()
    } else {
        String::new()
    };
    end_session(&app, &socket, emitter, &end, &cursor).await;
}

/// Sends the `bye`, and ends the session.
pub(super) async fn end_session(
    app: &App,
    socket: &SocketRef,
    mut emitter: Emitter<'_>,
    end: &End,
    cursor: &str,
) {
    let encoding = Encoding {
        format: Format::SocketIo,
        binary: false,
    };
    emitter
        .finish(&end.frame(cursor, end.retry(), encoding))
        .await;
    app.sessions.cut(socket, end.reason());
}

async fn emit(emitter: &mut Emitter<'_>, next: Next, batch: &Batch) -> Result<(), Option<End>> {
    match next {
        Next::Results(results) => emitter.emit_results(results).await,
        Next::Events => {
            let deadline = Instant::now() + STALLED;
            emitter.emit_all(&batch.frames, deadline).await
        }
    }
}

/// Registers a session, until it disconnects; the token is cancelled then. `None` if it has already.
pub(super) fn join(app: &Arc<App>, socket: &SocketRef) -> Option<CancellationToken> {
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
        app.sessions.remove(socket.id.as_str());
        return None;
    }
    Some(disconnected)
}

/// Why the server cut the connection of a session, if it did.
pub(super) fn cut_reason(app: &App, socket: &SocketRef) -> Option<&'static str> {
    app.sessions.connection(socket)?.cut_reason()
}
