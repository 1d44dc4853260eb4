//! Waits for a condition instead of sleeping.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Checks `condition` repeatedly until it holds. After `deadline` it panics with `what` it waited for.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # use std::time::Duration;
/// let answer = 42;
/// herald_testing::eventually(Duration::from_secs(5), "the answer to be known", async || answer == 42).await;
/// # }
/// ```
#[track_caller]
pub fn eventually(
    deadline: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let end = Instant::now() + deadline;
        while !condition().await {
            assert!(
                Instant::now() < end,
                "{caller}: timed out after {deadline:?} waiting for {what}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_until_the_condition_holds() {
        let mut calls = 0;
        eventually(Duration::from_secs(5), "the third call", async || {
            calls += 1;
            calls == 3
        })
        .await;
        assert_eq!(calls, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "waiting for a miracle")]
    async fn a_condition_that_never_holds_fails_the_test_at_its_deadline() {
        eventually(Duration::from_millis(50), "a miracle", async || false).await;
    }
}
