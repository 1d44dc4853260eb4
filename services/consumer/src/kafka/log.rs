//! Reads ranges of a topic on demand: pages of history, and what a client missed that is older than the ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::decode::{event, recreated};
use super::fault::Fault;
use super::health::{Health, ReaderContext};
use super::pool::{Budget, Client, Pool, Purpose};
use super::range::{Found, Range, Taken, merge_backward, merge_forward};
use crate::cursor::{Position, Vector};
use crate::page::{Limit, Page};
use crate::record::{Event, GapReason};

/// How long Kafka may be silent before a request for a range fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A topic in Kafka.
pub struct Log {
    topic: Arc<str>,
    pool: Arc<Pool>,
    health: Arc<Health>,
    /// Of one message: value, key and headers.
    max_bytes: usize,
}

impl Log {
    pub fn new(topic: &str, pool: Arc<Pool>, health: Arc<Health>, max_bytes: usize) -> Self {
        Self {
            topic: topic.into(),
            pool,
            health,
            max_bytes,
        }
    }

    /// How many partitions the topic has.
    pub async fn partitions(self: &Arc<Self>, purpose: Purpose) -> anyhow::Result<usize> {
        self.read(purpose, |log, client, _| log.count_partitions(client))
            .await
    }

    /// The first offset kept and the offset after the last, per partition.
    pub async fn ends(
        self: &Arc<Self>,
        partitions: usize,
        purpose: Purpose,
    ) -> anyhow::Result<Vec<(i64, i64)>> {
        self.read(purpose, move |log, client, _| {
            log.all_watermarks(client, partitions)
        })
        .await
    }

    /// The first offset kept of one partition, and the offset after the last.
    pub async fn end(self: &Arc<Self>, partition: usize) -> anyhow::Result<(i64, i64)> {
        self.read(Purpose::Audit, move |log, client, _| {
            log.watermarks(client, partition)
        })
        .await
    }

    /// Forgets what was read for streams, because the log has changed.
    pub fn forget_pages(&self) {
        self.pool.cache.forget(&self.topic);
    }

