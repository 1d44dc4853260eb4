//! The gateway as a client sees it, with real Kafka.

mod counts;
mod data;
mod guarantees;
mod http;
mod likes;
mod log;
mod messages;
mod page;
mod process;
mod publish;
mod rates;
mod sse;
mod windows;

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use gateway::{Config, Listeners};
use herald_testing::{create_topic, random_topic, read_all};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<TcpStream>;

struct Gateway {
    kafka: String,
    topic: String,
    address: String,
    likes: String,
    counts: String,
    admin: String,
    run: tokio::task::JoinHandle<anyhow::Result<()>>,
    _stop: tokio_util::sync::DropGuard,
}

/// A gateway with a new topic; `None` without a Kafka.
async fn gateway(name: &str) -> Option<Gateway> {
    let kafka = herald_testing::kafka()?;
    let topic = random_topic(name);
    create_topic(&kafka, &topic, 1, &[]).await;
    Some(start(&kafka, &topic, &[]).await)
}

async fn start(kafka: &str, topic: &str, options: &[&str]) -> Gateway {
    let args = [
        "gateway",
        "--kafka-bootstrap-servers",
        kafka,
        "--events-topic",
        topic,
    ];
    let config: Config = herald_runtime::config::parse_from(&[&args, options].concat()).unwrap();
    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = public.local_addr().unwrap().to_string();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin_address = admin.local_addr().unwrap().to_string();
    let shutdown = CancellationToken::new();
    let likes = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let likes_address = likes.local_addr().unwrap().to_string();
    let counts = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let counts_address = counts.local_addr().unwrap().to_string();
    let listeners = Listeners {
        public,
        likes: Some(likes),
        counts: Some(counts),
        admin,
    };
    let run = tokio::spawn(gateway::run(config, listeners, shutdown.clone()));
    Gateway {
        kafka: kafka.to_owned(),
        topic: topic.to_owned(),
        address,
        likes: likes_address,
        counts: counts_address,
        admin: admin_address,
        run,
        _stop: shutdown.drop_guard(),
    }
}

impl Gateway {
    async fn open(&self, query: &str) -> Result<Socket, (u16, String)> {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let url = format!("ws://{}/websocket{query}", self.address);
        match client_async(url, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), String::from_utf8(body).unwrap()))
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn next(socket: &mut Socket) -> Message {
    let message = timeout(DEADLINE, socket.next()).await.expect("an answer");
    message.expect("an open socket").unwrap()
}

fn close_code(message: Message) -> u16 {
    match message {
        Message::Close(Some(frame)) => frame.code.into(),
        other => panic!("not a close frame: {other:?}"),
    }
}

const GOOD: &str = r#"[{"timestamp": 1, "type": "EVENT",  "name": "a"}]"#;

