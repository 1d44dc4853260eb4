//! One client connection: waits until a pod accepts it, and tries another pod if that one does not answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::pod_stream::{LAST_ANSWER, PodStream, relay, shorten, was_connected};
use super::service::{Log, Target};

/// The maximum wait for a ready pod that accepts the connection.
const POD_TIMEOUT: Duration = Duration::from_secs(30);

/// For the API server and the pod's node to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The delay between two attempts: minimum and maximum.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long to read from the client after the pod's last byte: unread data would make TCP reset, and lose the answer.
const LINGER: Duration = Duration::from_secs(2);

/// The prefix of the log line about a ready pod that accepts no connection.
const CANNOT_REACH: &str = "cannot reach pod ";

/// A larger request is forwarded, but not repeated.
const REQUEST_LIMIT: usize = 64 * 1024;

enum End {
    Done,
    /// No pod received the request. Without a reason if the API server failed, which the watch of the Service reports.
    NotReached(Option<String>),
    /// A pod may have received the request, but did not answer.
    NotAnswered,
    /// The stream broke in the middle of an answer.
    Broken,
}

/// Forwards the connection until it ends.
pub async fn forward(
    mut client: TcpStream,
    mut target: watch::Receiver<Option<Target>>,
    log: Arc<Log>,
) {
    let deadline = Instant::now() + POD_TIMEOUT;
    let mut request = Request::default();
    let mut repeated = false;
    let mut delay = RETRY.0;
    // Otherwise a small frame waits until the previous one is acknowledged: 40 ms.
    let _ = client.set_nodelay(true);
    while Instant::now() < deadline {
        let pod_is_ready = timeout_at(deadline, wait(&mut target));
        let Some(Ok(Some(to))) = request.while_reading(&mut client, pod_is_ready).await else {
            break;
        };
        let end = tokio::select! {
            () = to.cut.cancelled() => End::NotAnswered,
            end = attempt(&mut client, &mut request, &to, &log) => end,
        };
        match end {
            End::Done => return,
            End::Broken => break,
            End::NotAnswered if repeated || !request.is_repeatable() => break,
            End::NotAnswered => repeated = true,
            End::NotReached(why) => {
                // Earlier, it may be a pod that terminated before its state was updated.
                if let Some(why) = why.filter(|_| delay >= RETRY.1 && to.is_in(&target)) {
                    log.print(&format!("{CANNOT_REACH}{}: {why}", to.pod.name));
                }
                sleep(delay).await;
                delay = RETRY.1.min(delay * 2);
            }
        }
    }
    // A reset, since an orderly close could be taken for the end of an answer.
    let _ = client.set_zero_linger();
}

async fn wait(target: &mut watch::Receiver<Option<Target>>) -> Option<Target> {
    let target = target.wait_for(Option::is_some).await.ok()?;
    target.clone()
}

