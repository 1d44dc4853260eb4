//! Reads topics as they are, without being a member of a consumer group.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use herald_runtime::kafka::{Context, create};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Config;
use crate::record::Record;

/// The longest silence of Kafka.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A client that reads.
pub struct Log {
    consumer: BaseConsumer<Context>,
    config: Config,
}

impl Log {
    /// # Errors
    ///
    /// For the user: properties that librdkafka rejects.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            consumer: consumer(config, "herald-verify")?,
            config: config.clone(),
        })
    }

    /// The first offset of each partition, and the one after its last committed record.
    pub fn ends(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, (i64, i64)>> {
        let found = self.consumer.fetch_metadata(Some(topic), TIMEOUT);
        let found = found.with_context(|| format!("cannot look up topic {topic:?}"))?;
        let mut ends = BTreeMap::new();
        for partition in found.topics().iter().flat_map(|topic| topic.partitions()) {
            let watermarks = self
                .consumer
                .fetch_watermarks(topic, partition.id(), TIMEOUT);
            let watermarks = watermarks
                .with_context(|| format!("cannot look up the ends of topic {topic:?}"))?;
            ends.insert(partition.id(), watermarks);
        }
        ensure!(!ends.is_empty(), "topic {topic:?} does not exist");
        Ok(ends)
    }

    /// The positions of a consumer group in a topic, each with its metadata.
    pub fn positions(
        &self,
        group: &str,
        topic: &str,
        partitions: impl Iterator<Item = i32>,
    ) -> anyhow::Result<BTreeMap<i32, (i64, String)>> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(topic, partition);
        }
        let found = consumer(&self.config, group)?.committed_offsets(list, TIMEOUT);
        let found =
            found.with_context(|| format!("cannot look up the positions of group {group:?}"))?;
        let mut positions = BTreeMap::new();
        for element in found.elements() {
            element
                .error()
                .with_context(|| format!("cannot look up the positions of group {group:?}"))?;
            if let Offset::Offset(offset) = element.offset() {
                let position = (offset, element.metadata().to_owned());
                positions.insert(element.partition(), position);
            }
        }
        Ok(positions)
    }

    /// Passes each committed record of a partition from offset `from` to `to`, exclusive, in order.
    pub fn read(
        &self,
        topic: &str,
        partition: i32,
        (from, to): (i64, i64),
        mut take: impl FnMut(&Record),
    ) -> anyhow::Result<()> {
        if from >= to {
            return Ok(());
        }
        let problem = || format!("cannot read topic {topic:?}, partition {partition}");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(from))?;
        self.consumer.assign(&list).with_context(problem)?;
        let mut received = Instant::now();
        loop {
            match self.consumer.poll(Duration::from_millis(100)) {
                None => ensure!(
                    received.elapsed() < TIMEOUT,
                    "Kafka does not answer; {}",
                    problem()
                ),
                Some(Ok(message)) => {
                    received = Instant::now();
                    if message.offset() >= to {
                        break;
                    }
                    take(&Record {
                        partition,
                        offset: message.offset(),
                        timestamp: message.timestamp().to_millis(),
                        key: message.key().map(<[u8]>::to_vec),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: Vec::new(),
                    });
                    if message.offset() + 1 >= to {
                        break;
                    }
                }
                // The last offsets may be those of transactions' markers.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => match error.rdkafka_error_code() {
                    // librdkafka goes on by itself.
                    Some(
                        Code::BrokerTransportFailure
                        | Code::AllBrokersDown
                        | Code::OperationTimedOut
                        | Code::Resolve,
                    ) => {}
                    _ => bail!("{}: {error}", problem()),
                },
            }
        }
        self.consumer.unassign().with_context(problem)
    }
}

fn consumer(config: &Config, group: &str) -> anyhow::Result<BaseConsumer<Context>> {
    let required = [
        ("group.id", group),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "true"),
        ("isolation.level", "read_committed"),
    ];
    let reserved = required.map(|(key, _)| key);
    let mut client = config
        .kafka
        .client_config("herald-verify", &[], &reserved)?;
    for (key, value) in required {
        client.set(key, value);
    }
    create(&client, Context::new())
}
