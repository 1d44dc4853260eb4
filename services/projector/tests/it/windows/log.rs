//! A reader of committed records that goes on where it was, because the tests read often.

use std::time::{Duration, Instant};

use herald_testing::Stored;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::DEADLINE;

/// The records of a topic.
pub struct Log {
    consumer: BaseConsumer,
    topic: String,
    partitions: Vec<i32>,
    records: Vec<Stored>,
}

impl Log {
    pub fn new(kafka: &str, topic: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka)
            .set("group.id", "herald-testing")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "20")
            .create()
            .unwrap();
        let found = consumer.fetch_metadata(Some(topic), DEADLINE).unwrap();
        let partitions = found.topics()[0].partitions().iter();
        let partitions: Vec<i32> = partitions.map(|partition| partition.id()).collect();
        let mut list = TopicPartitionList::new();
        for &partition in &partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        Self {
            consumer,
            topic: topic.to_owned(),
            partitions,
            records: Vec::new(),
        }
    }

    /// All records up to the end that the topic has now, in the order of partition and offset.
    pub fn read(&mut self) -> Vec<Stored> {
        let deadline = Instant::now() + DEADLINE;
        for &partition in &self.partitions {
            let (low, high) = self
                .consumer
                .fetch_watermarks(&self.topic, partition, DEADLINE)
                .unwrap();
            while low < high && !self.has_passed(partition, high) {
                assert!(Instant::now() < deadline, "cannot read {}", self.topic);
                if let Some(Ok(message)) = self.consumer.poll(Duration::from_millis(10)) {
                    self.records.push(stored(&message));
                }
            }
        }
        self.records
            .sort_by_key(|record| (record.partition, record.offset));
        self.records.clone()
    }

    fn has_passed(&self, partition: i32, end: i64) -> bool {
        let positions = self.consumer.position().unwrap();
        let position = positions.find_partition(&self.topic, partition);
        matches!(position.unwrap().offset(), Offset::Offset(next) if next >= end)
    }
}

fn stored(message: &impl Message) -> Stored {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let headers = headers.iter();
        headers
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect()
    });
    Stored {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}
