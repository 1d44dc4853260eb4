//! Topics that are recreated, cleared or cut off.

use herald_testing::{
    Broker, Database, create_topic, delete_records_before, delete_topic, eventually, produce,
    random_topic,
};

use crate::{DEADLINE, Running, document, frame, projected, reader_of};

fn event(time: usize) -> String {
    format!(r#"[{{"timestamp":{time},"type":"EVENT"}}]"#)
}

fn events(times: std::ops::Range<usize>) -> Vec<herald_testing::Record> {
    times.map(|time| frame(0, "s", &event(time))).collect()
}

async fn children(reader: &store::Reader) -> usize {
    let document = document(reader, "s").await.unwrap();
    document.matches("EVENT").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_recreated_meanwhile_is_read_from_its_start() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    // With fewer records than before, and with more.
    for count in [3, 20] {
        let database = Database::sqlite();
        let topic = random_topic("recreated");
        create_topic(&kafka, &topic, 1, &[]).await;
        produce(&kafka, &topic, &events(0..10)).await;
        let reader = reader_of(&database);
        let projector = Running::start(&kafka, &topic, &database, &[]);
        projected(&kafka, &topic, 1, &reader).await;
        projector.end().await;

        delete_topic(&kafka, &topic).await;
        create_topic(&kafka, &topic, 1, &[]).await;
        produce(&kafka, &topic, &events(100..100 + count)).await;
        let projector = Running::start(&kafka, &topic, &database, &[]);
        let all = async || children(&reader).await == 10 + count;
        eventually(DEADLINE, "the new records to be projected", all).await;
        projector.becomes_ready().await;
        assert_eq!(
            projector
                .metric("herald_projector_recreated_logs_total")
                .await,
            1.0
        );
        projector.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_recreated_under_a_running_projector_is_read_from_its_start() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("recreated-live");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &events(0..10)).await;
    let reader = reader_of(&database);
    let projector = Running::start(&kafka, &topic, &database, &[]);
    projected(&kafka, &topic, 1, &reader).await;
    let mut expected = 10;
    for count in [4, 30] {
        delete_topic(&kafka, &topic).await;
        create_topic(&kafka, &topic, 1, &[]).await;
        produce(&kafka, &topic, &events(100 * count..101 * count)).await;
        expected += count;
        let all = async || children(&reader).await == expected;
        eventually(DEADLINE, "the new records to be projected", all).await;
    }
    assert_eq!(
        projector
            .metric("herald_projector_recreated_logs_total")
            .await,
        2.0
    );
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_deleted_before_they_were_read_are_counted() {
    let Some(kafka) = herald_testing::kafka_with("records that can be deleted") else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("retention");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &events(0..5)).await;
    let reader = reader_of(&database);
    let projector = Running::start(&kafka, &topic, &database, &[]);
    projected(&kafka, &topic, 1, &reader).await;
    projector.end().await;
    produce(&kafka, &topic, &events(5..10)).await;
    delete_records_before(&kafka, &topic, 0, 8).await;
    let projector = Running::start(&kafka, &topic, &database, &[]);
    projected(&kafka, &topic, 1, &reader).await;
    assert_eq!(children(&reader).await, 7);
    assert_eq!(
        projector
            .metric("herald_projector_missing_offsets_total")
            .await,
        3.0
    );
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_read_is_reported_and_holds_back_its_partition_alone() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let kafka = broker.address().to_owned();
    let database = Database::sqlite();
    create_topic(&kafka, "events", 2, &[]).await;
    produce(&kafka, "events", &events(0..1)).await;
    produce(&kafka, "events", &events(1..2)).await;
    broker.stop().await;
    // The last byte belongs to the second batch, whose checksum is then wrong.
    let edit = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    broker.edit_log("events", 0, edit).await;
    broker.start_again().await;
    let projector = Running::start(&kafka, "events", &database, &[]);
    let reported = async || projector.readiness().await.contains("Bad message");
    eventually(DEADLINE, "the batch to be reported", reported).await;
    produce(&kafka, "events", &[frame(1, "t", &event(1))]).await;
    let reader = reader_of(&database);
    let other = async || document(&reader, "t").await.is_some();
    eventually(DEADLINE, "the other partition to go on", other).await;
    assert_eq!(children(&reader).await, 1);
    assert!(projector.readiness().await.contains("Bad message"));
    projector.end().await;
}
