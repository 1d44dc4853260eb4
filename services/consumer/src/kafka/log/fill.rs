//! Reads ranges of partitions with one client, and recovers if a range cannot be read further.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::Message as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Log, TIMEOUT};
use crate::cursor::Position;
use crate::kafka::decode::event;
use crate::kafka::fault::{Denied, Fault};
use crate::kafka::pool::{Budget, Client};
use crate::kafka::range::{Range, Taken};
use crate::page::Limit;
use crate::record::GapReason;

/// What is known about the cursor at which a range begins.
#[derive(Clone, Copy)]
pub struct Cursor {
    /// It contains the topic's current id.
    pub same_topic: bool,
}

impl Cursor {
    /// There is no cursor, or it does not contain the topic's current id.
    pub const UNKNOWN: Self = Self { same_topic: false };
}

impl Log {
    /// Reads all ranges concurrently, until each has reached its end or the limit of a page.
    pub(super) fn fill(
        &self,
        client: &Client,
        budget: &Budget,
        ranges: &mut [Range],
        limit: Limit,
        cursor: Cursor,
    ) -> anyhow::Result<()> {
        let share = limit.bytes / ranges.len().max(1);
        for range in ranges.iter_mut() {
            range.done = range.is_empty();
        }
        self.assign(client, ranges)?;
        let mut deadline = Instant::now() + TIMEOUT;
        while ranges.iter().any(|range| !range.done) {
            budget.check()?;
            let polled = client.poll(Duration::from_millis(100));
            if matches!(polled, Some(Ok(_) | Err(KafkaError::PartitionEOF(_)))) {
                deadline = Instant::now() + TIMEOUT;
            } else if Instant::now() > deadline {
                bail!(
                    "Kafka did not answer within {} s while topic {:?} was read",
                    TIMEOUT.as_secs(),
                    self.topic
                );
            }
            match polled {
                None => {}
                Some(Ok(message)) => {
                    let time = message_time(&message);
                    let event = event(&message, self.max_bytes);
                    if let Some(range) = unfinished(ranges, event.partition)
                        && range.take(event, time, limit.events, share) == Taken::OtherLog
                    {
                        self.other_log(client, range, cursor)?;
                        self.assign(client, ranges)?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(range) = unfinished(ranges, partition as usize) {
                        range.done = true;
                        // The end came early: compaction and markers leave holes, or the log is shorter now.
                        if range.verify || range.position.offset < range.until.offset {
                            let (_, high) = self.watermarks(client, range.partition)?;
                            if range.verify && high < range.from.offset {
                                self.other_log(client, range, cursor)?;
                                self.assign(client, ranges)?;
                            } else if high < range.until.offset {
                                // `until` is from another log: nothing is known beyond what was found.
                                range.until = range.position;
                            }
                        }
                    }
                }
                Some(Err(error)) => {
                    match Fault::of(&error) {
                        Fault::OutOfRange => {
                            for range in ranges.iter_mut().filter(|range| !range.done) {
                                self.recover(client, range, cursor)?;
                            }
                        }
                        Fault::Unreadable => {
                            for range in ranges.iter_mut().filter(|range| !range.done) {
                                self.skip_unreadable(client, budget, range)?;
                            }
                            deadline = Instant::now() + TIMEOUT;
                        }
                        Fault::Denied(reason) => return Err(Denied(reason).into()),
                        Fault::Transient => {
                            tracing::debug!(topic = &*self.topic, %error, "error while reading a range of the log");
                            continue;
                        }
                    }
                    self.assign(client, ranges)?;
                }
            }
        }
        client.unassign().context("cannot stop reading a range")
    }

    fn assign(&self, client: &Client, ranges: &[Range]) -> anyhow::Result<()> {
        let unfinished = ranges.iter().filter(|range| !range.done);
        self.assign_offsets(
            client,
            unfinished.map(|range| (range.partition, range.next_fetch())),
        )
    }

    pub(super) fn assign_offsets(
        &self,
        client: &Client,
        offsets: impl Iterator<Item = (usize, i64)>,
    ) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.topic, partition as i32, Offset::Offset(offset))
                .context("cannot assign a partition")?;
        }
        client
            .assign(&list)
            .with_context(|| format!("cannot assign the partitions of topic {:?}", self.topic))
    }

    /// Recovers after an offset was out of range, if it was this range's.
    fn recover(&self, client: &Client, range: &mut Range, cursor: Cursor) -> anyhow::Result<()> {
        let (low, high) = self.watermarks(client, range.partition)?;
        let next = range.next_fetch();
        if next >= low && next <= high {
            return Ok(());
        }
        if range.position.offset > high {
            return self.other_log(client, range, cursor);
        }
        range.verify = false;
        if range.position.offset < low {
            let from = range.position.offset;
            range.jump(GapReason::Retention, from, Some(low), Position::at(low));
        }
        range.done = range.is_empty();
        Ok(())
    }

    /// The log does not hold what the client has read according to its cursor: the topic lost the end of its log, or was
    /// recreated.
    fn other_log(&self, client: &Client, range: &mut Range, cursor: Cursor) -> anyhow::Result<()> {
        if !cursor.same_topic {
            return self.restart(client, range);
        }
        let (low, high) = self.watermarks(client, range.partition)?;
        let to = range.from.offset;
        let (from, next) = match self.health.kept(range.partition, to) {
            Some(kept) if kept.offset <= high => (kept.offset, kept),
            // This replica did not observe how much was lost: the gap bounds it, from the start of the log.
            _ => (low, Position::at(high.min(to))),
        };
        range.found.clear();
        range.verify = false;
        range.jump(GapReason::Truncated, from, Some(to), next);
        range.done = range.is_empty();
        Ok(())
    }

    /// The topic was deleted and recreated: adds the gap, then reads the new log from its start to its end.
    pub(super) fn restart(&self, client: &Client, range: &mut Range) -> anyhow::Result<()> {
        let (low, high) = self.watermarks(client, range.partition)?;
        range.found.clear();
        range.verify = false;
        if range.from.offset > 0 {
            range.jump(
                GapReason::Recreated,
                range.from.offset,
                None,
                Position::at(low),
            );
        }
        range.until = Position::at(high);
        range.done = range.is_empty();
        Ok(())
    }

    /// Reads one range without a cursor.
    pub(super) fn fill_one(
        &self,
        client: &Client,
        budget: &Budget,
        range: Range,
        limit: Limit,
    ) -> anyhow::Result<Range> {
        let mut range = [range];
        self.fill(client, budget, &mut range, limit, Cursor::UNKNOWN)?;
        let [range] = range;
        Ok(range)
    }

    /// Whether the log holds the record before a position.
    pub(super) fn agrees(
        &self,
        client: &Client,
        budget: &Budget,
        partition: usize,
        position: Position,
    ) -> anyhow::Result<bool> {
        let limit = Limit {
            events: 1,
            bytes: 1,
        };
        let range = Range::new(partition, position, position, true);
        let range = self.fill_one(client, budget, range, limit)?;
        Ok(range.found.is_empty())
    }
}

fn unfinished(ranges: &mut [Range], partition: usize) -> Option<&mut Range> {
    ranges
        .iter_mut()
        .find(|range| range.partition == partition && !range.done)
}

fn message_time(message: &BorrowedMessage<'_>) -> i64 {
    message.timestamp().to_millis().unwrap_or(i64::MIN)
}
