//! Socket.IO, by socketioxide: the contract's events, and ours beside them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::handler::ConnectHandler as _;
use socketioxide::layer::SocketIoLayer;
use socketioxide::{SendError, SocketError, SocketIo, TransportType};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::access::Permit;
use crate::drain::retry;
use crate::encode::{Door, Form, Frame};
use crate::feed::Batch;
use crate::http::App;
use crate::server::Connection;
use crate::start::{Asked, Start};
use crate::stream::{End, Stream};

/// Where the library answers.
pub const PATH: &str = "/socket.io";

/// The library's queue is full: its reader is slower than we are. It is asked again after so long, and less and less often.
const FULL: Duration = Duration::from_millis(1);
const FULL_AT_MOST: Duration = Duration::from_millis(50);

/// Packets between two polls: python-socketio gives up on an answer of more than 16, and two polls' worth may meet in one.
const POLL_PACKETS: usize = 7;

/// A reader that takes nothing for so long is ended.
const STALLED: Duration = Duration::from_secs(10);

/// What the library's task needs to hand a `bye` to the kernel, before the transport is cut.
const LAST_WORD: Duration = Duration::from_millis(100);

/// The layer around the other doors.
pub fn layer(app: Arc<App>) -> SocketIoLayer {
    let (layer, io) = SocketIo::builder()
        .ping_interval(Duration::from_secs(25))
        .ping_timeout(Duration::from_secs(20))
        .connect_timeout(Duration::from_secs(10))
        // Each packet is a copy of its own, as large as a message may be.
        .max_buffer_size(16)
        .ws_read_buffer_size(1 << 10)
        .ws_max_message_size(64 << 10)
        .ws_max_frame_size(64 << 10)
        .build_layer();
    let check = app.clone();
    let refuse_invalid = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        let app = check.clone();
        async move {
            // One connection can open many sessions.
            if app.metrics.open_streams() >= app.max_connections {
                return Err("this replica is full; come back in a moment".to_owned());
            }
            open(&app, &socket, auth.ok()).map(|_| ())
        }
    };
    let serve = move |socket: SocketRef, TryData(auth): TryData<Json>| {
        serve(app.clone(), socket, auth.ok())
    };
    io.ns("/", serve.with(refuse_invalid));
    layer
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
) -> Result<(Stream, Form, String), String> {
    let query = socket.req_parts().uri.query().unwrap_or_default();
    let query: HashMap<String, String> = serde_urlencoded::from_str(query).unwrap_or_default();
    let given = |name: &str| match auth.as_ref().map(|auth| &auth[name]) {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Number(number)) => Some(number.to_string()),
        _ => query.get(name).cloned(),
    };
    let asked = Asked {
        topic: given("topic"),
        after: given("after"),
        from: given("from"),
        last: given("last"),
        binary: given("binary"),
        format: None,
    };
    let topic = app.topic(asked.topic.as_deref())?;
    let start: Start = asked.start(None)?;
    let form = Form {
        door: Door::SocketIo,
        binary: asked.binary()?,
    };
    let name = topic.name.clone();
    Ok((Stream::new(topic, start, form), form, name))
}

async fn serve(app: Arc<App>, socket: SocketRef, auth: Option<Json>) {
    // The middleware has let it in with the same words.
    let Ok((mut stream, form, topic)) = open(&app, &socket, auth) else {
        return;
    };
    let permit = socket
        .req_parts()
        .extensions
        .get::<Permit>()
        .copied()
        .unwrap_or_default();
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
    let mut open = app.metrics.open(form.door);
    // To this client alone, at every connect: the page of the contract's original shows them.
    for (event, data) in [("env", &topic), ("custom_header", &app.custom_header)] {
        if socket.emit(event, &json!({ "data": data })).is_err() {
            return;
        }
    }
    let mut turn = std::pin::pin!(app.drain.turn());
    let mut expired = std::pin::pin!(permit.expired());
    let mut emitter = Emitter {
        socket: socket.clone(),
        sessions: &app.sessions,
        polls: 0,
        packets: 2,
    };
    let mut batch = Batch::default();
    let end = loop {
        tokio::select! {
            biased;
            () = gone.cancelled() => break None,
            () = &mut turn => break Some(End::Drain),
            () = &mut expired => break Some(End::Expired),
            taken = stream.next(&mut batch) => {
                let written = match taken {
                    Ok(()) => emitter.emit_all(&batch.frames, Instant::now() + STALLED).await,
                    Err(end) => Err(Some(end)),
                };
                if let Err(end) = written {
                    break end;
                }
                app.metrics.delivered(form.door, &batch);
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
        let bye = end.frame(&cursor, retry(), form);
        _ = emitter.emit_all(&[bye], Instant::now() + LAST_WORD).await;
        tokio::time::sleep(LAST_WORD).await;
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
    /// Polls that were answered when it was looked the last time, and packets since.
    polls: u64,
    packets: usize,
}

impl Emitter<'_> {
    /// Hands over all of them. The library's queue being full means to wait, as long as anything moves.
    ///
    /// # Errors
    ///
    /// `None` when the client is gone, [`End::Slow`] when it took nothing until the deadline.
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
                .expect("frames of this door have one");
            let mut pause = FULL;
            loop {
                let emitted = match self.has_room() {
                    true => self.socket.emit(frame.kind.name(), payload),
                    false => Err(SendError::Socket(SocketError::InternalChannelFull)),
                };
                match emitted {
                    Ok(()) => break,
                    Err(SendError::Socket(SocketError::InternalChannelFull)) => {
                        if Instant::now() > deadline {
                            return Err(Some(End::Slow));
                        }
                        _ = tokio::time::timeout(pause, answered.notified()).await;
                        pause = (pause * 2).min(FULL_AT_MOST);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "socket.io client is gone");
                        return Err(None);
                    }
                }
            }
            self.packets += 1;
            deadline = deadline.max(Instant::now() + STALLED);
        }
        Ok(())
    }

    /// Whether a polling client can take one more packet with its next poll.
    fn has_room(&mut self) -> bool {
        if self.packets < POLL_PACKETS || self.socket.transport_type() != TransportType::Polling {
            return true;
        }
        let polls = self.sessions.polls(self.socket.id.as_str());
        let polled = std::mem::replace(&mut self.polls, polls) != polls;
        if polled {
            self.packets = 0;
        }
        polled || !self.socket.connected()
    }
}

