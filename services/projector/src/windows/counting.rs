//! The second stage: counts the partitioned likes, and publishes the counts of closed windows, each exactly once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use herald_events::{WindowSize, Windows};
use tracing::{debug, info, warn};

use super::config::WindowArgs;
use super::counters::Counters;
use super::horizon::Latest;
use super::kafka::{Failure, Outgoing, Position, Transactions, latest_result};
use super::like;
use super::mark::Mark;
use super::metrics::{Metrics, StageMetrics};
use super::result::WindowCount;
use super::stage::{Work, each};
use super::start::{Found, Start};
use crate::Config;
use crate::clock;
use crate::kafka::Group;
use crate::record::Record;

/// How often the position is committed if no counts are published.
const POSITION_INTERVAL: Duration = Duration::from_secs(5);

/// About the most counts of a transaction, which must be committed within its timeout.
const TRANSACTION_RESULTS: usize = 100_000;

/// The second stage.
pub struct Counting {
    config: Config,
    options: WindowArgs,
    sizes: Vec<WindowSize>,
    topics: Vec<Topics>,
    latest: Latest,
    metrics: Metrics,
    stage: StageMetrics,
    owned: BTreeMap<i32, Owned>,
    /// The time up to which this process has closed windows, by partition. Kafka deletes the positions of a topic with the topic.
    closed: BTreeMap<i32, i64>,
    start: Start,
}

/// A partition of the partitioned topic.
struct Owned {
    transactions: Transactions,
    counters: Counters,
    /// The offset from which on likes are new; those before it are read again.
    rebuilt_at: i64,
    read: i64,
    committed: i64,
    committed_at: Instant,
    /// Likes since the latest commit, and late ones in all by then.
    likes: u64,
    late: Vec<u64>,
    /// The time up to which windows are closed next, and the offset that must be read before.
    goal: Option<(i64, i64)>,
}

impl Counting {
    pub fn new(
        config: Config,
        options: WindowArgs,
        latest: Latest,
        metrics: Metrics,
        stage: StageMetrics,
    ) -> Self {
        Self {
            sizes: options.windows.iter().map(|(size, _)| size).collect(),
            topics: Topics::all(&options.windows),
            start: Start::new(&options.partitioned_likes_topic),
            owned: BTreeMap::new(),
            closed: BTreeMap::new(),
            config,
            options,
            latest,
            metrics,
            stage,
        }
    }

    /// The mark of a partition, and the offset to read from so that all open windows are counted.
    fn mark(
        &self,
        group: &Group,
        partition: i32,
        metadata: Option<&str>,
        found: Found,
    ) -> anyhow::Result<(Mark, i64)> {
        let position = found.position;
        let mark = metadata.and_then(Mark::parse);
        let mark = match mark {
            Some(mark) if !found.moved => mark,
            mark => {
                if mark.is_none() && !found.moved {
                    warn!(
                        partition,
                        position, "the position was set by another program; counting from it on"
                    );
                }
                // What was open is gone, and what was closed stays closed: each window has at most one result.
                let mark = Mark {
                    rebuild: position,
                    closed: self.closed_before(partition, mark.as_ref())?,
                    ..mark.unwrap_or_default()
                };
                return Ok((mark, position));
            }
        };
        let mut from = mark.rebuild.min(position);
        if let Some(closed) = mark.closed {
            // The likes of a new size were not needed before.
            let is_new = |size: &&WindowSize| !mark.late.contains_key(&size.label());
            for size in self.sizes.iter().filter(is_new) {
                info!(partition, window = size.label(), "counting another window");
                if let Some(first) = group.first_since(partition, size.start_of(closed))? {
                    from = from.min(first);
                }
            }
        }
        let (low, _) = group.watermarks(partition)?;
        if from < low {
            warn!(
                partition,
                from,
                to = low,
                "likes of open windows were deleted; their counts are too low"
            );
            self.stage.missing((low - from).unsigned_abs());
        }
        Ok((mark, from.max(low)))
    }

    /// The time up to which windows were closed before a position was lost: as committed, as this process knows, or as the latest
    /// results tell.
    fn closed_before(&self, partition: i32, mark: Option<&Mark>) -> anyhow::Result<Option<i64>> {
        let committed = mark.and_then(|mark| mark.closed);
        let known = committed.max(self.closed.get(&partition).copied());
        if known.is_some() {
            return Ok(known);
        }
        let topics = self.options.windows.iter().map(|(_, topic)| topic);
        let latest = latest_result(&self.config, partition, topics)?;
        if let Some(closed) = latest {
            warn!(
                partition,
                closed,
                "there are results, but no position; likes of windows up to the latest result are counted as late"
            );
        }
        Ok(latest)
    }

