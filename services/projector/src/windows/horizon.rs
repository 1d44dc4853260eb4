//! The horizon: a time whose likes are all partitioned, and how far the partitioned topic must be read to have seen them.
//!
//! A window may only be closed when all of its likes that were in Kafka by its end and the grace were counted, however long the
//! projector was down. So after the clock has passed the time by the grace, the ends of the topic of likes are looked up; once the
//! likes before them are partitioned, the ends of the partitioned topic are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use herald_events::WindowSize;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config::WindowArgs;
use super::kafka::Observer;
use super::steady_clock::Clock;
use crate::readiness::Part;

/// The pause between two looks at the clock or at Kafka.
const PAUSE: Duration = Duration::from_millis(100);

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The pause between two looks at the ends that a candidate waits for.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

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
        let latest = self.lock();
        let horizon = latest.as_ref()?;
        let end = *horizon.ends.get(&partition)?;
        (Some(horizon.time) > closed).then_some((horizon.time, end))
    }

    /// The partitioned topic is another one: its ends are looked up again, for the same time or a later one.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    fn set(&self, horizon: Horizon) {
        *self.lock() = Some(horizon);
    }

    fn time(&self) -> Option<i64> {
        self.lock().as_ref().map(|horizon| horizon.time)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Horizon>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    ends: Ends,
    checked: Instant,
}

/// The first offset of each partition, and the one after its last record.
type Ends = BTreeMap<i32, (i64, i64)>;

impl Finder {
    /// Returns after the shutdown. It runs on a thread of its own, because librdkafka blocks.
    pub fn run(self, shutdown: &CancellationToken) {
        let mut clock = Clock::new();
        let mut candidate = None;
        let mut logged = String::new();
        while !shutdown.is_cancelled() {
            self.observer.poll();
            let pause = match self.step(&mut clock, &mut candidate) {
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

    fn step(&self, clock: &mut Clock, candidate: &mut Option<Candidate>) -> anyhow::Result<()> {
        let likes = &self.options.likes_topic;
        if candidate.is_none() {
            let grace = i64::try_from(self.options.window_grace.as_millis()).unwrap_or(i64::MAX);
            let time = clock.now().saturating_sub(grace);
            let time = latest_end(self.options.windows.iter().map(|(size, _)| size), time);
            if Some(time) <= self.latest.time() {
                return Ok(());
            }
            let ends = self.observer.committed_ends(likes)?;
            *candidate = Some(Candidate {
                time,
                ends,
                checked: Instant::now(),
            });
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
            *candidate = None;
        } else if waiting.checked.elapsed() >= CHECK_PAUSE {
            waiting.checked = Instant::now();
            if went_back(&waiting.ends, &self.observer.committed_ends(likes)?) {
                // The position would reach the old ends late, or never.
                info!(
                    topic = likes,
                    "the topic was recreated or cleared; waiting for its new ends"
                );
                *candidate = None;
            }
        }
        Ok(())
    }
}

/// Whether any partition ends before the offset where it ended, or does not exist.
fn went_back(before: &Ends, now: &Ends) -> bool {
    before
        .iter()
        .any(|(partition, (_, end))| now.get(partition).is_none_or(|(_, now)| now < end))
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
    fn ends_go_back_only_in_a_log_that_was_recreated() {
        let before = BTreeMap::from([(0, (3, 9)), (1, (0, 0))]);
        assert!(!went_back(&before, &before));
        let more = BTreeMap::from([(0, (9, 9)), (1, (0, 4)), (2, (0, 1))]);
        assert!(!went_back(&before, &more));
        let recreated = BTreeMap::from([(0, (0, 8)), (1, (0, 0))]);
        assert!(went_back(&before, &recreated));
        assert!(went_back(&before, &BTreeMap::from([(0, (3, 9))])));
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
        assert_eq!(latest.time(), Some(5_000));
        latest.forget();
        assert_eq!((latest.after(None, 0), latest.time()), (None, None));
    }
}
