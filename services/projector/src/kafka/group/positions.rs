//! The positions of the group in Kafka, for projections whose results are in Kafka too.

use std::collections::BTreeMap;

use anyhow::Context as _;
use rdkafka::consumer::{CommitMode, Consumer as _, ConsumerGroupMetadata};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use super::{Group, TIMEOUT};

impl Group {
    /// The committed position of a partition and its metadata, if there is one.
    pub fn committed(&self, partition: i32) -> anyhow::Result<Option<(i64, String)>> {
        let problem = || {
            let topic = &self.topic;
            format!("cannot look up the position in topic {topic:?}, partition {partition}")
        };
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        let found = self.consumer.committed_offsets(list, TIMEOUT);
        let found = found.with_context(problem)?;
        let element = found.find_partition(&self.topic, partition);
        let element = element.with_context(problem)?;
        element.error().with_context(problem)?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
            _ => None,
        })
    }

    /// Commits a position by itself.
    pub fn commit(&self, partition: i32, next: i64, metadata: &str) -> anyhow::Result<()> {
        let list = self.position(partition, next, metadata)?;
        self.consumer
            .commit(&list, CommitMode::Sync)
            .with_context(|| format!("cannot commit a position in topic {:?}", self.topic))
    }

    /// A position to commit, with metadata of at most 4 KiB.
    pub fn position(
        &self,
        partition: i32,
        next: i64,
        metadata: &str,
    ) -> anyhow::Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&self.topic, partition);
        element.set_offset(Offset::Offset(next))?;
        if !metadata.is_empty() {
            element.set_metadata(metadata);
        }
        Ok(list)
    }

    /// This member of the group, by which Kafka rejects the commits of one that is no longer in it.
    pub fn member(&self) -> anyhow::Result<ConsumerGroupMetadata> {
        self.consumer
            .group_metadata()
            .context("there is no consumer group")
    }

    /// The offset after everything that polling has passed, in the partitions that are read: records, and markers of transactions.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        let positions = match self.consumer.position() {
            Ok(positions) => positions,
            Err(error) => {
                debug!(%error, "cannot look up the positions");
                return BTreeMap::new();
            }
        };
        let elements = positions.elements();
        let known = elements
            .iter()
            .filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            });
        known.collect()
    }

    /// The first offset whose timestamp is this time, in milliseconds since 1970, or later.
    pub fn first_since(&self, partition: i32, time: i64) -> anyhow::Result<Option<i64>> {
        let topic = &self.topic;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(time))?;
        let found = self.consumer.offsets_for_times(list, TIMEOUT);
        let problem = || format!("cannot look up a time in topic {topic:?}, partition {partition}");
        let found = found.with_context(problem)?;
        let element = found.find_partition(topic, partition);
        let element = element.with_context(problem)?;
        element.error().with_context(problem)?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }
}
