//! The accept loop: connections with deadlines, a cap and small buffers, so that no client can hold an unused one.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections over the cap that receive a response rather than wait.
const ANSWERED_OVER_CAP: usize = 256;

/// The limits of connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum number of connections; more receive a response that the replica is full.
    pub connections: usize,
    /// Maximum time from accepting to the end of the first request's header.
    pub header: Duration,
    /// Maximum time between two requests.
    pub keep_alive: Duration,
    /// Maximum time without a byte in either direction. Streams have heartbeats, so this ends dead ones and stalled requests.
    pub idle: Duration,
    /// Maximum time that a write makes no progress.
    pub stalled: Duration,
    /// A client that keeps writes waiting must accept this many bytes in each window, or it is too slow.
    pub min_bytes: u32,
    pub min_bytes_window: Duration,
    /// Bytes that the kernel buffers for a client that does not read (it doubles the number).
    pub send_buffer: usize,
}

impl Limits {
    /// `keep_alive` is how long an idle connection is kept open.
    pub fn new(connections: usize, keep_alive: Duration) -> Self {
        const IDLE: Duration = Duration::from_secs(75);
        Self {
            connections,
            header: Duration::from_secs(10),
            keep_alive,
            idle: keep_alive.max(IDLE),
            stalled: Duration::from_secs(10),
            min_bytes: 32 << 10,
            min_bytes_window: Duration::from_secs(30),
            send_buffer: 32 << 10,
        }
    }
}

/// The metrics of connections.
#[derive(Clone, Debug)]
pub struct ServerMetrics {
    connections: IntGauge,
    rejected: IntCounterVec,
}

impl ServerMetrics {
    /// # Errors
    ///
    /// If the registry already has metrics of these names.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let connections = IntGauge::new("herald_connections", "TCP connections open now")?;
        let rejected = IntCounterVec::new(
            Opts::new(
                "herald_connections_refused_total",
                "connections and requests rejected, by reason",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(rejected.clone()))?;
        Ok(Self {
            connections,
            rejected,
        })
    }

    /// Counts a connection or a request that was rejected.
    pub fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }
}

/// A TCP connection, as its requests see it: they may cut it, and query why it was cut. It does not own the socket, so that
/// keeping it (in a session that continues over other connections) keeps no file descriptor.
#[derive(Debug)]
pub struct Connection {
    socket: Weak<Socket>,
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
    /// Sessions that were opened over it and have not ended.
    pub sessions: AtomicUsize,
    cut: OnceLock<&'static str>,
}

/// The socket of a connection. Dropping it closes the connection and updates the count.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    open: Arc<Open>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.open.count.fetch_sub(1, Ordering::Relaxed);
        self.open.gauge.dec();
    }
}

/// The number of open connections, for the cap and as a metric.
#[derive(Debug)]
struct Open {
    count: AtomicUsize,
    gauge: IntGauge,
}

impl Connection {
    /// Shuts down the connection in both directions immediately, so that its reads and writes end.
    pub fn cut(&self, reason: &'static str) {
        _ = self.cut.set(reason);
        if let Some(socket) = self.socket.upgrade() {
            // It fails only if the client has already disconnected.
            _ = SockRef::from(&socket.stream).shutdown(std::net::Shutdown::Both);
        }
    }

    /// Why it was cut, if it was.
    pub fn cut_reason(&self) -> Option<&'static str> {
        self.cut.get().copied()
    }

    /// The number of written bytes that the kernel has accepted.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn now(&self) -> u32 {
        (self.accepted.elapsed().as_millis() / 100) as u32 + 1
    }

    /// Cuts the connection when a deadline has passed.
    fn check(&self, limits: &Limits) {
        let tenths = |duration: Duration| (duration.as_millis() / 100) as u32;
        let now = self.now();
        let passed =
            |since: u32, limit: Duration| since > 0 && now.saturating_sub(since) >= tenths(limit);
        let behind = self.behind.load(Ordering::Relaxed);
        if passed(self.blocked.load(Ordering::Relaxed), limits.stalled) {
            self.cut("slow");
        } else if passed(behind, limits.min_bytes_window) {
            // A write that has just completed has reset `behind`: then nothing waits any more.
            let waits =
                self.behind
                    .compare_exchange(behind, now, Ordering::Relaxed, Ordering::Relaxed);
            if waits.is_ok() && self.taken.swap(0, Ordering::Relaxed) < limits.min_bytes {
                self.cut("slow");
            }
        } else if !self.requested.load(Ordering::Relaxed) && now > tenths(limits.header) {
            self.cut("header");
        } else if now.saturating_sub(self.active.load(Ordering::Relaxed)) > tenths(limits.idle) {
            self.cut("idle");
        }
    }
}

/// The open connections.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Vec<Weak<Connection>>>>);

