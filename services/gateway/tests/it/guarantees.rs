//! What an acknowledgement promises: the order, and that nothing is lost, whatever happens to Kafka or the gateway.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use herald_testing::{Broker, create_topic, eventually, random_topic, read_all};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::process::{Client, Process};
use crate::{DEADLINE, GOOD, close_code, next, start};

const MINUTE: Duration = Duration::from_secs(60);

/// Checks that Kafka has the frames of each client in order, without a gap, and at least those that were acknowledged.
async fn assert_nothing_lost(kafka: &str, topic: &str, clients: &[Client]) {
    let records = read_all(kafka, topic).await;
    for client in clients {
        let key = format!("\"{}\"", client.session).into_bytes();
        let own = records
            .iter()
            .filter(|record| record.key.as_ref() == Some(&key));
        let sequence: Vec<u64> = own
            .map(|record| {
                let frame: Value = serde_json::from_str(&record.text()).unwrap();
                frame[0]["timestamp"].as_u64().unwrap()
            })
            .collect();
        let expected: Vec<u64> = (0..sequence.len() as u64).collect();
        assert_eq!(sequence, expected, "{}", client.session);
        let acknowledged = client.acknowledged();
        assert!(
            sequence.len() >= acknowledged,
            "{}: {acknowledged} acknowledged, {} in kafka",
            client.session,
            sequence.len()
        );
    }
}

/// The bytes that a frame counts as until it is answered: its own, and those of its state.
const COUNTED: usize = GOOD.len() + 512;

#[tokio::test]
async fn a_frame_that_is_too_large_for_the_topic_is_rejected_in_its_turn_and_the_session_goes_on() {
    let Some(kafka) = herald_testing::kafka_with("limit of a topic") else {
        return;
    };
    let topic = random_topic("topic-limit");
    create_topic(&kafka, &topic, 1, &[("max.message.bytes", "70000")]).await;
    let gateway = start(&kafka, &topic, &[]).await;
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    let frame = |n: usize, kind: &str, bytes: usize| {
        let fill = "x".repeat(bytes);
        format!(r#"[{{"timestamp":{n},"type":"{kind}","x":"{fill}"}}]"#)
    };
    let mut accepted = Vec::new();
    let mut expected = Vec::new();
    for n in 0..60 {
        let is_large = n % 7 == 3;
        let text = frame(n, "EVENT", if is_large { 100_000 } else { 10 });
        socket.feed(Message::text(text.as_str())).await.unwrap();
        expected.push(if is_large { "error" } else { "ack" });
        if !is_large {
            accepted.push(text);
        }
    }
    // The end of a session that Kafka does not have is none.
    let end = frame(60, "SESSION_END", 100_000);
    socket.send(Message::text(end)).await.unwrap();
    expected.push("error");
    let mut answers = Vec::new();
    let mut offset = -1;
    for _ in 0..expected.len() {
        let answer = next(&mut socket).await.into_text().unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        if answer["type"] == "ack" {
            let acknowledged = answer["offset"].as_i64().unwrap();
            assert!(acknowledged > offset, "{acknowledged} after {offset}");
            offset = acknowledged;
        } else {
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains("max.message.bytes"), "{error}");
        }
        answers.push(answer["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(answers, expected);
    let end = frame(61, "SESSION_END", 10);
    socket.send(Message::text(end.as_str())).await.unwrap();
    accepted.push(end);
    assert!(next(&mut socket).await.is_text());
    assert_eq!(close_code(next(&mut socket).await), 1000);
    let records = read_all(&kafka, &topic).await;
    let texts: Vec<String> = records.iter().map(|record| record.text()).collect();
    assert_eq!(texts, accepted);
}

#[tokio::test]
async fn answers_have_the_order_of_the_frames() {
    let Some(gateway) = crate::gateway("answers").await else {
        return;
    };
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    let mut expected = Vec::new();
    for n in 0..100 {
        let bad = n % 3 == 1;
        let text = if bad { "{" } else { GOOD };
        socket.feed(Message::text(text)).await.unwrap();
        expected.push(if bad { "error" } else { "ack" });
    }
    socket.flush().await.unwrap();
    for expected in expected {
        let answer = next(&mut socket).await.into_text().unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["type"], expected);
    }
}

#[tokio::test]
async fn a_producer_that_cannot_keep_the_order_ends_the_gateway_with_its_reason() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("fatal", 1, 1).unwrap();
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    let mut gateway = start(&cluster.bootstrap_servers(), "fatal", &[]).await;
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    socket.send(Message::text(GOOD)).await.unwrap();
    let ended = timeout(DEADLINE, &mut gateway.run).await.unwrap().unwrap();
    let reason = format!("{:#}", ended.unwrap_err());
    assert!(
        reason.starts_with("the Kafka producer failed: ") && reason.contains("desynchronization"),
        "{reason}"
    );
    while let Some(Ok(message)) = socket.next().await {
        assert!(!message.is_text(), "{message}");
    }
}

#[tokio::test]
async fn a_producer_of_http_messages_that_cannot_keep_the_order_ends_the_gateway_too() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("fatal", 1, 1).unwrap();
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    let options = ["--publish-topics", "fatal"];
    let mut gateway = start(&cluster.bootstrap_servers(), "fatal", &options).await;
    let path = "/topics/fatal/messages";
    let answer = crate::http::send(&gateway.address, "POST", path, &[], "a").await;
    assert_eq!(answer.status, 503);
    let ended = timeout(DEADLINE, &mut gateway.run).await.unwrap().unwrap();
    let reason = format!("{:#}", ended.unwrap_err());
    assert!(
        reason.starts_with("the Kafka producer failed: "),
        "{reason}"
    );
}

