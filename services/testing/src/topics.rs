//! Creates, enlarges, truncates and deletes topics. Every call returns once the change is visible.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::client::{DEADLINE, blocking, config, forget_topics};
use crate::eventually;

/// A name that no other test uses: `prefix`, a hyphen and eight random digits.
pub fn random_topic(prefix: &str) -> String {
    format!(
        "{prefix}-{:08x}",
        crate::kafka_process::random() & 0xffff_ffff
    )
}

/// Creates a topic; `configs` are Kafka's own, such as `("cleanup.policy", "compact")`.
pub async fn create_topic(address: &str, topic: &str, partitions: i32, configs: &[(&str, &str)]) {
    if crate::embedded::is_selected() {
        return crate::embedded::create_topic(topic, partitions);
    }
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (key, value) in configs {
        new = new.set(key, value);
    }
    let created = admin(address).create_topics([&new], &options()).await;
    check(created, &format!("cannot create topic {topic:?}"));
    wait_for_partitions(address, topic, partitions).await;
}

/// Deletes a topic. If it is recreated under the same name, it has a new id, and its offsets begin at 0.
pub async fn delete_topic(address: &str, topic: &str) {
    forget_topics(address);
    let deleted = admin(address).delete_topics(&[topic], &options()).await;
    check(deleted, &format!("cannot delete topic {topic:?}"));
    wait_for_partitions(address, topic, 0).await;
}

/// Adds partitions up to `total`.
pub async fn add_partitions(address: &str, topic: &str, total: i32) {
    forget_topics(address);
    let count = usize::try_from(total).expect("a positive number of partitions");
    let new = NewPartitions::new(topic, count);
    let added = admin(address).create_partitions([&new], &options()).await;
    check(added, &format!("cannot add partitions to {topic:?}"));
    wait_for_partitions(address, topic, total).await;
}

/// Deletes the records of one partition before `offset`, as retention would.
pub async fn delete_records_before(address: &str, topic: &str, partition: i32, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))
        .expect("an offset in range");
    let list = admin(address)
        .delete_records(&list, &options())
        .await
        .unwrap_or_else(|error| panic!("cannot delete records of {topic:?}: {error}"));
    for element in list.elements() {
        let error = element.error();
        assert!(
            error.is_ok(),
            "cannot delete records of {topic:?} before {offset}: {error:?}"
        );
    }
    let what = format!("the log of {topic:?} to begin at {offset}");
    eventually(DEADLINE, &what, async || {
        watermarks(address, topic, partition).await.0 >= offset
    })
    .await;
}

/// The first offset, and the offset after the last (including transaction markers).
pub async fn watermarks(address: &str, topic: &str, partition: i32) -> (i64, i64) {
    let (client, name) = (client(address), topic.to_owned());
    blocking(move || {
        client
            .fetch_watermarks(&name, partition, DEADLINE)
            .unwrap_or_else(|error| {
                panic!("cannot fetch the watermarks of {name:?}/{partition}: {error}")
            })
    })
    .await
}

/// The number of partitions that have a leader; 0 for a topic that does not exist.
pub(crate) async fn partitions(address: &str, topic: &str) -> i32 {
    let (client, name) = (client(address), topic.to_owned());
    blocking(move || {
        let metadata = client
            .fetch_metadata(Some(&name), DEADLINE)
            .unwrap_or_else(|error| panic!("cannot describe topic {name:?}: {error}"));
        let topics = metadata.topics().iter();
        let led = topics
            .filter(|topic| topic.error().is_none())
            .flat_map(|topic| topic.partitions())
            .filter(|partition| partition.leader() >= 0);
        i32::try_from(led.count()).expect("Kafka counts partitions as i32")
    })
    .await
}

/// Waits until Kafka answers a request.
pub(crate) async fn wait_until_reachable(address: &str) {
    let what = format!("Kafka at {address} to answer");
    eventually(DEADLINE, &what, async || {
        let client = client(address);
        blocking(move || {
            client
                .fetch_metadata(None, Duration::from_secs(5))
                .is_ok_and(|metadata| !metadata.brokers().is_empty())
        })
        .await
    })
    .await;
}

async fn wait_for_partitions(address: &str, topic: &str, count: i32) {
    let what = format!("topic {topic:?} to have {count} partitions");
    eventually(DEADLINE, &what, async || {
        partitions(address, topic).await == count
    })
    .await;
}

fn client(address: &str) -> BaseConsumer {
    config(address).create().expect("a valid configuration")
}

fn admin(address: &str) -> AdminClient<DefaultClientContext> {
    config(address).create().expect("a valid configuration")
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(DEADLINE))
        .operation_timeout(Some(DEADLINE))
}

fn check(result: Result<Vec<rdkafka::admin::TopicResult>, rdkafka::error::KafkaError>, what: &str) {
    let results = result.unwrap_or_else(|error| panic!("{what}: {error}"));
    for result in results {
        result.unwrap_or_else(|(_, code)| panic!("{what}: {code}"));
    }
}
