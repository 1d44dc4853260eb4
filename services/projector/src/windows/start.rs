//! Where a partition is read from: the committed position, compared with the log.

use std::collections::BTreeSet;

use tracing::warn;

use super::metrics::StageMetrics;
use crate::kafka::Group;

/// The partitions of a topic whose position this process has seen.
pub struct Start {
    topic: String,
    known: BTreeSet<i32>,
}

/// The position to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub position: i64,
    /// It is another one than the committed position: there was none, or it is no longer in the log.
    pub moved: bool,
    /// The log is another one than before.
    pub recreated: bool,
}

impl Start {
    pub fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            known: BTreeSet::new(),
        }
    }

    /// A position was committed.
    pub fn committed(&mut self, partition: i32) {
        self.known.insert(partition);
    }

    /// The position; the start of the log if none is committed, or if the log is another one than before. `replaced`: the record
    /// before the position is another one.
    pub fn check(
        &mut self,
        group: &Group,
        metrics: &StageMetrics,
        partition: i32,
        committed: Option<i64>,
        replaced: bool,
    ) -> anyhow::Result<Found> {
        let (low, high) = group.watermarks(partition)?;
        let topic = &self.topic;
        // Kafka deletes the positions of a topic with the topic.
        let is_known = self.known.remove(&partition);
        if committed.is_some() {
            self.known.insert(partition);
        }
        let start = Found {
            position: low,
            moved: true,
            recreated: false,
        };
        let recreated = Found {
            recreated: true,
            ..start
        };
        match committed {
            Some(next) if replaced || next > high => {
                warn!(
                    topic,
                    partition,
                    expected = next,
                    low,
                    high,
                    "the topic was recreated or cleared; reading it from its start. Earlier results are kept"
                );
                metrics.recreated(1);
                Ok(recreated)
            }
            Some(next) if next < low => {
                warn!(
                    topic,
                    partition,
                    from = next,
                    to = low,
                    "records were deleted before they were read"
                );
                metrics.missing((low - next).unsigned_abs());
                Ok(start)
            }
            Some(position) => Ok(Found {
                position,
                moved: false,
                recreated: false,
            }),
            None if is_known => {
                warn!(
                    topic,
                    partition,
                    "the position is gone: the topic was recreated; reading it from its start. Earlier results are kept"
                );
                metrics.recreated(1);
                Ok(recreated)
            }
            None => Ok(start),
        }
    }
}
