//! Waiting for a condition instead of sleeping.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Asks `condition` again and again until it holds. After `deadline` it panics with `what` was waited for.
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
                "{caller}: waited {deadline:?} in vain for {what}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_is_waited_for() {
        let mut asked = 0;
        eventually(Duration::from_secs(5), "the third question", async || {
            asked += 1;
            asked == 3
        })
        .await;
        assert_eq!(asked, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "in vain for a miracle")]
    async fn a_condition_that_never_holds_ends_the_test_at_its_deadline() {
        eventually(Duration::from_millis(50), "a miracle", async || false).await;
    }
}
