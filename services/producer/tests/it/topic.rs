//! What stands in the topic.

use std::collections::HashSet;

use herald_testing::{
    create_topic, delete_topic, eventually, kafka_with, random_topic, read_all, watermarks,
};
use producer::FACES;
use tokio_util::sync::CancellationToken;

use crate::{DEADLINE, Running, config};

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_the_contracts_and_carry_cloudevents_and_a_trace() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let topic = random_topic("dev");
    let producer = Running::start(&kafka, &topic, &[]);
    eventually(DEADLINE, "100 messages", async || {
        producer.metric("herald_messages_produced_total").await >= 100
    })
    .await;
    producer.end().await.unwrap();

    let records = read_all(&kafka, &topic).await;
    assert!(records.len() >= 100);
    let mut ids = HashSet::new();
    for record in &records {
        assert_eq!(record.key, None);
        let text = record.text();
        let (spoken, face) = text.split_once('\t').unwrap();
        let time = spoken
            .strip_prefix("Hello world from dev producer - ")
            .unwrap();
        let digits: Vec<&str> = time.split(':').collect();
        assert!(
            digits.len() == 3
                && digits
                    .iter()
                    .all(|part| part.len() == 2 && part.parse::<u8>().is_ok()),
            "{time}"
        );
        // All pauses are far below a second.
        assert_eq!(face, FACES[0]);

        let header = |name: &str| {
            let values: Vec<_> = record
                .headers
                .iter()
                .filter(|(key, _)| key == name)
                .collect();
            assert_eq!(values.len(), 1, "{name}");
            String::from_utf8(values[0].1.clone().unwrap()).unwrap()
        };
        assert_eq!(header("ce_specversion"), "1.0");
        assert_eq!(header("ce_type"), "herald.broadcast");
        assert_eq!(header("ce_source"), "/herald/dev/producer");
        assert_eq!(header("content-type"), "text/plain; charset=utf-8");
        assert!(header("ce_time").ends_with('Z') && header("traceparent").starts_with("00-"));
        assert!(ids.insert(header("ce_id")), "an id occurs once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_created_with_the_requested_partitions() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let topic = random_topic("dev");
    let producer = Running::start(&kafka, &topic, &["--topic-partitions", "3"]);
    eventually(DEADLINE, "the producer to be ready", async || {
        producer.is_ready().await
    })
    .await;
    producer.end().await.unwrap();
    let mut total = 0;
    for partition in 0..3 {
        total += watermarks(&kafka, &topic, partition).await.1;
    }
    assert!(total > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_declared_and_given_the_partitions_it_lacks_and_nothing_is_said() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let topic = random_topic("dev");
    let declare = async |options: &[&str]| {
        let only = [&["--create-topic", "only"], options].concat();
        let (config, shutdown) = (config(&kafka, &topic, &only), CancellationToken::new());
        tokio::time::timeout(DEADLINE, producer::create_topic(&config, &shutdown))
            .await
            .expect("it leaves by itself")
    };
    let config = "retention.ms=-1\nsegment.bytes=1048576";
    let options = ["--topic-replication-factor", "1", "--topic-config", config];
    declare(&options).await.unwrap();
    let end = async |partition| watermarks(&kafka, &topic, partition).await.1;
    assert_eq!(end(0).await, 0);

    // An existing topic is accepted, and surplus partitions are kept.
    declare(&["--topic-partitions", "3"]).await.unwrap();
    assert_eq!((end(0).await, end(1).await, end(2).await), (0, 0, 0));
    declare(&[]).await.unwrap();
    assert_eq!(end(2).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_others_create_is_waited_for() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let topic = random_topic("dev");
    let producer = Running::start(&kafka, &topic, &["--create-topic", "false"]);
    assert!(!producer.is_ready().await);
    create_topic(&kafka, &topic, 1, &[]).await;
    eventually(DEADLINE, "the producer to be ready", async || {
        producer.is_ready().await
    })
    .await;
    producer.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_is_created_again_and_filled_in_order() {
    let Some(kafka) = kafka_with("deletion of topics") else {
        return;
    };
    let topic = random_topic("dev");
    let producer = Running::start(&kafka, &topic, &[]);
    let produced = async || producer.metric("herald_messages_produced_total").await;
    eventually(DEADLINE, "messages before", async || produced().await >= 50).await;

    delete_topic(&kafka, &topic).await;
    let before = produced().await;
    eventually(DEADLINE, "messages after", async || {
        produced().await >= before + 100
    })
    .await;
    producer.catches_up().await;
    producer.end().await.unwrap();

    let records = read_all(&kafka, &topic).await;
    assert!(records.len() >= 100);
    assert!(records.iter().map(|record| record.timestamp).is_sorted());
}
