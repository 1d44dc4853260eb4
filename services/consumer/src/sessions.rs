//! State of Engine.IO sessions that the library does not expose.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use herald_runtime::http::Connection;
use socketioxide::TransportType;
use socketioxide::extract::SocketRef;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The time that the library's task needs to hand a `bye` to the kernel, before the transport is cut.
pub const BYE_FLUSH: Duration = Duration::from_millis(100);

/// Open sessions per TCP connection. A connection that has opened this many is closed, so that the next one opens elsewhere.
const PER_CONNECTION: usize = 16;

/// The number of sessions, and for each session its connection, the number of its polls, and whether the server has ended it.
#[derive(Default)]
pub struct Sessions {
    open: Arc<AtomicUsize>,
    known: Mutex<HashMap<String, Session>>,
}

/// A session's share of the capacity, from its handshake to its end: the library keeps the request's extensions that long.
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
    /// The number of answered polls, and a notification of each.
    polls: u64,
    answered: Arc<Notify>,
    joined: bool,
    /// Cancelled when the server has ended the session.
    cut: CancellationToken,
}

impl Sessions {
    /// Reserves capacity for a session that this connection opens; `None` if `max` sessions are open already.
    pub fn reserve(&self, connection: &Arc<Connection>, max: usize) -> Option<Arc<Slot>> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        connection.sessions.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            open: self.open.clone(),
            connection: connection.clone(),
        };
        (before < max).then(|| Arc::new(slot))
    }

    /// Whether a connection has opened so many sessions that it should be closed. (A proxy's connection carries many clients,
    /// so none of them is rejected.)
    pub fn is_full(connection: &Connection) -> bool {
        connection.sessions.load(Ordering::Relaxed) >= PER_CONNECTION
    }

    /// Records that a session was upgraded to this connection.
    pub fn upgraded(&self, sid: &str, connection: &Arc<Connection>) {
        let mut sessions = self.lock();
        // The session may not have joined yet, and the library also upgrades unknown ids, whose connections it then closes:
        // entries that have neither joined nor a connection are removed periodically.
        if sessions.len() >= 1024 && sessions.len().is_multiple_of(256) {
            sessions.retain(|_, session| session.joined || session.upgraded.strong_count() > 0);
        }
        sessions.entry(sid.to_owned()).or_default().upgraded = Arc::downgrade(connection);
    }

    /// Whether the server has ended a session, so that the client must open a new one.
    pub fn has_ended(&self, sid: &str) -> bool {
        let sessions = self.lock();
        sessions
            .get(sid)
            .is_some_and(|session| session.cut.is_cancelled())
    }

    /// Waits until a poll must end because the server has ended its session. The poll gets a moment to deliver the `bye`.
    pub async fn poll_ended(&self, sid: &str) {
        let cut = self.lock().get(sid).map(|session| session.cut.clone());
        let Some(cut) = cut else {
            return std::future::pending().await;
        };
        cut.cancelled().await;
        tokio::time::sleep(BYE_FLUSH).await;
    }

    /// Records that a poll was answered.
    pub fn polled(&self, sid: &str) {
        if let Some(session) = self.lock().get_mut(sid) {
            session.polls += 1;
            session.answered.notify_one();
        }
    }

    /// Records that a session has joined. It is kept until the library releases it, and [`remove`](Self::remove) is called.
    pub fn join(&self, sid: &str) {
        self.lock().entry(sid.to_owned()).or_default().joined = true;
    }

    pub fn remove(&self, sid: &str) {
        self.lock().remove(sid);
    }

    /// The number of answered polls of a session.
    pub fn polls(&self, sid: &str) -> u64 {
        self.lock().get(sid).map_or(0, |session| session.polls)
    }

    /// Notifies of each answered poll of a session.
    pub fn answered(&self, sid: &str) -> Arc<Notify> {
        let sessions = self.lock();
        sessions
            .get(sid)
            .map_or_else(Arc::default, |session| session.answered.clone())
    }

    /// Ends a session by cutting its transport. The library's own `disconnect` would tell the client not to reconnect.
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

    /// The connection of a session that uses a WebSocket.
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
