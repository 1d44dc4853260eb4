//! The clock by which windows are closed.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::clock::{millis, now};

/// How far the clock may be ahead of the time that has passed since it was last read.
const MAX_STEP: Duration = Duration::from_secs(60);

/// How long a step forward must last before it is believed: the process was suspended, or the clock had been slow.
const BELIEVED: Duration = Duration::from_secs(300);

/// The clock without steps forward: a window that is closed too early stays closed after the clock is right again.
pub struct Clock {
    /// The latest time that was believed, and when it was read.
    time: i64,
    read: Instant,
    /// When a step forward was noticed that still lasts.
    stepped: Option<Instant>,
}

impl Clock {
    pub fn new() -> Self {
        Self {
            time: now(),
            read: Instant::now(),
            stepped: None,
        }
    }

    /// In milliseconds since 1970. After a step forward of more than a minute, the time that has passed is added to the time before,
    /// for as long as 5 minutes.
    pub fn now(&mut self) -> i64 {
        self.at(now(), Instant::now())
    }

    fn at(&mut self, clock: i64, instant: Instant) -> i64 {
        let expected = self.time.saturating_add(millis(instant - self.read));
        if clock.saturating_sub(expected) > millis(MAX_STEP) {
            if self.stepped.is_none() {
                let seconds = clock.saturating_sub(expected) / 1000;
                warn!(
                    seconds,
                    "the clock was set forward; windows are closed by the time before, for 5 minutes unless it is set back"
                );
            }
            let stepped = *self.stepped.get_or_insert(instant);
            if instant - stepped < BELIEVED {
                return expected;
            }
        }
        (self.time, self.read, self.stepped) = (clock, instant, None);
        clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_step_forward_is_believed_after_five_minutes() {
        let mut clock = Clock::new();
        let (time, read) = (clock.time, clock.read);
        let mut at = |seconds: u64, step: i64| {
            let passed = Duration::from_secs(seconds);
            clock.at(time + millis(passed) + step, read + passed) - time
        };
        assert_eq!(at(10, 0), 10_000);
        assert_eq!(at(20, 59_000), 79_000);
        assert_eq!(at(21, HOUR), 80_000);
        assert_eq!(at(200, HOUR), 259_000);
        // Set back before it was believed.
        assert_eq!(at(201, 0), 201_000);
        assert_eq!(at(300, HOUR), 300_000);
        assert_eq!(at(599, HOUR), 599_000);
        assert_eq!(at(600, HOUR), 600_000 + HOUR);
        assert_eq!(at(601, HOUR), 601_000 + HOUR);
        // Backwards at once.
        assert_eq!(at(602, 0), 602_000);
    }
}
