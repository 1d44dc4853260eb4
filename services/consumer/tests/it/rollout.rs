//! A rollout of a busy topic: clients return to a new replica with cursors that are older than its ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use herald_testing::{
    Record, create_topic, eventually, kafka_with, produce, random_topic, read_all,
};
use tokio_util::sync::CancellationToken;

use crate::balancer::Balancer;
use crate::client::Transport;
use crate::reader::{Followers, positions};
use crate::replica::Replica;

/// Messages per second, and what the ring holds; few enough for a machine that runs other tests too.
const RATE: usize = 250;
const CLIENTS: usize = 21;
/// A polling client receives at most 16 messages per request, too few for this rate.
const TRANSPORTS: [Transport; 3] = [Transport::Sse, Transport::WebSocket, Transport::SocketIo];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_return_to_a_busy_topic_share_their_backlog_and_catch_up() {
    let Some(kafka) = kafka_with("room for this many messages") else {
        return;
    };
    let topic = random_topic("rollout");
    create_topic(&kafka, &topic, 3, &[]).await;
    let ring = RATE.to_string();
    let options = ["--ring-messages", &ring, "--ring-time", "0s"];
    let mut first = Replica::start(&kafka, &topic, &options).await;
    let balancer = Balancer::start(&[first.public]).await;
    let followers = Followers::with(&TRANSPORTS, &topic, balancer.address, CLIENTS);
    eventually(
        Duration::from_secs(20),
        "the clients to be connected",
        async || {
            let mut open = 0.0;
            for transport in ["sse", "websocket", "socketio"] {
                open += first
                    .metric(&format!("herald_streams{{transport=\"{transport}\"}}"))
                    .await;
            }
            open >= CLIENTS as f64
        },
    )
    .await;
    let stop = CancellationToken::new();
    let published = Arc::new(AtomicUsize::new(0));
    let publishing = tokio::spawn(publish(
        kafka.clone(),
        topic.clone(),
        published.clone(),
        stop.clone(),
    ));
    followers.have(RATE).await;
    first.kill().await;
    // Five times what the ring holds.
    let missed = published.load(Ordering::Relaxed) + 5 * RATE;
    eventually(
        Duration::from_secs(30),
        "the clients to miss messages",
        async || published.load(Ordering::Relaxed) >= missed,
    )
    .await;
    let second = Replica::start(&kafka, &topic, &options).await;
    balancer.point_to(&[second.public]);
    // While the topic goes on: a client that is slower than the topic would never be this close to its end. (A machine that is
    // busy with other tests may be slower for a while.)
    eventually(
        Duration::from_secs(120),
        "every client to catch up",
        async || followers.least() + RATE >= published.load(Ordering::Relaxed),
    )
    .await;
    stop.cancel();
    publishing.await.expect("everything was published");
    let records = positions(&read_all(&kafka, &topic).await);
    followers.have(records.len()).await;
    for reader in followers.finish(&records).await {
        assert_eq!(
            (reader.gaps.as_slice(), reader.heard.as_slice()),
            (&[][..], &[][..])
        );
    }
    let pages = async |source: &str| {
        second
            .metric(&format!("herald_replay_pages_total{{source=\"{source}\"}}"))
            .await
    };
    let (read, shared) = (pages("kafka").await, pages("memory").await);
    assert!(
        shared > 5.0 * read,
        "{read} pages from Kafka, {shared} from memory"
    );
}

/// Publishes at `RATE` until it is stopped.
async fn publish(
    kafka: String,
    topic: String,
    published: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    while !stop.is_cancelled() {
        tick.tick().await;
        let first = published.load(Ordering::Relaxed);
        let batch: Vec<Record> = (first..first + RATE / 10)
            .map(|number| Record::new(number as i32 % 3, format!("{number}")))
            .collect();
        produce(&kafka, &topic, &batch).await;
        published.fetch_add(batch.len(), Ordering::Relaxed);
    }
}
