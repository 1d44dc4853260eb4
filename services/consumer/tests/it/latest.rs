//! `from=latest-per-key`: the last record of each key, then live.

use std::collections::BTreeSet;
use std::time::Duration;

use herald_testing::{
    Record, create_topic, delete_records_before, delete_topic, kafka, kafka_with, produce,
    random_topic,
};
use serde_json::Value as Json;

use crate::client::{Client, TRANSPORTS, Transport};
use crate::keys::{keyed, next};
use crate::replica::Replica;

fn connect(replica: &Replica, transport: Transport, keys: &[&str]) -> Client {
    let keys = keys.iter().map(|key| ("key", (*key).to_owned()));
    let from = [("from", "latest-per-key".to_owned())];
    let parameters: Vec<_> = from.into_iter().chain(keys).collect();
    Client::connect(replica.public, transport, &parameters)
}

/// The texts up to the first `position`, ascending.
async fn snapshot(client: &mut Client) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let event = next(client).await;
        match event["type"].as_str() {
            Some("message") => texts.push(event["data"].as_str().expect("a text").to_owned()),
            Some("position") => break,
            Some("start" | "env" | "custom_header") => {}
            other => panic!("{other:?}: {event}"),
        }
    }
    texts.sort_unstable();
    texts
}

/// The partition and offset of a message.
fn position(event: &Json) -> (i64, i64) {
    let number = |name: &str| event[name].as_i64().expect("a number");
    (number("partition"), number("offset"))
}

