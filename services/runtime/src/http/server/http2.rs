//! HTTP/2: many requests over one connection. Each has a [`Connection`] of its own, with the same deadlines, so that one that is slow
//! ends alone.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::io::Socket;
use super::slots::{Slot, Slots};
use super::{Connection, Connections, Server};

/// Maximum number of requests in progress over one connection.
const STREAMS: u32 = 100;

/// Bytes of request bodies that a client may send ahead: for each stream, and for all of a connection together (no less is
/// possible).
const STREAM_WINDOW: u32 = 32 << 10;
const CONNECTION_WINDOW: u32 = 65_535;

/// Bytes of a response that are handed on at once, and that are buffered for a client that does not read.
const PIECE: usize = 16 << 10;

/// Maximum bytes of a request's head, as over HTTP/1.1.
const HEADERS: u32 = 16 << 10;

/// A ping after this much time, and the time for its answer.
const PING: Duration = Duration::from_secs(20);

/// The time for a client to close a connection that has ended, after it has read everything.
const LINGER: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// The stream that a task serves.
    static STREAM: Arc<Connection>;
}

/// Serves a connection until it ends.
pub async fn serve<A, F, B>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (socket, connection): (Arc<Socket>, Arc<Connection>),
    server: &Server,
    slots: Arc<Slots>,
    answer: A,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let streams = Streams(Arc::new(Shared {
        connection: connection.clone(),
        connections: server.connections.clone(),
        tasks: server.tasks.clone(),
        slots,
        open: watch::Sender::new(0),
        extra: Mutex::default(),
    }));
    let of = connection.clone();
    let service = service_fn(move |request| {
        of.record_requested();
        Box::pin(respond(request, answer.clone()))
    });
    // Against clients that only open and reset streams, hyper and h2 close the connection after 20 streams that were reset before
    // they were accepted, and after 1024 that broke the protocol.
    let served = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(PIECE)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(io), service);
    let limits = &server.limits;
    let mut is_closing = false;
    let served = {
        let mut served = pin!(served);
        loop {
            tokio::select! {
                served = &mut served => break served,
                () = server.stop.rejecting.cancelled(), if !is_closing => {}
                () = streams.0.unused(limits.keep_alive), if !is_closing => {}
                () = streams.0.unused(limits.stalled), if is_closing => connection.cut("idle"),
            }
            // The client sends further requests over another connection, and this one ends after the responses of those that it
            // has sent.
            is_closing = true;
            served.as_mut().graceful_shutdown();
        }
    };
    match served {
        Ok(()) => _ = timeout(LINGER, socket.linger()).await,
        Err(error) => {
            tracing::trace!(%error, cut = connection.cut_reason(), "connection ended");
        }
    }
}

async fn respond<F, B>(
    mut request: Request<Incoming>,
    answer: impl Fn(Request<Incoming>) -> F,
) -> Result<Response<Pieces<B>>, Infallible>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes>,
{
    let connection = STREAM.with(Arc::clone);
    let is_head = request.method() == Method::HEAD;
    as_over_http1(&mut request);
    request.extensions_mut().insert(connection.clone());
    let mut response = answer(request).await?;
    if is_head {
        // hyper omits the body only over HTTP/1.1.
        if let Some(length) = response.body().size_hint().exact() {
            let headers = response.headers_mut();
            headers.entry(CONTENT_LENGTH).or_insert(length.into());
        }
    }
    Ok(response.map(|body| Pieces {
        body: (!is_head).then(|| Box::pin(body)),
        rest: Bytes::new(),
        taken: 0,
        connection,
    }))
}

/// Gives a request the headers that it has over HTTP/1.1.
fn as_over_http1(request: &mut Request<Incoming>) {
    let authority = request.uri().authority();
    let host = authority.and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    let headers = request.headers_mut();
    // If both are there and differ, this is the one that browsers send.
    if let Some(host) = host {
        headers.insert(HOST, host);
    }
    // Browsers send each cookie by itself.
    let cookies: Vec<&[u8]> = (headers.get_all(COOKIE).iter())
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
        headers.insert(COOKIE, joined.expect("each is a header value"));
    }
}

