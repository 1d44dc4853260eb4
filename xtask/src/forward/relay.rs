//! Copies data in both directions between a client and a pod.

use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// After the client has stopped sending, a pod that is silent for this long is considered finished.
///
/// Most such clients have closed completely, which TCP does not distinguish from a half-closed connection, and the pod
/// is not notified (see `PodStream`): the consumer would keep counting them as connected.
pub const LAST_ANSWER: Duration = Duration::from_secs(5);

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

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

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
