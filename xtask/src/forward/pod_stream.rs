//! A connection to a port of a pod, through the API server and the pod's node.

use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::Portforwarder;
use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::pods::Ready;

/// The other side has said its end already, or does so at once.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What kube says when the pod was the first to close, which is an end in good order; the type of the error is its own.
const CLOSED_FIRST: &str = "Sending after closing";

pub struct PodStream {
    /// Never shut it down for writing: the protocol knows no half-closed connection, and kube would drop the answer.
    pub stream: DuplexStream,
    /// What the node says when it cannot reach the port, or loses it.
    error: BoxFuture<'static, Option<String>>,
    forwarder: AbortOnDrop,
}

/// Kube's task goes on without its `Portforwarder`, for as long as TCP believes in the other side.
struct AbortOnDrop(Option<Portforwarder>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(forwarder) = &self.0 {
            forwarder.abort();
        }
    }
}

impl PodStream {
    /// Returns before the pod is reached: only the API server and the node have agreed.
    pub async fn open(pods: &Api<Pod>, pod: &Ready) -> anyhow::Result<Self> {
        let mut forwarder = pods.portforward(&pod.name, &[pod.port]).await?;
        Ok(Self {
            stream: forwarder.take_stream(pod.port).context("no stream")?,
            error: forwarder.take_error(pod.port).context("no stream")?.boxed(),
            forwarder: AbortOnDrop(Some(forwarder)),
        })
    }

    /// Sends what is still to be sent, and says what went wrong on the way, if anything did.
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

/// Whether the pod had taken the connection before this went wrong. `false` only for what is said of attempts to connect.
pub fn has_arrived(trouble: &str) -> bool {
    let attempts = [
        "refused",
        "failed to connect",
        "failed to dial",
        "not found",
        "not running",
        "is closed",
    ];
    let trouble = trouble.to_lowercase();
    let lost = ["reset by peer", "broken pipe"];
    lost.iter().any(|lost| trouble.contains(lost))
        || !attempts.iter().any(|attempt| trouble.contains(attempt))
}

/// Nodes wrap what the pod's system said into long lines about themselves.
pub fn in_short(trouble: &str) -> String {
    if trouble.to_lowercase().contains("connection refused") {
        return "connection refused".to_owned();
    }
    let (_, short) = trouble.rsplit_once(", uid : ").unwrap_or(("", trouble));
    short.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_refused_has_not_had_the_request() {
        for (trouble, arrived) in [
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
            assert_eq!(has_arrived(trouble), arrived, "{trouble}");
            assert!(arrived || in_short(trouble).len() < 80, "{trouble}");
        }
    }
}
