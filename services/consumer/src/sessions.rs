//! The sessions of Engine.IO, as far as its library does not tell of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use herald_runtime::http::Connection;
use socketioxide::TransportType;
use socketioxide::extract::SocketRef;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What the library's task needs to hand a `bye` to the kernel, before the transport is cut.
pub const LAST_WORD: Duration = Duration::from_millis(100);

/// After so many sessions that a TCP connection has opened and that have not ended, the next one needs another connection.
const PER_CONNECTION: usize = 16;

/// What the library does not tell: how many sessions there are, over which connection each one goes, how often it polled, and
/// which ones we have ended.
#[derive(Default)]
pub struct Sessions {
    open: Arc<AtomicUsize>,
    known: Mutex<HashMap<String, Session>>,
}

/// The room that a session takes, from its handshake to its end: the library keeps the request's extensions as long.
#[derive(Debug)]
pub struct Slot {
    open: Arc<AtomicUsize>,
    connection: Arc<Connection>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.connection.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

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
    /// Room for a session that this connection opens; `None` when there are `most` already.
    pub fn reserve(&self, connection: &Arc<Connection>, most: usize) -> Option<Arc<Slot>> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        connection.sessions.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            open: self.open.clone(),
            connection: connection.clone(),
        };
        (before < most).then(|| Arc::new(slot))
    }

    /// Whether a connection has opened so many sessions that it is to be closed. (A proxy's connection carries many clients:
    /// none of them is rejected for it.)
    pub fn is_full(connection: &Connection) -> bool {
        connection.sessions.load(Ordering::Relaxed) >= PER_CONNECTION
    }

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
    pub fn join(&self, sid: &str) {
        self.lock().entry(sid.to_owned()).or_default().joined = true;
    }

    pub fn forget(&self, sid: &str) {
        self.lock().remove(sid);
    }

    /// How many polls of a session were answered.
    pub fn polls(&self, sid: &str) -> u64 {
        self.lock().get(sid).map_or(0, |session| session.polls)
    }

    /// Tells when a poll of a session was answered.
    pub fn answered(&self, sid: &str) -> Arc<Notify> {
        let sessions = self.lock();
        sessions
            .get(sid)
            .map_or_else(Arc::default, |session| session.answered.clone())
    }

    /// Ends a session by cutting its transport. The library's own `disconnect` would tell the client not to come back.
    pub fn cut(&self, socket: &SocketRef, reason: &'static str) {
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
    pub fn connection(&self, socket: &SocketRef) -> Option<Arc<Connection>> {
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
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
