//! The second stage: counts the partitioned likes, and publishes the counts of closed windows, each exactly once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use herald_events::{WindowSize, Windows};
use tracing::{debug, info, warn};

use super::clock;
use super::config::WindowArgs;
use super::counters::Counters;
use super::horizon::Latest;
use super::kafka::{Failure, Outgoing, Position, Transactions};
use super::like;
use super::mark::Mark;
use super::metrics::{Metrics, StageMetrics};
use super::result::WindowCount;
use super::stage::Work;
use super::start::Start;
use crate::Config;
use crate::kafka::Group;
use crate::record::Record;

/// How often the position is committed if no counts are published.
const POSITION_INTERVAL: Duration = Duration::from_secs(5);

/// About the most final counts of a transaction, which must be committed within its timeout.
const TRANSACTION_RESULTS: usize = 100_000;

/// The second stage.
pub struct Counting {
    config: Config,
    options: WindowArgs,
    sizes: Vec<WindowSize>,
    latest: Latest,
    metrics: Metrics,
    stage: StageMetrics,
    owned: BTreeMap<i32, Owned>,
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
            start: Start::new(&options.partitioned_likes_topic),
            owned: BTreeMap::new(),
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
        position: i64,
    ) -> anyhow::Result<(Mark, i64)> {
        let start = Mark {
            rebuild: position,
            ..Mark::default()
        };
        let mark = match metadata.map(Mark::parse) {
            Some(Some(mark)) => mark,
            Some(None) => {
                warn!(
                    partition,
                    position,
                    "the position was set by another program; counting from it on, as if no window was closed"
                );
                start
            }
            None => start,
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

    fn commit_partition(&mut self, group: &Group, partition: i32) -> anyhow::Result<()> {
        let Some(owned) = self.owned.get_mut(&partition) else {
            return Ok(());
        };
        if owned.read < owned.rebuilt_at {
            // Open windows are not complete yet.
            return Ok(());
        }
        let closed = owned.counters.closed();
        if owned.goal.is_none_or(|(time, _)| Some(time) <= closed) {
            owned.goal = self.latest.after(closed, partition);
        }
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
        let is_due = owned.committed_at.elapsed() >= interval;
        let has_news = owned.read > owned.committed || owned.counters.has_changed();
        if counts.is_empty() && !(is_due && has_news) {
            return Ok(());
        }
        // A late like must be reported with the position after it.
        if is_due || owned.counters.has_late() {
            let interim = owned.counters.interim(clock::now());
            if !self.options.interim_interval.is_zero() {
                counts.extend(interim);
            }
        }
        let records = Published::all(&self.options.windows, &counts, partition);
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
        if is_due {
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
        let found = self.start.check(group, &self.stage, partition, offset)?;
        let position = found.position;
        let metadata = stored.as_ref().map(|(_, metadata)| metadata.as_str());
        let (mut mark, mut from) = self.mark(group, partition, metadata, position)?;
        if found.moved {
            // Another log: what was open is gone, and what was closed stays closed.
            (mark.rebuild, from) = (position, position);
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
        for partition in partitions {
            self.commit_partition(group, partition)?;
        }
        self.report();
        Ok(())
    }

    fn drop_all(&mut self) {
        self.owned.clear();
        self.report();
    }
}

/// A count as a record.
struct Published<'a> {
    topic: String,
    id: &'a str,
    value: String,
}

impl<'a> Published<'a> {
    fn all(windows: &Windows, counts: &'a [WindowCount], partition: i32) -> Vec<Self> {
        let windows: Vec<(WindowSize, &str)> = windows.iter().collect();
        let published = counts.iter().map(|count| {
            let (size, topic) = windows[count.window];
            Self {
                topic: match count.late {
                    Some(_) => Windows::live_topic(topic),
                    None => topic.to_owned(),
                },
                id: &count.id,
                value: count.to_json(size, partition),
            }
        });
        published.collect()
    }

    fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            topic: &self.topic,
            key: self.id.as_bytes(),
            value: Some(self.value.as_bytes()),
            timestamp: None,
            headers: Vec::new(),
        }
    }
}
