//! Reads ranges of a topic on demand: pages of history, and the backlog of clients that is older than the ring.

mod fill;
mod unreadable;
mod watermarks;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::topic_partition_list::Offset;

use self::fill::Cursor;
use super::cache::Lookup;
use super::decode::recreated;
use super::health::Health;
use super::pool::{Budget, Client, Pool, Purpose};
use super::range::{Found, Range, merge_backward, merge_forward};
use crate::cursor::{Position, Vector};
use crate::keys::Keys;
use crate::page::{Limit, Page};
use crate::record::Event;

/// Maximum silence of Kafka before a request fails.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The limit of one read in search of the records of some keys.
const SCAN: Limit = Limit {
    events: 5_000,
    bytes: 4 << 20,
};

/// How long a search for the records of some keys reads on, in either direction. After that it ends where it has come to.
const SCAN_TIME: Duration = Duration::from_secs(5);

/// The log of a topic in Kafka.
pub struct Log {
    topic: Arc<str>,
    pool: Arc<Pool>,
    health: Arc<Health>,
    /// Maximum size of a message: value, key and headers.
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

    /// The number of the topic's partitions.
    pub async fn partitions(self: &Arc<Self>, purpose: Purpose) -> anyhow::Result<usize> {
        self.read(purpose, |log, client, _| log.count_partitions(client))
            .await
    }

    /// The first offset and the offset after the last, per partition.
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

    /// The first offset of one partition, and the offset after the last.
    pub async fn end(self: &Arc<Self>, partition: usize) -> anyhow::Result<(i64, i64)> {
        self.read(Purpose::Audit, move |log, client, _| {
            log.watermarks(client, partition)
        })
        .await
    }

    /// Removes the cached pages, because the log has changed.
    pub fn invalidate_pages(&self) {
        self.pool.cache.invalidate(&self.topic);
    }

    /// Per partition, the first record at or after a time in ms since 1970; `end` if there is none.
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

    /// Reads from one vector towards another. Verifies that the log is still the one that `from` belongs to.
    pub async fn forward(
        self: &Arc<Self>,
        from: Vector,
        until: Vector,
        limit: Limit,
        purpose: Purpose,
    ) -> anyhow::Result<Page> {
        let cache = &self.pool.cache;
        let reading = loop {
            if purpose != Purpose::Replay {
                break None;
            }
            match cache.look_up(&self.topic, &from, limit.events) {
                Lookup::Page(page) => {
                    self.pool.replayed("memory");
                    return Ok(page);
                }
                // It ends by closing the channel.
                Lookup::BeingRead(mut ended) => _ = ended.changed().await,
                Lookup::Absent(reading) => break Some(reading),
            }
        };
        let permit = self.pool.permit(purpose).await;
        let log = self.clone();
        let page = self.pool.run(permit, move |client, budget| {
            log.read_forward(client, budget, from, &until, limit)
        });
        let page = page.await?;
        if reading.is_some() {
            self.pool.replayed("kafka");
            cache.put(&self.topic, &page);
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

    /// Like [`forward`](Self::forward), but only the records of these keys: reads on until the page is full, complete, or has
    /// taken 5 s.
    pub async fn forward_of(
        self: &Arc<Self>,
        keys: Option<&Keys>,
        from: Vector,
        until: Vector,
        limit: Limit,
        purpose: Purpose,
    ) -> anyhow::Result<Page> {
        let Some(keys) = keys else {
            return self.forward(from, until, limit, purpose).await;
        };
        let begun = Instant::now();
        let mut whole = Page {
            before: from.clone(),
            after: from,
            ..Page::default()
        };
        loop {
            let from = whole.after.clone();
            let page = self.forward(from.clone(), until.clone(), SCAN, purpose);
            let page = page.await?.first_of(keys, limit.without(&whole));
            whole.complete = page.complete;
            whole.after = page.after;
            whole.events.extend(page.events);
            let full = limit.is_reached(&whole);
            let stuck = whole.after == from;
            if full || whole.complete || stuck || begun.elapsed() > SCAN_TIME {
                return Ok(whole);
            }
        }
    }

    /// Like [`backward`](Self::backward), but only the records of these keys: reads on until the page is full, has reached the
    /// start of the log, or has taken 5 s.
    pub async fn backward_of(
        self: &Arc<Self>,
        keys: Option<&Keys>,
        before: Vector,
        limit: Limit,
        purpose: Purpose,
    ) -> anyhow::Result<Page> {
        let Some(keys) = keys else {
            return self.backward(before, limit, purpose).await;
        };
        let begun = Instant::now();
        let page = self.backward(before, SCAN, purpose).await?;
        let mut whole = page.last_of(keys, limit);
        while !limit.is_reached(&whole) && !whole.from_start && begun.elapsed() <= SCAN_TIME {
            let before = whole.before.clone();
            let older = self.backward(before.clone(), SCAN, purpose).await?;
            let older = older.last_of(keys, limit.without(&whole));
            whole.from_start = older.from_start;
            whole.before = older.before;
            whole.events.splice(0..0, older.events);
            if whole.before == before {
                break;
            }
        }
        Ok(whole)
    }

    /// The first offset at or after `from` that can be read: `from` itself if nothing is wrong.
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

    /// The last of these ascending positions whose preceding record is still in the log.
    pub async fn last_agreeing(
        self: &Arc<Self>,
        partition: usize,
        positions: Vec<Position>,
    ) -> anyhow::Result<Option<Position>> {
        self.read(Purpose::Audit, move |log, client, budget| {
            let (low, high) = log.watermarks(client, partition)?;
            let mut last = None;
            let held = positions.partition_point(|position| position.offset <= high);
            // A truncated log keeps its start: if one position agrees, so do all before it.
            let (mut agreeing, mut end) = (0, held);
            while agreeing < end {
                let middle = agreeing + (end - agreeing) / 2;
                let position = positions[middle];
                if position.offset <= low || log.agrees(client, budget, partition, position)? {
                    last = Some(position);
                    agreeing = middle + 1;
                } else {
                    end = middle;
                }
            }
            Ok(last.filter(|position| position.offset > low))
        })
        .await
    }

    /// Runs blocking work on this topic with a client of the pool.
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
            // A client ahead of `until` needs Kafka to confirm that its log is that long, even without a fingerprint.
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
        // Compacted logs and transactions have holes: each window that holds too little is widened.
        loop {
            let narrow = windows.iter_mut().filter(|window| window.is_narrow(limit));
            let (mut older, mut widened): (Vec<Range>, Vec<&mut Window>) =
                narrow.map(|window| (window.older(), window)).unzip();
            if older.is_empty() {
                break;
            }
            self.fill(client, budget, &mut older, limit, Cursor::UNKNOWN)?;
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

    /// Kafka found no record at or after a time. The embedded broker reports that for any time, so the last record is checked;
    /// if it is late enough, the log is searched.
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
        let read = |from: i64| {
            let range = Range::new(partition, Position::at(from), end, false);
            self.fill_one(client, budget, range, limit)
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
}

/// The range of a partition that was read backward, and the width of the next read.
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
