//! The reader of the results of windows: their history, then what follows it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use herald_events::Windows;
use jiff::Timestamp;

use super::feed::Feed;
use super::table::HISTORY;
use crate::kafka::log::{Client, Limit, Record, Unavailable};

/// How often new results are published to the clients at most, and how long the reader waits for a record.
const PERIOD: Duration = Duration::from_millis(100);

/// How often the reader looks for partitions that are new.
const AUDIT: Duration = Duration::from_secs(10);

/// The longest that Kafka may take for the next record of a history.
const STALLED: Duration = Duration::from_secs(30);

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

impl Feed {
    /// Reads until nobody watches.
    pub(super) fn read(&self) {
        let failed = self.failed.clone().drop_guard();
        let mut positions = Vec::new();
        let mut history = 0;
        loop {
            let error = match self.follow(&mut positions, &mut history) {
                Ok(()) => {
                    failed.disarm();
                    return;
                }
                Err(error) => error,
            };
            // What is there now is in the history.
            if error.is::<Unavailable>() {
                positions.clear();
            }
            let error = format!("{error:#}");
            tracing::warn!(error, "cannot read the results of windows");
            self.report(Some(&error));
            std::thread::sleep(PAUSE);
        }
    }

    /// Reads from these positions on, and from the history of the partitions that have none; again when a partition is new.
    /// `history` is the generation of the videos that were watched when none had a position, whose history is then read too.
    /// Returns when nobody watches.
    fn follow(&self, positions: &mut Vec<Position>, history: &mut u64) -> anyhow::Result<()> {
        let client = self.log.open()?;
        loop {
            let Some(generation) = self.generation() else {
                return Ok(());
            };
            let partitions = self.partitions(&client)?;
            if positions.is_empty() {
                *history = generation;
            }
            *positions = self.starts(&client, &partitions, positions)?;
            self.read_to_end(&client, positions, |record| self.take(record))?;
            self.report(None);
            self.report_history(Ok(*history));
            let assigned: Vec<_> = positions
                .iter()
                .map(|position| (position.topic.as_str(), position.partition, position.offset))
                .collect();
            client.assign(&assigned)?;
            self.tail(&client, &partitions, positions)?;
        }
    }

    /// Follows the partitions until nobody watches or the partitions change.
    fn tail(
        &self,
        client: &Client,
        partitions: &[(String, i32)],
        positions: &mut [Position],
    ) -> anyhow::Result<()> {
        let (mut published, mut audited) = (Instant::now(), Instant::now());
        loop {
            let found = client.next(PERIOD, |record| {
                self.take(record);
                advance(positions, record);
            })?;
            if found && published.elapsed() < PERIOD {
                continue;
            }
            published = Instant::now();
            self.report(client.problem());
            if !self.is_watched() {
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

    /// Reads the history of videos that clients have added, while [`read`](Self::read) follows the partitions: what comes after
    /// they were added is taken there. All that are added meanwhile have the next pass together.
    pub(super) fn read_history(&self) {
        let failed = self.failed.clone().drop_guard();
        let mut client = None;
        while let Some((videos, generation)) = self.pending() {
            let read = self.read_history_of(&videos, &mut client);
            let read = read.map_err(|error| format!("{error:#}"));
            if let Err(error) = &read {
                tracing::warn!(error, "cannot read the earlier results of windows");
                client = None;
            }
            let is_failed = read.is_err();
            self.report_history(read.map(|()| generation));
            if is_failed {
                std::thread::sleep(PAUSE);
            }
        }
        failed.disarm();
    }

    fn read_history_of(
        &self,
        videos: &HashSet<String>,
        client: &mut Option<Client>,
    ) -> anyhow::Result<()> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.log.open()?),
        };
        let partitions = self.partitions(client)?;
        let mut positions = self.starts(client, &partitions, &[])?;
        self.read_to_end(client, &mut positions, |record| {
            if std::str::from_utf8(record.key).is_ok_and(|video| videos.contains(video)) {
                self.take(record);
            }
        })
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
        let mut live = partitions.iter().skip(1).step_by(2);
        self.report_interim(live.any(|(_, count)| *count > 0));
        Ok(partitions)
    }

    /// Where to read each partition from: its position, or else the results of the last windows.
    fn starts(
        &self,
        client: &Client,
        partitions: &[(String, i32)],
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
                held.find(|p| p.topic == *topic && p.partition == *partition)
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

    /// Reads the partitions from these positions to their ends, topic by topic, and advances the positions. Stops early when nobody
    /// watches.
    fn read_to_end(
        &self,
        client: &Client,
        positions: &mut [Position],
        mut take: impl FnMut(&Record),
    ) -> anyhow::Result<()> {
        let mut published = Instant::now();
        for of_topic in positions.chunk_by_mut(|a, b| a.topic == b.topic) {
            let topic = of_topic[0].topic.clone();
            let starts: Vec<_> = of_topic.iter().map(|p| (p.partition, p.offset)).collect();
            let read = client.read(&topic, &starts, Limit::Pause(STALLED), |record| {
                take(record);
                advance(of_topic, record);
                if published.elapsed() >= PERIOD {
                    published = Instant::now();
                    self.wake();
                    if !self.is_watched() {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            });
            read.map(drop)?;
        }
        Ok(())
    }
}

/// Notes that a record was read.
fn advance(positions: &mut [Position], record: &Record) {
    let mut positions = positions.iter_mut();
    if let Some(position) = positions.find(|position| position.is_of(record)) {
        position.offset = record.offset + 1;
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
