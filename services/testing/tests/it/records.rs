use herald_testing::{
    Outcome, Record, create_topic, kafka, produce, produce_in_transaction, random_topic, read_all,
};

#[tokio::test]
async fn produced_records_are_read_back_unchanged_and_in_order() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("testing");
    create_topic(&kafka, &topic, 2, &[]).await;
    let full = Record {
        partition: 1,
        key: Some(b"key".to_vec()),
        value: Some(vec![0xff, 0]),
        headers: vec![
            ("name".into(), Some(b"first".to_vec())),
            ("name".into(), None),
        ],
        timestamp: Some(1_790_000_000_000),
    };
    let tombstone = Record::default();
    let records = [full.clone(), tombstone, Record::new(1, "text")];
    let places = produce(&kafka, &topic, &records).await;
    assert_eq!(places, [(1, 0), (0, 0), (1, 1)]);

    let read = read_all(&kafka, &topic).await;
    assert_eq!(
        read.iter()
            .map(|r| (r.partition, r.offset))
            .collect::<Vec<_>>(),
        [(0, 0), (1, 0), (1, 1)]
    );
    assert_eq!(read[0].value, None);
    assert_eq!(
        (&read[1].key, &read[1].value, read[1].timestamp),
        (&full.key, &full.value, full.timestamp)
    );
    assert_eq!(read[1].headers, full.headers);
    assert_eq!(read[2].text(), "text");
}

#[tokio::test]
async fn an_aborted_transaction_leaves_a_hole_and_a_committed_one_its_records() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("testing");
    create_topic(&kafka, &topic, 1, &[]).await;
    let aborted = [Record::new(0, "a"), Record::new(0, "b")];
    let places = produce_in_transaction(&kafka, &topic, &aborted, Outcome::Abort).await;
    assert_eq!(
        places,
        [(0, 0), (0, 1)],
        "it was written before it was aborted"
    );
    // The marker has offset 2.
    let committed = [Record::new(0, "c")];
    let places = produce_in_transaction(&kafka, &topic, &committed, Outcome::Commit).await;
    assert_eq!(places, [(0, 3)]);

    let read = read_all(&kafka, &topic).await;
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].offset, read[0].text().as_str()), (3, "c"));
}