    /// Per partition, the first record at or after a time in ms since 1970; where there is none, `end`.
    pub async fn at_time(
        self: &Arc<Self>,
        time: i64,
        end: Vector,
        purpose: Purpose,
    ) -> anyhow::Result<Vector> {
        self.read(purpose, move |log, client, budget| {
            let times = (0..end.len()).map(|partition| (partition, Offset::Offset(time)));
            let found = log.offsets(client, times)?;
            let mut vector = end;
            for (partition, found) in found {
                let position = match found {
                    Offset::Offset(offset) => Position::at(offset),
                    _ => log.first_since(client, budget, partition, time, vector.get(partition))?,
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
        purpose: Purpose,
    ) -> anyhow::Result<Page> {
        let shared = purpose == Purpose::Replay;
        let cached = || {
            let page = shared.then(|| self.pool.cache.get(&self.topic, &from));
            page.flatten().inspect(|_| self.pool.replayed("memory"))
        };
        if let Some(page) = cached() {
            return Ok(page);
        }
        let permit = self.pool.permit(purpose).await;
        // Another client may have read it while this one waited.
        if let Some(page) = cached() {
            return Ok(page);
        }
        let log = self.clone();
        let page = self.pool.run(permit, move |client, budget| {
            log.read_forward(client, budget, from, &until, limit)
        });
        let page = page.await?;
        if shared {
            self.pool.replayed("kafka");
            self.pool.cache.put(&self.topic, &page);
        }
        Ok(page)
    }

    /// Reads the newest records before a vector.
    pub async fn backward(
        self: &Arc<Self>,
        before: Vector,
        limit: Limit,
        purpose: Purpose,
    ) -> anyhow::Result<Page> {
        self.read(purpose, move |log, client, budget| {
            log.read_backward(client, budget, before, limit)
        })
        .await
    }

    /// The first offset at or after `from` that can be read: `from` itself where nothing is wrong.
    pub async fn first_readable(
        self: &Arc<Self>,
        partition: usize,
        from: i64,
    ) -> anyhow::Result<i64> {
        self.read(Purpose::Audit, move |log, client, budget| {
            log.find_readable(client, budget, partition, from)
        })
        .await
    }

    /// The last of these positions, which ascend, before which the log still holds the record that it names.
    pub async fn last_agreeing(
        self: &Arc<Self>,
        partition: usize,
        positions: Vec<Position>,
    ) -> anyhow::Result<Option<Position>> {
        self.read(Purpose::Audit, move |log, client, budget| {
            let (low, high) = log.watermarks(client, partition)?;
            let mut unknown = None;
            let held = positions.partition_point(|position| position.offset <= high);
            // What is kept of a log is kept from its start: where one position agrees, so do all before it.
            let (mut agreeing, mut end) = (0, held);
            while agreeing < end {
                let middle = agreeing + (end - agreeing) / 2;
                let position = positions[middle];
                if position.offset <= low || log.agrees(client, budget, partition, position)? {
                    unknown = Some(position);
                    agreeing = middle + 1;
                } else {
                    end = middle;
                }
            }
            Ok(unknown.filter(|position| position.offset > low))
        })
        .await
    }

    /// Lends a client to blocking work on this topic.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        purpose: Purpose,
        work: impl FnOnce(&Self, &Client, &Budget) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let log = self.clone();
        let permit = self.pool.permit(purpose).await;
        self.pool
            .run(permit, move |client, budget| work(&log, client, budget))
            .await
    }

    fn read_forward(
        &self,
        client: &Client,
        budget: &Budget,
        from: Vector,
        until: &Vector,
        limit: Limit,
    ) -> anyhow::Result<Page> {
        let topic_id = self.health.topic_id();
        let other_topic = from.topic_id.differs(topic_id);
        let mut ranges = Vec::new();
        for (partition, until) in until.positions.iter().enumerate() {
            let from = from.get(partition);
            if other_topic {
                let mut range = Range::new(partition, from, *until, false);
                self.restart(client, &mut range)?;
                ranges.push(range);
                continue;
            }
            // Ahead of where is read to, Kafka must say that its log is as long, also without a fingerprint.
            let ahead = from.offset > until.offset;
            let verify = from.offset > 0 && (from.fingerprint.is_some() || ahead);
            if verify || from.offset < until.offset {
                ranges.push(Range::new(partition, from, *until, verify));
            }
        }
        let cursor = Cursor {
            same_topic: from.topic_id.is(topic_id),
        };
        self.fill(client, budget, &mut ranges, limit, cursor)?;
        let mut page = merge_forward(from, ranges, limit);
        page.after.topic_id = topic_id;
        Ok(page)
    }

    fn read_backward(
        &self,
        client: &Client,
        budget: &Budget,
        mut before: Vector,
        limit: Limit,
    ) -> anyhow::Result<Page> {
        let topic_id = self.health.topic_id();
        let partitions = self.count_partitions(client)?;
        let removed =
            (partitions..before.len()).map(|partition| (partition, before.get(partition)));
        let mut other_log: Vec<Event> = removed
            .filter(|(_, position)| position.offset > 0)
            .map(|(partition, position)| recreated(partition, position, 0))
            .collect();
        before.positions.truncate(partitions);
        let ends = self.all_watermarks(client, before.len())?;
        let mut windows = Vec::new();
        for (partition, &(low, high)) in ends.iter().enumerate() {
            let until = before.get(partition);
            let end = until.offset.min(high).max(low);
            windows.push(Window {
                width: limit.events as i64,
                range: Range {
                    low,
                    ..Range::new(
                        partition,
                        Position::at(end),
                        Position {
                            offset: end,
                            ..until
                        },
                        false,
                    )
                },
            });
        }
        // Compacted logs and transactions have holes: a window that holds too little is made wider, each for itself.
        loop {
            let narrow = windows.iter_mut().filter(|window| window.is_narrow(limit));
            let (mut older, mut widened): (Vec<Range>, Vec<&mut Window>) =
                narrow.map(|window| (window.older(), window)).unzip();
            if older.is_empty() {
                break;
            }
            self.fill(
                client,
                budget,
                &mut older,
                limit,
                Cursor { same_topic: false },
            )?;
            for (window, older) in widened.iter_mut().zip(older) {
                window.range.prepend(older);
                window.width = window.width.saturating_mul(8);
            }
        }
        let differs = before.topic_id.differs(topic_id);
        for (window, &(_, high)) in windows.iter().zip(&ends) {
            let until = before.get(window.range.partition);
            let other = window.range.other_log(high, until);
            let recreated =
                (differs && until.offset > 0).then(|| recreated(window.range.partition, until, 0));
            other_log.extend(recreated.or(other));
        }
        let ranges = windows.into_iter().map(|window| window.range).collect();
        let mut page = merge_backward(before, ranges, limit);
        page.before.topic_id = topic_id;
        for event in &mut other_log {
            event.next = page.before.get(event.partition);
        }
        page.events
            .splice(0..0, other_log.into_iter().map(Arc::new));
        Ok(page)
    }

    fn count_partitions(&self, client: &Client) -> anyhow::Result<usize> {
        let metadata = client
            .fetch_metadata(Some(&self.topic), PATIENCE)
            .context("cannot reach Kafka")?;
        // With the metadata comes the topic's id, in librdkafka's log.
        ReaderContext::serve(client);
        let topic = metadata
            .topics()
            .first()
            .with_context(|| format!("Kafka does not know topic {:?}", self.topic))?;
        if let Some(error) = topic.error() {
            let code = RDKafkaErrorCode::from(error);
            if let Fault::Denied(reason) = Fault::of(&KafkaError::MessageConsumption(code)) {
                return Err(Denied(reason).into());
            }
            bail!("cannot read topic {:?}: {code}", self.topic);
        }
        Ok(topic.partitions().len())
    }

    /// Kafka knows of no record at or after a time. The embedded broker says so of any time, so the last record is asked; where
    /// it is late enough, the log is looked through.
    fn first_since(
        &self,
        client: &Client,
        budget: &Budget,
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
            self.fill(
                client,
                budget,
                &mut range,
                limit,
                Cursor { same_topic: false },
            )?;
            let [range] = range;
            Ok(range)
        };
        let late_enough = |found: &&Found| found.time >= time;
        if end.offset == 0
            || !read(end.offset - 1)?
                .found
                .iter()
                .any(|found| late_enough(&found))
        {
            return Ok(end);
        }
        let mut from = self.watermarks(client, partition)?.0;
        loop {
            budget.check()?;
            let range = read(from)?;
            if let Some(found) = range.found.iter().find(late_enough) {
                return Ok(Position::at(found.event.next.offset - 1));
            }
            if !range.trimmed {
                return Ok(end);
            }
            from = range.position.offset;
        }
    }

    fn watermarks(&self, client: &Client, partition: usize) -> anyhow::Result<(i64, i64)> {
        client
            .fetch_watermarks(&self.topic, partition as i32, PATIENCE)
            .with_context(|| {
                format!(
                    "cannot fetch the watermarks of topic {:?}, partition {partition}",
                    self.topic
                )
            })
    }

    /// The watermarks of all partitions, with two requests to each broker.
    fn all_watermarks(
        &self,
        client: &Client,
        partitions: usize,
    ) -> anyhow::Result<Vec<(i64, i64)>> {
        let of =
            |end: Offset| self.offsets(client, (0..partitions).map(|partition| (partition, end)));
        let mut ends = vec![(0, 0); partitions];
        for (partition, found) in of(Offset::Beginning)? {
            let Offset::Offset(low) = found else {
                bail!("Kafka does not tell where topic {:?} begins", self.topic);
            };
            ends[partition].0 = low;
        }
        for (partition, found) in of(Offset::End)? {
            let Offset::Offset(high) = found else {
                bail!("Kafka does not tell where topic {:?} ends", self.topic);
            };
            ends[partition].1 = high;
        }
        Ok(ends)
    }

    /// Asks for the offset of a time (or of the start or the end of the log) in each of these partitions.
    fn offsets(
        &self,
        client: &Client,
        times: impl Iterator<Item = (usize, Offset)>,
    ) -> anyhow::Result<Vec<(usize, Offset)>> {
        let mut list = TopicPartitionList::new();
        for (partition, time) in times {
            list.add_partition_offset(&self.topic, partition as i32, time)
                .context("cannot ask for a time")?;
        }
        if list.count() == 0 {
            return Ok(Vec::new());
        }
        let ask = || {
            let found = client.offsets_for_times(list.clone(), PATIENCE)?;
            let elements = found.elements();
            let offsets = elements.iter().map(|element| {
                element.error()?;
                Ok((element.partition() as usize, element.offset()))
            });
            offsets.collect::<Result<Vec<_>, KafkaError>>()
        };
        let found = ask().or_else(|_| -> anyhow::Result<_> {
            // This client may not know partitions that were added since it was used.
            self.count_partitions(client)?;
            Ok(ask()?)
        });
        found.with_context(|| format!("cannot find offsets in topic {:?}", self.topic))
    }

    /// Reads all ranges at once, until each has reached its end or holds as much as a page may.
    fn fill(
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
        let mut deadline = Instant::now() + PATIENCE;
        while ranges.iter().any(|range| !range.done) {
            budget.check()?;
            let polled = client.poll(Duration::from_millis(100));
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
                        // The end came before it was expected: compaction and markers leave holes, or the log is shorter now.
                        if range.verify || range.position.offset < range.until.offset {
                            let (_, high) = self.watermarks(client, range.partition)?;
                            if range.verify && high < range.from.offset {
                                self.other_log(client, range, cursor)?;
                                self.assign(client, ranges)?;
                            } else if high < range.until.offset {
                                // Where was read to is of another log: nothing is known beyond what was found.
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
                            deadline = Instant::now() + PATIENCE;
                        }
                        Fault::Denied(reason) => return Err(Denied(reason).into()),
                        Fault::Passing => {
                            tracing::debug!(topic = &*self.topic, %error, "error while a range of the log was read");
                            continue;
                        }
                    }
                    self.assign(client, ranges)?;
                }
            }
        }
        client
            .unassign()
            .context("cannot end the reading of a range")
    }

