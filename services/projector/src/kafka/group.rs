//! A member of the consumer group.

mod positions;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use herald_runtime::kafka::{Source, create};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::watch;
use tracing::debug;

use super::context::{Assignment, GroupContext};
use crate::Config;
use crate::record::Record;

/// The timeout of a request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What polling returned.
pub enum Polled {
    Record(Record),
    /// A partition was read to its end.
    End(i32),
    /// The log is no longer the one that was assigned: the positions must be checked.
    Suspect(String),
    /// A batch of records that librdkafka cannot unpack, or with a wrong checksum; it is tried again.
    Unreadable(String),
    /// Kafka denies access to the topic or the group.
    Denied(String),
    /// Only a new process can go on: another one has the same `group.instance.id`, say.
    Fatal(String),
    Nothing,
}

/// A consumer that shares the partitions of the topic with the other members of its group. The positions of projections
/// that are kept in a database come from there alone, and Kafka's are for tools that show lag.
pub struct Group {
    consumer: BaseConsumer<GroupContext>,
    context: GroupContext,
    source: watch::Receiver<Source>,
    topic: String,
}

impl Group {
    /// Errors are for the user: properties that librdkafka rejects. An unreachable Kafka is not an error.
    pub fn subscribe(config: &Config, topic: &str, group: &str) -> anyhow::Result<Self> {
        let required = [
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            // An offset that no longer exists must be reported, not skipped.
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("isolation.level", "read_committed"),
            // A batch with a wrong checksum must be reported, not read.
            ("check.crcs", "true"),
            // Every rebalance begins with no partition, so that no state outlives it.
            ("partition.assignment.strategy", "range"),
        ];
        let defaults = [
            // The partitions of a projector that was killed are read again after 10 s instead of 45.
            ("session.timeout.ms", "10000"),
            // The default delays the next fetch of a full queue by a second.
            ("fetch.queue.backoff.ms", "10"),
            ("queued.max.messages.kbytes", "8192"),
            ("fetch.max.bytes", "8388608"),
            ("receive.message.max.bytes", "67108864"),
            // A new topic or partition is found within 10 s instead of 5 minutes.
            ("topic.metadata.refresh.interval.ms", "10000"),
        ];
        let reserved = required.map(|(key, _)| key);
        let mut client = config
            .kafka
            .client_config("herald-projector", &defaults, &reserved)?;
        for (key, value) in required {
            client.set(key, value);
        }
        // librdkafka reports a recreated topic only in its debug log; see `GroupContext::log`.
        let debug = client
            .get("debug")
            .map_or("topic".to_owned(), |debug| format!("{debug},topic"));
        client
            .set("debug", debug)
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Debug);
        let context = GroupContext::new(topic);
        let consumer: BaseConsumer<GroupContext> = create(&client, context.clone())?;
        consumer
            .subscribe(&[topic])
            .context("cannot subscribe to the topic")?;
        Ok(Self {
            consumer,
            source: context.connection().source(),
            context,
            topic: topic.to_owned(),
        })
    }

    /// Waits at most this long. It must be called at least every few seconds.
    pub fn poll(&self, wait: Duration) -> Polled {
        match self.consumer.poll(wait) {
            Some(Ok(message)) => Polled::Record(record(&message)),
            Some(Err(error)) => problem(&error),
            None => Polled::Nothing,
        }
    }

    /// The latest rebalance, if there was one since the last call.
    pub fn take_assignment(&self) -> Option<Assignment> {
        self.context.with_news(|news| news.assignment.take())
    }

    /// Whether the topic was created again since the last call.
    pub fn take_recreated(&self) -> bool {
        self.context
            .with_news(|news| std::mem::take(&mut news.recreated))
    }

    /// The end of each partition that is read, at most a second old.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        self.context.with_news(|news| news.ends.clone())
    }

    /// Reads these partitions from these offsets, and no others. Keeps the membership of the group.
    pub fn assign(&self, offsets: &[(i32, i64)]) -> anyhow::Result<()> {
        let list = self.list(offsets)?;
        self.consumer
            .assign(&list)
            .context("cannot assign the partitions")
    }

    /// Stops reading until the next [`assign`](Self::assign).
    pub fn stop_reading(&self) {
        if let Err(error) = self.consumer.unassign() {
            debug!(%error, "cannot stop reading");
        }
    }

    /// The first offset of a partition, and the one after its last record.
    pub fn watermarks(&self, partition: i32) -> anyhow::Result<(i64, i64)> {
        self.consumer
            .fetch_watermarks(&self.topic, partition, TIMEOUT)
            .with_context(|| {
                format!(
                    "cannot look up the offsets of topic {:?}, partition {partition}",
                    self.topic
                )
            })
    }

    /// The first record of a partition, which begins at `low`; `None` if Kafka returns none in time. Nothing may be assigned.
    pub fn first_record(&self, partition: i32, low: i64) -> anyhow::Result<Option<Record>> {
        self.assign(&[(partition, low)])?;
        let deadline = Instant::now() + TIMEOUT;
        let mut first = None;
        while first.is_none() && Instant::now() < deadline {
            match self.poll(Duration::from_millis(100)) {
                Polled::Record(record) if record.partition == partition => first = Some(record),
                Polled::End(_) => break,
                _ => {}
            }
        }
        self.stop_reading();
        Ok(first)
    }

    /// An error if the topic does not exist.
    pub fn check_topic(&self) -> anyhow::Result<()> {
        let found = self.consumer.fetch_metadata(Some(&self.topic), TIMEOUT);
        let found = found.with_context(|| format!("cannot look up topic {:?}", self.topic))?;
        let exists = found
            .topics()
            .iter()
            .any(|topic| !topic.partitions().is_empty());
        anyhow::ensure!(exists, "topic {:?} does not exist", self.topic);
        Ok(())
    }

    /// Tells Kafka the offsets, for tools that show lag.
    pub fn publish(&self, offsets: &[(i32, i64)]) {
        let list = self.list(offsets);
        let committed = list.and_then(|list| Ok(self.consumer.commit(&list, CommitMode::Async)?));
        if let Err(error) = committed {
            debug!(%error, "cannot commit the offsets for tools that show lag");
        }
    }

    /// Whether Kafka is available.
    pub fn source(&self) -> Source {
        *self.source.borrow()
    }

    fn list(&self, offsets: &[(i32, i64)]) -> anyhow::Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for &(partition, offset) in offsets {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        }
        Ok(list)
    }
}

fn problem(error: &KafkaError) -> Polled {
    use RDKafkaErrorCode as Code;
    if let KafkaError::PartitionEOF(partition) = error {
        return Polled::End(*partition);
    }
    match error.rdkafka_error_code() {
        Some(
            Code::AutoOffsetReset
            | Code::OffsetOutOfRange
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition,
        ) => Polled::Suspect(error.to_string()),
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed,
        ) => Polled::Denied(error.to_string()),
        Some(Code::Fatal | Code::FencedInstanceId) => Polled::Fatal(error.to_string()),
        Some(
            Code::BadMessage | Code::BadCompression | Code::InvalidMessage | Code::NotImplemented,
        ) => Polled::Unreadable(error.to_string()),
        _ => {
            // librdkafka goes on by itself; the context logs the problems of connections.
            debug!(%error, "error while polling");
            Polled::Nothing
        }
    }
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = herald_headers::of(message).into_iter();
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers
            .map(|(name, value)| {
                let name = String::from_utf8_lossy(name).into_owned();
                (name, value.map(<[u8]>::to_vec))
            })
            .collect(),
    }
}
