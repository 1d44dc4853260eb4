//! Reads committed records of topics on demand. Everything here blocks.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use herald_runtime::kafka::{Context, Source, create};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::watch;

use crate::Config;

/// The longest that Kafka may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A log that Kafka finds no record in since a time is read from its start if it has at most this many records, as many as the
/// embedded broker keeps: that one always answers that there is none.
const SMALL: i64 = 100_000;

/// Properties that reading relies on, so the user cannot set them.
const REQUIRED: [(&str, &str); 6] = [
    // Nothing is ever committed, but librdkafka rejects an assignment without a group.
    ("group.id", "herald-gateway"),
    ("enable.auto.commit", "false"),
    // An offset that no longer exists must be reported, not skipped.
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("enable.partition.eof", "true"),
    ("allow.auto.create.topics", "false"),
];

const DEFAULTS: [(&str, &str); 4] = [
    // The default delays the next fetch of a full queue by a second.
    ("fetch.queue.backoff.ms", "10"),
    ("queued.max.messages.kbytes", "1024"),
    ("fetch.max.bytes", "8388608"),
    // The end of a log is known after an empty fetch, which the broker delays by this.
    ("fetch.wait.max.ms", "50"),
];

/// How to open clients that read.
#[derive(Clone)]
pub struct Log(ClientConfig);

impl Log {
    /// # Errors
    ///
    /// If librdkafka rejects a property.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let reserved = REQUIRED.map(|(key, _)| key);
        let defaults = [&REQUIRED[..], &DEFAULTS].concat();
        // Properties of the producer, such as `linger.ms`, are ignored by a consumer.
        let client = config
            .kafka
            .client_config("herald-gateway-reader", &defaults, &reserved)?;
        Ok(Self(client))
    }

    /// A client, with threads and connections of its own.
    pub fn open(&self) -> anyhow::Result<Client> {
        let context = Context::new();
        Ok(Client {
            source: context.source(),
            consumer: create(&self.0, context)?,
        })
    }
}

/// A client that reads.
pub struct Client {
    consumer: BaseConsumer<Context>,
    source: watch::Receiver<Source>,
}

/// A record of Kafka, while it is read.
pub struct Record<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub key: &'a [u8],
    pub value: &'a [u8],
    message: &'a BorrowedMessage<'a>,
}

impl<'a> Record<'a> {
    fn of(message: &'a BorrowedMessage<'a>) -> Self {
        Self {
            topic: message.topic(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().unwrap_or_default(),
            value: message.payload().unwrap_or_default(),
            message,
        }
    }

    pub fn headers(&self) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
        herald_headers::of(self.message)
    }
}