    fn assign(&self, client: &Client, ranges: &[Range]) -> anyhow::Result<()> {
        let unfinished = ranges.iter().filter(|range| !range.done);
        self.assign_offsets(
            client,
            unfinished.map(|range| (range.partition, range.next_fetch())),
        )
    }

    fn assign_offsets(
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

    /// An offset was out of range: finds out whether it was this range's, and why.
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

    /// Goes on behind a batch that cannot be read, if that is what this range has come to.
    fn skip_unreadable(
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

    /// The log does not hold what the cursor says that the client has read: the topic lost the end of its log, or it is
    /// another topic.
    fn other_log(&self, client: &Client, range: &mut Range, cursor: Cursor) -> anyhow::Result<()> {
        if !cursor.same_topic {
            return self.restart(client, range);
        }
        let (low, high) = self.watermarks(client, range.partition)?;
        let to = range.from.offset;
        let (from, next) = match self.health.kept(range.partition, to) {
            Some(kept) if kept.offset <= high => (kept.offset, kept),
            // This replica has not seen how much was lost: the gap bounds it, from the start of the log.
            _ => (low, Position::at(high.min(to))),
        };
        range.found.clear();
        range.verify = false;
        range.jump(GapReason::Truncated, from, Some(to), next);
        range.done = range.is_empty();
        Ok(())
    }

    /// The topic was deleted and recreated: the gap, then the new log from its start to its end.
    fn restart(&self, client: &Client, range: &mut Range) -> anyhow::Result<()> {
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

    /// The first offset at or after `from` that can be read. Where batches begin and end is not told, so offsets are tried:
    /// ever further ones until one can be read, then the ones between.
    fn find_readable(
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            budget.check()?;
            match client.poll(Duration::from_millis(100)) {
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(true),
                Some(Err(error)) => match Fault::of(&error) {
                    Fault::Unreadable => return Ok(false),
                    // Whoever reads there learns that anew.
                    Fault::OutOfRange => return Ok(true),
                    Fault::Denied(reason) => return Err(Denied(reason).into()),
                    Fault::Passing => {}
                },
                None => {}
            }
            if Instant::now() > deadline {
                bail!(
                    "Kafka did not answer within {} s at offset {offset} of topic {:?}, partition {partition}",
                    PATIENCE.as_secs(),
                    self.topic
                );
            }
        }
    }

    /// Whether the log holds the record that a position names.
    fn agrees(
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
        let mut range = [Range::new(partition, position, position, true)];
        self.fill(
            client,
            budget,
            &mut range,
            limit,
            Cursor { same_topic: false },
        )?;
        Ok(range[0].found.is_empty())
    }
}

/// What is known of the cursor that a range begins at.
#[derive(Clone, Copy)]
struct Cursor {
    /// It names the id that the topic has now.
    same_topic: bool,
}

/// The topic cannot be read until somebody changes something; the clause is for users.
#[derive(Debug)]
pub struct Denied(pub &'static str);

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Denied {}

/// What was read of a partition backward, and how far the next look goes.
struct Window {
    range: Range,
    width: i64,
}

impl Window {
    fn is_narrow(&self, limit: Limit) -> bool {
        let range = &self.range;
        !range.trimmed && range.start > range.low && range.found.len() < limit.events
    }

    /// The window before this one.
    fn older(&self) -> Range {
        let range = &self.range;
        let start = range.start.saturating_sub(self.width).max(range.low);
        Range {
            keep_newest: true,
            low: range.low,
            ..Range::new(
                range.partition,
                Position::at(start),
                Position::at(range.start),
                false,
            )
        }
    }
}

fn unfinished(ranges: &mut [Range], partition: usize) -> Option<&mut Range> {
    ranges
        .iter_mut()
        .find(|range| range.partition == partition && !range.done)
}

fn message_time(message: &BorrowedMessage<'_>) -> i64 {
    use rdkafka::Message as _;
    message.timestamp().to_millis().unwrap_or(i64::MIN)
}