    fn commit_partition(&mut self, group: &Group, partition: i32) -> anyhow::Result<()> {
        let Some(owned) = self.owned.get_mut(&partition) else {
            return Ok(());
        };
        owned.transactions.serve();
        if owned.read < owned.rebuilt_at {
            // Open windows are not complete yet.
            return Ok(());
        }
        let closed = owned.counters.closed();
        owned.goal = next_goal(owned.goal, self.latest.after(closed, partition), closed);
        let mut counts = match owned.goal {
            Some((time, end)) if owned.read >= end => {
                owned.counters.close(time, TRANSACTION_RESULTS)
            }
            _ => Vec::new(),
        };
        let interval = self.options.interim_interval;
        let interval = if interval.is_zero() {
            POSITION_INTERVAL
        } else {
            interval
        };
        let is_due = owned.committed_at.elapsed() >= interval
            || owned.counters.late_ids() >= TRANSACTION_RESULTS;
        let has_news = owned.read > owned.committed || owned.counters.has_changed();
        if counts.is_empty() && !(is_due && has_news) {
            return Ok(());
        }
        // A late like must be reported with the position after it.
        if is_due || owned.counters.has_late() {
            let now = clock::now();
            if self.options.interim_interval.is_zero() {
                owned.counters.interim(now, usize::MAX);
            } else {
                let room = TRANSACTION_RESULTS.saturating_sub(counts.len());
                counts.extend(owned.counters.interim(now, room));
            }
        }
        let records = counts.iter();
        let records = records.map(|count| Published::new(&self.topics, count, partition));
        let records: Vec<Published<'_>> = records.collect();
        let records: Vec<Outgoing<'_>> = records.iter().map(Published::outgoing).collect();
        let began = Instant::now();
        let metadata = owned.counters.mark().to_json();
        let position = Position {
            group,
            partition,
            next: owned.counters.position(),
            metadata: &metadata,
        };
        // After an error the counters are dropped, and the likes read again.
        let committed = owned.transactions.commit(&records, &position);
        committed.map_err(|Failure { error, .. }| error)?;
        debug!(partition, metadata, records = records.len(), "committed");
        self.stage.committed(records.len(), began.elapsed());
        owned.committed = position.next;
        self.start.committed(partition);
        if let Some(closed) = owned.counters.closed() {
            self.closed.insert(partition, closed);
        }
        // Interim counts beyond the limit are published at once.
        if is_due && !owned.counters.has_changed() {
            owned.committed_at = Instant::now();
        }
        self.metrics
            .counted
            .inc_by(std::mem::take(&mut owned.likes));
        for (index, size) in self.sizes.iter().enumerate() {
            let label = [size.label()];
            let of_size = || counts.iter().filter(|count| count.window == index);
            let interim = of_size().filter(|count| count.late.is_some()).count();
            let results = of_size().count() - interim;
            let add = |counters: &prometheus::IntCounterVec, count: u64| {
                counters.with_label_values(&label).inc_by(count);
            };
            add(&self.metrics.results, results as u64);
            add(&self.metrics.interim, interim as u64);
            let late = owned.counters.late()[index];
            add(&self.metrics.late, late - owned.late[index]);
            owned.late[index] = late;
        }
        Ok(())
    }

    fn report(&self) {
        let counters = || self.owned.values().map(|owned| &owned.counters);
        let open: usize = counters().map(Counters::open).sum();
        self.metrics
            .open
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        if let Some(Some(closed)) = counters().map(Counters::closed).min() {
            self.metrics.closed.set(closed as f64 / 1000.0);
        }
    }
}

