//! WebSocket: JSON text frames from server to client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use herald_runtime::http::{self, Caller, Connection, Drain, Permit, Refusal, failure};
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{HeaderMap, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::task::consume_budget;
use tokio::time::sleep_until;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use warp::Reply;
use warp::reply::Response;

use crate::app::{App, TopicError};
use crate::encode::{Encoding, Format};
use crate::feed::Batch;
use crate::metrics::{Metrics, Open};
use crate::query::StreamQuery;
use crate::stream::{End, Stream};

/// The interval between pings. A client that answers neither of two is considered disconnected.
const PING: Duration = Duration::from_secs(25);

/// The timeout of the closing handshake.
const CLOSING: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Answers `GET /ws`. An invalid request is reported over the socket: browsers hide the status of a failed handshake from the
/// page.
pub fn answer(
    app: &App,
    query: &StreamQuery,
    headers: &HeaderMap,
    caller: &Caller,
    upgrade: Option<OnUpgrade>,
    connection: Option<Arc<Connection>>,
    rejected: Option<End>,
) -> Response {
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| {
        headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13")
    });
    let (Some(upgrade), Some(key)) = (upgrade, key) else {
        let mut response = failure(
            StatusCode::UPGRADE_REQUIRED,
            "this endpoint requires a WebSocket handshake (version 13)",
        );
        response
            .headers_mut()
            .insert(UPGRADE, HeaderValue::from_static("websocket"));
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return response;
    };
    let mut response = warp::reply().into_response();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .expect("base64 is a header value");
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static("websocket"));

    let opened = match rejected {
        Some(end) => Err(end),
        None => open(app, query, headers, caller),
    };
    let (metrics, drain) = (app.metrics.clone(), app.drain.clone());
    app.tasks.spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        // The defaults are buffers of 128 KiB and messages of 64 MiB, but no client has anything to send.
        let config = WebSocketConfig::default()
            .read_buffer_size(1 << 10)
            .write_buffer_size(0)
            .max_message_size(Some(4 << 10))
            .max_frame_size(Some(4 << 10));
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config))
                .await;
        let encoding = Encoding {
            format: Format::WebSocket,
            binary: false,
        };
        let opened = opened.and_then(|(stream, encoding, permit, keyed)| {
            let open = metrics.open(&permit, encoding.format, keyed)?;
            Ok((stream, encoding, permit, open))
        });
        match opened {
            Err(end) => close(&mut socket, &end, "", encoding).await,
            Ok((stream, encoding, permit, open)) => {
                let mut writer = Writer {
                    stream,
                    encoding,
                    open,
                    metrics,
                    permit,
                };
                writer.run(&mut socket, drain).await;
                if let Some(reason) = connection.and_then(|connection| connection.cut_reason()) {
                    writer.open.reason = reason;
                }
            }
        }
    });
    response
}

fn open(
    app: &App,
    query: &StreamQuery,
    headers: &HeaderMap,
    caller: &Caller,
) -> Result<(Stream, Encoding, Permit, bool), End> {
    let principal = app.principal(caller, headers);
    let found = principal.and_then(|principal| app.topic(query.topic.as_deref(), &principal));
    let (topic, permit) = found.map_err(|error| match error {
        TopicError::Unknown(sentence) => End::Invalid(sentence),
        TopicError::Refused(refusal) => End::Refused(refusal),
    })?;
    let encoding = Encoding {
        format: Format::WebSocket,
        binary: query.binary().map_err(End::Invalid)?,
    };
    let keys = query.keys().map_err(End::Invalid)?;
    let keyed = keys.is_some();
    let start = query.start(None).map_err(End::Invalid)?;
    let stream = Stream::new(topic, start, keys, encoding);
    Ok((stream, encoding, permit, keyed))
}

struct Writer {
    stream: Stream,
    encoding: Encoding,
    open: Open,
    metrics: Metrics,
    permit: Permit,
}