async fn message(client: &mut Client) -> String {
    loop {
        let event: Json = next(client).await;
        if event["type"] == "message" {
            return event["data"].as_str().expect("a text").to_owned();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_record_of_each_key_is_exact_also_when_it_is_older_than_the_ring() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("latest");
    create_topic(&kafka, &topic, 3, &[]).await;
    // The newest of key 7 lies far back.
    let mut records: Vec<Record> = (0..3_000)
        .map(|n| {
            keyed(
                n % 10 % 3,
                &format!("{}", n % 10),
                format!("{} {n:04}", n % 10),
            )
        })
        .filter(|record| {
            record.key.as_deref() != Some(b"7") || record.value.as_deref() < Some(b"7 0100")
        })
        .collect();
    records.push(keyed(0, "gone", "x"));
    records.push(Record {
        value: None,
        ..keyed(0, "gone", "")
    });
    records.push(Record::new(0, "no key"));
    produce(&kafka, &topic, &records).await;
    let options = ["--ring-messages", "50", "--ring-time", "0s"];
    let replica = Replica::start(&kafka, &topic, &options).await;
    let expected: Vec<String> = (0..10)
        .map(|key| match key {
            7 => "7 0097".to_owned(),
            key => format!("{key} {:04}", 2_990 + key),
        })
        .collect();
    for transport in TRANSPORTS {
        let mut all = connect(&replica, transport, &[]);
        assert_eq!(snapshot(&mut all).await, expected, "{transport:?}");
        let mut two = connect(&replica, transport, &["7", "never", "3"]);
        let found = snapshot(&mut two).await;
        assert_eq!(found, [&*expected[3], &*expected[7]], "{transport:?}");
        // Then live, and only its keys.
        let news = format!("7 {transport:?}");
        produce(
            &kafka,
            &topic,
            &[keyed(2, "8", "other"), keyed(1, "7", news.clone())],
        )
        .await;
        assert_eq!(message(&mut two).await, news);
        produce(&kafka, &topic, &[keyed(2, "8", expected[8].clone())]).await;
        produce(&kafka, &topic, &[keyed(1, "7", expected[7].clone())]).await;
        assert_eq!(message(&mut two).await, expected[7]);
        // Its index is as new as what the clients have been sent.
        let mut again = connect(&replica, transport, &["7"]);
        assert_eq!(snapshot(&mut again).await, [&*expected[7]]);
    }
    // A client that resumes within the records receives all the others, and none again.
    let mut all = connect(&replica, Transport::Sse, &[]);
    let mut sent = Vec::new();
    loop {
        let event = next(&mut all).await;
        match event["type"].as_str() {
            Some("message") => {
                let cursor = event["cursor"].as_str().expect("a cursor").to_owned();
                sent.push((position(&event), cursor));
            }
            Some("position") => break,
            _ => {}
        }
    }
    assert_eq!(sent.len(), expected.len());
    for count in [1, 5] {
        let (received, rest) = sent.split_at(count);
        let parameters = [("after", received[count - 1].1.clone())];
        let mut client = Client::connect(replica.public, Transport::Sse, &parameters);
        let mut missing: BTreeSet<_> = rest.iter().map(|(position, _)| *position).collect();
        while !missing.is_empty() {
            let event = next(&mut client).await;
            if event["type"] == "message" {
                let position = position(&event);
                assert!(received.iter().all(|(received, _)| *received != position));
                missing.remove(&position);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_between_the_latest_records_and_live() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("latest-live");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let publishing = {
        let (kafka, topic) = (kafka.clone(), topic.clone());
        tokio::spawn(async move {
            for number in 0..400 {
                produce(&kafka, &topic, &[keyed(0, "a", format!("{number}"))]).await;
            }
        })
    };
    let mut joining = tokio::task::JoinSet::new();
    for number in 0..12 {
        let transport = TRANSPORTS[number % TRANSPORTS.len()];
        tokio::time::sleep(Duration::from_millis(30)).await;
        let mut client = connect(&replica, transport, &["a"]);
        joining.spawn(async move {
            let mut last: Option<i64> = None;
            while last != Some(399) {
                let number: i64 = message(&mut client).await.parse().expect("a number");
                assert!(
                    last.is_none_or(|last| number == last + 1),
                    "{number} after {last:?}"
                );
                last = Some(number);
            }
        });
    }
    publishing.await.expect("everything was published");
    while let Some(joined) = joining.join_next().await {
        joined.expect("each received every record after its first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_over_the_limit_end_the_stream_with_a_reason_and_a_time_to_try_again() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("latest-limit");
    create_topic(&kafka, &topic, 1, &[]).await;
    let records: Vec<Record> = (0..100)
        .map(|n| keyed(0, &format!("{n}"), "x".repeat(100)))
        .collect();
    produce(&kafka, &topic, &records).await;
    let replica = Replica::start(&kafka, &topic, &["--latest-bytes", "10000"]).await;
    for transport in TRANSPORTS {
        let mut client = connect(&replica, transport, &["1"]);
        let bye = loop {
            let event = next(&mut client).await;
            if event["type"] == "bye" {
                break event;
            }
            assert_ne!(event["type"], "message");
        };
        assert_eq!(bye["reason"], "overload");
        assert!(bye["retry"].as_u64().is_some_and(|retry| retry >= 2_000));
        assert_eq!(
            bye["detail"],
            "the latest records of this topic's keys are over 10000 bytes together; the server's --latest-bytes limits them"
        );
    }
    // Other streams of the same topic are served.
    let parameters = [("from", "earliest".to_owned()), ("key", "5".to_owned())];
    let mut client = Client::connect(replica.public, Transport::Sse, &parameters);
    assert_eq!(message(&mut client).await, "x".repeat(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_kafka_has_deleted_do_not_count_towards_the_limit() {
    let Some(kafka) = kafka_with("deletion of records") else {
        return;
    };
    let topic = random_topic("latest-deleted");
    create_topic(&kafka, &topic, 1, &[]).await;
    let publish = async |keys: std::ops::Range<usize>| {
        let records = keys.map(|n| keyed(0, &format!("{n}"), format!("{n:0100}")));
        produce(&kafka, &topic, &records.collect::<Vec<_>>()).await;
    };
    publish(0..100).await;
    // Enough for 100 of these, and not for 200.
    let replica = Replica::start(&kafka, &topic, &["--latest-bytes", "60000"]).await;
    let mut client = connect(&replica, Transport::Sse, &[]);
    assert_eq!(snapshot(&mut client).await.len(), 100);
    delete_records_before(&kafka, &topic, 0, 100).await;
    publish(100..200).await;
    let expected: Vec<String> = (100..200).map(|n| format!("{n:0100}")).collect();
    herald_testing::eventually(
        Duration::from_secs(10),
        "the replica to have read them",
        async || {
            let path = format!("/messages?topic={topic}&limit=1");
            replica.get(&path).await.1["messages"][0]["data"] == *expected[99]
        },
    )
    .await;
    let mut client = connect(&replica, Transport::Sse, &[]);
    assert_eq!(snapshot(&mut client).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_records_of_a_recreated_topic_are_those_of_its_new_log() {
    let Some(kafka) = kafka_with("deletion of topics") else {
        return;
    };
    let topic = random_topic("latest-recreated");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(
        &kafka,
        &topic,
        &[keyed(0, "a", "old"), keyed(0, "b", "old")],
    )
    .await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let mut watching = connect(&replica, Transport::Sse, &["a"]);
    assert_eq!(snapshot(&mut watching).await, ["old"]);
    delete_topic(&kafka, &topic).await;
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(
        &kafka,
        &topic,
        &[keyed(0, "a", "new"), keyed(0, "c", "new")],
    )
    .await;
    // It is announced to streams of any key.
    let mut reasons = Vec::new();
    let text = loop {
        let event = next(&mut watching).await;
        match event["type"].as_str() {
            Some("gap") => reasons.push(event["reason"].clone()),
            Some("message") => break event["data"].clone(),
            _ => {}
        }
    };
    assert_eq!((reasons, text), (vec!["recreated".into()], "new".into()));
    let mut all = connect(&replica, Transport::Sse, &[]);
    assert_eq!(snapshot(&mut all).await, ["new", "new"]);
}
