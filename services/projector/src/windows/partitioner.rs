//! The first stage: copies the likes to the partitioned topic, keyed by identifier, each exactly once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::{info, warn};

use super::config::WindowArgs;
use super::kafka::{Failure, Outgoing, Position, Rejection, Transactions};
use super::last_record::LastRecord;
use super::like::{self, Malformed};
use super::metrics::{Metrics, StageMetrics};
use super::stage::{COMMIT_OTHERS, Work, each};
use super::start::Start;
use crate::Config;
use crate::clock;
use crate::kafka::{Annotated, Group, create_topic, dead_letter_topic};
use crate::record::Record;

/// About the most bytes of a transaction.
const BATCH_BYTES: usize = 8 << 20;

/// The first stage.
pub struct Partitioner {
    config: Config,
    options: WindowArgs,
    metrics: Metrics,
    stage: StageMetrics,
    owned: BTreeMap<i32, Owned>,
    /// Records that Kafka did not take in an earlier attempt, by partition and offset.
    rejected: BTreeMap<(i32, i64), Rejection>,
    /// Where several records were rejected at once: up to this offset, each has a transaction of its own, because Kafka's answer
    /// does not tell those that it would take from the others of their batch.
    alone: BTreeMap<i32, i64>,
    /// The topic of dead letters is created with the first one.
    creates: bool,
    start: Start,
}

/// A partition of the topic of likes.
struct Owned {
    transactions: Transactions,
    /// As Kafka has it; `None` before the first transaction.
    committed: Option<i64>,
    position: i64,
    /// The record before the position, if this is known.
    last: Option<LastRecord>,
    pending: Vec<Record>,
    bytes: usize,
    since: Option<Instant>,
    /// Its latest transaction failed.
    failed: bool,
}

impl Partitioner {
    pub fn new(config: Config, options: WindowArgs, metrics: Metrics, stage: StageMetrics) -> Self {
        Self {
            creates: config.create_dead_letter_topic,
            start: Start::new(&options.likes_topic),
            owned: BTreeMap::new(),
            rejected: BTreeMap::new(),
            alone: BTreeMap::new(),
            config,
            options,
            metrics,
            stage,
        }
    }

    fn commit_partition(&mut self, group: &Group, partition: i32) -> anyhow::Result<()> {
        let Some(owned) = self.owned.get_mut(&partition) else {
            return Ok(());
        };
        let likes_topic = self.options.likes_topic.as_str();
        let letters_topic = dead_letter_topic(likes_topic);
        let now = clock::now();
        let copies = owned.pending.iter().map(|record| {
            let rejected = self.rejected.get(&(partition, record.offset)).copied();
            Copied::new(likes_topic, record, rejected, now)
        });
        let copies: Vec<Copied<'_>> = copies.collect();
        let letters = || copies.iter().filter_map(Copied::dead_letter);
        if let Some(letter) = letters().next() {
            let (offset, reason) = (letter.record.offset, letter.reason);
            let count = letters().count();
            warn!(partition, offset, %reason, count, "malformed likes");
            if self.creates {
                let client = self
                    .config
                    .kafka
                    .client_config("herald-projector", &[], &[])?;
                Handle::current().block_on(create_topic(&client, &letters_topic))?;
                self.creates = false;
            }
        }
        let records: Vec<Outgoing<'_>> = copies
            .iter()
            .map(|copy| copy.outgoing(&self.options.partitioned_likes_topic, &letters_topic))
            .collect();
        let began = Instant::now();
        let last = owned.pending.last().map(LastRecord::of).or(owned.last);
        let metadata = last.map_or(String::new(), LastRecord::to_json);
        let position = Position {
            group,
            partition,
            next: owned.position,
            metadata: &metadata,
        };
        if let Err(Failure { error, rejected }) = owned.transactions.commit(&records, &position) {
            if rejected.len() > 1 {
                self.alone.insert(partition, owned.position);
            } else if let Some((index, rejection)) = rejected.into_iter().next() {
                let offset = owned.pending[index].offset;
                self.rejected.insert((partition, offset), rejection);
            }
            owned.failed = true;
            return Err(error);
        }
        self.stage.committed(records.len(), began.elapsed());
        let mut malformed = 0;
        for letter in letters() {
            let label = [letter.reason.label()];
            self.metrics.dead_letters.with_label_values(&label).inc();
            malformed += 1;
        }
        let read = copies.len() as u64;
        self.metrics.read.inc_by(read);
        self.metrics.partitioned.inc_by(read - malformed);
        (owned.committed, owned.last) = (Some(owned.position), last);
        self.start.committed(partition);
        owned.pending.clear();
        (owned.bytes, owned.since) = (0, None);
        self.rejected.retain(|(other, _), _| *other != partition);
        self.alone
            .retain(|other, to| *other != partition || *to > owned.position);
        Ok(())
    }

    fn is_due(&self, partition: i32, owned: &Owned) -> bool {
        if owned.pending.is_empty() {
            // Markers of transactions after the last like. Windows wait until the position is at the end.
            return owned.committed.is_none_or(|next| next < owned.position);
        }
        let waited = owned.since.map_or(Duration::ZERO, |since| since.elapsed());
        self.is_full(partition, owned) || waited >= self.config.batch_interval
    }

    fn is_full(&self, partition: i32, owned: &Owned) -> bool {
        owned.pending.len() >= self.config.batch_records as usize
            || owned.bytes >= BATCH_BYTES
            || self.alone.contains_key(&partition)
    }
}