impl Connections {
    /// Cuts all remaining connections, such as one whose request body never ends.
    pub fn cut_all(&self, reason: &'static str) {
        for connection in self.lock().iter().filter_map(Weak::upgrade) {
            connection.cut(reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two steps in which a server stops.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// No more connections are accepted.
    pub shutdown: CancellationToken,
    /// Idle connections close, and the others after their response.
    pub closing: CancellationToken,
}

/// Accepts connections until `shutdown` is cancelled; each request has its [`Connection`] as an extension and is answered by
/// `answer`. Connections continue in `tasks`; once `closing` is cancelled, idle ones close, and the others after their response.
pub async fn serve<F, B>(
    listener: TcpListener,
    limits: Limits,
    connections: Connections,
    metrics: ServerMetrics,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    tasks: TaskTracker,
    Stop { shutdown, closing }: Stop,
) where
    F: Future<Output = Result<hyper::Response<B>, std::convert::Infallible>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let open = Arc::new(Open {
        count: AtomicUsize::new(0),
        gauge: metrics.connections.clone(),
    });
    tasks.spawn(watch(
        connections.clone(),
        limits.clone(),
        open.clone(),
        shutdown.clone(),
    ));
    // Loopback segments are as large as the send buffer: after each one, the kernel would wait 40 ms for an acknowledgement.
    #[cfg(unix)]
    {
        _ = SockRef::from(&listener).set_tcp_mss(8 << 10);
    }
    loop {
        let room = async {
            while open.count.load(Ordering::Relaxed) >= limits.connections + ANSWERED_OVER_CAP {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            listener.accept().await
        };
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = room => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Usually out of file descriptors: accepting again immediately would only spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        prepare(&stream, &limits);
        let count = open.count.fetch_add(1, Ordering::Relaxed) + 1;
        open.gauge.inc();
        let socket = Arc::new(Socket {
            stream,
            open: open.clone(),
        });
        let connection = Arc::new(Connection {
            socket: Arc::downgrade(&socket),
            peer,
            overload: count > limits.connections,
            accepted: Instant::now(),
            requested: AtomicBool::new(false),
            active: AtomicU32::new(1),
            blocked: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            written: AtomicU64::new(0),
            sessions: AtomicUsize::new(0),
            cut: OnceLock::new(),
        });
        connections.lock().push(Arc::downgrade(&connection));
        let (answer, keep_alive, metrics) = (answer.clone(), limits.keep_alive, metrics.clone());
        let closing = closing.clone();
        tasks.spawn(async move {
            let of = connection.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                of.requested.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(of.clone());
                // Boxed, because hyper reserves its size while the response's body is written.
                Box::pin(answer(request))
            });
            let io = TokioIo::new(Io {
                socket,
                connection: connection.clone(),
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                // To hyper, an idle connection is one that has not sent its next header; `check` enforces the deadline of the
                // first header.
                .header_read_timeout(keep_alive)
                .max_buf_size(16 << 10)
                .serve_connection(io, service)
                .with_upgrades();
            let mut served = std::pin::pin!(served);
            let served = tokio::select! {
                served = &mut served => served,
                () = closing.cancelled() => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            };
            if let Err(error) = served {
                tracing::trace!(%error, cut = connection.cut_reason(), "connection ended");
            }
            if let Some(reason @ ("header" | "idle")) = connection.cut_reason() {
                metrics.rejected(reason);
            }
        });
    }
}

/// Enforces the deadlines of all connections, with one timer.
async fn watch(
    connections: Connections,
    limits: Limits,
    open: Arc<Open>,
    shutdown: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    // Draining connections have deadlines too.
    while !shutdown.is_cancelled() || open.count.load(Ordering::Relaxed) > 0 {
        tick.tick().await;
        connections
            .lock()
            .retain(|connection| match connection.upgrade() {
                Some(connection) if connection.socket.strong_count() > 0 => {
                    connection.check(&limits);
                    true
                }
                _ => false,
            });
    }
}

/// Sets the socket's options. Failures are ignored: the defaults also work, only less well.
fn prepare(stream: &TcpStream, limits: &Limits) {
    let socket = SockRef::from(stream);
    _ = stream.set_nodelay(true);
    _ = socket.set_send_buffer_size(limits.send_buffer);
    // Unacknowledged heartbeats end the connection of a client that vanished.
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    }
}

/// The bytes of a connection; records when they are transferred.
struct Io {
    socket: Arc<Socket>,
    connection: Arc<Connection>,
}

impl Io {
    fn record_written(&self, taken: usize, length: usize) {
        let connection = &self.connection;
        connection.active.store(connection.now(), Ordering::Relaxed);
        connection
            .written
            .fetch_add(taken as u64, Ordering::Relaxed);
        if connection.blocked.load(Ordering::Relaxed) > 0 {
            connection.blocked.store(0, Ordering::Relaxed);
        }
        if connection.behind.load(Ordering::Relaxed) > 0 {
            if taken == length {
                connection.behind.store(0, Ordering::Relaxed);
            }
            connection.taken.fetch_add(taken as u32, Ordering::Relaxed);
        }
    }

    /// Records that the kernel accepts no bytes now.
    fn record_blocked(&self) {
        let connection = &self.connection;
        for since in [&connection.blocked, &connection.behind] {
            if since.load(Ordering::Relaxed) == 0 {
                since.store(connection.now(), Ordering::Relaxed);
                if std::ptr::eq(since, &connection.behind) {
                    connection.taken.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.stream.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.record_blocked();
                    return Poll::Pending;
                }
            }
            match write(&self.socket.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    if let Ok(taken) = result {
                        self.record_written(taken, length);
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.stream.poll_read_ready(cx))?;
            // Not `initialize_unfilled`: zeroing would make the kernel allocate pages that are rarely used.
            match self.socket.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(_) => {
                    self.connection
                        .active
                        .store(self.connection.now(), Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, bytes.len(), |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.poll_write_with(cx, length, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.socket.stream).shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests;
