//! The consumer is killed, the broker becomes unreachable: clients reconnect automatically and nothing is lost.

use std::time::{Duration, Instant};

use herald_testing::{Broker, Record, create_topic, kafka, produce, random_topic, read_all};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Transport};
use crate::reader::{Followers, positions};
use crate::replica::Replica;

/// Publishes one message after the other until it is stopped, also while the broker is unreachable.
fn publish(
    kafka: &str,
    topic: &str,
    partitions: i32,
    stop: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let (kafka, topic) = (kafka.to_owned(), topic.to_owned());
    tokio::spawn(async move {
        let mut number = 0;
        while !stop.is_cancelled() {
            produce(
                &kafka,
                &topic,
                &[Record::new(number % partitions, format!("{number}"))],
            )
            .await;
            number += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_killed_costs_its_clients_nothing() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("killed");
    create_topic(&kafka, &topic, 3, &[]).await;
    let mut replica = Replica::start(&kafka, &topic, &[]).await;
    let listen = replica.public.to_string();
    let followers = Followers::start(&topic, replica.public, 8);
    let stop = CancellationToken::new();
    let publishing = publish(&kafka, &topic, 3, stop.clone());
    for round in 1..=3 {
        followers.have(round * 30).await;
        replica.kill().await;
        replica = Replica::launch(&kafka, &topic, &listen, &[]).await;
    }
    followers.have(120).await;
    stop.cancel();
    publishing.await.expect("everything was published");
    let records = positions(&read_all(&kafka, &topic).await);
    for reader in followers.finish(&records).await {
        assert_eq!(reader.gaps, []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_for_20_seconds_is_announced_and_costs_nothing() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let address = broker.address().to_owned();
    let topic = random_topic("away");
    create_topic(&address, &topic, 3, &[]).await;
    let replica = Replica::start(&address, &topic, &[]).await;
    let followers = Followers::start(&topic, replica.public, 8);
    let stop = CancellationToken::new();
    let publishing = publish(&address, &topic, 3, stop.clone());
    followers.have(20).await;
    let gone = Instant::now();
    broker.stop().await;
    // A new client is notified at once that Kafka is unreachable; the ring is still served, and the replica stays ready.
    let mut received = None;
    for _ in 0..200 {
        let mut client = Client::connect(
            replica.public,
            Transport::WebSocket,
            &[("last", "5".into())],
        );
        let events = tokio::time::timeout(Duration::from_millis(500), async {
            let mut events = Vec::new();
            while events.len() < 7 {
                events.push(client.next().await.expect("the stream goes on"));
            }
            events
        });
        if let Ok(events) = events.await {
            received = Some(events);
            break;
        }
    }
    let received = received.expect("a new client is notified that kafka is unreachable");
    assert_eq!(
        received
            .iter()
            .filter(|event| event["type"] == "message")
            .count(),
        5
    );
    assert!(
        received.iter().any(|event| event["type"] == "status"
            && event["source"] == "down"
            && event["since"].is_string()),
        "{received:?}"
    );
    assert_eq!(replica.get_admin("/readyz").await.0, 200);
    tokio::time::sleep(Duration::from_secs(20).saturating_sub(gone.elapsed())).await;
    broker.start_again().await;
    let before = 20;
    followers.have(before + 100).await;
    stop.cancel();
    publishing.await.expect("everything was published");
    let records = positions(&read_all(&address, &topic).await);
    for reader in followers.finish(&records).await {
        assert_eq!(reader.gaps, []);
        assert_eq!(reader.heard, ["down", "up"], "announced once each");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_not_up_yet_is_waited_for_and_said_once() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let address = broker.address().to_owned();
    let topic = random_topic("late");
    create_topic(&address, &topic, 1, &[]).await;
    broker.stop().await;
    let mut replica = Replica::launch(&address, &topic, "127.0.0.1:0", &[]).await;
    replica.said("no connection to kafka").await;
    assert_eq!(replica.get_admin("/readyz").await.0, 503);
    // A stream that is opened now waits with it, and says so.
    let mut early = Client::connect(replica.public, Transport::Sse, &[]);
    let first = tokio::time::timeout(Duration::from_secs(15), early.next())
        .await
        .expect("in time")
        .expect("the stream goes on");
    assert_eq!(
        (&first["type"], &first["source"], &first["cursor"]),
        (&"status".into(), &"down".into(), &serde_json::Value::Null)
    );
    broker.start_again().await;
    replica.ready().await;
    let mut heard = Vec::new();
    while !heard.contains(&"start".to_owned()) {
        let event = tokio::time::timeout(Duration::from_secs(15), early.next())
            .await
            .expect("in time")
            .expect("the stream goes on");
        heard.push(event["type"].as_str().expect("a type").to_owned());
    }
}
