//! Limits: a reader that stops, a cap on connections, requests that never end.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use herald_testing::{Record, create_topic, eventually, kafka, produce, random_topic, read_all};

use tokio_tungstenite::tungstenite::Message;

use crate::client::{Client, TRANSPORTS, Transport};
use crate::reader::{Reader, positions};
use crate::replica::Replica;

/// Resident memory of a process, in bytes.
pub fn memory(id: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{id}/statm")).expect("the process runs");
    status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .expect("pages")
        * 4096
}

/// Sends a request and never reads the answer. Holds the socket open.
fn stalled(address: SocketAddr, request: &str) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    socket2::SockRef::from(&stream)
        .set_recv_buffer_size(4096)
        .expect("a small buffer");
    stream.write_all(request.as_bytes()).expect("a request");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_costs_little_is_ended_and_comes_back_without_a_hole() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("slow");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(
        &kafka,
        &topic,
        &[
            "--ring-messages",
            "2000",
            "--ring-time",
            "0s",
            "--ring-bytes",
            "8388608",
        ],
    )
    .await;
    let mut slow = Reader::new(&topic);
    let mut client = slow.connect(replica.public, Transport::Sse);
    slow.take(&client.next().await.expect("a start"));
    drop(client);
    let mut healthy = Client::connect(replica.public, Transport::WebSocket, &[]);
    healthy.next().await.expect("a start");
    let cursor = slow.cursor.clone().expect("a cursor");
    let requests = [
        format!("GET /events?after={cursor} HTTP/1.1\r\nhost: herald\r\n\r\n"),
        format!(
            "GET /ws?after={cursor} HTTP/1.1\r\nhost: herald\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
    ];
    let before = memory(replica.id());
    let _sockets: Vec<_> = (0..40)
        .map(|n| stalled(replica.public, &requests[n % 2]))
        .collect();
    // 40 MB for each of 40 readers, were it queued for them.
    let text = "x".repeat(1000);
    let mut worst = Duration::ZERO;
    for number in 0..400 {
        let began = Instant::now();
        let batch: Vec<Record> = (0..100)
            .map(|n| Record::new(0, format!("{number} {n} {text}")))
            .collect();
        produce(&kafka, &topic, &batch).await;
        for _ in 0..100 {
            tokio::time::timeout(Duration::from_secs(5), healthy.next())
                .await
                .expect("the others go on")
                .expect("the others are not ended");
        }
        worst = worst.max(began.elapsed());
    }
    let grown = memory(replica.id()).saturating_sub(before);
    eprintln!(
        "40 stalled readers: memory grew by {} KiB, the slowest 100 messages of a healthy one took {worst:?}",
        grown >> 10
    );
    assert!(grown < 64 << 20, "memory grew by {} MiB", grown >> 20);
    let (events, bytes) = (
        replica
            .metric(&format!("herald_ring_events{{topic=\"{topic}\"}}"))
            .await,
        replica
            .metric(&format!("herald_ring_bytes{{topic=\"{topic}\"}}"))
            .await,
    );
    assert!(
        events <= 2000.0 && bytes <= 8388608.0 && events > 100.0,
        "ring: {events} events, {bytes} bytes"
    );
    eventually(
        Duration::from_secs(20),
        "the stalled readers to be ended as slow",
        async || {
            let sse = replica
                .metric("herald_streams_ended_total{reason=\"slow\",transport=\"sse\"}")
                .await;
            let websocket = replica
                .metric("herald_streams_ended_total{reason=\"slow\",transport=\"websocket\"}")
                .await;
            (sse, websocket) == (20.0, 20.0)
        },
    )
    .await;
    let records = positions(&read_all(&kafka, &topic).await);
    slow.read_all(replica.public, Transport::Sse, &records)
        .await;
    slow.check(&records);
    // The embedded broker has dropped most of it by then, and that is said.
    assert!(
        slow.gaps.is_empty() || herald_testing::is_embedded(),
        "{:?}",
        slow.gaps
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_client_gets_a_backlog_of_5000_on_every_transport() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("backlog");
    create_topic(&kafka, &topic, 3, &[]).await;
    produce(
        &kafka,
        &topic,
        &(0..5000)
            .map(|n| Record::new(n % 3, format!("{n}")))
            .collect::<Vec<_>>(),
    )
    .await;
    let records = positions(&read_all(&kafka, &topic).await);
    for ring in ["100", "10000"] {
        let replica = Replica::start(&kafka, &topic, &["--ring-messages", ring]).await;
        for transport in TRANSPORTS {
            let began = Instant::now();
            let mut reader = Reader::new(&topic);
            let mut client =
                Client::connect(replica.public, transport, &[("from", "earliest".into())]);
            while reader.count() < 5000 {
                reader.take(
                    &client
                        .next()
                        .await
                        .unwrap_or_else(|| panic!("{transport:?} was ended: {:?}", reader.heard)),
                );
            }
            eprintln!(
                "ring of {ring}: 5000 messages over {transport:?} in {:?}",
                began.elapsed()
            );
            reader.check(&records);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_limit_a_client_is_instructed_to_reconnect_and_the_others_are_not_affected() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("cap");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, &["--max-connections", "3"]).await;
    let mut inside: Vec<Client> = [Transport::Sse, Transport::WebSocket, Transport::SocketIo]
        .iter()
        .map(|t| Client::connect(replica.public, *t, &[]))
        .collect();
    for client in &mut inside {
        while client.next().await.expect("inside the cap")["type"] != "start" {}
    }
    let mut sse = Client::connect(replica.public, Transport::Sse, &[]);
    let bye = sse.next().await.expect("an answer");
    assert_eq!(
        (&bye["type"], &bye["reason"]),
        (&"bye".into(), &"overload".into())
    );
    assert!(
        bye["retry"]
            .as_u64()
            .is_some_and(|retry| (2000..10_000).contains(&retry))
    );
    assert_eq!(sse.next().await, None);
    let mut websocket = Client::connect(replica.public, Transport::WebSocket, &[]);
    assert_eq!(
        websocket.next().await.expect("an answer")["reason"],
        "overload"
    );
    assert_eq!(websocket.next().await.expect("a close")["code"], 1013);
    assert_eq!(
        crate::client::get(replica.public, "/socket.io/?EIO=4&transport=polling")
            .await
            .expect("an answer")
            .0,
        503
    );
    produce(&kafka, &topic, &[Record::new(0, "news")]).await;
    for client in &mut inside {
        assert_eq!(
            client.next().await.expect("the others feel nothing")["data"],
            "news"
        );
    }
    inside.pop();
    let mut again = Reader::new(&topic);
    again
        .read_all(replica.public, Transport::Sse, &Default::default())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_request_and_a_silent_connection_are_closed_while_new_clients_are_served() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("silent");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let began = Instant::now();
    let sockets = [
        stalled(replica.public, "GET /events HTTP/1.1\r\nhost: he"),
        stalled(replica.public, ""),
    ];
    let ended = tokio::task::spawn_blocking(move || {
        for mut socket in sockets {
            socket
                .set_read_timeout(Some(Duration::from_secs(20)))
                .expect("a timeout");
            let mut rest = Vec::new();
            assert!(
                socket.read_to_end(&mut rest).is_ok(),
                "the connection is closed within 20 s"
            );
        }
    });
    while !ended.is_finished() {
        let mut client = Client::connect(replica.public, Transport::Sse, &[]);
        assert_eq!(
            tokio::time::timeout(Duration::from_secs(2), client.next())
                .await
                .expect("at once")
                .expect("served")["type"],
            "start"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ended.await.expect("both were closed");
    assert!(
        began.elapsed() > Duration::from_secs(5),
        "not before they had their time"
    );
    eventually(
        Duration::from_secs(5),
        "no connection to be left",
        async || replica.metric("herald_connections").await == 0.0,
    )
    .await;
}

/// A WebSocket handshake over a blocking socket.
fn upgraded(address: SocketAddr, path: &str) -> std::net::TcpStream {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: herald\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let stream = stalled(address, &request);
    let limit = Some(Duration::from_millis(500));
    stream.set_write_timeout(limit).expect("a timeout");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_without_an_end_and_sessions_that_do_not_exist_cost_no_memory() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("hostile");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let address = replica.public;
    let before = memory(replica.id());
    let hostile = tokio::task::spawn_blocking(move || {
        // Masked pings of 125 bytes, whose pongs nobody reads, until the server does not take them any more.
        let mut stream = upgraded(address, "/ws");
        let ping = [&[0x89, 0x80 | 125, 0, 0, 0, 0], &[b'x'; 125][..]].concat();
        let pings = ping.repeat(1000);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(4) && stream.write_all(&pings).is_ok() {}
        // Upgrades of sessions that nobody has opened, each with a long name.
        for number in 0..2000 {
            let sid = format!("{number:08}{}", "x".repeat(6000));
            let path = format!("/socket.io/?EIO=4&transport=websocket&sid={sid}");
            let mut stream = upgraded(address, &path);
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).expect("an answer");
        }
        stream
    });
    let stream = hostile.await.expect("the hostile client came to its end");
    let grown = memory(replica.id()).saturating_sub(before);
    assert!(grown < 32 << 20, "memory grew by {} MiB", grown >> 20);
    drop(stream);
    let mut client = Client::connect(address, Transport::WebSocket, &[]);
    assert_eq!(client.next().await.expect("served")["type"], "start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_in_the_middle_of_a_backlog_are_answered_between_whole_frames() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("pings");
    create_topic(&kafka, &topic, 1, &[]).await;
    let records: Vec<Record> = (0..3000)
        .map(|n| Record::new(0, format!("{n} {}", "x".repeat(300))))
        .collect();
    produce(&kafka, &topic, &records).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let url = format!("ws://{}/ws?from=earliest", replica.public);
    let stream = tokio::net::TcpStream::connect(replica.public).await;
    let stream = stream.expect("a connection");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream)
        .await
        .expect("a handshake");
    let (mut messages, mut pings, mut pongs) = (0, 0, 0);
    while messages < 3000 || pongs < pings {
        match socket.next().await.expect("the stream goes on") {
            Ok(Message::Text(text)) => {
                let event: serde_json::Value = serde_json::from_str(&text).expect("whole JSON");
                messages += usize::from(event["type"] == "message");
                // A ping is answered once for all that came before it: one at a time.
                if pongs == pings {
                    socket
                        .send(Message::Ping("here".into()))
                        .await
                        .expect("taken");
                    pings += 1;
                }
            }
            Ok(Message::Pong(_)) => pongs += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(messages, 3000);
    assert!(pings > 3, "{pings}");
}

/// A Socket.IO client over a WebSocket that joins, and reads nothing.
fn stalled_socketio(address: SocketAddr, auth: &str) -> std::net::TcpStream {
    let mut stream = upgraded(address, "/socket.io/?EIO=4&transport=websocket");
    let text = format!("40{auth}");
    // Masked with zeros.
    let head = [
        0x81,
        0x80 | u8::try_from(text.len()).expect("a short text"),
        0,
        0,
        0,
        0,
    ];
    stream
        .write_all(&[&head[..], text.as_bytes()].concat())
        .expect("taken");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_and_fifty_stalled_clients_of_large_messages_cost_little_on_every_transport() {
    let Some(kafka) = kafka() else { return };
    // At once, since they mostly wait; each has a replica of its own.
    tokio::join!(
        stalled_clients_cost_little(&kafka, Transport::Sse, "sse"),
        stalled_clients_cost_little(&kafka, Transport::WebSocket, "websocket"),
        stalled_clients_cost_little(&kafka, Transport::SocketIo, "socketio"),
    );
}

async fn stalled_clients_cost_little(kafka: &str, transport: Transport, name: &str) {
    let topic = random_topic("large");
    create_topic(kafka, &topic, 1, &[]).await;
    let replica = Replica::start(kafka, &topic, &[]).await;
    let address = replica.public;
    let connect = move || match transport {
        Transport::Sse => stalled(address, "GET /events HTTP/1.1\r\nhost: herald\r\n\r\n"),
        Transport::WebSocket => upgraded(address, "/ws"),
        _ => stalled_socketio(address, "{}"),
    };
    let sockets =
        tokio::task::spawn_blocking(move || (0..150).map(|_| connect()).collect::<Vec<_>>());
    let _sockets = sockets.await.expect("150 connections");
    let open = format!("herald_streams{{transport=\"{name}\"}}");
    eventually(Duration::from_secs(10), "150 streams", async || {
        replica.metric(&open).await == 150.0
    })
    .await;
    let (mut most, text) = (0, "x".repeat(100_000));
    for _ in 0..40 {
        produce(kafka, &topic, &[Record::new(0, &*text)]).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        most = most.max(memory(replica.id()));
    }
    eprintln!(
        "150 stalled clients over {transport:?}: {} MB",
        most / 1_000_000
    );
    assert!(most < 150_000_000, "{transport:?}: {} MB", most / 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it reads slowly for a minute"]
async fn a_slow_socketio_reader_of_a_long_backlog_is_not_cut_at_the_heartbeat() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("backlog");
    create_topic(&kafka, &topic, 1, &[]).await;
    let text = "x".repeat(10_000);
    for _ in 0..100 {
        let batch: Vec<Record> = (0..80).map(|_| Record::new(0, &*text)).collect();
        produce(&kafka, &topic, &batch).await;
    }
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let mut stream = tokio::task::spawn_blocking({
        let address = replica.public;
        move || stalled_socketio(address, "{\"from\":\"earliest\"}")
    })
    .await
    .expect("a connection");
    let read = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let (began, mut bytes, mut piece) = (Instant::now(), 0, vec![0; 64 << 10]);
        // A MB a second, and a pong to each ping, which is a text frame "2".
        while began.elapsed() < Duration::from_secs(65) {
            let count = stream.read(&mut piece).expect("the stream goes on");
            assert!(
                count > 0,
                "cut after {:?} and {bytes} bytes",
                began.elapsed()
            );
            if piece[..count]
                .windows(3)
                .any(|window| window == [0x81, 1, b'2'])
            {
                stream
                    .write_all(&[0x81, 0x81, 0, 0, 0, 0, b'3'])
                    .expect("taken");
            }
            bytes += count;
            let due = Duration::from_secs_f64(bytes as f64 / 1e6);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
        bytes
    });
    let bytes = read.await.expect("not cut in 65 s");
    eprintln!("{bytes} bytes in 65 s without a cut");
    assert!(bytes > 40_000_000, "{bytes} bytes");
}
