//! A connection to a port of a pod, through the API server and the pod's node.

use std::future::pending;
use std::io;
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::Portforwarder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, split};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::pods::Ready;

/// The other side has already closed, or closes immediately.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Kube's message when the pod closed first, which is an orderly end; the type of the error is private.
const CLOSED_FIRST: &str = "Sending after closing";

/// After the client has stopped sending, a pod that is silent for this long is considered finished.
///
/// Most such clients have closed completely, which TCP does not distinguish from a half-closed connection, and the pod
/// is not notified (see `PodStream`): the consumer would keep counting them as connected.
pub const LAST_ANSWER: Duration = Duration::from_secs(5);

pub struct PodStream {
    /// Never shut it down for writing: the protocol has no half-closed connections, and kube would drop the answer.
    pub stream: DuplexStream,
    /// The node's error when it cannot connect to the port, or loses the connection.
    error: BoxFuture<'static, Option<String>>,
    forwarder: AbortOnDrop,
}

/// Kube's task outlives a dropped `Portforwarder` until TCP considers the connection dead.
struct AbortOnDrop(Option<Portforwarder>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(forwarder) = &self.0 {
            forwarder.abort();
        }
    }
}

impl PodStream {
    /// Returns before the pod is connected: only the API server and the node have accepted.
    pub async fn open(pods: &Api<Pod>, pod: &Ready) -> anyhow::Result<Self> {
        let mut forwarder = pods.portforward(&pod.name, &[pod.port]).await?;
        Ok(Self {
            stream: forwarder.take_stream(pod.port).context("no stream")?,
            error: forwarder.take_error(pod.port).context("no stream")?.boxed(),
            forwarder: AbortOnDrop(Some(forwarder)),
        })
    }

    /// Sends pending data and returns the error of the stream, if there was one.
    pub async fn close(self) -> Option<String> {
        let Self {
            stream,
            error,
            mut forwarder,
        } = self;
        drop(stream);
        let forwarder = forwarder.0.take().expect("it is closed once");
        let joined = timeout(CLOSE_TIMEOUT, forwarder.join()).await;
        // The message comes before the end.
        if let Some(message) = error.now_or_never().flatten() {
            return Some(message);
        }
        match joined {
            Ok(Err(error)) => Some(error.to_string()).filter(|error| !error.contains(CLOSED_FIRST)),
            Ok(Ok(())) | Err(_) => None,
        }
    }
}

/// Returns when the pod has stopped sending and everything is written; an error means that the client has disconnected.
///
/// `first` is the data already received from the pod; `ended` is whether the client has stopped sending.
pub async fn relay(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    pod: &mut (impl AsyncRead + AsyncWrite + Unpin),
    first: &[u8],
    ended: bool,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_pod, mut to_pod) = split(pod);
    let finished = CancellationToken::new();
    if ended {
        finished.cancel();
    }
    let up = async {
        let mut bytes = vec![0; 16 * 1024];
        while !finished.is_cancelled() {
            match from_client.read(&mut bytes).await? {
                0 => finished.cancel(),
                // If the write fails, the read in `down` reports the end.
                read => {
                    if to_pod.write_all(&bytes[..read]).await.is_err() {
                        break;
                    }
                }
            }
        }
        pending().await
    };
    let down = async {
        let mut bytes = vec![0; 32 * 1024];
        to_client.write_all(first).await?;
        loop {
            let read = if finished.is_cancelled() {
                let last = timeout(LAST_ANSWER, from_pod.read(&mut bytes)).await;
                last.unwrap_or(Ok(0))
            } else {
                tokio::select! {
                    read = from_pod.read(&mut bytes) => read,
                    () = finished.cancelled() => continue,
                }
            };
            match read.unwrap_or(0) {
                0 => return Ok(()),
                read => to_client.write_all(&bytes[..read]).await?,
            }
        }
    };
    tokio::select! {
        error = up => error,
        ended = down => ended,
    }
}

/// Whether the pod had accepted the connection before this error. `false` only for known errors of connecting.
pub fn was_connected(error: &str) -> bool {
    let attempts = [
        "refused",
        "failed to connect",
        "failed to dial",
        "not found",
        "not running",
        "is closed",
    ];
    let error = error.to_lowercase();
    let lost = ["reset by peer", "broken pipe"];
    lost.iter().any(|lost| error.contains(lost))
        || !attempts.iter().any(|attempt| error.contains(attempt))
}

/// Removes the node's context around the error of the pod's system.
pub fn shorten(error: &str) -> String {
    if error.to_lowercase().contains("connection refused") {
        return "connection refused".to_owned();
    }
    let (_, short) = error.rsplit_once(", uid : ").unwrap_or(("", error));
    short.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[test]
    fn a_pod_that_refused_has_not_received_the_request() {
        for (error, connected) in [
            (
                "error forwarding port 5000 to pod a, uid : failed to execute portforward in network namespace \"b\": \
                 failed to connect to localhost:5000 inside namespace \"a\", IPv4: dial tcp4 127.0.0.1:5000: connect: \
                 connection refused",
                false,
            ),
            (
                "error forwarding port 5000 to pod a, uid : exit status 1: socat[9] E connect(5, AF=2 127.0.0.1:5000, 16): \
                 Connection refused",
                false,
            ),
            ("sandbox container \"a\" is not running", false),
            ("network namespace for sandbox \"a\" is closed", false),
            (
                "failed to execute portforward in network namespace \"b\": read tcp4 127.0.0.1:1->127.0.0.1:5000: read: \
                 connection reset by peer",
                true,
            ),
            (
                "failed to receive a WebSocket message: unexpected end of file",
                true,
            ),
        ] {
            assert_eq!(was_connected(error), connected, "{error}");
            assert!(connected || shorten(error).len() < 80, "{error}");
        }
    }

    fn pair() -> (DuplexStream, DuplexStream) {
        duplex(64)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_until_the_pod_ends() {
        let ((mut browser, mut client), (mut pod, mut server)) = (pair(), pair());
        let exchange = async {
            browser.write_all(b"more").await.unwrap();
            let mut bytes = [0; 4];
            server.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"more");
            server.write_all(b" and the rest").await.unwrap();
            drop(server);
        };
        let (relayed, ()) = tokio::join!(relay(&mut client, &mut pod, b"first", false), exchange);
        relayed.unwrap();
        drop(client);
        let mut received = String::new();
        browser.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "first and the rest");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_still_receives_its_answer() {
        let ((mut browser, mut client), (mut pod, mut server)) = (pair(), pair());
        browser.shutdown().await.unwrap();
        let exchange = async {
            for part in ["a", "b", "c"] {
                tokio::time::sleep(LAST_ANSWER / 2).await;
                server.write_all(part.as_bytes()).await.unwrap();
            }
        };
        let (relayed, ()) = tokio::join!(relay(&mut client, &mut pod, b"", false), exchange);
        relayed.unwrap();
        drop(client);
        let mut received = String::new();
        browser.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "abc", "and then the silence ended it");
    }
}