impl Writer {
    async fn run(&mut self, socket: &mut Socket, drain: Drain) {
        let mut drained = std::pin::pin!(drain.deadline());
        let mut expired = std::pin::pin!(self.permit.expired());
        let mut batch = Batch::default();
        let mut ping = std::pin::pin!(sleep_until((Instant::now() + PING).into()));
        let mut unanswered = 0;
        let end = loop {
            tokio::select! {
                biased;
                () = &mut drained => break End::Drain,
                () = &mut expired => break End::Expired,
                incoming = socket.next() => match incoming {
                    // Any message shows that the client is alive. Tungstenite answers pings and closes.
                    Some(Ok(message)) if !message.is_close() => {
                        // Hundreds of frames may have come in one read; timers and other connections have their turn between them.
                        consume_budget().await;
                        unanswered = 0;
                        // Nothing more is read from a client that does not accept its pongs, which tungstenite would queue.
                        if message.is_ping() && socket.flush().await.is_err() {
                            return;
                        }
                    }
                    Some(Err(Error::Capacity(_))) => return self.too_big(socket).await,
                    Some(Ok(_)) => return finish(socket).await,
                    Some(Err(_)) | None => return,
                },
                taken = self.stream.next(&mut batch) => {
                    if let Err(end) = taken {
                        break *end;
                    }
                    if write(socket, &mut batch, self.encoding, &self.metrics).await.is_err() {
                        return;
                    }
                }
                () = &mut ping => {
                    if unanswered == 2 {
                        self.open.reason = "timeout";
                        return;
                    }
                    unanswered += 1;
                    ping.as_mut().reset((Instant::now() + PING).into());
                    if socket.send(Message::Ping(Default::default())).await.is_err() {
                        return;
                    }
                }
            }
        };
        self.open.reason = end.reason();
        close(socket, &end, &self.stream.cursor(), self.encoding).await;
    }

    async fn too_big(&mut self, socket: &mut Socket) {
        self.open.reason = "too-big";
        let frame = CloseFrame {
            code: CloseCode::Size,
            reason: Utf8Bytes::from_static("frames are at most 4 KiB"),
        };
        _ = tokio::time::timeout(CLOSING, async {
            socket.close(Some(frame)).await?;
            // The frame has not been read to its end.
            Ok::<_, Error>(http::finish(socket.get_mut()).await?)
        })
        .await;
    }
}

/// Writes a batch at once.
async fn write(
    socket: &mut Socket,
    batch: &mut Batch,
    encoding: Encoding,
    metrics: &Metrics,
) -> Result<(), Error> {
    // Tungstenite must have nothing left to write, such as half a pong: the frames bypass it.
    socket.flush().await?;
    let stream = socket.get_mut();
    stream.write_all(&batch.block()).await?;
    // TLS has a buffer of its own.
    stream.flush().await?;
    metrics.delivered(encoding.format, batch);
    batch.clear();
    Ok(())
}

/// Sends the reason, if the socket accepts it, and closes.
async fn close(socket: &mut Socket, end: &End, cursor: &str, encoding: Encoding) {
    let frame = CloseFrame {
        code: code(end),
        reason: Utf8Bytes::from_static(end.reason()),
    };
    _ = tokio::time::timeout(CLOSING, async {
        let bye = end.frame(cursor, end.retry(), encoding).bytes;
        socket.flush().await?;
        socket.get_mut().write_all(&bye).await?;
        socket.close(Some(frame)).await?;
        while let Some(Ok(_)) = socket.next().await {}
        Ok::<_, Error>(())
    })
    .await;
}

/// Sends the response to the client's close frame.
async fn finish(socket: &mut Socket) {
    _ = tokio::time::timeout(CLOSING, async {
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
}

/// The close code of each end, as published in `docs/protocol.md`.
fn code(end: &End) -> CloseCode {
    match end {
        End::Drain => CloseCode::Restart,
        End::Overload | End::OverLimit(_) | End::Refused(Refusal::Unavailable(_)) => {
            CloseCode::Again
        }
        End::Slow => CloseCode::from(4408),
        End::Expired | End::Refused(Refusal::Unauthenticated(_)) => CloseCode::from(4401),
        End::Refused(Refusal::Forbidden(_)) => CloseCode::from(4403),
        End::Invalid(_) => CloseCode::from(4400),
    }
}
