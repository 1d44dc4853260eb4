//! The accept loop: connections with deadlines, a cap and small buffers; nobody can hold one without using it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// Connections over the cap that are answered rather than left waiting.
const TURNED_AWAY: i64 = 256;

/// What a connection may do and hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections; more are answered that the replica is full.
    pub connections: usize,
    /// From accepting to the end of the first request's header.
    pub header: Duration,
    /// Without a byte in either direction. Streams have heartbeats, so this ends kept-alive connections and dead requests.
    pub idle: Duration,
    /// With a write that takes nothing.
    pub stalled: Duration,
    /// Bytes that the kernel holds for a reader that does not read (it doubles the number).
    pub send_buffer: usize,
}

impl Limits {
    pub fn new(connections: usize) -> Self {
        Self {
            connections,
            header: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            stalled: Duration::from_secs(10),
            send_buffer: 32 << 10,
        }
    }
}

/// A TCP connection, as the doors see it: they may cut it, and learn why it was cut.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Whether it is over the cap.
    pub overload: bool,
    accepted: Instant,
    /// A request has arrived whole.
    requested: AtomicBool,
    /// In tenths of a second after `accepted`; `blocked` is 0 while writes succeed.
    active: AtomicU32,
    blocked: AtomicU32,
    cut: OnceLock<&'static str>,
    open: prometheus::IntGauge,
}

impl Connection {
    /// Ends the connection in both directions, at once; whoever reads or writes it notices.
    pub fn cut(&self, reason: &'static str) {
        _ = self.cut.set(reason);
        // It fails only when the connection is gone already.
        _ = SockRef::from(&self.stream).shutdown(std::net::Shutdown::Both);
    }

    /// Why it was cut, if it was.
    pub fn cut_reason(&self) -> Option<&'static str> {
        self.cut.get().copied()
    }

    fn now(&self) -> u32 {
        (self.accepted.elapsed().as_millis() / 100) as u32 + 1
    }

    /// Cuts the connection when a deadline has passed.
    fn check(&self, limits: &Limits) {
        let tenths = |duration: Duration| (duration.as_millis() / 100) as u32;
        let now = self.now();
        let blocked = self.blocked.load(Ordering::Relaxed);
        if blocked > 0 && now.saturating_sub(blocked) >= tenths(limits.stalled) {
            self.cut("slow");
        } else if !self.requested.load(Ordering::Relaxed) && now > tenths(limits.header) {
            self.cut("header");
        } else if now.saturating_sub(self.active.load(Ordering::Relaxed)) > tenths(limits.idle) {
            self.cut("idle");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// The connections that are open.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Vec<Weak<Connection>>>>);

impl Connections {
    /// Ends whatever is left, such as kept-alive connections without a request.
    pub fn cut_all(&self, reason: &'static str) {
        for connection in self.lock().iter().filter_map(Weak::upgrade) {
            connection.cut(reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts connections until `shutdown` is cancelled; each request is given its [`Connection`] as an extension and answered
/// by `answer`. Connections go on after that, in `tasks`.
pub async fn serve<F, B>(
    listener: TcpListener,
    limits: Limits,
    open: Connections,
    metrics: Metrics,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) where
    F: Future<Output = Result<hyper::Response<B>, std::convert::Infallible>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    tasks.spawn(watch(
        open.clone(),
        limits.clone(),
        metrics.connections.clone(),
        shutdown.clone(),
    ));
    // Segments on the loopback are as large as the send buffer: after each the kernel would wait 40 ms for an acknowledgement.
    #[cfg(unix)]
    {
        _ = SockRef::from(&listener).set_tcp_mss(8 << 10);
    }
    let cap = limits.connections as i64;
    loop {
        let room = async {
            while metrics.connections.get() >= cap + TURNED_AWAY {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            listener.accept().await
        };
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = room => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Mostly: out of descriptors. Accepting again at once would only spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        prepare(&stream, &limits);
        metrics.connections.inc();
        let connection = Arc::new(Connection {
            stream,
            overload: metrics.connections.get() > cap,
            accepted: Instant::now(),
            requested: AtomicBool::new(false),
            active: AtomicU32::new(1),
            blocked: AtomicU32::new(0),
            cut: OnceLock::new(),
            open: metrics.connections.clone(),
        });
        open.lock().push(Arc::downgrade(&connection));
        let (answer, idle, refused) = (answer.clone(), limits.idle, metrics.clone());
        tasks.spawn(async move {
            let of = connection.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                of.requested.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(of.clone());
                // Boxed, since hyper keeps room for it while the response's body is written.
                Box::pin(answer(request))
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                // For hyper an idle connection is one that has not sent its next header; `check` has the first one's deadline.
                .header_read_timeout(idle)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(Io(connection.clone())), service)
                .with_upgrades()
                .await;
            if let Err(error) = served {
                tracing::trace!(%error, cut = connection.cut_reason(), "connection ended");
            }
            if let Some(reason @ ("header" | "idle")) = connection.cut_reason() {
                refused.refused(reason);
            }
        });
    }
}

/// Looks after the deadlines of all connections, with one timer.
async fn watch(
    open: Connections,
    limits: Limits,
    gauge: prometheus::IntGauge,
    shutdown: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    // Those that drain have their deadlines too.
    while !shutdown.is_cancelled() || gauge.get() > 0 {
        tick.tick().await;
        open.lock().retain(|connection| match connection.upgrade() {
            Some(connection) => {
                connection.check(&limits);
                true
            }
            None => false,
        });
    }
}

/// Failures are not worth the connection: the defaults work too, only less well.
fn prepare(stream: &TcpStream, limits: &Limits) {
    let socket = SockRef::from(stream);
    _ = stream.set_nodelay(true);
    _ = socket.set_send_buffer_size(limits.send_buffer);
    // A peer that vanished without a word: unacknowledged heartbeats end it.
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    }
}

/// The bytes of a connection, with notes on when they moved.
struct Io(Arc<Connection>);

impl Io {
    fn wrote(&self, result: &io::Result<usize>) {
        if result.is_ok() {
            self.0.active.store(self.0.now(), Ordering::Relaxed);
            if self.0.blocked.load(Ordering::Relaxed) > 0 {
                self.0.blocked.store(0, Ordering::Relaxed);
            }
        }
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.0.stream.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.0.blocked.load(Ordering::Relaxed) == 0 {
                        self.0.blocked.store(self.0.now(), Ordering::Relaxed);
                    }
                    return Poll::Pending;
                }
            }
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    self.wrote(&result);
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
            ready!(self.0.stream.poll_read_ready(cx))?;
            // Not `initialize_unfilled`: zeros would make the kernel find memory for room that is hardly ever used.
            match self.0.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(_) => {
                    self.0.active.store(self.0.now(), Ordering::Relaxed);
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
        self.poll_write_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.0.stream).shutdown(std::net::Shutdown::Write))
    }
}
