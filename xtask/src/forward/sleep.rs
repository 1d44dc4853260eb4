//! Noticing that this machine slept, or that this process was stopped for a while.

use std::time::{Duration, Instant, SystemTime};

const TICK: Duration = Duration::from_secs(1);

/// A tick that comes this much late was not merely a busy machine.
const LATE: Duration = Duration::from_secs(10);

/// Returns when the time between two ticks shows a pause, with its length.
pub async fn noticed() -> Duration {
    loop {
        let (ticked, clock) = (Instant::now(), SystemTime::now());
        tokio::time::sleep(TICK).await;
        // The clock that timers use may stand still while the machine sleeps; the clock on the wall does not.
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
    fn a_late_tick_is_a_pause_and_a_slow_one_is_not() {
        assert_eq!(
            pause(Duration::from_secs(16)),
            Some(Duration::from_secs(15))
        );
        assert_eq!(pause(Duration::from_secs(6)), None);
        assert_eq!(pause(Duration::from_millis(900)), None);
    }
}
