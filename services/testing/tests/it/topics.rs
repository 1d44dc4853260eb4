use std::time::Duration;

use herald_testing::{
    Record, add_partitions, create_topic, delete_records_before, delete_topic, eventually, kafka,
    produce, random_topic, read_all, watermarks,
};

#[tokio::test]
async fn a_topic_recreated_begins_again_at_offset_0() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("testing");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &[Record::new(0, "old")]).await;
    delete_topic(&kafka, &topic).await;
    create_topic(&kafka, &topic, 1, &[]).await;
    assert_eq!(watermarks(&kafka, &topic, 0).await, (0, 0));
}

#[tokio::test]
async fn partitions_are_added_at_run_time() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("testing");
    create_topic(&kafka, &topic, 1, &[]).await;
    add_partitions(&kafka, &topic, 3).await;
    assert_eq!(
        produce(&kafka, &topic, &[Record::new(2, "new")]).await,
        [(2, 0)]
    );
}

#[tokio::test]
async fn records_are_deleted_from_the_start_of_a_log() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("testing");
    create_topic(&kafka, &topic, 1, &[]).await;
    let records: Vec<Record> = (0..10).map(|n| Record::new(0, n.to_string())).collect();
    produce(&kafka, &topic, &records).await;
    delete_records_before(&kafka, &topic, 0, 7).await;
    assert_eq!(watermarks(&kafka, &topic, 0).await, (7, 10));
    assert_eq!(read_all(&kafka, &topic).await.len(), 3);
}

#[tokio::test]
async fn a_compacted_topic_is_compacted_within_seconds() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("testing");
    let configs = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("segment.ms", "100"),
        ("max.compaction.lag.ms", "100"),
    ];
    create_topic(&kafka, &topic, 1, &configs).await;
    let one = Record {
        key: Some(b"key".to_vec()),
        ..Record::new(0, "value")
    };
    eventually(Duration::from_secs(60), "an old value to go", async || {
        // Only segments that are closed are compacted, and they are closed by the next record.
        produce(&kafka, &topic, std::slice::from_ref(&one)).await;
        let read = read_all(&kafka, &topic).await;
        (read.len() as i64) < watermarks(&kafka, &topic, 0).await.1
    })
    .await;
}