async fn attempt(client: &mut TcpStream, request: &mut Request, to: &Target, log: &Log) -> End {
    let open = timeout(OPEN_TIMEOUT, PodStream::open(&to.pods, &to.pod));
    let mut pod = match request.while_reading(client, open).await {
        None => return End::Done,
        Some(Err(_)) => {
            let why = format!("no answer within {} s", OPEN_TIMEOUT.as_secs());
            return End::NotReached(Some(why));
        }
        Some(Ok(Err(error))) => {
            let Some(kube::Error::Api(status)) = error.downcast_ref() else {
                return End::NotReached(None);
            };
            to.avoid();
            return End::NotReached(Some(status.message.clone()));
        }
        Some(Ok(Ok(pod))) => pod,
    };
    let mut answer = vec![0; 16 * 1024];
    let mut sent = 0;
    let read = loop {
        // If the write fails, the read below reports the end.
        let _ = pod.stream.write_all(&request.bytes[sent..]).await;
        sent = request.bytes.len();
        if request.is_full() {
            break 0;
        }
        tokio::select! {
            read = pod.stream.read(&mut answer) => match read.unwrap_or(0) {
                0 => return unanswered(pod, request, to).await,
                read => break read,
            },
            read = request.read(client) => if read.is_err() {
                pod.close().await;
                return End::Done;
            },
            () = sleep(LAST_ANSWER), if request.ended => {
                pod.close().await;
                return End::Done;
            }
        }
    };
    if let Ok(address) = client.local_addr() {
        log.print_after(CANNOT_REACH, &to.pod.line(address.port()));
    }
    request.answered = true;
    let relayed = relay(client, &mut pod.stream, &answer[..read], request.ended).await;
    let error = pod.close().await;
    if relayed.is_err() {
        return End::Done;
    }
    if error.is_some() {
        return End::Broken;
    }
    let _ = client.shutdown().await;
    let rest = async { while client.read(&mut answer).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(LINGER, rest).await;
    End::Done
}

async fn unanswered(pod: PodStream, request: &Request, to: &Target) -> End {
    let error = pod.close().await;
    // No data from either side: the pod has closed an idle connection.
    if error.is_none() && request.bytes.is_empty() {
        return End::Done;
    }
    to.avoid();
    // The error's text tells whether the pod was reached: too uncertain to repeat a request with side effects.
    let may_repeat = request.bytes.is_empty() || request.is_repeatable();
    match error {
        Some(error) if may_repeat && !was_connected(&error) => {
            End::NotReached(Some(shorten(&error)))
        }
        _ => End::NotAnswered,
    }
}

/// What a client has sent before the first byte of an answer: kept so that it can be repeated to another pod.
#[derive(Default)]
struct Request {
    bytes: Vec<u8>,
    /// The client has stopped sending; it may still receive.
    ended: bool,
    /// The client has received the beginning of an answer.
    answered: bool,
}

impl Request {
    fn is_full(&self) -> bool {
        self.bytes.len() >= REQUEST_LIMIT
    }

    /// Reads more, if there is room and the client is still sending; otherwise it never returns.
    async fn read(&mut self, client: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        if self.ended || self.is_full() {
            return std::future::pending().await;
        }
        let room = REQUEST_LIMIT - self.bytes.len();
        let read = client.take(room as u64).read_buf(&mut self.bytes).await?;
        self.ended = read == 0;
        Ok(())
    }

    /// Awaits the work while reading; `None` when the client disconnects.
    async fn while_reading<T>(
        &mut self,
        client: &mut (impl AsyncRead + Unpin),
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                read = self.read(client) => {
                    if read.is_err() || (self.ended && self.bytes.is_empty()) {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether it is safe to send it to a pod that may already have received it: HTTP's safe methods.
    fn is_repeatable(&self) -> bool {
        let safe = [&b"GET "[..], b"HEAD "];
        !self.answered
            && !self.is_full()
            && safe.iter().any(|method| self.bytes.starts_with(method))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn data_received_while_waiting_is_kept() {
        let (mut browser, mut client) = tokio::io::duplex(1024);
        let mut request = Request::default();
        let work = async {
            browser.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        };
        assert!(request.while_reading(&mut client, work).await.is_some());
        assert_eq!(request.bytes, b"GET / HTTP/1.1\r\n\r\n");
        assert!(request.is_repeatable());
    }

    #[tokio::test]
    async fn a_client_that_disconnects_without_a_request_ends_the_wait() {
        let (browser, mut client) = tokio::io::duplex(1024);
        drop(browser);
        let mut request = Request::default();
        let work = std::future::pending::<()>();
        assert_eq!(request.while_reading(&mut client, work).await, None);
    }

    #[tokio::test]
    async fn at_most_the_limit_is_kept() {
        let mut client: &[u8] = &[b'x'; REQUEST_LIMIT + 1];
        let mut request = Request::default();
        while !request.is_full() {
            request.read(&mut client).await.unwrap();
        }
        assert_eq!((request.bytes.len(), client.len()), (REQUEST_LIMIT, 1));
        assert!(!request.is_repeatable());
    }

    #[test]
    fn a_request_that_may_have_side_effects_is_not_repeated() {
        for (text, repeatable) in [
            ("GET /events", true),
            ("HEAD /events", true),
            ("OPTIONS /likes", false),
            ("POST /likes", false),
            ("", false),
        ] {
            let request = Request {
                bytes: text.into(),
                ..Request::default()
            };
            assert_eq!(request.is_repeatable(), repeatable, "{text}");
            let answered = Request {
                answered: true,
                ..request
            };
            assert!(!answered.is_repeatable(), "{text}");
        }
    }
}
