//! A connection as its requests see it, and its deadlines.

use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Limits;
use super::io::Socket;

/// A TCP connection, or one stream of HTTP/2, as its requests see it: they may cut it, and query why it was cut. It does not own
/// the socket, so that keeping it (in a session that continues over other connections) keeps no file descriptor.
#[derive(Debug)]
pub struct Connection {
    carrier: Carrier,
    /// The address at its other end: a client's, or a proxy's.
    pub peer: SocketAddr,
    /// Whether it is over the cap.
    pub overload: bool,
    accepted: Instant,
    /// A complete request header has arrived.
    requested: AtomicBool,
    /// The last activity, in tenths of a second after `accepted`.
    active: AtomicU32,
    /// Since when writes make no progress, in the same unit; 0 while they succeed.
    blocked: AtomicU32,
    /// Since when a write has been incomplete, in the same unit; 0 if none is.
    behind: AtomicU32,
    /// Bytes accepted since `behind`.
    taken: AtomicU32,
    /// Bytes accepted in total.
    written: AtomicU64,
    /// When one of its streams was last cut as slow, in the same unit; 0 if none was.
    cut_slow: AtomicU32,
    /// Sessions that were opened over it and have not ended.
    pub sessions: AtomicUsize,
    cut: OnceLock<&'static str>,
}

/// What a request came over.
#[derive(Debug)]
enum Carrier {
    Socket(Weak<Socket>),
    Stream {
        over: Arc<Connection>,
        /// Ends the stream, and is cancelled when it has ended.
        end: CancellationToken,
    },
}

impl Connection {
    pub(super) fn of_socket(socket: &Arc<Socket>, peer: SocketAddr) -> Self {
        let overload = socket.slot.is_over;
        Self::new(Carrier::Socket(Arc::downgrade(socket)), peer, overload)
    }

    /// A stream of HTTP/2 over a connection.
    pub(super) fn of_stream(over: Arc<Self>, overload: bool, end: CancellationToken) -> Self {
        let peer = over.peer;
        let stream = Self::new(Carrier::Stream { over, end }, peer, overload);
        stream.record_requested();
        stream
    }

    fn new(carrier: Carrier, peer: SocketAddr, overload: bool) -> Self {
        Self {
            carrier,
            peer,
            overload,
            accepted: Instant::now(),
            requested: AtomicBool::new(false),
            active: AtomicU32::new(1),
            blocked: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            written: AtomicU64::new(0),
            cut_slow: AtomicU32::new(0),
            sessions: AtomicUsize::new(0),
            cut: OnceLock::new(),
        }
    }

    /// Shuts down the connection in both directions immediately, so that its reads and writes end; or resets the stream, and
    /// leaves the others of its connection alone.
    pub fn cut(&self, reason: &'static str) {
        _ = self.cut.set(reason);
        match &self.carrier {
            Carrier::Socket(socket) => {
                if let Some(socket) = socket.upgrade() {
                    // It fails only if the client has already disconnected.
                    _ = socket.shutdown(Shutdown::Both);
                }
            }
            Carrier::Stream { end, .. } => end.cancel(),
        }
    }

    /// Why it was cut, if it was.
    pub fn cut_reason(&self) -> Option<&'static str> {
        let own = self.cut.get().copied();
        match &self.carrier {
            Carrier::Stream { over, .. } => own.or_else(|| over.cut_reason()),
            Carrier::Socket(_) => own,
        }
    }

    /// The number of written bytes that the kernel has accepted; with TLS, as they are after it.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn is_open(&self) -> bool {
        match &self.carrier {
            Carrier::Socket(socket) => socket.strong_count() > 0,
            Carrier::Stream { end, .. } => !end.is_cancelled(),
        }
    }

    fn now(&self) -> u32 {
        tenths(self.accepted.elapsed()) + 1
    }

    pub(super) fn record_requested(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    pub(super) fn record_active(&self) {
        self.active.store(self.now(), Ordering::Relaxed);
    }

    /// Records that this many bytes were accepted.
    pub(super) fn record_taken(&self, bytes: usize) {
        self.record_active();
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.blocked.load(Ordering::Relaxed) > 0 {
            self.blocked.store(0, Ordering::Relaxed);
        }
        if self.behind.load(Ordering::Relaxed) > 0 {
            self.taken.fetch_add(bytes as u32, Ordering::Relaxed);
        }
    }

    /// Records that nothing waits to be written.
    pub(super) fn record_caught_up(&self) {
        if self.behind.load(Ordering::Relaxed) > 0 {
            self.behind.store(0, Ordering::Relaxed);
        }
    }

    /// Records that no bytes are accepted now.
    pub(super) fn record_blocked(&self) {
        for since in [&self.blocked, &self.behind] {
            if since.load(Ordering::Relaxed) == 0 {
                since.store(self.now(), Ordering::Relaxed);
                if std::ptr::eq(since, &self.behind) {
                    self.taken.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// Cuts the connection when a deadline has passed.
    fn check(&self, limits: &Limits) {
        let now = self.now();
        let passed =
            |since: u32, limit: Duration| since > 0 && now.saturating_sub(since) >= tenths(limit);
        let behind = self.behind.load(Ordering::Relaxed);
        if passed(self.blocked.load(Ordering::Relaxed), limits.stalled) {
            self.cut_as_slow(limits);
        } else if passed(behind, limits.min_bytes_window) {
            // A write that has just completed has reset `behind`: then nothing waits any more.
            let waits =
                self.behind
                    .compare_exchange(behind, now, Ordering::Relaxed, Ordering::Relaxed);
            if waits.is_ok() && self.taken.swap(0, Ordering::Relaxed) < limits.min_bytes {
                self.cut_as_slow(limits);
            }
        } else if !self.requested.load(Ordering::Relaxed) && now > tenths(limits.header) {
            self.cut("header");
        } else if now.saturating_sub(self.active.load(Ordering::Relaxed)) > tenths(limits.idle) {
            self.cut("idle");
        }
    }

    /// A stream that is not read may use up what the client lets all streams of the connection send together: then they wait too,
    /// and continue once it has ended. So streams of a connection are cut one at a time.
    fn cut_as_slow(&self, limits: &Limits) {
        if let Carrier::Stream { over, .. } = &self.carrier {
            let (now, before) = (over.now(), over.cut_slow.load(Ordering::Relaxed));
            if before > 0 && now.saturating_sub(before) < tenths(limits.stalled) {
                return;
            }
            over.cut_slow.store(now, Ordering::Relaxed);
        }
        self.cut("slow");
    }
}

fn tenths(duration: Duration) -> u32 {
    (duration.as_millis() / 100) as u32
}

/// The open connections, and the streams over those of HTTP/2.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Vec<Weak<Connection>>>>);

impl Connections {
    /// Cuts all remaining connections, such as one whose request body never ends.
    pub fn cut_all(&self, reason: &'static str) {
        for connection in self.lock().iter().filter_map(Weak::upgrade) {
            connection.cut(reason);
        }
    }

    pub(super) fn add(&self, connection: &Arc<Connection>) {
        self.lock().push(Arc::downgrade(connection));
    }

    /// Enforces the deadlines of all connections, and forgets those that have ended.
    pub(super) fn check(&self, limits: &Limits) {
        self.lock().retain(|connection| match connection.upgrade() {
            Some(connection) if connection.is_open() => {
                connection.check(limits);
                true
            }
            _ => false,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
