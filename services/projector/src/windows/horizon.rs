//! The horizon: a time whose likes are all partitioned, and how far the partitioned topic must be read to have seen them.
//!
//! A window may only be closed when all of its likes that were in Kafka by its end and the grace were counted, however long the
//! projector was down. So after the clock has passed the time by the grace, the ends of the topic of likes are looked up; once the
//! likes before them are partitioned, the ends of the partitioned topic are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use herald_events::WindowSize;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::clock;
use super::config::WindowArgs;
use super::kafka::Observer;
use crate::readiness::Part;

/// The pause between two looks at the clock or at Kafka.
const PAUSE: Duration = Duration::from_millis(100);

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A time up to which windows may be closed in each partition that was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// In milliseconds since 1970.
    pub time: i64,
    /// The offset up to which each partition of the partitioned topic must be read.
    pub ends: BTreeMap<i32, i64>,
}

/// The latest horizon, shared by those who find and use it.
#[derive(Clone, Default)]
pub struct Latest(Arc<Mutex<Option<Horizon>>>);

impl Latest {
    /// The time, and the offset that this partition must be read to, if the time is after `closed`.
    pub fn after(&self, closed: Option<i64>, partition: i32) -> Option<(i64, i64)> {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let horizon = latest.as_ref()?;
        let end = *horizon.ends.get(&partition)?;
        (Some(horizon.time) > closed).then_some((horizon.time, end))
    }

    fn set(&self, horizon: Horizon) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some(horizon);
    }
}

/// Finds the horizon again and again.
pub struct Finder {
    pub observer: Observer,
    pub options: WindowArgs,
    pub latest: Latest,
    pub part: Part,
}

/// A time that is not known to be the horizon yet.
struct Candidate {
    time: i64,
    /// The ends of the topic of likes, after the clock had passed the time by the grace.
    ends: BTreeMap<i32, (i64, i64)>,
}

impl Finder {
    /// Returns after the shutdown. It runs on a thread of its own, because librdkafka blocks.
    pub fn run(self, shutdown: &CancellationToken) {
        let mut time = None;
        let mut candidate = None;
        let mut logged = String::new();
        while !shutdown.is_cancelled() {
            self.observer.poll();
            let pause = match self.step(&mut time, &mut candidate) {
                Ok(()) => {
                    logged.clear();
                    self.part.ready();
                    PAUSE
                }
                Err(error) => {
                    let problem = format!("{error:#}");
                    if problem != logged {
                        warn!("{problem}; windows are closed once it succeeds");
                    }
                    self.part.not_ready(problem.as_str());
                    logged = problem;
                    RETRY_PAUSE
                }
            };
            std::thread::sleep(pause);
        }
    }

    fn step(
        &self,
        found: &mut Option<i64>,
        candidate: &mut Option<Candidate>,
    ) -> anyhow::Result<()> {
        let likes = &self.options.likes_topic;
        if candidate.is_none() {
            let grace = i64::try_from(self.options.window_grace.as_millis()).unwrap_or(i64::MAX);
            let time = clock::now().saturating_sub(grace);
            let time = latest_end(self.options.windows.iter().map(|(size, _)| size), time);
            if Some(time) <= *found {
                return Ok(());
            }
            let ends = self.observer.committed_ends(likes)?;
            *candidate = Some(Candidate { time, ends });
        }
        let Some(waiting) = candidate else {
            return Ok(());
        };
        let partitions = waiting.ends.keys().copied();
        let positions = self.observer.positions(likes, partitions)?;
        let reached = |(partition, &(low, end)): (&i32, &(i64, i64))| {
            low == end || positions.get(partition).is_some_and(|next| *next >= end)
        };
        if waiting.ends.iter().all(reached) {
            // Those of open transactions included: the position of likes may be visible before the likes themselves are.
            let ends = self.observer.ends(&self.options.partitioned_likes_topic)?;
            let ends = ends.into_iter().map(|(number, (_, end))| (number, end));
            self.latest.set(Horizon {
                time: waiting.time,
                ends: ends.collect(),
            });
            *found = Some(waiting.time);
            *candidate = None;
        }
        Ok(())
    }
}

/// The latest end of a window that is not after this time.
fn latest_end(sizes: impl Iterator<Item = WindowSize>, time: i64) -> i64 {
    let ends = sizes.map(|size| size.start_of(time));
    ends.max().expect("there is at least one window")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_end_is_that_of_any_size() {
        let sizes = || ["2s", "5s"].map(|size| size.parse().unwrap()).into_iter();
        let ends = [4_999, 5_000, 5_999, 6_000].map(|time| latest_end(sizes(), time));
        assert_eq!(ends, [4_000, 5_000, 5_000, 6_000]);
    }

    #[test]
    fn a_horizon_is_used_once_by_each_partition() {
        let latest = Latest::default();
        assert_eq!(latest.after(None, 0), None);
        latest.set(Horizon {
            time: 5_000,
            ends: BTreeMap::from([(0, 7)]),
        });
        assert_eq!(latest.after(None, 0), Some((5_000, 7)));
        assert_eq!(latest.after(Some(4_999), 0), Some((5_000, 7)));
        assert_eq!(latest.after(Some(5_000), 0), None);
        assert_eq!(latest.after(None, 1), None);
    }
}
