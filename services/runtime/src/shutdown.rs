//! The end of a process: the first signal asks for it, a deadline follows, the second signal does not wait.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// A token that SIGTERM or SIGINT cancels. A second signal leaves the process at once, with 128 + its number.
pub fn on_signals() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let signals = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        );
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            error!("cannot listen for SIGTERM and SIGINT: they end this process at once");
            return;
        };
        loop {
            let (name, code) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            };
            if cancelled.is_cancelled() {
                warn!(signal = name, "second signal: leaving at once");
                std::process::exit(code);
            }
            info!(signal = name, "ending");
            cancelled.cancel();
        }
    });
    token
}

/// Waits for `future`; once `token` is cancelled, for `grace` at most. Then the process leaves with exit code 1: whatever
/// is still going on has had its time.
pub async fn within<T>(
    grace: Duration,
    token: &CancellationToken,
    future: impl Future<Output = T>,
) -> T {
    let deadline = async {
        token.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        biased;
        output = future => output,
        () = deadline => {
            warn!(?grace, "not ended within the grace period: leaving now");
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ends_within_the_grace_period_keeps_its_result() {
        let token = CancellationToken::new();
        token.cancel();
        let slow = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            7
        };
        assert_eq!(within(Duration::from_secs(5), &token, slow).await, 7);
    }
}
