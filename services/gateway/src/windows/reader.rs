//! The reader of the results of windows: their history, then what follows it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use herald_events::Windows;
use jiff::Timestamp;

use super::feed::Feed;
use super::table::HISTORY;
use crate::kafka::log::{Client, Record};

/// How often new results are published to the clients at most, and how long the reader waits for a record.
const PERIOD: Duration = Duration::from_millis(100);

/// How often the reader looks for partitions that are new.
const AUDIT: Duration = Duration::from_secs(10);

/// The time within which the history of one topic must be read.
const BACKLOG: Duration = Duration::from_secs(30);

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

impl Feed {
    /// Reads until nobody watches.
    pub(super) fn read(&self) {
        let failed = self.failed.clone().drop_guard();
        loop {
            let error = match self.follow() {
                Ok(()) => {
                    failed.disarm();
                    return;
                }
                Err(error) => format!("{error:#}"),
            };
            tracing::warn!(error, "cannot read the results of windows");
            self.report(Some(&error));
            std::thread::sleep(PAUSE);
        }
    }

    /// Reads the history, then what follows it; again when a video or a partition is new. Returns when nobody watches.
    fn follow(&self) -> anyhow::Result<()> {
        let client = self.log.open()?;
        let mut positions: Vec<Position> = Vec::new();
        let mut known = None;
        loop {
            let mut shared = self.lock();
            if shared.videos.is_empty() {
                shared.is_read = false;
                return Ok(());
            }
            let generation = shared.generation;
            drop(shared);
            let partitions = self.partitions(&client)?;
            let starts =
                self.starts(&client, &partitions, known == Some(generation), &positions)?;
            positions = self.history(&client, starts)?;
            known = Some(generation);
            let mut shared = self.lock();
            shared.caught_up = generation;
            let mut live = partitions.iter().skip(1).step_by(2);
            let has_interim = live.any(|(_, count)| *count > 0);
            let is_new = std::mem::replace(&mut shared.has_interim, has_interim) != has_interim;
            drop(shared);
            if is_new {
                self.versions.send_modify(|_| ());
            }
            self.report(None);
            let assigned: Vec<_> = positions
                .iter()
                .map(|position| (position.topic.as_str(), position.partition, position.offset))
                .collect();
            client.assign(&assigned)?;
            self.tail(&client, generation, &partitions, &mut positions)?;
        }
    }

    /// Follows the partitions until the videos or the partitions change.
    fn tail(
        &self,
        client: &Client,
        generation: u64,
        partitions: &[(String, i32)],
        positions: &mut [Position],
    ) -> anyhow::Result<()> {
        let (mut published, mut audited) = (Instant::now(), Instant::now());
        loop {
            let found = client.next(PERIOD, |record| {
                self.take(record);
                for position in positions.iter_mut() {
                    if position.is_of(record) {
                        position.offset = record.offset + 1;
                    }
                }
            })?;
            if found && published.elapsed() < PERIOD {
                continue;
            }
            published = Instant::now();
            self.report(client.problem());
            let shared = self.lock();
            let changed = shared.generation != generation || shared.videos.is_empty();
            drop(shared);
            if changed {
                return Ok(());
            }
            // While Kafka does not answer, this would block.
            if client.problem().is_none() && audited.elapsed() >= AUDIT {
                audited = Instant::now();
                if self.partitions(client)? != partitions {
                    return Ok(());
                }
            }
        }
    }

    /// The number of partitions of each topic of results, followed by that of its interim counts, which need not exist.
    fn partitions(&self, client: &Client) -> anyhow::Result<Vec<(String, i32)>> {
        let mut partitions = Vec::new();
        for (_, topic) in self.windows.iter() {
            let count = client.partitions(topic)?;
            if count == 0 {
                anyhow::bail!("topic {topic:?} does not exist");
            }
            let live = Windows::live_topic(topic);
            let count_live = client.partitions(&live)?;
            partitions.extend([(topic.to_owned(), count), (live, count_live)]);
        }
        Ok(partitions)
    }

    /// Where to read each partition from: where reading stopped (`go_on`), or the results of the last windows.
    fn starts(
        &self,
        client: &Client,
        partitions: &[(String, i32)],
        go_on: bool,
        positions: &[Position],
    ) -> anyhow::Result<Vec<Position>> {
        let now = Timestamp::now().as_millisecond();
        // Each size has a topic of final results and one of interim counts.
        let since = self.sizes.iter().flat_map(|size| {
            let current = size.start_of(now);
            // A window that has just ended may have no final result yet.
            [
                current - HISTORY as i64 * size.millis(),
                current - size.millis(),
            ]
        });
        let mut starts = Vec::new();
        for ((topic, count), since) in partitions.iter().zip(since) {
            let held = |partition: &i32| {
                let mut held = positions.iter();
                held.find(|p| go_on && p.topic == *topic && p.partition == *partition)
            };
            let (known, new): (Vec<i32>, Vec<i32>) =
                (0..*count).partition(|partition| held(partition).is_some());
            starts.extend(known.iter().filter_map(held).cloned());
            let found = client.since(topic, &new, since)?;
            for partition in new {
                let found = found.iter().find(|(p, _)| *p == partition);
                let offset = match found {
                    Some((_, offset)) => *offset,
                    None => client.watermarks(topic, partition)?.1,
                };
                starts.push(Position {
                    topic: topic.clone(),
                    partition,
                    offset,
                });
            }
        }
        Ok(starts)
    }

    /// Reads the partitions from these positions to their ends, topic by topic.
    fn history(&self, client: &Client, starts: Vec<Position>) -> anyhow::Result<Vec<Position>> {
        let mut next = Vec::with_capacity(starts.len());
        for of_topic in starts.chunk_by(|a, b| a.topic == b.topic) {
            let topic = &of_topic[0].topic;
            let starts: Vec<_> = of_topic.iter().map(|p| (p.partition, p.offset)).collect();
            let deadline = Instant::now() + BACKLOG;
            let read = client.read(topic, &starts, deadline, |record| {
                self.take(record);
                ControlFlow::Continue(())
            })?;
            next.extend(read.into_iter().map(|(partition, offset)| Position {
                topic: topic.clone(),
                partition,
                offset,
            }));
        }
        Ok(next)
    }
}

/// The next offset of a partition.
#[derive(Clone, Debug)]
struct Position {
    topic: String,
    partition: i32,
    offset: i64,
}

impl Position {
    fn is_of(&self, record: &Record) -> bool {
        self.partition == record.partition && self.topic == record.topic
    }
}
