//! A broker that comes and goes.

use std::collections::HashSet;
use std::time::Duration;

use herald_testing::{Broker, Stored, eventually, random_topic, read_all};
use tokio::time::{Instant, sleep_until};

use crate::{DEADLINE, Running};

/// How long a broker is stopped, from the signal on.
const OUTAGE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_up_is_waited_for() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    broker.stop().await;
    let producer = Running::start(broker.address(), &random_topic("dev"), &[]);
    assert!(!producer.is_ready().await);
    broker.start_again().await;
    eventually(DEADLINE, "the producer to be ready", async || {
        producer.is_ready().await
    })
    .await;
    producer.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_broker_loses_doubles_and_delays_nothing_that_is_said() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let topic = random_topic("dev");
    let producer = Running::start(broker.address(), &topic, &[]);
    let produced = async || producer.metric("herald_messages_produced_total").await;
    eventually(DEADLINE, "messages before", async || produced().await >= 50).await;

    let back = Instant::now() + OUTAGE;
    broker.stop().await;
    sleep_until(back).await;
    let before = produced().await;
    assert!(
        producer.metric("herald_messages_unacknowledged").await > 100,
        "the clock goes on meanwhile"
    );
    broker.start_again().await;
    eventually(DEADLINE, "messages after", async || {
        produced().await >= before + 200
    })
    .await;
    producer.catches_up().await;
    producer.end().await.unwrap();

    let records = read_all(broker.address(), &topic).await;
    assert_eq!(ids(&records).len(), records.len(), "nothing is doubled");
    let said: Vec<i64> = records
        .iter()
        .map(|record| record.timestamp.unwrap())
        .collect();
    assert!(
        said.is_sorted(),
        "everything stands in the order in which it was said"
    );
    // A message is produced at least every 20 ms, so a lost or late one leaves a hole.
    let longest = said.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < 2_000, "{longest} ms without a message");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_costs_no_message_and_doubles_none() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let topic = random_topic("dev");
    let producer = Running::start(broker.address(), &topic, &[]);
    let produced = async || producer.metric("herald_messages_produced_total").await;
    for _ in 0..2 {
        let before = produced().await;
        eventually(DEADLINE, "messages", async || {
            produced().await >= before + 200
        })
        .await;
        broker.kill().await;
        broker.start_again().await;
    }
    producer.catches_up().await;
    producer.end().await.unwrap();

    let records = read_all(broker.address(), &topic).await;
    assert!(records.len() >= 400);
    assert_eq!(ids(&records).len(), records.len(), "nothing is doubled");
    assert!(records.iter().map(|record| record.timestamp).is_sorted());
}

fn ids(records: &[Stored]) -> HashSet<Vec<u8>> {
    let id = |record: &Stored| {
        let header = record.headers.iter().find(|(name, _)| name == "ce_id");
        header.unwrap().1.clone().unwrap()
    };
    records.iter().map(id).collect()
}