impl Work for Counting {
    fn begin(&mut self, group: &Group, partition: i32) -> anyhow::Result<i64> {
        let id = format!("{}-windows-{partition}", self.config.group_prefix);
        let transactions = Transactions::open(&self.config, &id)?;
        // After that, nothing of a predecessor is still open.
        let stored = group.committed(partition)?;
        let offset = stored.as_ref().map(|(offset, _)| *offset);
        let found = self
            .start
            .check(group, &self.stage, partition, offset, false)?;
        let position = found.position;
        let metadata = stored.as_ref().map(|(_, metadata)| metadata.as_str());
        let (mark, from) = self.mark(group, partition, metadata, found)?;
        if found.moved && mark.closed.is_some() {
            // Its ends are those of another log.
            self.latest.forget();
        }
        info!(
            partition,
            position,
            from,
            closed = mark.closed,
            "counting likes"
        );
        let counters = Counters::new(self.sizes.clone(), position, &mark);
        let owned = Owned {
            transactions,
            rebuilt_at: position,
            read: from,
            committed: if found.moved { -1 } else { position },
            committed_at: Instant::now(),
            likes: 0,
            late: counters.late().to_vec(),
            goal: None,
            counters,
        };
        self.owned.insert(partition, owned);
        Ok(from)
    }

    fn take(&mut self, record: Record) -> bool {
        let Some(owned) = self.owned.get_mut(&record.partition) else {
            return false;
        };
        owned.read = record.offset + 1;
        match like::read(&record) {
            Ok((id, timestamp)) => {
                if record.offset >= owned.rebuilt_at {
                    owned.likes += 1;
                }
                owned.counters.add(record.offset, timestamp, id);
            }
            Err(reason) => {
                let (partition, offset) = (record.partition, record.offset);
                // One line per process: there may be many.
                if self.metrics.ignored.get() == 0 {
                    warn!(partition, offset, %reason, "another program has written to the partitioned topic");
                }
                if offset >= owned.rebuilt_at {
                    self.metrics.ignored.inc();
                }
            }
        }
        false
    }

    fn reached(&mut self, partition: i32, position: i64) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.read = owned.read.max(position);
            if owned.read >= owned.rebuilt_at {
                owned.counters.advance(owned.read);
            }
        }
    }

    fn commit(&mut self, group: &Group) -> anyhow::Result<()> {
        let partitions: Vec<i32> = self.owned.keys().copied().collect();
        let committed = each(partitions, |partition| {
            self.commit_partition(group, partition)
        });
        self.report();
        committed
    }

    fn drop_all(&mut self) {
        self.owned.clear();
        self.report();
    }
}

/// The time up to which windows are closed next, and the offset that must be read before. `latest` is after `closed`.
fn next_goal(
    goal: Option<(i64, i64)>,
    latest: Option<(i64, i64)>,
    closed: Option<i64>,
) -> Option<(i64, i64)> {
    let goal = goal.filter(|(time, _)| Some(*time) > closed);
    match (goal, latest) {
        // Under load the end of a later goal is further away; a lower end is that of a topic that was recreated.
        (Some(goal), Some(latest)) if latest.1 >= goal.1 => Some(goal),
        (goal, latest) => latest.or(goal),
    }
}

/// The topics of the counts of a window size.
struct Topics {
    size: WindowSize,
    results: String,
    interim: String,
}

impl Topics {
    fn all(windows: &Windows) -> Vec<Self> {
        let topics = windows.iter().map(|(size, topic)| Self {
            size,
            results: topic.to_owned(),
            interim: Windows::live_topic(topic),
        });
        topics.collect()
    }
}

/// A count as a record.
struct Published<'a> {
    topic: &'a str,
    id: &'a str,
    value: String,
}

impl<'a> Published<'a> {
    fn new(topics: &'a [Topics], count: &'a WindowCount, partition: i32) -> Self {
        let topics = &topics[count.window];
        Self {
            topic: match count.late {
                Some(_) => &topics.interim,
                None => &topics.results,
            },
            id: &count.id,
            value: count.to_json(topics.size, partition),
        }
    }

    fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            topic: self.topic,
            key: self.id.as_bytes(),
            value: Some(self.value.as_bytes()),
            timestamp: None,
            headers: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_kept_until_it_is_reached_or_the_topic_is_recreated() {
        let goal = Some((5_000, 1_000));
        assert_eq!(next_goal(None, goal, None), goal);
        assert_eq!(next_goal(goal, None, None), goal);
        assert_eq!(next_goal(goal, Some((6_000, 1_000)), Some(4_000)), goal);
        let later = Some((6_000, 1_200));
        assert_eq!(next_goal(goal, later, Some(4_000)), goal);
        assert_eq!(next_goal(goal, later, Some(5_000)), later);
        assert_eq!(next_goal(goal, None, Some(5_000)), None);
        let recreated = Some((6_000, 3));
        assert_eq!(next_goal(goal, recreated, Some(4_000)), recreated);
    }
}
