//! Streams and pages of some keys.

use std::collections::BTreeSet;
use std::time::Duration;

use herald_testing::{
    Broker, Record, create_topic, eventually, kafka, produce, random_topic, read_all,
};
use serde_json::Value as Json;

use crate::client::{Client, TRANSPORTS, Transport};
use crate::replica::Replica;

pub fn keyed(partition: i32, key: &str, value: impl Into<Vec<u8>>) -> Record {
    Record {
        key: Some(key.as_bytes().to_vec()),
        ..Record::new(partition, value)
    }
}

/// A client of these keys, with its newest cursor.
fn connect(replica: &Replica, transport: Transport, keys: &[&str], cursor: Option<&str>) -> Client {
    let keys = keys.iter().map(|key| ("key", (*key).to_owned()));
    let cursor = cursor.map(|cursor| ("after", cursor.to_owned()));
    let parameters: Vec<_> = keys.chain(cursor).collect();
    Client::connect(replica.public, transport, &parameters)
}

/// The next event, within a few seconds.
pub async fn next(client: &mut Client) -> Json {
    let event = tokio::time::timeout(Duration::from_secs(20), client.next()).await;
    event.expect("an event comes").expect("the stream goes on")
}

/// The texts of the next messages; keeps the cursor.
async fn texts(client: &mut Client, count: usize, cursor: &mut Option<String>) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let event = next(client).await;
        if let Some(newest) = event["cursor"].as_str() {
            *cursor = Some(newest.to_owned());
        }
        match event["type"].as_str() {
            Some("message") => texts.push(event["data"].as_str().expect("a text").to_owned()),
            Some("start" | "position" | "env" | "custom_header") => {}
            other => panic!("{other:?}: {event}"),
        }
    }
    texts
}

