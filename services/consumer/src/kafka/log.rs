//! Reads ranges of a topic on demand: pages of history, and what a client missed that is older than the ring.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use herald_runtime::kafka::Context;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::Semaphore;

use super::decode::{event, recreated};
use super::range::{Range, Taken, merge_backward, merge_forward};
use crate::cursor::{Position, Vector};
use crate::page::{Limit, Page};
use crate::record::{Event, Gap, GapReason};

/// How long Kafka may be silent before a request for a range fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A topic in Kafka, read by a bounded number of readers at a time. Nobody holds a reader while a browser is written to.
pub struct Log {
    topic: String,
    config: ClientConfig,
    context: Context,
    max_value: usize,
    idle: Mutex<Vec<Reader>>,
    permits: Arc<Semaphore>,
}

type Reader = BaseConsumer<Context>;

impl Log {
    /// `config` connects to Kafka; `max_value` is in bytes; at most `readers` ranges are read at the same time.
    pub fn new(
        topic: &str,
        config: &ClientConfig,
        context: Context,
        max_value: usize,
        readers: usize,
    ) -> Self {
        let mut config = config.clone();
        // What a reader fetches beyond its page is thrown away, and its end is found by an empty answer.
        config
            .set("enable.partition.eof", "true")
            .set("fetch.message.max.bytes", "262144")
            .set("fetch.wait.max.ms", "10")
            .set("queued.max.messages.kbytes", "8192")
            .set("statistics.interval.ms", "0");
        Self {
            topic: topic.to_owned(),
            config,
            context,
            max_value,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(readers)),
        }
    }

    /// How many partitions the topic has.
    pub async fn partitions(self: &Arc<Self>) -> anyhow::Result<usize> {
        self.read(|log, reader| log.count_partitions(reader)).await
    }

    /// The first offset kept and the offset after the last, per partition.
    pub async fn ends(self: &Arc<Self>, partitions: usize) -> anyhow::Result<Vec<(i64, i64)>> {
        self.read(move |log, reader| {
            (0..partitions)
                .map(|partition| log.watermarks(reader, partition))
                .collect()
        })
        .await
    }

    /// Per partition, the first record at or after a time in ms since 1970; where there is none, `end`.
    pub async fn at_time(self: &Arc<Self>, time: i64, end: Vector) -> anyhow::Result<Vector> {
        self.read(move |log, reader| {
            let mut times = TopicPartitionList::new();
            for partition in 0..end.0.len() {
                times
                    .add_partition_offset(&log.topic, partition as i32, Offset::Offset(time))
                    .context("cannot ask for a time")?;
            }
            let found = reader
                .offsets_for_times(times, PATIENCE)
                .with_context(|| format!("cannot find a time in topic {:?}", log.topic))?;
            let mut vector = end;
            for element in found.elements() {
                let partition = element.partition() as usize;
                let position = match element.offset() {
                    Offset::Offset(offset) => Position::at(offset),
                    _ => log.first_since(reader, partition, time, vector.get(partition))?,
                };
                vector.set(partition, position);
            }
            Ok(vector)
        })
        .await
    }

    /// Reads from one vector towards another. Checks that the log is still the one that `from` was taken from.
    pub async fn forward(
        self: &Arc<Self>,
        from: Vector,
        until: Vector,
        limit: Limit,
    ) -> anyhow::Result<Page> {
        self.read(move |log, reader| {
            let mut ranges = Vec::new();
            for (partition, until) in until.0.iter().enumerate() {
                let from = from.get(partition);
                // Ahead of where is read to, Kafka must say that its log is as long, also without a fingerprint.
                let verify =
                    from.offset > 0 && (from.fingerprint.is_some() || from.offset > until.offset);
                if verify || from.offset < until.offset {
                    ranges.push(Range::new(partition, from, *until, verify));
                }
            }
            log.fill(reader, &mut ranges, limit)?;
            Ok(merge_forward(from, ranges, limit))
        })
        .await
    }

    /// Reads the newest records before a vector.
    pub async fn backward(self: &Arc<Self>, before: Vector, limit: Limit) -> anyhow::Result<Page> {
        self.read(move |log, reader| {
            let mut before = before;
            let partitions = log.count_partitions(reader)?;
            let gone: Vec<Event> = (partitions..before.0.len())
                .filter(|partition| before.get(*partition).offset > 0)
                .map(|partition| recreated(partition, before.get(partition), 0))
                .collect();
            before.0.truncate(partitions);
            let mut ranges = Vec::new();
            for (partition, until) in before.0.iter().enumerate() {
                let (low, high) = log.watermarks(reader, partition)?;
                ranges.push((low, high, *until));
            }
            // Compacted logs and transactions have holes: a window that holds too little is made wider.
            let mut width = limit.events as i64;
            loop {
                let mut windows: Vec<Range> = ranges
                    .iter()
                    .enumerate()
                    .map(|(partition, &(low, high, until))| {
                        let end = until.offset.min(high);
                        let start =
                            Position::at(end.saturating_sub(width).max(low).min(end.max(low)));
                        Range {
                            keep_newest: true,
                            low,
                            ..Range::new(
                                partition,
                                start,
                                Position {
                                    offset: end,
                                    ..until
                                },
                                false,
                            )
                        }
                    })
                    .collect();
                log.fill(reader, &mut windows, limit)?;
                let narrow = windows.iter().any(|window| {
                    !window.trimmed
                        && window.start > window.low
                        && window.found.len() < limit.events
                });
                if !narrow {
                    let mut anew: Vec<Event> = windows
                        .iter()
                        .zip(&ranges)
                        .filter_map(|(window, range)| window.other_log(range))
                        .collect();
                    let mut page = merge_backward(before, windows, limit);
                    for event in &mut anew {
                        event.next = page.before.get(event.partition);
                    }
                    page.events.splice(0..0, gone.into_iter().chain(anew));
                    return Ok(page);
                }
                width = width.saturating_mul(8);
            }
        })
        .await
    }

    /// Lends one of the readers to blocking work. A reader that failed is not used again.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &Reader) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let log = self.clone();
        let permit = self
            .permits
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        tokio::task::spawn_blocking(move || {
            // Held until the reading ends, also when nobody waits for it any more.
            let _permit = permit;
            let idle = log
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let reader = match idle {
                Some(reader) => reader,
                None => log
                    .config
                    .create_with_context(log.context.clone())
                    .context("cannot create a Kafka reader")?,
            };
            let result = work(&log, &reader)?;
            log.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(reader);
            Ok(result)
        })
        .await
        .context("a reader of Kafka panicked")?
    }

    fn count_partitions(&self, reader: &Reader) -> anyhow::Result<usize> {
        let metadata = reader
            .fetch_metadata(Some(&self.topic), PATIENCE)
            .context("cannot reach Kafka")?;
        let topic = metadata
            .topics()
            .first()
            .with_context(|| format!("Kafka does not know topic {:?}", self.topic))?;
        if let Some(error) = topic.error() {
            bail!(
                "cannot read topic {:?}: {}",
                self.topic,
                RDKafkaErrorCode::from(error)
            );
        }
        Ok(topic.partitions().len())
    }

    /// Kafka knows of no record at or after a time. The embedded broker says so of any time, so the last record is asked; where
    /// it is late enough, the log is looked through.
    fn first_since(
        &self,
        reader: &Reader,
        partition: usize,
        time: i64,
        end: Position,
    ) -> anyhow::Result<Position> {
        let limit = Limit {
            events: 1000,
            bytes: 8 << 20,
        };
        let read = |from: i64| -> anyhow::Result<Range> {
            let mut range = [Range::new(partition, Position::at(from), end, false)];
            self.fill(reader, &mut range, limit)?;
            let [range] = range;
            Ok(range)
        };
        let late_enough = |(at, _): &&(i64, Event)| *at >= time;
        if end.offset == 0
            || !read(end.offset - 1)?
                .found
                .iter()
                .any(|found| late_enough(&found))
        {
            return Ok(end);
        }
        let mut from = self.watermarks(reader, partition)?.0;
        loop {
            let range = read(from)?;
            if let Some((_, event)) = range.found.iter().find(late_enough) {
                return Ok(Position::at(event.next.offset - 1));
            }
            if !range.trimmed {
                return Ok(end);
            }
            from = range.position.offset;
        }
    }

    fn watermarks(&self, reader: &Reader, partition: usize) -> anyhow::Result<(i64, i64)> {
        reader
            .fetch_watermarks(&self.topic, partition as i32, PATIENCE)
            .with_context(|| {
                format!(
                    "cannot find the ends of topic {:?}, partition {partition}",
                    self.topic
                )
            })
    }

    /// Reads all ranges at once, until each has reached its end or holds as much as a page may.
    fn fill(&self, reader: &Reader, ranges: &mut [Range], limit: Limit) -> anyhow::Result<()> {
        let share = limit.bytes / ranges.len().max(1);
        for range in ranges.iter_mut() {
            range.done = range.start >= range.until.offset && !range.verify;
        }
        self.assign(reader, ranges)?;
        let mut deadline = Instant::now() + PATIENCE;
        while ranges.iter().any(|range| !range.done) {
            let polled = reader.poll(Duration::from_millis(100));
            if matches!(polled, Some(Ok(_) | Err(KafkaError::PartitionEOF(_)))) {
                deadline = Instant::now() + PATIENCE;
            } else if Instant::now() > deadline {
                bail!(
                    "Kafka did not answer within {} s while topic {:?} was read",
                    PATIENCE.as_secs(),
                    self.topic
                );
            }
            match polled {
                None => {}
                Some(Ok(message)) => {
                    let event = event(&message, self.max_value);
                    if let Some(range) = ranges
                        .iter_mut()
                        .find(|range| range.partition == event.partition && !range.done)
                        && range.take(&event, message_time(&message), limit.events, share)
                            == Taken::OtherLog
                    {
                        self.restart(reader, range)?;
                        self.assign(reader, ranges)?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(range) = ranges
                        .iter_mut()
                        .find(|range| range.partition == partition as usize && !range.done)
                    {
                        range.done = true;
                        // The end came before it was expected: compaction and markers leave holes, or the log is shorter now.
                        if range.verify || range.position.offset < range.until.offset {
                            let (_, high) = self.watermarks(reader, range.partition)?;
                            if range.verify && high < range.from.offset {
                                self.restart(reader, range)?;
                                self.assign(reader, ranges)?;
                            } else if high < range.until.offset {
                                // Where was read to is of another log: nothing is known beyond what was found.
                                range.until = range.position;
                            }
                        }
                    }
                }
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                    for range in ranges.iter_mut().filter(|range| !range.done) {
                        self.recover(reader, range)?;
                    }
                    self.assign(reader, ranges)?;
                }
                // librdkafka goes on by itself after these; the deadline bounds how long.
                Some(Err(error)) => {
                    tracing::debug!(topic = self.topic, %error, "error while a range of the log was read")
                }
            }
        }
        reader
            .unassign()
            .context("cannot end the reading of a range")
    }

    fn assign(&self, reader: &Reader, ranges: &[Range]) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for range in ranges.iter().filter(|range| !range.done) {
            list.add_partition_offset(
                &self.topic,
                range.partition as i32,
                Offset::Offset(range.next_fetch()),
            )
            .context("cannot assign a partition")?;
        }
        reader
            .assign(&list)
            .with_context(|| format!("cannot assign the partitions of topic {:?}", self.topic))
    }

    /// An offset was out of range: finds out whether it was this range's, and why.
    fn recover(&self, reader: &Reader, range: &mut Range) -> anyhow::Result<()> {
        let (low, high) = self.watermarks(reader, range.partition)?;
        let next = range.next_fetch();
        if next >= low && next <= high {
            return Ok(());
        }
        if range.position.offset > high {
            return self.restart(reader, range);
        }
        range.verify = false;
        if range.position.offset < low {
            let gap = Gap::of(
                GapReason::Retention,
                range.partition,
                range.position.offset,
                Some(low),
            );
            range.jump(gap, Position::at(low));
        }
        range.done = range.position.offset >= range.until.offset;
        Ok(())
    }

    /// The topic was deleted and recreated: the gap, then the new log from its start to its end.
    fn restart(&self, reader: &Reader, range: &mut Range) -> anyhow::Result<()> {
        let (low, high) = self.watermarks(reader, range.partition)?;
        range.found.clear();
        range.verify = false;
        range.jump(
            Gap::of(
                GapReason::Recreated,
                range.partition,
                range.from.offset,
                None,
            ),
            Position::at(low),
        );
        range.until = Position::at(high);
        range.done = low >= high;
        Ok(())
    }
}

fn message_time(message: &impl rdkafka::Message) -> i64 {
    message.timestamp().to_millis().unwrap_or(i64::MIN)
}
