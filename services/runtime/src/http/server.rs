//! The accept loop: connections with deadlines, caps and small buffers, so that no client can hold an unused one.

mod connection;
mod http2;
mod io;
mod slots;

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::connection::{Connection, Connections};
pub(super) use self::io::Io;
use self::io::Socket;
use self::slots::{Slot, Slots};
use super::tls::Tls;

/// The limits of connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum number of connections; more receive a response that the replica is full. Over HTTP/2, each request in progress
    /// counts as one.
    pub connections: usize,
    /// The same for each address; those far beyond it are closed at once. 0 is no limit.
    pub per_address: usize,
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
    pub fn new(connections: usize, per_address: usize, keep_alive: Duration) -> Self {
        const IDLE: Duration = Duration::from_secs(75);
        Self {
            connections,
            per_address,
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
        let connections = IntGauge::new(
            "herald_connections",
            "connections open now; over HTTP/2, each request in progress counts as one",
        )?;
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

/// The steps in which a server stops.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Further requests should go over another connection: those of HTTP/2 ask their clients for that. (Over HTTP/1.1, a response
    /// does, with `Connection: close`.)
    pub rejecting: CancellationToken,
    /// No more connections are accepted.
    pub shutdown: CancellationToken,
    /// Idle connections close, and the others after their response.
    pub closing: CancellationToken,
}

/// What all listeners of a service have in common.
#[derive(Clone)]
pub struct Server {
    pub limits: Limits,
    pub connections: Connections,
    pub metrics: ServerMetrics,
    /// If set, clients must use it.
    pub tls: Option<Tls>,
    /// In which connections continue when no more are accepted.
    pub tasks: TaskTracker,
    pub stop: Stop,
}

impl Server {
    /// Accepts connections until `stop.shutdown` is cancelled; each request has its [`Connection`] as an extension and is answered
    /// by `answer`.
    pub async fn serve<F, B>(
        self,
        listener: TcpListener,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<hyper::Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let slots = Arc::new(Slots::new(&self.limits, self.metrics.connections.clone()));
        let server = Arc::new(self);
        let tasks = &server.tasks;
        tasks.spawn(watch(server.clone(), slots.clone()));
        // Loopback segments are as large as the send buffer: after each one, the kernel would wait 40 ms for an acknowledgement.
        #[cfg(unix)]
        {
            _ = SockRef::from(&listener).set_tcp_mss(8 << 10);
        }
        loop {
            let room = async {
                while slots.are_exhausted() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                listener.accept().await
            };
            let (stream, peer) = tokio::select! {
                () = server.stop.shutdown.cancelled() => return,
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
            let slot = slots.take(peer.ip());
            if slot.is_far_over {
                server.metrics.rejected("address");
                continue;
            }
            let io = server.open(stream, slot, peer);
            let (server, answer) = (server.clone(), answer.clone());
            if server.tls.is_some() {
                let slots = slots.clone();
                tasks.spawn(async move { server.serve_tls(io, slots, answer).await });
            } else {
                tasks.spawn(async move {
                    let connection = io.connection.clone();
                    server.serve_http1(io, &connection, answer).await;
                    server.count_cut(&connection);
                });
            }
        }
    }

    fn open(&self, stream: TcpStream, slot: Slot, peer: std::net::SocketAddr) -> Io {
        let socket = Arc::new(Socket::new(stream, slot, &self.limits));
        let connection = Arc::new(Connection::of_socket(&socket, peer));
        self.connections.add(&connection);
        Io { socket, connection }
    }

    async fn serve_tls<F, B>(
        &self,
        io: Io,
        slots: Arc<Slots>,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<hyper::Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(tls) = &self.tls else { return };
        let (socket, connection) = (io.socket.clone(), io.connection.clone());
        // A handshake that does not end is cut by the deadline of the first header.
        let shaken = tls.accept(io).await;
        match shaken {
            Ok(stream) if Tls::is_http2(&stream) => {
                // Boxed, because the task reserves the size of the largest of these until it ends.
                let of = (socket, connection.clone());
                Box::pin(http2::serve(stream, of, self, slots, answer)).await;
            }
            Ok(stream) => {
                drop((socket, slots));
                Box::pin(self.serve_http1(stream, &connection, answer)).await;
            }
            Err(error) => {
                tracing::debug!(%error, peer = %connection.peer, "no TLS connection");
                // A client that disconnects was not rejected; some balancers only try whether they can connect.
                if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::Other) {
                    self.metrics.rejected("tls");
                }
            }
        }
        self.count_cut(&connection);
    }

    async fn serve_http1<F, B>(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        connection: &Arc<Connection>,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<hyper::Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let of = connection.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            of.record_requested();
            request.extensions_mut().insert(of.clone());
            // Boxed, because hyper reserves its size while the response's body is written.
            Box::pin(answer(request))
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            // To hyper, an idle connection is one that has not sent its next header; `check` enforces the deadline of the
            // first header.
            .header_read_timeout(self.limits.keep_alive)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut served = std::pin::pin!(served);
        let served = tokio::select! {
            served = &mut served => served,
            () = self.stop.closing.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = served {
            tracing::trace!(%error, cut = connection.cut_reason(), "connection ended");
        }
    }

    fn count_cut(&self, connection: &Connection) {
        if let Some(reason @ ("header" | "idle")) = connection.cut_reason() {
            self.metrics.rejected(reason);
        }
    }
}

/// Enforces the deadlines of all connections, with one timer.
async fn watch(server: Arc<Server>, slots: Arc<Slots>) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    // Draining connections have deadlines too.
    while !server.stop.shutdown.is_cancelled() || slots.taken() > 0 {
        tick.tick().await;
        server.connections.check(&server.limits);
    }
}

#[cfg(test)]
mod tests;