async fn started(client: &mut Client) -> String {
    loop {
        let event = next(client).await;
        if event["type"] == "start" {
            return event["cursor"].as_str().expect("a cursor").to_owned();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_transport_delivers_only_the_records_with_the_keys() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("keys");
    create_topic(&kafka, &topic, 2, &[]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let mut clients = Vec::new();
    for transport in TRANSPORTS {
        for keys in [&["a"][..], &["ä b", "c"]] {
            let mut client = connect(&replica, transport, keys, None);
            started(&mut client).await;
            clients.push((transport, keys, client));
        }
    }
    let records = [
        Record::new(0, "no key"),
        keyed(0, "a", "1"),
        keyed(0, "ä b", "2"),
        keyed(0, "A", "no"),
        keyed(0, "c", "3"),
        keyed(0, "a", "4"),
        keyed(0, "", "no"),
        keyed(0, "ä b", "5"),
    ];
    produce(&kafka, &topic, &records).await;
    for (transport, keys, client) in &mut clients {
        let expected: &[&str] = if keys[0] == "a" {
            &["1", "4"]
        } else {
            &["2", "3", "5"]
        };
        let found = texts(client, expected.len(), &mut None).await;
        assert_eq!(found, expected, "{transport:?} {keys:?}");
    }
    for (transport, label) in [("sse", 2.0), ("websocket", 2.0), ("socketio", 4.0)] {
        let name = format!("herald_keyed_streams{{transport={transport:?}}}");
        assert_eq!(replica.metric(&name).await, label, "{transport}");
    }
    let (status, page) = replica
        .get(&format!("/messages?topic={topic}&key=a&key=c"))
        .await;
    let texts: Vec<_> = page["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .map(|message| message["data"].clone())
        .collect();
    assert_eq!(
        (status, texts),
        (200, vec!["1".into(), "3".into(), "4".into()])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_keys_are_rejected_with_one_sentence() {
    let Some((_, topic, replica)) = crate::replica::with_topic("wrong-keys", &[]).await else {
        return;
    };
    let long = "k".repeat(257);
    let many = "&key=a".repeat(101);
    for (query, sentence) in [
        (
            "&key=".to_owned(),
            "a key is empty; give key a value, or leave it out",
        ),
        (
            format!("&key={long}"),
            "a key has 257 bytes; it may have at most 256",
        ),
        (many, "there are 101 keys; give at most 100"),
    ] {
        for address in ["/events", "/messages"] {
            let (status, answer) = replica
                .get(&format!("{address}?topic={topic}{query}"))
                .await;
            assert_eq!(
                (status, &answer["error"]),
                (400, &sentence.into()),
                "{address}"
            );
        }
    }
    for (transport, kind) in [
        (Transport::WebSocket, "bye"),
        (Transport::SocketIo, "connect_error"),
        (Transport::Polling, "connect_error"),
    ] {
        let mut client = connect(&replica, transport, &[&long], None);
        let event = next(&mut client).await;
        assert_eq!(event["type"], kind, "{event}");
        assert!(event.to_string().contains("a key has 257 bytes"), "{event}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_keys_drop_and_resume_at_random_and_miss_nothing() {
    const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("keys-exact");
    create_topic(&kafka, &topic, 3, &[]).await;
    let large = Replica::start(&kafka, &topic, &[]).await;
    let small = Replica::start(
        &kafka,
        &topic,
        &["--ring-messages", "30", "--ring-time", "0s"],
    )
    .await;
    let publishing = {
        let (kafka, topic) = (kafka.clone(), topic.clone());
        tokio::spawn(async move {
            for round in 0..40 {
                let record = |n| {
                    let key = KEYS[rand::random_range(0..KEYS.len())];
                    keyed(rand::random_range(0..3), key, format!("{round} {n}"))
                };
                let batch: Vec<Record> = (0..rand::random_range(1..40)).map(record).collect();
                produce(&kafka, &topic, &batch).await;
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..80))).await;
            }
        })
    };
    let replicas = std::sync::Arc::new([large, small]);
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..8usize {
        let keys: Vec<&str> = match number % 4 {
            0 => vec![KEYS[0]],
            1 => vec![KEYS[1], "never"],
            2 => vec![KEYS[2], KEYS[3]],
            _ => vec!["never", "either"],
        };
        let (replicas, topic) = (replicas.clone(), topic.clone());
        readers.spawn(async move {
            let first = consumer::cursor::Vector::default().encode(&topic);
            let (mut cursor, mut found) = (first, Vec::new());
            let take = |event: &Json, cursor: &mut String, found: &mut Vec<(u64, i64)>| {
                if let Some(newest) = event["cursor"].as_str() {
                    cursor.clear();
                    cursor.push_str(newest);
                }
                match event["type"].as_str() {
                    Some("message") => found.push((
                        event["partition"].as_u64().expect("a partition"),
                        event["offset"].as_i64().expect("an offset"),
                    )),
                    Some("gap") => panic!("nothing is missing: {event}"),
                    _ => {}
                }
            };
            for _ in 0..15 {
                let replica = &replicas[rand::random_range(0..2)];
                let transport = TRANSPORTS[rand::random_range(0..TRANSPORTS.len())];
                let mut client = connect(replica, transport, &keys, Some(&cursor));
                let patience = Duration::from_millis(rand::random_range(5..300));
                _ = tokio::time::timeout(patience, async {
                    while let Some(event) = client.next().await {
                        take(&event, &mut cursor, &mut found);
                    }
                })
                .await;
            }
            (keys, cursor, found, number)
        });
    }
    let mut ended = Vec::new();
    while let Some(reader) = readers.join_next().await {
        ended.push(reader.expect("no gap came"));
    }
    publishing.await.expect("everything was published");
    let records = read_all(&kafka, &topic).await;
    for (keys, cursor, mut found, number) in ended {
        let wanted = |key: &Option<Vec<u8>>| {
            keys.iter()
                .any(|own| key.as_deref() == Some(own.as_bytes()))
        };
        let expected: BTreeSet<(u64, i64)> = records
            .iter()
            .filter(|record| wanted(&record.key))
            .map(|record| (record.partition as u64, record.offset))
            .collect();
        let transport = TRANSPORTS[number % TRANSPORTS.len()];
        let mut client = connect(&replicas[number % 2], transport, &keys, Some(&cursor));
        while found.len() < expected.len() {
            let event = next(&mut client).await;
            if event["type"] == "message" {
                found.push((
                    event["partition"].as_u64().unwrap(),
                    event["offset"].as_i64().unwrap(),
                ));
            }
        }
        for partition in 0..3 {
            let offsets: Vec<i64> = found
                .iter()
                .filter(|position| position.0 == partition)
                .map(|position| position.1)
                .collect();
            assert!(offsets.is_sorted(), "{keys:?}: {offsets:?}");
        }
        let once: BTreeSet<_> = found.iter().copied().collect();
        assert_eq!((once.len(), &once), (found.len(), &expected), "{keys:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_client_of_a_key_goes_on_without_kafka_when_the_ring_has_moved_past_it() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("keys-quiet");
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = ["--ring-messages", "20", "--ring-time", "0s"];
    let replica = Replica::start(&kafka, &topic, &options).await;
    let mut clients: Vec<Client> = TRANSPORTS
        .map(|transport| connect(&replica, transport, &["quiet"], None))
        .into();
    for client in &mut clients {
        started(client).await;
    }
    let others: Vec<Record> = (0..300).map(|n| keyed(0, "loud", format!("{n}"))).collect();
    produce(&kafka, &topic, &others).await;
    let consumed = format!("herald_messages_consumed_total{{topic={topic:?}}}");
    eventually(Duration::from_secs(10), "all to be read", async || {
        replica.metric(&consumed).await == 300.0
    })
    .await;
    produce(&kafka, &topic, &[keyed(0, "quiet", "hello")]).await;
    let mut cursors = Vec::new();
    for client in &mut clients {
        let mut cursor = None;
        assert_eq!(texts(client, 1, &mut cursor).await, ["hello"]);
        cursors.push(cursor.expect("a cursor"));
    }
    assert_eq!(
        replica
            .metric("herald_replay_pages_total{source=\"kafka\"}")
            .await,
        0.0
    );
    // One that comes back from before everything that the ring holds reads Kafka, and receives only its key.
    produce(&kafka, &topic, &[keyed(0, "quiet", "again")]).await;
    produce(&kafka, &topic, &others).await;
    let head = format!("herald_messages_consumed_total{{topic={topic:?}}}");
    eventually(Duration::from_secs(10), "all to be read", async || {
        replica.metric(&head).await == 602.0
    })
    .await;
    for (transport, cursor) in TRANSPORTS.into_iter().zip(cursors) {
        let mut client = connect(&replica, transport, &["quiet"], Some(&cursor));
        assert_eq!(
            texts(&mut client, 1, &mut None).await,
            ["again"],
            "{transport:?}"
        );
        // The rest of the backlog has nothing for it: it is sent a cursor that is past it.
        let event = next(&mut client).await;
        assert_eq!(event["type"], "position", "{transport:?} {event}");
    }
    assert!(
        replica
            .metric("herald_replay_pages_total{source=\"kafka\"}")
            .await
            > 0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlogs_and_pages_of_a_key_are_read_from_kafka_and_continue_each_other() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("keys-pages");
    create_topic(&kafka, &topic, 2, &[]).await;
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let now = since_1970.expect("a clock").as_millis() as i64;
    let records: Vec<Record> = (0..12_000i64)
        .map(|n| Record {
            timestamp: Some(now - 12_000 + n),
            ..keyed(
                (n % 2) as i32,
                if n % 1_000 == 7 { "rare" } else { "frequent" },
                format!("{n}"),
            )
        })
        .collect();
    produce(&kafka, &topic, &records).await;
    let replica = Replica::start(&kafka, &topic, &["--ring-messages", "100"]).await;
    let expected: Vec<String> = (0..12).map(|n| (n * 1_000 + 7).to_string()).collect();
    for transport in TRANSPORTS {
        for (name, value, from) in [("from", "earliest", 0), ("last", "3", 9)] {
            let parameters = [("key", "rare".to_owned()), (name, value.to_owned())];
            let mut client = Client::connect(replica.public, transport, &parameters);
            let found = texts(&mut client, 12 - from, &mut None).await;
            assert_eq!(found, expected[from..], "{transport:?} {name}");
        }
    }
    let data = |page: &Json| -> Vec<String> {
        let messages = page["messages"].as_array().expect("messages").iter();
        messages
            .map(|message| message["data"].as_str().expect("a text").to_owned())
            .collect()
    };
    // Backward from the newest, then forward from the oldest, five at a time.
    let (mut found, mut position) = (Vec::new(), String::new());
    loop {
        let (status, page) = replica
            .get(&format!("/messages?key=rare&limit=5{position}"))
            .await;
        assert_eq!(status, 200, "{page}");
        let mut older = data(&page);
        older.extend(found);
        found = older;
        match page["before"].as_str() {
            Some(before) => position = format!("&before={before}"),
            None => break,
        }
    }
    assert_eq!(found, expected);
    let (mut found, mut position) = (Vec::new(), "&from=earliest".to_owned());
    loop {
        let (status, page) = replica
            .get(&format!("/messages?key=rare&limit=5{position}"))
            .await;
        assert_eq!(status, 200, "{page}");
        let more = data(&page);
        if more.is_empty() {
            break;
        }
        found.extend(more);
        position = format!("&after={}", page["after"].as_str().expect("a cursor"));
    }
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_client_of_a_key_is_notified_that_kafka_is_down_and_that_a_drain_ends_it() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let topic = random_topic("keys-down");
    create_topic(broker.address(), &topic, 1, &[]).await;
    let options = ["--drain-delay", "0s", "--drain-window", "1s"];
    let replica = Replica::start(broker.address(), &topic, &options).await;
    let mut client = connect(&replica, Transport::Sse, &["quiet"], None);
    started(&mut client).await;
    broker.stop().await;
    let down = next(&mut client).await;
    assert_eq!(
        (&down["type"], &down["source"]),
        (&"status".into(), &"down".into())
    );
    broker.start_again().await;
    let up = next(&mut client).await;
    assert_eq!(
        (&up["type"], &up["source"]),
        (&"status".into(), &"up".into())
    );
    let records = [keyed(0, "loud", "no"), keyed(0, "quiet", "hello")];
    produce(broker.address(), &topic, &records).await;
    assert_eq!(texts(&mut client, 1, &mut None).await, ["hello"]);
    replica.terminate();
    let bye = next(&mut client).await;
    assert_eq!(
        (&bye["type"], &bye["reason"]),
        (&"bye".into(), &"drain".into())
    );
}
