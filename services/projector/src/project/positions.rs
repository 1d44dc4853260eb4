//! Where each partition is read from: the position in the store, compared with the log.

use std::collections::BTreeMap;

use anyhow::Context as _;
use store::{Advance, Applied, Batch, Position};
use tracing::{error, info, warn};

use super::{Owned, Projector, State, TIMEOUT};
use crate::projection::Projection;
use crate::record::Record;

impl Projector {
    /// Looks up the positions of the assigned partitions, and begins to read them.
    pub(super) fn look_up(&self, state: &mut State) -> anyhow::Result<()> {
        let mut ends = BTreeMap::new();
        for &partition in &state.assigned {
            ends.insert(partition, self.group.watermarks(partition)?);
        }
        self.begin(&ends)?;
        let mut offsets = Vec::new();
        for (&partition, &(low, high)) in &ends {
            let replaced = state.replaced.contains(&partition);
            let position = self.position(partition, replaced, (low, high))?;
            // The record before the position is read again, and compared.
            let expected = position.fingerprint.filter(|_| position.next > low);
            let first = position.next - i64::from(expected.is_some());
            offsets.push((partition, first));
            let owned = Owned {
                stored: position,
                current: position,
                expected,
            };
            state.owned.insert(partition, owned);
        }
        if offsets.is_empty() {
            // There are more projectors than partitions: this one replaces another.
            self.group.check_topic()?;
            state.caught_up = true;
        } else {
            self.group.assign(&offsets)?;
        }
        state.replaced.clear();
        Ok(())
    }

    /// Stores the positions of partitions that were not read before: their starts, or if another program has counted them, their
    /// ends.
    fn begin(&self, ends: &BTreeMap<i32, (i64, i64)>) -> anyhow::Result<()> {
        let (topic, projection) = (&self.topic, self.projection);
        // All partitions at once: with the first position, the file is no longer one of another program.
        let is_continued = self.wait(self.target.is_continued(topic))?;
        let mut positions = Vec::new();
        for (&partition, &(low, high)) in ends {
            if self.stored(partition)?.is_some() {
                continue;
            }
            let next = if is_continued { high } else { low };
            if is_continued {
                info!(
                    topic,
                    partition,
                    offset = next,
                    "the file has counts, but no position; counting from the end of the topic"
                );
            } else {
                info!(
                    topic,
                    partition,
                    offset = next,
                    "reading the topic from its start"
                );
            }
            let position = Position {
                next,
                ..Position::default()
            };
            positions.push((partition, position));
        }
        if positions.is_empty() {
            return Ok(());
        }
        self.wait(self.target.begin(projection, topic, &positions))
    }

    /// The position of a partition; a new one if the log is another one than before, or was cut off.
    fn position(
        &self,
        partition: i32,
        replaced: bool,
        (low, high): (i64, i64),
    ) -> anyhow::Result<Position> {
        let (topic, projection) = (&self.topic, self.projection);
        let stored = self
            .stored(partition)?
            .with_context(|| format!("the position of partition {partition} was deleted"))?;
        let position = if replaced || stored.next > high {
            self.metrics.recreated.inc();
            let next = self.again(partition, stored, (low, high))?;
            Position {
                next,
                fingerprint: None,
                record_time: stored.record_time,
                epoch: stored.epoch + 1,
            }
        } else if stored.next < low {
            let missing = low - stored.next;
            warn!(
                topic,
                partition,
                from = stored.next,
                to = low,
                "records were deleted before they were read"
            );
            self.metrics.missing.inc_by(missing.unsigned_abs());
            Position {
                next: low,
                fingerprint: None,
                ..stored
            }
        } else {
            return Ok(stored);
        };
        let step = Advance {
            partition,
            from: stored,
            to: position,
        };
        let batch = Batch {
            advances: vec![step],
            ..Batch::default()
        };
        match self.wait(self.target.apply(projection, topic, &batch))? {
            Applied::Committed(_) => Ok(position),
            Applied::Superseded(_) => {
                anyhow::bail!("another projector has moved the position of partition {partition}")
            }
        }
    }

    /// Where a log is read from that is not the one that the position was in: its start. But records that were counted must not be
    /// counted again: if the log has lost only its end, such as by a restored backup, it is read from there.
    fn again(
        &self,
        partition: i32,
        stored: Position,
        (low, high): (i64, i64),
    ) -> anyhow::Result<i64> {
        let (topic, expected) = (&self.topic, stored.next);
        let first = match self.projection {
            Projection::Counts if low < high => self.group.first_record(partition, low)?,
            _ => None,
        };
        let is_older = |record: &Record| {
            record
                .timestamp
                .is_some_and(|time| time <= stored.record_time)
        };
        if first.is_some_and(|record| is_older(&record)) {
            let next = expected.min(high);
            error!(
                topic,
                partition,
                expected,
                next,
                "the topic has lost its end, and has records that were counted; going on from there. Records that were written since, \
                 before this offset, are not counted"
            );
            return Ok(next);
        }
        warn!(
            topic,
            partition,
            expected,
            low,
            high,
            "the topic was recreated or cleared; reading it from its start. Earlier results are kept"
        );
        Ok(low)
    }

    fn stored(&self, partition: i32) -> anyhow::Result<Option<Position>> {
        let (topic, projection) = (&self.topic, self.projection);
        self.wait(self.target.position(projection, topic, partition))
    }

    fn wait<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let timed = async { tokio::time::timeout(TIMEOUT, work).await };
        self.runtime
            .block_on(timed)
            .map_err(|_| anyhow::anyhow!("the database did not answer within {TIMEOUT:?}"))?
    }
}