impl Work for Partitioner {
    fn begin(&mut self, group: &Group, partition: i32) -> anyhow::Result<i64> {
        let id = format!("{}-likes-{partition}", self.config.group_prefix);
        let transactions = Transactions::open(&self.config, &id)?;
        // After that, nothing of a predecessor is still open.
        let stored = group.committed(partition)?;
        let last = stored.as_ref();
        let last = last.and_then(|(_, metadata)| LastRecord::parse(metadata));
        let replaced = match last {
            Some(last) => last.is_replaced(group, partition)?,
            None => false,
        };
        let found = self.start.check(
            group,
            &self.stage,
            partition,
            stored.as_ref().map(|(offset, _)| *offset),
            replaced,
        )?;
        if stored.is_none() {
            let topic = &self.options.likes_topic;
            info!(
                topic,
                partition,
                offset = found.position,
                "reading the topic from its start"
            );
        }
        if found.recreated {
            // They are offsets of another log.
            self.rejected.retain(|(other, _), _| *other != partition);
            self.alone.remove(&partition);
        }
        let owned = Owned {
            transactions,
            committed: (!found.moved).then_some(found.position),
            position: found.position,
            last: last.filter(|_| !found.moved),
            pending: Vec::new(),
            bytes: 0,
            since: None,
            failed: false,
        };
        self.owned.insert(partition, owned);
        Ok(found.position)
    }

    fn take(&mut self, record: Record) -> bool {
        let Some(owned) = self.owned.get_mut(&record.partition) else {
            return false;
        };
        let partition = record.partition;
        owned.position = record.offset + 1;
        owned.bytes += record.bytes();
        owned.since.get_or_insert_with(Instant::now);
        owned.pending.push(record);
        let owned = &self.owned[&partition];
        self.is_full(partition, owned)
    }

    fn reached(&mut self, partition: i32, position: i64) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.position = owned.position.max(position);
        }
    }

    fn commit(&mut self, group: &Group) -> anyhow::Result<()> {
        for owned in self.owned.values() {
            owned.transactions.serve();
        }
        let due = self.owned.iter();
        let due = due.filter(|(partition, owned)| self.is_due(**partition, owned));
        let due: Vec<i32> = due.map(|(partition, _)| *partition).collect();
        let began = Instant::now();
        let committed = each(due, |partition| self.commit_partition(group, partition));
        if committed.is_err() && began.elapsed() < COMMIT_OTHERS {
            // All are dropped after a failure, so the others commit what they have.
            let pending = self.owned.iter();
            let pending = pending.filter(|(_, owned)| !owned.failed && !owned.pending.is_empty());
            let pending = pending.map(|(partition, _)| *partition).collect();
            _ = each(pending, |partition| self.commit_partition(group, partition));
        }
        committed
    }

    fn drop_all(&mut self) {
        self.owned.clear();
    }
}

/// What a record becomes.
enum Copied<'a> {
    Like {
        record: &'a Record,
        id: &'a str,
        timestamp: i64,
    },
    DeadLetter(DeadLetter<'a>),
}

impl<'a> Copied<'a> {
    /// `rejected`: Kafka did not take it in an earlier attempt.
    fn new(topic: &'a str, record: &'a Record, rejected: Option<Rejection>, now: i64) -> Self {
        let reason = match like::accept(record, now) {
            Ok((id, timestamp)) if rejected.is_none() => {
                return Self::Like {
                    record,
                    id,
                    timestamp,
                };
            }
            Ok(_) => Malformed::Rejected,
            Err(reason) => reason,
        };
        // A record as large as Kafka allows leaves no room for the headers.
        let whole = rejected != Some(Rejection::TooLarge);
        Self::DeadLetter(DeadLetter::new(topic, record, reason, whole))
    }

    fn dead_letter(&self) -> Option<&DeadLetter<'a>> {
        match self {
            Self::Like { .. } => None,
            Self::DeadLetter(letter) => Some(letter),
        }
    }

    fn outgoing<'b>(&'b self, likes_topic: &'b str, letters_topic: &'b str) -> Outgoing<'b> {
        match self {
            Self::Like {
                record,
                id,
                timestamp,
            } => Outgoing {
                topic: likes_topic,
                key: id.as_bytes(),
                value: Some(id.as_bytes()),
                timestamp: Some(*timestamp),
                headers: headers(record),
            },
            Self::DeadLetter(letter) => letter.outgoing(letters_topic),
        }
    }
}

fn headers(record: &Record) -> Vec<(&str, Option<&[u8]>)> {
    let headers = record.headers.iter();
    headers
        .map(|(name, value)| (name.as_str(), value.as_deref()))
        .collect()
}

/// A malformed record.
struct DeadLetter<'a> {
    record: &'a Record,
    reason: Malformed,
    annotated: Annotated<'a>,
}

impl<'a> DeadLetter<'a> {
    fn new(topic: &'a str, record: &'a Record, reason: Malformed, whole: bool) -> Self {
        Self {
            annotated: Annotated::new(topic, record, &reason, whole),
            record,
            reason,
        }
    }

    fn outgoing<'b>(&'b self, topic: &'b str) -> Outgoing<'b> {
        Outgoing {
            topic,
            key: self.annotated.key.as_bytes(),
            value: self.annotated.value,
            timestamp: None,
            headers: self.annotated.headers().collect(),
        }
    }
}
