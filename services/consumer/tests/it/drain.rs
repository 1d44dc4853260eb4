//! SIGTERM: every client receives a bye, the ends are spread, all clients reconnect to another replica, nothing is lost.

use std::time::{Duration, Instant};

use herald_testing::{
    Broker, Record, create_topic, eventually, kafka, produce, random_topic, read_all,
};

use crate::balancer::Balancer;
use crate::client::{Client, TRANSPORTS, Transport};
use crate::http::{Http, header};
use crate::reader::{Followers, positions};
use crate::replica::Replica;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_clients_move_to_the_other_replica() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("drain");
    create_topic(&kafka, &topic, 3, &[]).await;
    let options = [
        "--drain-delay",
        "2s",
        "--drain-window",
        "4s",
        "--shutdown-grace",
        "12s",
    ];
    let mut first = Replica::start(&kafka, &topic, &options).await;
    let second = Replica::start(&kafka, &topic, &options).await;
    let balancer = Balancer::start(&[first.public]).await;
    let followers = Followers::start(&topic, balancer.address, 300);
    let streams = async |replica: &Replica| {
        let mut open = 0.0;
        for transport in ["sse", "websocket", "socketio"] {
            open += replica
                .metric(&format!("herald_streams{{transport=\"{transport}\"}}"))
                .await;
        }
        open
    };
    eventually(
        Duration::from_secs(30),
        "300 clients to be connected",
        async || streams(&first).await >= 300.0,
    )
    .await;
    let publishing = {
        let (kafka, topic) = (kafka.clone(), topic.clone());
        tokio::spawn(async move {
            for number in 0..150 {
                produce(
                    &kafka,
                    &topic,
                    &[Record::new(number % 3, format!("{number}"))],
                )
                .await;
                tokio::time::sleep(Duration::from_millis(80)).await;
            }
        })
    };
    followers.have(10).await;
    first.terminate();
    let begun = Instant::now();
    eventually(Duration::from_secs(2), "readiness to be off", async || {
        first.get_admin("/readyz").await.0 == 503
    })
    .await;
    assert!(
        streams(&first).await >= 300.0,
        "readiness is off before the first stream ends"
    );
    // The load balancer has been notified; a new stream on the old replica receives a bye, with a status that allows a reconnect.
    balancer.point_to(&[second.public]);
    let mut late = Client::connect(first.public, Transport::Sse, &[]);
    let bye = late.next().await.expect("an answer");
    assert_eq!(
        (&bye["type"], &bye["reason"]),
        (&"bye".into(), &"drain".into())
    );
    assert_eq!(late.next().await, None);
    let mut halfway = None;
    eventually(
        Duration::from_secs(12),
        "all streams to have left",
        async || {
            let open = streams(&first).await;
            if open > 0.0 && open < 200.0 {
                halfway.get_or_insert(begun.elapsed());
            }
            open == 0.0
        },
    )
    .await;
    let halfway = halfway.expect("the ends are spread over the window");
    assert!(
        halfway > Duration::from_secs(2) && halfway < Duration::from_secs(6),
        "{halfway:?}"
    );
    assert_eq!(first.ended(Duration::from_secs(12)).await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(13));
    publishing.await.expect("everything was published");
    let records = positions(&read_all(&kafka, &topic).await);
    followers.have(records.len()).await;
    for reader in followers.finish(&records).await {
        assert_eq!(reader.gaps, []);
        assert!(
            reader.heard.iter().any(|heard| heard == "bye drain"),
            "a client received no reason: {:?}",
            reader.heard
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_after_the_bye_for_the_others_to_leave() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("bye");
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = ["--drain-delay", "0s", "--drain-window", "8s"];
    let replica = Replica::start(&kafka, &topic, &options).await;
    let mut clients = Vec::new();
    for number in 0..40 {
        let transport = TRANSPORTS[number % TRANSPORTS.len()];
        let mut client = Client::connect(replica.public, transport, &[]);
        while client.next().await.expect("the stream goes on")["type"] != "start" {}
        clients.push((transport, client));
    }
    replica.terminate();
    let mut ends = tokio::task::JoinSet::new();
    for (transport, mut client) in clients {
        ends.spawn(async move {
            while client.next().await.expect("a bye before the end")["type"] != "bye" {}
            let begun = Instant::now();
            while client.next().await.is_some() {}
            (transport, begun.elapsed())
        });
    }
    // A client that hangs on to the replica until all have left waits for 4 of the 8 seconds, on average.
    while let Some(end) = ends.join_next().await {
        let (transport, waited) = end.expect("a bye");
        let at_once = waited < Duration::from_secs(3);
        assert!(at_once, "{transport:?} waited {waited:?} after its bye");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_process_at_once() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("twice");
    create_topic(&kafka, &topic, 1, &[]).await;
    let mut replica = Replica::start(
        &kafka,
        &topic,
        &["--drain-delay", "60s", "--shutdown-grace", "90s"],
    )
    .await;
    let _open: Vec<Client> = TRANSPORTS
        .iter()
        .map(|transport| Client::connect(replica.public, *transport, &[]))
        .collect();
    replica.terminate();
    replica.said("draining").await;
    replica.terminate();
    assert_eq!(replica.ended(Duration::from_secs(2)).await, Some(143));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_polling_client_and_an_idle_connection_do_not_hold_up_the_end() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("polling");
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = ["--drain-delay", "0s", "--drain-window", "2s"];
    let mut replica = Replica::start(&kafka, &topic, &options).await;
    let mut client = Client::connect(replica.public, Transport::Polling, &[]);
    while client.next().await.expect("the stream goes on")["type"] != "start" {}
    replica.terminate();
    let began = Instant::now();
    assert_eq!(replica.ended(Duration::from_secs(10)).await, Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );

    let options = ["--drain-delay", "0s", "--drain-window", "8s"];
    let mut replica = Replica::start(&kafka, &topic, &options).await;
    let mut idle = Http::connect(replica.public).await.expect("a connection");
    idle.send("GET", "/config", &[], "")
        .await
        .expect("an answer");
    replica.terminate();
    let began = Instant::now();
    assert_eq!(replica.ended(Duration::from_secs(15)).await, Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(idle.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_keeps_its_connection_never_sees_a_failed_request() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("kept");
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = ["--drain-delay", "2s", "--drain-window", "2s"];
    let mut replica = Replica::start(&kafka, &topic, &options).await;
    // Its end is up to the drain, so the others outlive the listener.
    let mut stream = Client::connect(replica.public, Transport::WebSocket, &[]);
    stream.next().await.expect("a start");
    let address = replica.public;
    let requesting = tokio::spawn(async move {
        let (mut answers, mut closing) = (0, 0);
        while let Ok(mut http) = Http::connect(address).await {
            loop {
                let answer = http.send("GET", "/config", &[], "").await;
                let answer =
                    answer.unwrap_or_else(|error| panic!("after {answers} answers: {error}"));
                assert_eq!(answer.status(), 200);
                answers += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
                if header(&answer, "connection") == "close" {
                    closing += 1;
                    break;
                }
            }
        }
        (answers, closing)
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    replica.terminate();
    assert_eq!(replica.ended(Duration::from_secs(10)).await, Some(0));
    let (answers, closing) = requesting.await.expect("no request failed");
    assert!(
        answers > 20 && closing > 5,
        "{answers} answers, {closing} of them with Connection: close"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_does_not_come_back_when_kafka_comes_during_the_drain() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let address = broker.address().to_owned();
    let topic = random_topic("never-ready");
    create_topic(&address, &topic, 1, &[]).await;
    broker.stop().await;
    let options = [
        "--drain-delay",
        "2m",
        "--drain-window",
        "0s",
        "--shutdown-grace",
        "150s",
    ];
    let mut replica = Replica::launch(&address, &topic, "127.0.0.1:0", &options).await;
    replica.said("no connection to kafka").await;
    replica.terminate();
    replica.said("draining").await;
    broker.start_again().await;
    replica.said("caught up with Kafka").await;
    for _ in 0..10 {
        let (status, reason) = replica.get_admin("/readyz").await;
        assert_eq!((status, reason.trim()), (503, "draining"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