#[tokio::test]
async fn a_shutdown_publishes_the_frames_of_clients_that_are_gone() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let topic = random_topic("flush");
    create_topic(&kafka, &topic, 1, &[]).await;
    // The gateway is shut down before the frames are sent to Kafka.
    let linger = "linger.ms=2000";
    let options = ["--drain-delay", "0s", "--kafka-properties", linger];
    let mut process = Process::start(&kafka, &topic, &options).await;
    let mut socket = process.open("?session_id=a").await;
    for _ in 0..10 {
        socket.send(Message::text(GOOD)).await.unwrap();
    }
    let name = "herald_gateway_unanswered_bytes";
    eventually(DEADLINE, "the frames to be read", async || {
        process.metric(name).await >= 10.0 * COUNTED as f64
    })
    .await;
    drop(socket);
    assert!(process.terminate().await.success());
    assert_eq!(read_all(&kafka, &topic).await.len(), 10);
}

#[tokio::test]
async fn a_shutdown_without_kafka_reports_the_frames_that_are_not_acknowledged() {
    let options = ["--drain-delay", "0s", "--drain-window", "500ms"];
    let options = [&options[..], &["--shutdown-grace", "4s"]].concat();
    let mut process = Process::start("127.0.0.1:1", "away", &options).await;
    let mut socket = process.open("?session_id=a&ack=1").await;
    for _ in 0..3 {
        socket.send(Message::text(GOOD)).await.unwrap();
    }
    let name = "herald_gateway_unanswered_bytes";
    eventually(DEADLINE, "the frames to be read", async || {
        process.metric(name).await >= 3.0 * COUNTED as f64
    })
    .await;
    assert!(process.terminate().await.success());
    let line = process.line("kafka has not acknowledged").await;
    assert_eq!(
        (&line["level"], &line["frames"]),
        (&"WARN".into(), &3.into())
    );
    while let Some(Ok(message)) = socket.next().await {
        assert!(!message.is_text(), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_that_a_killed_gateway_acknowledged_is_in_kafka() {
    let Some(kafka) = herald_testing::kafka_with("log that outlives a client") else {
        return;
    };
    let topic = random_topic("killed");
    create_topic(&kafka, &topic, 3, &[]).await;
    let mut process = Process::start(&kafka, &topic, &[]).await;
    let mut sockets = Vec::new();
    for n in 0..20 {
        let session = format!("session-{n}");
        let query = format!("?session_id={session}&ack=1");
        sockets.push((process.open(&query).await, session));
    }
    let clients: Vec<Client> = sockets
        .into_iter()
        .map(|(socket, session)| Client::start(&session, socket, 1_000_000, 200))
        .collect();
    let acknowledged = || clients.iter().map(Client::acknowledged).sum::<usize>();
    eventually(MINUTE, "2000 acknowledgements", async || {
        acknowledged() >= 2000
    })
    .await;
    process.kill();
    // What was sent before the kill may still arrive.
    sleep(Duration::from_millis(500)).await;
    assert_nothing_lost(&kafka, &topic, &clients).await;
}

/// Stops Kafka for `outage` under 200 connections that send.
async fn outage(outage: Duration) {
    const SOCKETS: usize = 200;
    const FRAMES: usize = 20;
    const BYTES: usize = 8 << 10;
    const SESSION_BUFFER: usize = 64 << 10;
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let kafka = broker.address().to_owned();
    create_topic(&kafka, "events", 3, &[]).await;
    let session_buffer = SESSION_BUFFER.to_string();
    let options = ["--session-buffer-bytes", &session_buffer];
    let options = [&options[..], &["--total-buffer-kbytes", "4096"]].concat();
    let process = Process::start(&kafka, "events", &options).await;
    let mut sockets = Vec::new();
    for n in 0..SOCKETS {
        sockets.push(process.open(&format!("?session_id=s{n}&ack=1")).await);
    }
    let mut first = process.open("?session_id=first&ack=1").await;
    first.send(Message::text(GOOD)).await.unwrap();
    assert!(next(&mut first).await.is_text());
    let before = process.memory();
    broker.stop().await;
    let mut clients = Vec::new();
    for (n, socket) in sockets.into_iter().enumerate() {
        clients.push(Client::start(&format!("s{n}"), socket, FRAMES, BYTES));
    }
    eventually(DEADLINE, "no socket to be read", async || {
        process.metric("herald_gateway_sockets_paused").await == SOCKETS as f64
    })
    .await;
    sleep(outage).await;
    let paused = process.metric("herald_gateway_sockets_paused").await;
    assert_eq!(paused, SOCKETS as f64);
    let unanswered = process.metric("herald_gateway_unanswered_bytes").await;
    // librdkafka takes 4 MiB, and our own count has some overhead.
    assert!(unanswered <= f64::from(5 << 20), "{unanswered} bytes");
    let grown = process.memory().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes more than before");
    assert!(clients.iter().all(|client| client.acknowledged() == 0));
    broker.start_again().await;
    eventually(MINUTE, "all frames to be acknowledged", async || {
        clients.iter().all(|client| client.acknowledged() == FRAMES)
    })
    .await;
    assert_eq!(process.metric("herald_gateway_unanswered_bytes").await, 0.0);
    assert_eq!(process.metric("herald_gateway_sockets_paused").await, 0.0);
    assert_nothing_lost(&kafka, "events", &clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_is_away_sockets_wait_unread_and_then_go_on() {
    outage(Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn while_kafka_is_away_for_30_seconds_sockets_wait_unread_and_then_go_on() {
    outage(Duration::from_secs(30)).await;
}
