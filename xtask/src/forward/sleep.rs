//! Detects that this machine slept, or that this process was stopped for a while.

use std::time::{Duration, Instant, SystemTime};

const TICK: Duration = Duration::from_secs(1);

/// A delay that a busy machine does not explain.
const LATE: Duration = Duration::from_secs(10);

/// Returns the length of a pause as soon as a tick comes late.
pub async fn detected() -> Duration {
    loop {
        let (ticked, clock) = (Instant::now(), SystemTime::now());
        tokio::time::sleep(TICK).await;
        // The monotonic clock may stop while the machine sleeps; the system clock does not.
        let elapsed = ticked.elapsed().max(clock.elapsed().unwrap_or_default());
        if let Some(pause) = pause(elapsed) {
            return pause;
        }
    }
}

fn pause(elapsed: Duration) -> Option<Duration> {
    elapsed.checked_sub(TICK).filter(|late| *late > LATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_very_late_tick_is_a_pause() {
        assert_eq!(
            pause(Duration::from_secs(16)),
            Some(Duration::from_secs(15))
        );
        assert_eq!(pause(Duration::from_secs(6)), None);
        assert_eq!(pause(Duration::from_millis(900)), None);
    }
}
