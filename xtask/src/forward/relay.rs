//! Copying both ways between a client and a pod.

use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// After a client has said its last, a pod that is silent for this long has nothing more to say.
///
/// Most such clients have closed altogether, which TCP does not tell from one that still listens, and the pod is not told
/// (see `PodStream`): a stream would go on counting them.
pub const LAST_ANSWER: Duration = Duration::from_secs(5);

/// Returns when the pod has said its last and all of it is written; an error means that the client has gone.
///
/// `first` is what the pod has said already; `ended` is whether the client has said its last.
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
                // When it cannot be written, there is an end to be read.
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
        gone = up => gone,
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
        let talk = async {
            browser.write_all(b"more").await.unwrap();
            let mut said = [0; 4];
            server.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"more");
            server.write_all(b" and the rest").await.unwrap();
            drop(server);
        };
        let (relayed, ()) = tokio::join!(relay(&mut client, &mut pod, b"first", false), talk);
        relayed.unwrap();
        drop(client);
        let mut heard = String::new();
        browser.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "first and the rest");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_no_more_still_gets_its_answer() {
        let ((mut browser, mut client), (mut pod, mut server)) = (pair(), pair());
        browser.shutdown().await.unwrap();
        let talk = async {
            for part in ["a", "b", "c"] {
                tokio::time::sleep(LAST_ANSWER / 2).await;
                server.write_all(part.as_bytes()).await.unwrap();
            }
        };
        let (relayed, ()) = tokio::join!(relay(&mut client, &mut pod, b"", false), talk);
        relayed.unwrap();
        drop(client);
        let mut heard = String::new();
        browser.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "abc", "and then the silence ended it");
    }
}
