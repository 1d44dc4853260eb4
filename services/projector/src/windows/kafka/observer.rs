//! Looks up how far topics and a consumer group are, without being a member of the group.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use herald_runtime::kafka::{Context, create};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Config;

/// The timeout of a request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Two clients: one for what is committed, one for all that Kafka has.
pub struct Observer {
    committed: BaseConsumer<Context>,
    all: BaseConsumer<Context>,
}

impl Observer {
    /// Of the consumer group `group`.
    ///
    /// # Errors
    ///
    /// For the user: properties that librdkafka rejects. An unreachable Kafka is not an error.
    pub fn new(config: &Config, group: &str) -> anyhow::Result<Self> {
        let reserved = ["group.id", "isolation.level", "enable.auto.commit"];
        let client = config
            .kafka
            .client_config("herald-projector", &[], &reserved)?;
        let consumer = |isolation: &str| -> anyhow::Result<BaseConsumer<Context>> {
            let mut client: ClientConfig = client.clone();
            client
                .set("group.id", group)
                .set("isolation.level", isolation)
                .set("enable.auto.commit", "false")
                // Nobody polls for them.
                .set("statistics.interval.ms", "0");
            create(&client, Context::new())
        };
        Ok(Self {
            committed: consumer("read_committed")?,
            all: consumer("read_uncommitted")?,
        })
    }

    /// The first offset of each partition, and the one after the last record that no open transaction withholds.
    pub fn committed_ends(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, (i64, i64)>> {
        ends(&self.committed, topic)
    }

    /// The first offset of each partition, and the one after the last record, those of open transactions included.
    pub fn ends(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, (i64, i64)>> {
        ends(&self.all, topic)
    }

    /// The positions of the group, for the partitions that have one.
    pub fn positions(
        &self,
        topic: &str,
        partitions: impl Iterator<Item = i32>,
    ) -> anyhow::Result<BTreeMap<i32, i64>> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(topic, partition);
        }
        let found = self.all.committed_offsets(list, TIMEOUT);
        let found = found.context("cannot look up the positions of a consumer group")?;
        let mut positions = BTreeMap::new();
        for element in found.elements() {
            element
                .error()
                .context("cannot look up the position of a consumer group")?;
            if let Offset::Offset(offset) = element.offset() {
                positions.insert(element.partition(), offset);
            }
        }
        Ok(positions)
    }

    /// Serves librdkafka's callbacks; to be called every few seconds.
    pub fn poll(&self) {
        for consumer in [&self.committed, &self.all] {
            _ = consumer.poll(Duration::ZERO);
        }
    }
}

fn ends(
    consumer: &BaseConsumer<Context>,
    topic: &str,
) -> anyhow::Result<BTreeMap<i32, (i64, i64)>> {
    let found = consumer.fetch_metadata(Some(topic), TIMEOUT);
    let found = found.with_context(|| format!("cannot look up topic {topic:?}"))?;
    let mut ends = BTreeMap::new();
    for found in found.topics() {
        for partition in found.partitions() {
            let number = partition.id();
            let watermarks = consumer.fetch_watermarks(topic, number, TIMEOUT);
            let watermarks = watermarks.with_context(|| {
                format!("cannot look up the end of topic {topic:?}, partition {number}")
            })?;
            ends.insert(number, watermarks);
        }
    }
    anyhow::ensure!(!ends.is_empty(), "topic {topic:?} does not exist");
    Ok(ends)
}
