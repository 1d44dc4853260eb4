//! Exactness: clients drop and resume at random, on any transport, at any replica, while messages come.

use std::time::Duration;

use herald_testing::{Record, create_topic, kafka, produce, random_topic, read_all};

use crate::client::TRANSPORTS;
use crate::reader::{Reader, positions};
use crate::replica::Replica;

const READERS: usize = 12;
const ROUNDS: usize = 40;

async fn clients_drop_and_resume_at_random(partitions: i32) {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("exactness");
    create_topic(&kafka, &topic, partitions, &[]).await;
    let history: Vec<Record> = (0..200)
        .map(|n| Record::new(n % partitions, format!("old {n}")))
        .collect();
    produce(&kafka, &topic, &history).await;
    // One with room for everything, one whose clients are sent to Kafka again and again.
    let large = Replica::start(&kafka, &topic, &[]).await;
    let small = Replica::start(&kafka, &topic, &["--ring-messages", "40"]).await;
    let addresses = [large.public, small.public];

    let publishing = {
        let (kafka, topic) = (kafka.clone(), topic.clone());
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let batch: Vec<Record> = (0..rand::random_range(1..30))
                    .map(|n| {
                        Record::new(
                            rand::random_range(0..partitions),
                            format!("new {round} {n}"),
                        )
                    })
                    .collect();
                produce(&kafka, &topic, &batch).await;
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..150))).await;
            }
        })
    };
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..READERS {
        let mut reader = Reader::new(&topic);
        readers.spawn(async move {
            let mut connections = 0;
            while connections < 25 {
                let address = addresses[rand::random_range(0..2)];
                let transport = TRANSPORTS[rand::random_range(0..TRANSPORTS.len())];
                let mut client = reader.connect(address, transport);
                // Often the line breaks before the first message, sometimes before the first event.
                let events = rand::random_range(0..60);
                let patience = Duration::from_millis(rand::random_range(5..400));
                _ = tokio::time::timeout(patience, async {
                    for _ in 0..events {
                        let Some(event) = client.next().await else {
                            break;
                        };
                        reader.take(&event);
                    }
                })
                .await;
                connections += 1;
            }
            (number, reader)
        });
    }
    publishing.await.expect("everything was published");
    let records = positions(&read_all(&kafka, &topic).await);
    while let Some(reader) = readers.join_next().await {
        let (number, mut reader) = reader.expect("no reader saw the guarantee broken");
        reader
            .read_all(
                addresses[number % 2],
                TRANSPORTS[number % TRANSPORTS.len()],
                &records,
            )
            .await;
        reader.check(&records);
        assert_eq!(
            reader.gaps,
            [],
            "nothing was missing, so nothing is to be announced"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_partition_is_exact() {
    clients_drop_and_resume_at_random(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_partitions_are_exact() {
    clients_drop_and_resume_at_random(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twelve_partitions_are_exact() {
    clients_drop_and_resume_at_random(12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_history_and_a_stream_continue_each_other() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("pages");
    create_topic(&kafka, &topic, 3, &[]).await;
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let now = since_1970.expect("a clock").as_millis() as i64;
    let records: Vec<Record> = (0..1000)
        .map(|n| Record {
            timestamp: Some(now - (n * 7919) % 1000),
            ..Record::new((n % 3) as i32, format!("{n}"))
        })
        .collect();
    produce(&kafka, &topic, &records).await;
    let replica = Replica::start(&kafka, &topic, &["--ring-messages", "100"]).await;
    let positions = positions(&read_all(&kafka, &topic).await);
    let mut reader = Reader::new(&topic);
    reader.take(&serde_json::json!({ "type": "start", "cursor": consumer::cursor::Vector::default().encode(&topic) }));
    let mut after = reader.cursor.clone().expect("a cursor");
    for _ in 0..3 {
        let (status, page) = replica
            .get(&format!("/messages?after={after}&limit=123"))
            .await;
        assert_eq!(
            (status, page["messages"].as_array().map(Vec::len)),
            (200, Some(123))
        );
        page["messages"]
            .as_array()
            .expect("messages")
            .iter()
            .for_each(|message| reader.take(message));
        after = page["after"].as_str().expect("a cursor").to_owned();
        assert_eq!(
            reader.cursor.as_ref(),
            Some(&after),
            "the page's cursor is its last message's"
        );
    }
    reader
        .read_all(replica.public, TRANSPORTS[1], &positions)
        .await;
    reader.check(&positions);
}