/// What the library does not tell: over which connection a session goes, how often it polled, and which ones we have ended.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<String, Session>>);

#[derive(Default)]
struct Session {
    /// The WebSocket that a polling session was upgraded to.
    upgraded: Weak<Connection>,
    /// How many polls were answered, and who waits for the next one.
    polls: u64,
    answered: Arc<Notify>,
    joined: bool,
    /// Cancelled when we have ended it.
    cut: CancellationToken,
}

impl Sessions {
    /// A session was upgraded to this connection.
    pub fn upgraded(&self, sid: &str, connection: &Arc<Connection>) {
        let mut sessions = self.lock();
        // It may not have joined yet, and the library upgrades ids too that it does not know: it closes those connections, and
        // what has neither joined nor a connection is forgotten from time to time.
        if sessions.len() >= 1024 && sessions.len().is_multiple_of(256) {
            sessions.retain(|_, session| session.joined || session.upgraded.strong_count() > 0);
        }
        sessions.entry(sid.to_owned()).or_default().upgraded = Arc::downgrade(connection);
    }

    /// Whether a session was ended by us: the client is to open a new one.
    pub fn has_ended(&self, sid: &str) -> bool {
        let sessions = self.lock();
        sessions
            .get(sid)
            .is_some_and(|session| session.cut.is_cancelled())
    }

    /// Waits until a poll has nothing more to wait for, because its session was ended by us. One that comes or waits after
    /// the end has a moment to carry the `bye`.
    pub async fn poll_is_over(&self, sid: &str) {
        let cut = self.lock().get(sid).map(|session| session.cut.clone());
        let Some(cut) = cut else {
            return std::future::pending().await;
        };
        cut.cancelled().await;
        tokio::time::sleep(LAST_WORD).await;
    }

    /// A poll was answered.
    pub fn polled(&self, sid: &str) {
        if let Some(session) = self.lock().get_mut(sid) {
            session.polls += 1;
            session.answered.notify_one();
        }
    }

    /// A session has joined; it is known until it is forgotten, when the library lets go of it.
    fn join(&self, sid: &str) {
        self.lock().entry(sid.to_owned()).or_default().joined = true;
    }

    fn forget(&self, sid: &str) {
        self.lock().remove(sid);
    }

    /// How many polls of a session were answered.
    fn polls(&self, sid: &str) -> u64 {
        self.lock().get(sid).map_or(0, |session| session.polls)
    }

    /// Tells when a poll of a session was answered.
    fn answered(&self, sid: &str) -> Arc<Notify> {
        let sessions = self.lock();
        sessions
            .get(sid)
            .map_or_else(Arc::default, |session| session.answered.clone())
    }

    /// Ends a session by cutting its transport. The library's own `disconnect` would tell the client not to come back.
    fn cut(&self, socket: &SocketRef, reason: &'static str) {
        match self.connection(socket) {
            Some(connection) => connection.cut(reason),
            None => {
                if let Some(session) = self.lock().get(socket.id.as_str()) {
                    session.cut.cancel();
                }
            }
        }
    }

    /// The connection of a session that goes over a WebSocket.
    fn connection(&self, socket: &SocketRef) -> Option<Arc<Connection>> {
        if socket.transport_type() != TransportType::Websocket {
            return None;
        }
        let sessions = self.lock();
        let upgraded = sessions
            .get(socket.id.as_str())
            .and_then(|session| session.upgraded.upgrade());
        upgraded.or_else(|| {
            socket
                .req_parts()
                .extensions
                .get::<Arc<Connection>>()
                .cloned()
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