/// The streams of a connection, each with a task of its own.
#[derive(Clone)]
struct Streams(Arc<Shared>);

struct Shared {
    connection: Arc<Connection>,
    connections: Connections,
    tasks: TaskTracker,
    slots: Arc<Slots>,
    /// The number of open streams.
    open: watch::Sender<usize>,
    /// The slots of all streams but one, which has that of the connection.
    extra: Mutex<Vec<Slot>>,
}

impl Shared {
    /// Waits until no stream has been open for this long.
    async fn unused(&self, duration: Duration) {
        let mut open = self.open.subscribe();
        // The sender lives as long as `self`.
        loop {
            _ = open.wait_for(|open| *open == 0).await;
            let used = timeout(duration, open.wait_for(|open| *open > 0)).await;
            if used.is_err() {
                return;
            }
        }
    }

    /// Counts one more stream, and returns whether it is over a cap.
    fn begin(&self) -> bool {
        let address: IpAddr = self.connection.peer.ip();
        let mut is_first = false;
        self.open.send_modify(|open| {
            is_first = *open == 0;
            *open += 1;
        });
        if is_first {
            // A connection that was over the cap once may have lasted until others have ended.
            return self.connection.overload && self.slots.is_over(address);
        }
        let slot = self.slots.take(address);
        let is_over = slot.is_over;
        self.extra().push(slot);
        is_over
    }

    fn end(&self) {
        drop(self.extra().pop());
        self.open.send_modify(|open| *open -= 1);
    }

    fn extra(&self) -> std::sync::MutexGuard<'_, Vec<Slot>> {
        self.extra.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a stream. hyper does not poll the body of a response while its client reads nothing, so it could not end itself: a stream
/// that is cut is dropped, which resets it.
impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let (shared, end) = (self.0.clone(), CancellationToken::new());
        let overload = shared.begin();
        let connection = Connection::of_stream(shared.connection.clone(), overload, end.clone());
        let connection = Arc::new(connection);
        shared.connections.add(&connection);
        let ended = Ended(shared.clone(), end.clone());
        shared.tasks.spawn(async move {
            // Whatever it ends by, even a panic.
            let _ended = ended;
            STREAM
                .scope(connection, end.run_until_cancelled(stream))
                .await;
        });
    }
}

struct Ended(Arc<Shared>, CancellationToken);

impl Drop for Ended {
    fn drop(&mut self) {
        self.1.cancel();
        self.0.end();
    }
}

/// The body of a response, in pieces: h2 buffers each one completely, however little of it the client has room for.
struct Pieces<B> {
    /// None if only the head was requested.
    body: Option<Pin<Box<B>>>,
    /// What is left of the current frame.
    rest: Bytes,
    /// The length of the piece that hyper has taken, and has not handed on yet.
    taken: usize,
    connection: Arc<Connection>,
}

impl<B: Body<Data = Bytes>> Pieces<B> {
    fn is_at_end(&self) -> bool {
        (self.body.as_ref()).is_none_or(|body| body.is_end_stream())
    }
}

impl<B: Body<Data = Bytes>> Body for Pieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        this.connection
            .record_taken(std::mem::take(&mut this.taken));
        if this.rest.is_empty() {
            let Some(body) = &mut this.body else {
                return Poll::Ready(None);
            };
            match body.as_mut().poll_frame(cx) {
                Poll::Pending => {
                    this.connection.record_caught_up();
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                ended => return ended,
            }
        }
        // The last byte is a piece of its own: until hyper can hand it on, which is when the client has room for all before it, the
        // response is in progress. Without it, h2 would keep the end of a response that nobody reads.
        let is_last = this.rest.len() > 1 && this.rest.len() <= PIECE && this.is_at_end();
        let length = this.rest.len().min(PIECE) - usize::from(is_last);
        this.taken = length;
        this.connection.record_blocked();
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.is_at_end()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let body = self.body.as_ref().map(|body| body.size_hint());
        let body = body.unwrap_or_else(|| SizeHint::with_exact(0));
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
