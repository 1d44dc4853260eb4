//! Where each partition is read from: the position in the store, compared with the log.

use store::{Advance, Applied, Batch, Position};
use tracing::{info, warn};

use super::{Owned, Projector, State, TIMEOUT};

impl Projector {
    /// Looks up the positions of the assigned partitions, and begins to read them.
    pub(super) fn look_up(&self, state: &mut State) -> anyhow::Result<()> {
        let mut offsets = Vec::new();
        // Before the first position is stored.
        let is_continued = self.wait(self.target.is_continued(&self.topic))?;
        for &partition in &state.assigned {
            let replaced = state.replaced.contains(&partition);
            let position = self.position(partition, replaced, is_continued)?;
            // The record before the position is read again, and compared.
            let (low, _) = self.group.watermarks(partition)?;
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

    /// The position of a partition; a new one if the log is another one than before, or was cut off.
    fn position(
        &self,
        partition: i32,
        replaced: bool,
        is_continued: bool,
    ) -> anyhow::Result<Position> {
        let (topic, projection) = (&self.topic, self.projection);
        let (low, high) = self.group.watermarks(partition)?;
        let Some(stored) = self.stored(partition)? else {
            let begin = self.first(partition, is_continued, (low, high));
            self.wait(self.target.begin(projection, topic, partition, begin))?;
            return Ok(self.stored(partition)?.unwrap_or(begin));
        };
        let position = if replaced || stored.next > high {
            warn!(
                topic,
                partition,
                expected = stored.next,
                low,
                high,
                "the topic was recreated or cleared; reading it from its start. Earlier results are kept"
            );
            self.metrics.recreated.inc();
            Position {
                next: low,
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

    /// Where a partition is begun.
    fn first(&self, partition: i32, is_continued: bool, (low, high): (i64, i64)) -> Position {
        let topic = &self.topic;
        let next = if is_continued {
            info!(
                topic,
                partition,
                offset = high,
                "the file has counts, but no position; counting from the end of the topic"
            );
            high
        } else {
            info!(
                topic,
                partition,
                offset = low,
                "reading the topic from its start"
            );
            low
        };
        Position {
            next,
            ..Position::default()
        }
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
