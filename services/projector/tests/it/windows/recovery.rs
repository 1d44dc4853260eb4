//! What predecessors have left behind, and logs that are not the ones of before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use herald_testing::{create_topic, delete_topic, eventually};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::model::check_distinct;
use super::{LABELS, Setup, like, now};
use crate::DEADLINE;

#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_that_was_killed_in_a_transaction_holds_back_nobody() {
    let Some(kafka) = herald_testing::kafka_with("fencing of producers") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    for (id, topic) in [
        ("likes-0", setup.partitioned_topic()),
        ("windows-0", setup.topic("1s")),
    ] {
        let id = format!("{}-{id}", setup.name);
        let kafka = kafka.clone();
        tokio::task::spawn_blocking(move || leave_open(&kafka, &id, &topic))
            .await
            .unwrap();
    }
    let time = now();
    setup.like(&[like(0, "a", time)]).await;
    let projector = setup.start();
    let began = Instant::now();
    setup.all_counted(1).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{began:?}");
    assert_eq!(setup.read(&setup.partitioned_topic()).await.len(), 1);
    assert_eq!(setup.results("1s").await.len(), 1);
    projector.end().await;
}

/// Begins a transaction as this producer does, writes a record, and never ends it.
fn leave_open(kafka: &str, id: &str, topic: &str) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("transactional.id", id)
        .set("transaction.timeout.ms", "600000")
        .create()
        .unwrap();
    producer.init_transactions(DEADLINE).unwrap();
    producer.begin_transaction().unwrap();
    let record = BaseRecord::to(topic).key("x").payload("never committed");
    producer.send(record).unwrap();
    producer.flush(DEADLINE).unwrap();
    // Dropping it would not end the transaction either, but take time.
    std::mem::forget(producer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_likes_that_was_recreated_is_read_from_its_start() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let projector = setup.start();
    let likes = |count: usize| vec![like(0, "a", now()); count];
    setup.like(&likes(5)).await;
    setup.all_counted(5).await;
    delete_topic(&kafka, &setup.likes_topic()).await;
    create_topic(&kafka, &setup.likes_topic(), 1, &[]).await;
    setup.like(&likes(8)).await;
    setup.all_counted(13).await;
    let results = setup.results("3s").await;
    let counted: u64 = results.iter().map(|count| count.count).sum();
    assert_eq!(counted + setup.late("3s").await, 13);
    let recreated = async || {
        let recreated = projector
            .metric("herald_windows_recreated_logs_total")
            .await;
        recreated == 1.0
    };
    eventually(DEADLINE, "the new log to be counted", recreated).await;
    projector.becomes_ready().await;
    projector.end().await;
}

async fn recreate(kafka: &str, topic: &str) {
    delete_topic(kafka, topic).await;
    create_topic(kafka, topic, 1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_topic_that_was_recreated_is_counted_and_closed_windows_stay_closed() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let projector = setup.start();
    let time = now();
    // The new log does not become as long as this one.
    setup.like(&vec![like(0, "a", time); 500]).await;
    setup.all_counted(500).await;
    recreate(&kafka, &setup.partitioned_topic()).await;
    let recreated = async || {
        let recreated = projector
            .metric("herald_windows_recreated_logs_total")
            .await;
        recreated == 1.0
    };
    eventually(DEADLINE, "the new log to be noticed", recreated).await;
    setup.like(&[like(0, "a", time), like(0, "b", now())]).await;
    setup.all_counted(502).await;
    check_distinct(&setup).await;
    for label in LABELS {
        assert_eq!(setup.late(label).await, 1);
    }
    projector.becomes_ready().await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_has_a_result_stays_closed_without_a_position() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let projector = setup.start();
    let time = now();
    setup.like(&[like(0, "a", time)]).await;
    setup.all_counted(1).await;
    projector.end().await;
    // The position is deleted with the topic.
    recreate(&kafka, &setup.partitioned_topic()).await;
    let projector = setup.start();
    setup.like(&[like(0, "a", time), like(0, "b", now())]).await;
    setup.all_counted(3).await;
    check_distinct(&setup).await;
    for label in LABELS {
        assert_eq!(setup.late(label).await, 1);
    }
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_likes_that_was_recreated_is_noticed_by_its_records() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let projector = setup.start();
    setup.like(&vec![like(0, "a", now()); 3]).await;
    setup.all_counted(3).await;
    projector.end().await;
    let topic = setup.likes_topic();
    let group = Arc::new(group(&kafka, &format!("{}-likes", setup.name)));
    let mut list = TopicPartitionList::new();
    list.add_partition(&topic, 0);
    let client = group.clone();
    let position =
        tokio::task::spawn_blocking(move || client.committed_offsets(list, DEADLINE).unwrap())
            .await
            .unwrap();
    recreate(&kafka, &topic).await;
    // More than before, and the position that an operator has restored.
    setup.like(&vec![like(0, "b", now()); 8]).await;
    tokio::task::spawn_blocking(move || group.commit(&position, CommitMode::Sync).unwrap())
        .await
        .unwrap();
    let projector = setup.start();
    setup.all_counted(11).await;
    projector.end().await;
}

fn group(kafka: &str, name: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", name)
        .set("enable.auto.commit", "false")
        .create()
        .unwrap()
}
