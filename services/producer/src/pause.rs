//! The random pause between two messages, and the face that announces its length.

use std::time::Duration;

use herald_runtime::config::invalid;

use crate::message::FACES;

/// Random pauses between two bounds, both included.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    min: Duration,
    max: Duration,
}

impl Pauses {
    /// Pauses from `min` to `max`. The error is for the user: a `min` under 1 ms, or above `max`.
    pub fn new(min: Duration, max: Duration) -> anyhow::Result<Pauses> {
        if min < Duration::from_millis(1) {
            return Err(invalid(format!(
                "--interval-min {min:?} is too short; 1ms is the shortest"
            )));
        }
        if min > max {
            return Err(invalid(format!(
                "--interval-min {min:?} is longer than --interval-max {max:?}"
            )));
        }
        Ok(Pauses { min, max })
    }

    /// The next pause: whole seconds if both bounds are, as in the contract, otherwise whole milliseconds.
    pub fn draw(&self) -> Duration {
        let whole_seconds = self.min.subsec_nanos() == 0 && self.max.subsec_nanos() == 0;
        if whole_seconds {
            Duration::from_secs(rand::random_range(self.min.as_secs()..=self.max.as_secs()))
        } else {
            let (min, max) = (self.min.as_millis() as u64, self.max.as_millis() as u64);
            Duration::from_millis(rand::random_range(min..=max))
        }
    }
}

/// The face of the message before `pause`: the first for 1 s, the tenth for 10 s. Other pauses are rounded up to a whole
/// second, and capped at 10 s.
pub fn face(pause: Duration) -> &'static str {
    let seconds = pause.as_secs_f64().ceil() as usize;
    FACES[seconds.clamp(1, FACES.len()) - 1]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_contracts_pauses_are_one_to_ten_whole_seconds_and_all_occur() {
        let pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(10)).unwrap();
        let drawn: BTreeSet<Duration> = (0..2_000).map(|_| pauses.draw()).collect();
        assert_eq!(drawn, (1..=10).map(Duration::from_secs).collect());
    }

    #[test]
    fn the_face_depends_on_the_pause_that_follows() {
        for seconds in 1..=10 {
            assert_eq!(
                face(Duration::from_secs(seconds)),
                FACES[seconds as usize - 1]
            );
        }
        assert_eq!(face(Duration::from_millis(1)), FACES[0]);
        assert_eq!(face(Duration::from_millis(1_001)), FACES[1]);
        assert_eq!(face(Duration::from_secs(60)), FACES[9]);
    }

    #[test]
    fn bounds_that_are_not_whole_seconds_give_milliseconds_between_them() {
        let pauses = Pauses::new(Duration::from_millis(1), Duration::from_millis(3)).unwrap();
        let drawn: BTreeSet<u128> = (0..1_000).map(|_| pauses.draw().as_millis()).collect();
        assert_eq!(drawn, BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn impossible_bounds_are_rejected() {
        let second = Duration::from_secs(1);
        assert!(Pauses::new(second * 2, second).is_err());
        assert!(Pauses::new(Duration::ZERO, second).is_err());
        assert!(Pauses::new(second, second).is_ok());
    }
}