#[tokio::test]
async fn a_frame_is_published_unchanged_under_the_quoted_id_and_the_end_closes_the_socket() {
    let Some(gateway) = gateway("frames").await else {
        return;
    };
    let mut socket = gateway.open("?session_id=e6fa&ack=1").await.unwrap();
    let end = r#"[{"timestamp":2,"type":"SESSION_END"}]"#;
    socket.send(Message::text(GOOD)).await.unwrap();
    socket.send(Message::text(end)).await.unwrap();
    for offset in 0..2 {
        let ack = next(&mut socket).await.into_text().unwrap();
        let ack: serde_json::Value = serde_json::from_str(&ack).unwrap();
        assert_eq!(ack["type"], "ack");
        assert_eq!(ack["offset"], offset);
    }
    assert_eq!(close_code(next(&mut socket).await), 1000);
    let records = read_all(&gateway.kafka, &gateway.topic).await;
    let texts: Vec<String> = records.iter().map(|record| record.text()).collect();
    assert_eq!(texts, [GOOD, end]);
    assert_eq!(records[0].key.as_deref(), Some(&b"\"e6fa\""[..]));
    for name in [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "content-type",
        "x-request-id",
    ] {
        assert!(
            records[0].headers.iter().any(|(header, _)| header == name),
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_invalid_frame_is_answered_and_the_next_good_one_is_published() {
    let Some(gateway) = gateway("invalid").await else {
        return;
    };
    let deep = format!("[{}1{}]", "[".repeat(5000), "]".repeat(5000));
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    for bad in [
        "{",
        "{}",
        "[]",
        r#"[{"timestamp":1,"type":"OTHER"}]"#,
        r#"[{"timestamp":"1","type":"EVENT"}]"#,
        &deep,
    ] {
        socket.send(Message::text(bad)).await.unwrap();
        let error = next(&mut socket).await.into_text().unwrap();
        assert!(error.contains(r#""type":"error""#), "{bad:.40}: {error}");
    }
    socket.send(Message::binary(GOOD)).await.unwrap();
    let error = next(&mut socket).await.into_text().unwrap();
    assert!(error.contains("must be text"), "{error}");
    socket.send(Message::text(GOOD)).await.unwrap();
    let ack = next(&mut socket).await.into_text().unwrap();
    assert!(ack.contains(r#""type":"ack""#), "{ack}");
    assert_eq!(read_all(&gateway.kafka, &gateway.topic).await.len(), 1);
}

#[tokio::test]
async fn ten_invalid_frames_in_a_row_close_the_socket() {
    let Some(gateway) = gateway("repeated").await else {
        return;
    };
    let mut socket = gateway.open("?session_id=a").await.unwrap();
    for _ in 0..10 {
        socket.send(Message::text("[]")).await.unwrap();
        assert!(next(&mut socket).await.is_text());
    }
    assert_eq!(close_code(next(&mut socket).await), 1008);
}

#[tokio::test]
async fn a_handshake_without_a_valid_session_id_is_rejected() {
    let Some(gateway) = gateway("ids").await else {
        return;
    };
    let missing = (400, "query is missing session_id".to_owned());
    assert_eq!(gateway.open("").await.unwrap_err(), missing);
    assert_eq!(gateway.open("?session_id=").await.unwrap_err(), missing);
    let long = format!("?session_id={}", "a".repeat(10 << 10));
    for query in ["?session_id=a%00b", &long] {
        assert_eq!(gateway.open(query).await.unwrap_err().0, 400, "{query:.40}");
    }
    let not_utf8 = (400, "the query is not UTF-8".to_owned());
    assert_eq!(
        gateway.open("?session_id=caf%E9").await.unwrap_err(),
        not_utf8
    );
}

#[tokio::test]
async fn a_frame_that_is_too_large_or_not_utf8_closes_its_own_socket_only() {
    let Some(gateway) = gateway("closes").await else {
        return;
    };
    for number in 0..10 {
        // A session may open ten connections a second.
        let query = format!("?session_id=large-{number}");
        let mut large = gateway.open(&query).await.unwrap();
        // The gateway does not read the frame to its end, and must not reset the connection either.
        _ = large.send(Message::text(" ".repeat(10 << 20))).await;
        assert_eq!(close_code(next(&mut large).await), 1009);
    }
    let mut raw = gateway.open("?session_id=a").await.unwrap();
    // A masked text frame with the single byte 0xff; the mask is zero.
    let invalid = [0x81, 0x81, 0, 0, 0, 0, 0xff];
    raw.get_mut().write_all(&invalid).await.unwrap();
    assert_eq!(close_code(next(&mut raw).await), 1007);
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    socket.send(Message::text(GOOD)).await.unwrap();
    assert!(next(&mut socket).await.is_text());
    assert_eq!(read_all(&gateway.kafka, &gateway.topic).await.len(), 1);
}

#[tokio::test]
async fn while_kafka_is_away_a_frame_waits_and_then_the_client_is_asked_to_try_later() {
    let args = ["--publish-timeout", "1s"];
    let gateway = start("127.0.0.1:1", "away", &args).await;
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    socket.send(Message::text(GOOD)).await.unwrap();
    assert_eq!(close_code(next(&mut socket).await), 1013);
}
