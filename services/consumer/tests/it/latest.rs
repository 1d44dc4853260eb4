//! `from=latest-per-key`: the last record of each key, then live.

use std::time::Duration;

use herald_testing::{
    Record, create_topic, delete_topic, kafka, kafka_with, produce, random_topic,
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

/// The texts up to the first `position`, ascending, and the cursor of each event.
async fn snapshot(client: &mut Client) -> (Vec<String>, Vec<String>) {
    let (mut texts, mut cursors) = (Vec::new(), Vec::new());
    loop {
        let event = next(client).await;
        cursors.extend(event["cursor"].as_str().map(str::to_owned));
        match event["type"].as_str() {
            Some("message") => texts.push(event["data"].as_str().expect("a text").to_owned()),
            Some("position") => break,
            Some("start" | "env" | "custom_header") => {}
            other => panic!("{other:?}: {event}"),
        }
    }
    texts.sort_unstable();
    (texts, cursors)
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
    let mut cursors = Vec::new();
    for transport in TRANSPORTS {
        let mut all = connect(&replica, transport, &[]);
        let found = snapshot(&mut all).await;
        assert_eq!(found.0, expected, "{transport:?}");
        cursors = found.1;
        let mut two = connect(&replica, transport, &["7", "never", "3"]);
        let found = snapshot(&mut two).await;
        assert_eq!(found.0, [&*expected[3], &*expected[7]], "{transport:?}");
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
        assert_eq!(snapshot(&mut again).await.0, [&*expected[7]]);
    }
    // Key by key: a client that resumes within the records receives at least the rest of them.
    for cursor in [&cursors[0], &cursors[4]] {
        let parameters = [("after", cursor.clone()), ("key", "7".to_owned())];
        let mut client = Client::connect(replica.public, Transport::Sse, &parameters);
        assert!(message(&mut client).await.starts_with("7 "));
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
async fn records_over_the_limit_are_an_error_that_says_so() {
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
        assert_eq!(bye["reason"], "invalid");
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
    assert_eq!(snapshot(&mut watching).await.0, ["old"]);
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
    assert_eq!(snapshot(&mut all).await.0, ["new", "new"]);
}