impl Client {
    /// The number of partitions; 0 if the topic does not exist.
    pub fn partitions(&self, topic: &str) -> anyhow::Result<i32> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ANSWER);
        let metadata = metadata.with_context(|| format!("cannot describe topic {topic:?}"))?;
        let mut topics = metadata.topics().iter();
        let found = topics.find(|found| found.name() == topic);
        let count = found.map_or(0, |found| found.partitions().len());
        Ok(i32::try_from(count)?)
    }

    /// The first offset, and the offset after the last.
    pub fn watermarks(&self, topic: &str, partition: i32) -> anyhow::Result<(i64, i64)> {
        let watermarks = self.consumer.fetch_watermarks(topic, partition, ANSWER);
        watermarks.with_context(|| {
            format!("cannot read the start and the end of topic {topic:?}, partition {partition}")
        })
    }

    /// The first offset of each of these partitions whose record is at or after `time`, in milliseconds since 1970, or an earlier
    /// one. Partitions without such a record are left out.
    pub fn since(
        &self,
        topic: &str,
        partitions: &[i32],
        time: i64,
    ) -> anyhow::Result<Vec<(i32, i64)>> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut times = TopicPartitionList::new();
        for &partition in partitions {
            times.add_partition_offset(topic, partition, Offset::Offset(time.max(0)))?;
        }
        let found = self.consumer.offsets_for_times(times, ANSWER);
        let found = found.with_context(|| format!("cannot find a time in topic {topic:?}"))?;
        let mut starts = Vec::new();
        for element in found.elements() {
            let partition = element.partition();
            element
                .error()
                .with_context(|| format!("cannot find a time in topic {topic:?}"))?;
            match element.offset() {
                Offset::Offset(offset) => starts.push((partition, offset)),
                _ => {
                    let (low, high) = self.watermarks(topic, partition)?;
                    if low < high && high - low <= SMALL {
                        starts.push((partition, low));
                    }
                }
            }
        }
        Ok(starts)
    }

    /// The offset after the last committed record of each of these partitions.
    fn ends(&self, topic: &str, partitions: &[i32]) -> anyhow::Result<HashMap<i32, i64>> {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            // As a time, it is that after all others.
            list.add_partition_offset(topic, partition, Offset::End)?;
        }
        let problem = || format!("cannot find the end of topic {topic:?}");
        let found = self.consumer.offsets_for_times(list, ANSWER);
        let found = found.with_context(problem)?;
        let mut ends = HashMap::new();
        for element in found.elements() {
            element.error().with_context(problem)?;
            if let Offset::Offset(end) = element.offset() {
                ends.insert(element.partition(), end);
            }
        }
        Ok(ends)
    }

    /// Reads these partitions of a topic, each from its offset, until `take` breaks or each was read to the end that it had at first:
    /// a busy partition is never without a record that follows. Returns the next offsets.
    ///
    /// # Errors
    ///
    /// If Kafka rejects it, or does not bring it to an end within the limit.
    pub fn read(
        &self,
        topic: &str,
        starts: &[(i32, i64)],
        limit: Limit,
        mut take: impl FnMut(&Record) -> ControlFlow<()>,
    ) -> anyhow::Result<Vec<(i32, i64)>> {
        let mut next = starts.to_vec();
        let partitions: Vec<i32> = starts.iter().map(|(partition, _)| *partition).collect();
        let ends = match partitions.is_empty() {
            true => HashMap::new(),
            false => self.ends(topic, &partitions)?,
        };
        let is_end = |partition, next| ends.get(&partition).is_some_and(|end| next >= *end);
        let mut unread: Vec<(&str, i32, i64)> = starts
            .iter()
            .map(|&(partition, start)| (topic, partition, start))
            // A start after the end is an error, which Kafka reports.
            .filter(|(_, partition, start)| ends.get(partition) != Some(start))
            .collect();
        if unread.is_empty() {
            return Ok(next);
        }
        self.assign(&unread)?;
        let mut deadline = limit.deadline();
        while !unread.is_empty() {
            if Instant::now() >= deadline {
                bail!("topic {topic:?} could not be read to its end in time");
            }
            match self.poll(Duration::from_millis(100))? {
                Polled::Record(message) => {
                    let record = Record::of(&message);
                    // What was fetched before the assignment is not delivered after it; to be sure.
                    if record.topic != topic {
                        continue;
                    }
                    let flow = take(&record);
                    let after = record.offset + 1;
                    for (partition, offset) in &mut next {
                        if *partition == record.partition {
                            *offset = after;
                        }
                    }
                    if flow.is_break() {
                        break;
                    }
                    if is_end(record.partition, after) {
                        unread.retain(|(_, unread, _)| *unread != record.partition);
                    }
                }
                // The last offsets may be those of transactions' markers.
                Polled::End(partition) => unread.retain(|(_, unread, _)| *unread != partition),
                Polled::Nothing => continue,
            }
            if let Limit::Pause(_) = limit {
                deadline = limit.deadline();
            }
        }
        self.assign(&[])?;
        Ok(next)
    }

    /// Follows these partitions from now on, with [`next`](Self::next).
    pub fn assign(&self, partitions: &[(&str, i32, i64)]) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for &(topic, partition, offset) in partitions {
            list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        }
        let assigned = self.consumer.assign(&list);
        assigned.context("cannot read from Kafka")
    }

    /// Waits for the next record. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// If a partition cannot be followed any more.
    pub fn next(&self, wait: Duration, take: impl FnOnce(&Record)) -> anyhow::Result<bool> {
        match self.poll(wait)? {
            Polled::Record(message) => {
                take(&Record::of(&message));
                Ok(true)
            }
            Polled::End(_) | Polled::Nothing => Ok(false),
        }
    }

    /// Why Kafka cannot be read at present, if it cannot.
    pub fn problem(&self) -> Option<&'static str> {
        match *self.source.borrow() {
            Source::Down { reason, .. } => Some(reason),
            Source::Up | Source::Unknown => None,
        }
    }

    fn poll(&self, wait: Duration) -> anyhow::Result<Polled<'_>> {
        use RDKafkaErrorCode as Code;
        match self.consumer.poll(wait) {
            None => Ok(Polled::Nothing),
            Some(Ok(message)) => Ok(Polled::Record(message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => Ok(Polled::End(partition)),
            Some(Err(error)) => match error.rdkafka_error_code() {
                // librdkafka tries again, also with other brokers.
                Some(
                    Code::BrokerTransportFailure
                    | Code::AllBrokersDown
                    | Code::Resolve
                    | Code::OperationTimedOut
                    | Code::RequestTimedOut
                    | Code::NotLeaderForPartition
                    | Code::LeaderNotAvailable,
                ) => Ok(Polled::Nothing),
                Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                    Err(anyhow!(Unavailable).context(error))
                }
                _ => Err(anyhow!(error).context("cannot read from Kafka")),
            },
        }
    }
}

/// How long reading may take.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// In all.
    Total(Duration),
    /// From one record to the next.
    Pause(Duration),
}

impl Limit {
    fn deadline(self) -> Instant {
        let (Self::Total(limit) | Self::Pause(limit)) = self;
        Instant::now() + limit
    }
}

/// An offset is not in the log any more.
#[derive(Debug, Clone, Copy)]
pub struct Unavailable;

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the log does not have this offset any more")
    }
}

impl std::error::Error for Unavailable {}

enum Polled<'a> {
    Record(BorrowedMessage<'a>),
    /// The end of the partition with this number.
    End(i32),
    Nothing,
}
