//! One connection of a client: it waits until a pod takes it, and goes to another one if that one answers nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::log::Log;
use super::pod_stream::{PodStream, has_arrived, in_short};
use super::relay::{LAST_ANSWER, relay};
use super::request::Request;
use super::service::Target;

/// As long as it waits for a pod that is ready and takes it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The API server and the pod's node are asked this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two attempts, growing from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// After the pod's last byte: what the client still says is read for this long, or its system would throw the answer away.
const LINGER: Duration = Duration::from_secs(2);

/// How the log's line about a pod that is ready, but takes no connection, begins.
const CANNOT_REACH: &str = "cannot reach pod ";

enum End {
    Done,
    /// No pod has had the request; why, unless it is the API server's trouble, which the watch of the Service tells.
    NotReached(Option<String>),
    /// A pod may have had the request, but answered nothing.
    NotAnswered,
    /// In the middle of an answer.
    Broken,
}

/// Forwards the connection until it ends.
pub async fn forward(
    mut client: TcpStream,
    mut target: watch::Receiver<Option<Target>>,
    log: Arc<Log>,
) {
    let deadline = Instant::now() + PATIENCE;
    let mut request = Request::default();
    let mut repeated = false;
    let mut delay = RETRY.0;
    // Without it, a small frame waits until the one before is acknowledged: 40 ms.
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
                // Before, it may be a pod that was gone faster than its state.
                if let Some(why) = why.filter(|_| delay >= RETRY.1 && to.is_in(&target)) {
                    log.say(&format!("{CANNOT_REACH}{}: {why}", to.pod.name));
                }
                sleep(delay).await;
                delay = RETRY.1.min(delay * 2);
            }
        }
    }
    // A reset, since an end in good order could be taken for the end of an answer.
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
        // When it cannot be written, there is an end to be read.
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
        log.say_after(CANNOT_REACH, &to.pod.line(address.port()));
    }
    request.answered = true;
    let relayed = relay(client, &mut pod.stream, &answer[..read], request.ended).await;
    let trouble = pod.close().await;
    if relayed.is_err() {
        return End::Done;
    }
    if trouble.is_some() {
        return End::Broken;
    }
    let _ = client.shutdown().await;
    let rest = async { while client.read(&mut answer).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(LINGER, rest).await;
    End::Done
}

async fn unanswered(pod: PodStream, request: &Request, to: &Target) -> End {
    let trouble = pod.close().await;
    // Not a word from either side: the pod has waited long enough.
    if trouble.is_none() && request.bytes.is_empty() {
        return End::Done;
    }
    to.avoid();
    // That the pod was not reached is read from an error's words: not certain enough to repeat what may change something.
    let may_repeat = request.bytes.is_empty() || request.is_repeatable();
    match trouble {
        Some(trouble) if may_repeat && !has_arrived(&trouble) => {
            End::NotReached(Some(in_short(&trouble)))
        }
        _ => End::NotAnswered,
    }
}
