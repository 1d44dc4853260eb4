//! What happens to a topic under its readers: retention, deletion, growth, transactions, compaction.

use std::collections::BTreeSet;
use std::time::Duration;

use herald_testing::{
    Broker, Outcome, Record, add_partitions, create_topic, delete_records_before, delete_topic,
    eventually, kafka, kafka_with, produce, produce_in_transaction, random_topic, read_all,
};

use crate::client::{Client, TRANSPORTS, Transport};
use crate::reader::{Followers, Reader, positions};
use crate::replica::Replica;

fn numbered(range: std::ops::Range<i64>, partitions: i64) -> Vec<Record> {
    range
        .map(|n| Record::new((n % partitions) as i32, format!("{n}")))
        .collect()
}

/// A reader that has read so many messages and then lost its line.
async fn read(replica: &Replica, topic: &str, transport: Transport, messages: usize) -> Reader {
    let mut reader = Reader::new(topic);
    let mut client = Client::connect(replica.public, transport, &[("from", "earliest".into())]);
    while reader.count() < messages {
        reader.take(&client.next().await.expect("the stream goes on"));
    }
    reader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_kafka_deleted_are_a_retention_gap_with_exact_ranges() {
    let Some(kafka) = kafka_with("deletion of records") else {
        return;
    };
    for transport in TRANSPORTS {
        let topic = random_topic("retention");
        create_topic(&kafka, &topic, 2, &[]).await;
        produce(&kafka, &topic, &numbered(0..200, 2)).await;
        let replica = Replica::start(&kafka, &topic, &["--ring-messages", "10"]).await;
        let mut reader = read(&replica, &topic, transport, 20).await;
        let position = consumer::cursor::Vector::decode(reader.cursor.as_ref().unwrap(), &topic)
            .unwrap()
            .get(1)
            .offset;
        delete_records_before(&kafka, &topic, 1, 60).await;
        let left = positions(&read_all(&kafka, &topic).await);
        let mut records = left.clone();
        records.extend((0..60).map(|offset| (1, offset)));
        // Another replica: this one may still remember what it read for the client a moment ago.
        let replica = Replica::start(&kafka, &topic, &["--ring-messages", "10"]).await;
        reader.read_all(replica.public, transport, &records).await;
        reader.check(&records);
        assert_eq!(
            reader.gaps,
            [("retention".to_owned(), 1, position, Some(60))],
            "{transport:?}"
        );
    }
}

/// Deletes a topic with `before` partitions while clients read it, and recreates it with `now`.
async fn recreated(before: i64, now: i64, records: std::ops::Range<i64>) {
    let Some(kafka) = kafka_with("deletion of topics") else {
        return;
    };
    let topic = random_topic("recreated");
    create_topic(&kafka, &topic, before as i32, &[]).await;
    produce(&kafka, &topic, &numbered(0..20, before)).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    // One that was cut off before, and some that watch while it happens.
    let mut gone = read(&replica, &topic, Transport::Sse, 15).await;
    let followers = Followers::start(&topic, replica.public, 4);
    eventually(Duration::from_secs(10), "all to be connected", async || {
        let mut open = 0.0;
        for transport in ["sse", "websocket", "socketio"] {
            open += replica
                .metric(&format!("herald_streams{{transport=\"{transport}\"}}"))
                .await;
        }
        open >= 4.0
    })
    .await;
    produce(&kafka, &topic, &numbered(20..22, before)).await;
    followers.have(2).await;

    delete_topic(&kafka, &topic).await;
    create_topic(&kafka, &topic, now as i32, &[]).await;
    produce(&kafka, &topic, &numbered(records.clone(), now)).await;
    let records = positions(&read_all(&kafka, &topic).await);
    followers.have(records.len()).await;
    for reader in followers.finish(&records).await {
        let announced: Vec<_> = reader
            .gaps
            .iter()
            .map(|(reason, partition, from, to)| (reason.as_str(), *partition, *from, *to))
            .collect();
        let read = |partition: i64| (0..22).filter(|n| n % before == partition).count() as i64;
        let expected: BTreeSet<_> = (0..before)
            .map(|partition| ("recreated", partition as usize, read(partition), None))
            .collect();
        assert_eq!(
            announced.iter().copied().collect::<BTreeSet<_>>(),
            expected,
            "announced live"
        );
        assert_eq!(announced.len(), before as usize, "each announced once");
    }
    // The others go on too, and history is there.
    let (status, page) = replica.get("/messages?from=earliest&limit=500").await;
    let messages = page["messages"].as_array().map(Vec::len);
    assert_eq!((status, messages), (200, Some(records.len())));
    gone.awaited_gaps = before as usize;
    gone.read_all(replica.public, Transport::WebSocket, &records)
        .await;
    gone.check(&records);
    assert!(
        gone.gaps.iter().all(|(reason, ..)| reason == "recreated"),
        "{:?}",
        gone.gaps
    );
    // And at a replica that never saw the old log.
    let fresh = Replica::start(&kafka, &topic, &["--ring-messages", "5"]).await;
    let mut other = Reader::new(&topic);
    other.awaited_gaps = 2;
    other.cursor = Some(
        consumer::cursor::Vector::new(vec![
            consumer::cursor::Position::after(
                9,
                Some(1),
                Some(b"old")
            );
            2
        ])
        .encode(&topic),
    );
    other
        .read_all(fresh.public, Transport::SocketIo, &records)
        .await;
    other.check(&records);
    assert!(
        other.gaps.iter().all(|(reason, ..)| reason == "recreated") && other.gaps.len() == 2,
        "{:?}",
        other.gaps
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_with_fewer_records_is_a_gap_and_is_read_from_its_start() {
    recreated(2, 2, 100..110).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_with_more_records_is_a_gap_and_is_read_from_its_start() {
    recreated(2, 2, 100..180).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_with_fewer_partitions_is_a_gap_and_is_read_on() {
    recreated(3, 1, 100..105).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_with_more_partitions_is_a_gap_and_is_read_on() {
    recreated(1, 3, 100..160).await;
}

/// Deletes a topic of two partitions while it is read, and recreates it after this time.
async fn absent_for(absence: Duration, kafka: &str, topic: &str) {
    produce(kafka, topic, &numbered(0..20, 2)).await;
    let replica = Replica::start(kafka, topic, &[]).await;
    let followers = Followers::start(topic, replica.public, 1);
    produce(kafka, topic, &numbered(20..22, 2)).await;
    followers.have(2).await;
    delete_topic(kafka, topic).await;
    tokio::time::sleep(absence).await;
    create_topic(kafka, topic, 2, &[]).await;
    for n in 0..10 {
        produce(kafka, topic, &numbered(n..n + 1, 2)).await;
    }
    let records = positions(&read_all(kafka, topic).await);
    followers.have(records.len()).await;
    followers.finish(&records).await;
    assert_eq!(replica.get_admin("/readyz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_away_for_seconds_is_read_from_its_start() {
    let Some(kafka) = kafka_with("deletion of topics") else {
        return;
    };
    let topic = random_topic("absent");
    create_topic(&kafka, &topic, 2, &[]).await;
    absent_for(Duration::from_secs(15), &kafka, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_whose_leader_epochs_begin_again_is_read_from_its_start() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let kafka = broker.address().to_owned();
    let topic = random_topic("epochs");
    create_topic(&kafka, &topic, 2, &[]).await;
    // Each end and each start of the leader begins a new epoch: they are at 2, and those of the next topic at 0.
    broker.stop().await;
    broker.start_again().await;
    absent_for(Duration::ZERO, &kafka, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_ahead_of_a_recreated_log_gets_a_gap() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("ahead");
    create_topic(&kafka, &topic, 2, &[]).await;
    produce(&kafka, &topic, &numbered(0..20, 2)).await;
    let records = positions(&read_all(&kafka, &topic).await);
    let replica = Replica::start(&kafka, &topic, &[]).await;
    // Without a fingerprint, as after `from=earliest`, a gap or a page.
    let ahead = |offset| consumer::cursor::Position::at(offset);
    let mut reader = Reader::new(&topic);
    reader.cursor = Some(consumer::cursor::Vector::new(vec![ahead(5000), ahead(0)]).encode(&topic));
    reader.awaited_gaps = 1;
    reader
        .read_all(replica.public, Transport::Sse, &records)
        .await;
    reader.check(&records);
    assert_eq!(reader.gaps, [("recreated".to_owned(), 0, 5000, None)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_or_foreign_cursor_gets_a_gap_and_the_stream_continues() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("garbled");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let foreign = consumer::cursor::Vector::default().encode("another-topic");
    for cursor in ["nonsense", "AAAA", &foreign, "..", &"A".repeat(5000)] {
        for transport in TRANSPORTS {
            let mut client =
                Client::connect(replica.public, transport, &[("after", cursor.to_owned())]);
            let mut reader = Reader::new(&topic);
            while reader.heard.is_empty() {
                reader.take(&client.next().await.expect("the stream goes on"));
            }
            assert_eq!(reader.heard, ["unknown-cursor"], "{transport:?}");
            produce(&kafka, &topic, &numbered(0..1, 1)).await;
            while reader.count() == 0 {
                reader.take(&client.next().await.expect("the stream goes on live"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_are_read_from_their_start() {
    let Some(kafka) = kafka_with("way to add partitions") else {
        return;
    };
    let topic = random_topic("growing");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &numbered(0..10, 1)).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let mut gone = read(&replica, &topic, Transport::Sse, 10).await;
    let followers = Followers::start(&topic, replica.public, 4);
    add_partitions(&kafka, &topic, 3).await;
    produce(&kafka, &topic, &numbered(0..30, 3)).await;
    let records = positions(&read_all(&kafka, &topic).await);
    followers.have(30).await;
    followers.finish(&records).await;
    // A replica that has known three from the start, and one whose cursor knows one.
    let fresh = Replica::start(&kafka, &topic, &["--ring-messages", "5"]).await;
    gone.read_all(fresh.public, Transport::Polling, &records)
        .await;
    gone.check(&records);
    assert_eq!(gone.gaps, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_committed_and_aborted_make_no_gap() {
    let Some(kafka) = kafka_with("way to hide aborted transactions") else {
        return;
    };
    let topic = random_topic("transactions");
    create_topic(&kafka, &topic, 2, &[]).await;
    for round in 0..5 {
        produce_in_transaction(
            &kafka,
            &topic,
            &numbered(round * 10..round * 10 + 6, 2),
            Outcome::Commit,
        )
        .await;
        produce_in_transaction(&kafka, &topic, &numbered(0..4, 2), Outcome::Abort).await;
    }
    // The log ends on what nobody is to see.
    let large = Replica::start(&kafka, &topic, &[]).await;
    let small = Replica::start(&kafka, &topic, &["--ring-messages", "3"]).await;
    let followers = Followers::start(&topic, large.public, 4);
    let mut readers = Vec::new();
    for transport in TRANSPORTS {
        readers.push((transport, read(&small, &topic, transport, 7).await));
    }
    produce_in_transaction(&kafka, &topic, &numbered(50..60, 2), Outcome::Commit).await;
    produce_in_transaction(&kafka, &topic, &numbered(0..4, 2), Outcome::Abort).await;
    let records = positions(&read_all(&kafka, &topic).await);
    assert_eq!(records.len(), 40);
    for (transport, mut reader) in readers {
        reader
            .read_all(
                if transport == Transport::Sse {
                    large.public
                } else {
                    small.public
                },
                transport,
                &records,
            )
            .await;
        reader.check(&records);
        assert_eq!(reader.gaps, [], "{transport:?}");
    }
    for reader in followers.finish(&records).await {
        assert_eq!(reader.gaps, []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_makes_no_gap() {
    let Some(broker) = Broker::start_with(&[
        ("log.cleaner.backoff.ms", "100"),
        ("log.cleaner.delete.retention.ms", "100"),
    ])
    .await
    else {
        return;
    };
    let topic = random_topic("compacted");
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "200"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("min.compaction.lag.ms", "0"),
    ];
    create_topic(broker.address(), &topic, 1, &settings).await;
    let keyed = |n: i64| Record {
        key: Some(format!("k{}", n % 5).into_bytes()),
        ..Record::new(0, format!("{n}"))
    };
    produce(
        broker.address(),
        &topic,
        &(0..100).map(keyed).collect::<Vec<_>>(),
    )
    .await;
    let replica = Replica::start(broker.address(), &topic, &["--ring-messages", "2"]).await;
    let mut reader = read(&replica, &topic, Transport::Sse, 40).await;
    eventually(
        Duration::from_secs(60),
        "the log to be compacted",
        async || {
            // Only what is not in the newest segment is compacted.
            produce(broker.address(), &topic, &[keyed(0)]).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
            read_all(broker.address(), &topic).await.len() < 30
        },
    )
    .await;
    let records = read_all(broker.address(), &topic).await;
    let last = records.last().expect("records").offset;
    let mut client = reader.connect(replica.public, Transport::WebSocket);
    let mut newest = 0;
    while newest < last {
        let event = client.next().await.expect("the stream goes on");
        reader.take(&event);
        newest = event["offset"].as_i64().unwrap_or(newest);
    }
    assert_eq!(reader.gaps, []);
    let (status, page) = replica.get("/messages?limit=500").await;
    let texts = |messages: &serde_json::Value| {
        messages.as_array().map(|list| {
            list.iter()
                .map(|one| one["offset"].as_i64().unwrap())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(
        (status, texts(&page["messages"])),
        (
            200,
            Some(records.iter().map(|record| record.offset).collect())
        )
    );
    assert_eq!(
        (&page["before"], &page["gaps"]),
        (&serde_json::Value::Null, &serde_json::json!([]))
    );
}
