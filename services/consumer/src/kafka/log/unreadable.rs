//! Finds the end of an unreadable batch.

use std::time::{Duration, Instant};

use anyhow::bail;
use rdkafka::error::KafkaError;

use super::{Log, TIMEOUT};
use crate::cursor::Position;
use crate::kafka::fault::{Denied, Fault};
use crate::kafka::pool::{Budget, Client};
use crate::kafka::range::Range;
use crate::record::GapReason;

impl Log {
    /// Skips a batch that cannot be read, if the range has reached one.
    pub(super) fn skip_unreadable(
        &self,
        client: &Client,
        budget: &Budget,
        range: &mut Range,
    ) -> anyhow::Result<()> {
        let from = range.next_fetch();
        let to = self.find_readable(client, budget, range.partition, from)?;
        if to > from {
            range.verify = false;
            let from = range.position.offset.min(to);
            let to = to.min(range.until.offset.max(from));
            if to > from {
                range.jump(GapReason::Unreadable, from, Some(to), Position::at(to));
            }
            range.done = range.is_empty();
        }
        Ok(())
    }

    /// The first offset at or after `from` that can be read. librdkafka does not expose the bounds of batches, so this probes
    /// offsets: first exponentially until one can be read, then by bisection.
    pub(super) fn find_readable(
        &self,
        client: &Client,
        budget: &Budget,
        partition: usize,
        from: i64,
    ) -> anyhow::Result<i64> {
        let (_, high) = self.watermarks(client, partition)?;
        if from >= high || self.is_readable(client, budget, partition, from)? {
            return Ok(from);
        }
        let (mut unreadable, mut step) = (from, 1);
        let mut readable = loop {
            let offset = unreadable.saturating_add(step);
            if offset >= high {
                break high;
            }
            if self.is_readable(client, budget, partition, offset)? {
                break offset;
            }
            unreadable = offset;
            step *= 2;
        };
        while readable - unreadable > 1 {
            let offset = unreadable + (readable - unreadable) / 2;
            if self.is_readable(client, budget, partition, offset)? {
                readable = offset;
            } else {
                unreadable = offset;
            }
        }
        Ok(readable)
    }

    fn is_readable(
        &self,
        client: &Client,
        budget: &Budget,
        partition: usize,
        offset: i64,
    ) -> anyhow::Result<bool> {
        self.assign_offsets(client, std::iter::once((partition, offset)))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            budget.check()?;
            match client.poll(Duration::from_millis(100)) {
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(true),
                Some(Err(error)) => match Fault::of(&error) {
                    Fault::Unreadable => return Ok(false),
                    // The next read at this offset handles it.
                    Fault::OutOfRange => return Ok(true),
                    Fault::Denied(reason) => return Err(Denied(reason).into()),
                    Fault::Transient => {}
                },
                None => {}
            }
            if Instant::now() > deadline {
                bail!(
                    "Kafka did not answer within {} s at offset {offset} of topic {:?}, partition {partition}",
                    TIMEOUT.as_secs(),
                    self.topic
                );
            }
        }
    }
}
