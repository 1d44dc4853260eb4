//! Connections and sessions: each is counted once, bounded, and closed when it is not used.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use herald_testing::{Record, eventually, produce};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Client, Transport};
use crate::http::{Http, once};
use crate::limits::memory;
use crate::replica::with_topic;

const OPEN: &str = "/socket.io/?EIO=4&transport=polling";

/// Opens a session; its address, or nothing when there is no room.
async fn open(http: &mut Http) -> Option<String> {
    let answer = http.send("GET", OPEN, &[], "").await.expect("an answer");
    if answer.status() == 503 {
        return None;
    }
    assert_eq!(answer.status(), 200, "{}", answer.body());
    let packet = answer.body().strip_prefix('0').expect("an open packet");
    let packet: serde_json::Value = serde_json::from_str(packet).expect("JSON");
    Some(format!(
        "{OPEN}&sid={}",
        packet["sid"].as_str().expect("a sid")
    ))
}

/// Opens a session over this connection again, after one was answered with `Connection: close`.
async fn join(http: &mut Http, session: &str) {
    let answer = http.send("POST", session, &[], "40").await;
    assert_eq!(answer.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_whose_connections_are_closed_leave_no_connection_behind() {
    let Some((.., replica)) = with_topic("handshakes", &[]).await else {
        return;
    };
    for _ in 0..40 {
        let mut http = Http::connect(replica.public).await.expect("a connection");
        open(&mut http).await.expect("a session");
    }
    eventually(
        Duration::from_secs(1),
        "no connection to be left",
        async || replica.metric("herald_connections").await == 0.0,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_upgrades_is_one_connection() {
    let Some((kafka, topic, replica)) = with_topic("upgrade", &[]).await else {
        return;
    };
    let mut http = Http::connect(replica.public).await.expect("a connection");
    let session = open(&mut http).await.expect("a session");
    join(&mut http, &session).await;
    let url = format!(
        "ws://{}{}",
        replica.public,
        session.replace("polling", "websocket")
    );
    let stream = tokio::net::TcpStream::connect(replica.public).await;
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream.expect("a connection"))
        .await
        .expect("a handshake");
    socket.send(Message::text("2probe")).await.expect("taken");
    let probe = socket.next().await.expect("an answer").expect("a frame");
    assert_eq!(probe, Message::text("3probe"));
    // What waits for a poll is answered before the client goes on.
    http.send("GET", &session, &[], "")
        .await
        .expect("an answer");
    socket.send(Message::text("5")).await.expect("taken");
    drop(http);
    eventually(
        Duration::from_secs(1),
        "one connection to be left",
        async || replica.metric("herald_connections").await == 1.0,
    )
    .await;
    produce(&kafka, &topic, &[Record::new(0, "news")]).await;
    loop {
        let frame = socket
            .next()
            .await
            .expect("the stream goes on")
            .expect("a frame");
        if frame.to_text().expect("text").contains("news") {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_without_end_over_a_few_connections_are_capped_and_cost_little() {
    let Some((.., replica)) = with_topic("flood", &[]).await else {
        return;
    };
    let before = memory(replica.id());
    let padding = "x".repeat(12_000);
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (address, padding) = (replica.public, padding.clone());
        flood.spawn(async move {
            let (mut opened, mut rejected) = (0, 0);
            let mut http = Http::connect(address).await.expect("a connection");
            while opened + rejected < 5000 {
                let sent = http.send("GET", OPEN, &[("x-padding", &padding)], "").await;
                match sent.expect("an answer").status().as_u16() {
                    200 => opened += 1,
                    503 => rejected += 1,
                    other => panic!("{other}"),
                }
                if http.is_closed() || rejected > 0 {
                    // A flood does not mind a new connection, but here it is about one.
                    break;
                }
            }
            opened
        });
    }
    let opened: usize = flood.join_all().await.into_iter().sum();
    let grown = memory(replica.id()).saturating_sub(before);
    eprintln!(
        "{opened} sessions opened over 4 connections, memory grew by {} KiB",
        grown >> 10
    );
    assert!(opened <= 4 * 64, "{opened} sessions over 4 connections");
    assert!(grown < 24 << 20, "memory grew by {} MiB", grown >> 20);
    // Others are served meanwhile.
    let mut client = Client::connect(replica.public, Transport::Polling, &[]);
    while client.next().await.expect("served")["type"] != "start" {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_sessions_as_the_cap_are_opened_at_once_and_one_that_ends_makes_room() {
    let options = ["--max-connections", "8"];
    let Some((.., replica)) = with_topic("sessions", &options).await else {
        return;
    };
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let address = replica.public;
        opening.spawn(async move {
            let mut sessions = Vec::new();
            let mut http = Http::connect(address).await.expect("a connection");
            for _ in 0..5 {
                match open(&mut http).await {
                    Some(session) => {
                        join(&mut http, &session).await;
                        sessions.push(session);
                    }
                    None => http = Http::connect(address).await.expect("a connection"),
                }
            }
            sessions
        });
    }
    let sessions: Vec<String> = opening.join_all().await.into_iter().flatten().collect();
    assert_eq!(sessions.len(), 8);
    let joined = async || {
        replica
            .metric("herald_streams{transport=\"socketio\"}")
            .await
            == 8.0
    };
    eventually(Duration::from_secs(2), "eight streams", joined).await;
    assert_eq!(once(replica.public, "GET", OPEN, &[]).await.status(), 503);
    let mut http = Http::connect(replica.public).await.expect("a connection");
    let closed = http.send("POST", &sessions[0], &[], "1").await;
    assert_eq!(closed.expect("an answer").status(), 200);
    eventually(Duration::from_secs(2), "room for one more", async || {
        once(replica.public, "GET", OPEN, &[]).await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_an_error_is_no_poll() {
    let Some((kafka, topic, replica)) = with_topic("polls", &[]).await else {
        return;
    };
    let mut http = Http::connect(replica.public).await.expect("a connection");
    let session = open(&mut http).await.expect("a session");
    join(&mut http, &session).await;
    let records: Vec<Record> = (0..40).map(|n| Record::new(0, format!("m{n}"))).collect();
    produce(&kafka, &topic, &records).await;
    for _ in 0..10 {
        // A WebSocket that is none.
        let wrong = session.replace("polling", "websocket");
        let answer = http.send("GET", &wrong, &[], "").await.expect("an answer");
        assert!(answer.status().is_client_error() || answer.status().is_server_error());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let answer = http
        .send("GET", &session, &[], "")
        .await
        .expect("an answer");
    let packets = answer.body().split('\x1e').count();
    assert!(packets <= 10, "{packets} packets in one poll");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_request_is_kept_as_long_as_configured_and_a_stream_longer() {
    let options = ["--keep-alive", "2s"];
    let Some((.., replica)) = with_topic("keep-alive", &options).await else {
        return;
    };
    let mut stream = Http::connect(replica.public).await.expect("a connection");
    stream
        .head_of(
            "/ws",
            &[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ],
        )
        .await
        .expect("an answer");
    let mut sse = Client::connect(replica.public, Transport::Sse, &[]);
    sse.next().await.expect("a start");
    let mut http = Http::connect(replica.public).await.expect("a connection");
    for _ in 0..3 {
        http.send("GET", "/config", &[], "").await.expect("kept");
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    http.send("GET", "/config", &[], "").await.expect("kept");
    let began = Instant::now();
    tokio::time::timeout(Duration::from_secs(5), http.closed())
        .await
        .expect("it is closed");
    assert!(
        began.elapsed() > Duration::from_millis(1800),
        "{:?}",
        began.elapsed()
    );
    let open = replica.metric("herald_streams{transport=\"sse\"}").await;
    assert_eq!(open, 1.0, "the stream is not closed with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_not_named_as_the_library_reads_it_is_counted_too() {
    let options = ["--max-connections", "8"];
    let Some((.., replica)) = with_topic("named", &options).await else {
        return;
    };
    let mut opened = 0;
    for _ in 0..20 {
        // "sid", percent-encoded: to the library this is a handshake.
        let path = format!("{OPEN}&%73id=x");
        opened += usize::from(once(replica.public, "GET", &path, &[]).await.status() == 200);
    }
    assert_eq!(opened, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_over_ever_new_connections_is_bounded_in_memory() {
    let options = ["--max-connections", "2000"];
    let Some((.., replica)) = with_topic("new-flood", &options).await else {
        return;
    };
    let before = memory(replica.id());
    let padding = "x".repeat(12_000);
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (address, padding) = (replica.public, padding.clone());
        flood.spawn(async move {
            let (mut opened, mut rejected) = (0, 0);
            while opened + rejected < 1500 {
                let sent = once(address, "GET", OPEN, &[("x-padding", &padding)]).await;
                match sent.status().as_u16() {
                    200 => opened += 1,
                    503 => rejected += 1,
                    other => panic!("{other}"),
                }
            }
            opened
        });
    }
    let opened: usize = flood.join_all().await.into_iter().sum();
    let grown = memory(replica.id()).saturating_sub(before);
    eprintln!(
        "{opened} sessions opened, memory grew by {} KiB: {} bytes each",
        grown >> 10,
        grown / opened
    );
    assert!(grown < 128 << 20, "memory grew by {} MiB", grown >> 20);
}
