//! Shutdown: the first signal starts it with a deadline, the second signal exits immediately.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// A token that SIGTERM or SIGINT cancels. A second signal exits immediately, with code 128 + its number.
pub fn on_signals() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let signals = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        );
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            error!("cannot handle SIGTERM and SIGINT; they terminate this process immediately");
            return;
        };
        loop {
            let (name, code) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            };
            if cancelled.is_cancelled() {
                warn!(signal = name, "second signal; exiting immediately");
                std::process::exit(code);
            }
            info!(signal = name, "shutting down");
            cancelled.cancel();
        }
    });
    token
}

/// Waits for `future`; once `token` is cancelled, for `grace` at most. Then the process exits with code 1.
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
            warn!(?grace, "shutdown exceeded the grace period; exiting");
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_future_that_ends_within_the_grace_period_keeps_its_result() {
        let token = CancellationToken::new();
        token.cancel();
        let slow = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            7
        };
        assert_eq!(within(Duration::from_secs(5), &token, slow).await, 7);
    }
}
