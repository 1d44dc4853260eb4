//! Rooms: the results of windows, as the clients of the original receive them.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use herald_testing::{
    Record, create_topic, delete_topic, kafka, kafka_with, produce, random_topic,
};
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::http::{header, once};
use crate::keys::keyed;
use crate::replica::Replica;

/// A consumer with three topics of results, and a topic for broadcasts.
struct Rooms {
    kafka: String,
    topics: [String; 3],
    replica: Replica,
    /// The address that has nothing but rooms.
    rooms: SocketAddr,
}

impl Rooms {
    async fn start(before: &[(usize, Record)]) -> Option<Self> {
        let kafka = kafka()?;
        let topics = ["one", "five", "ten"].map(random_topic);
        let broadcasts = random_topic("broadcasts");
        for topic in topics.iter().chain([&broadcasts]) {
            create_topic(&kafka, topic, 2, &[]).await;
        }
        for (window, record) in before {
            produce(&kafka, &topics[*window], std::slice::from_ref(record)).await;
        }
        let rooms = Self::replica(&kafka, &topics, &broadcasts).await;
        Some(Self {
            kafka,
            topics,
            replica: rooms.0,
            rooms: rooms.1,
        })
    }

    async fn replica(kafka: &str, topics: &[String; 3], broadcasts: &str) -> (Replica, SocketAddr) {
        // Free at the moment; the process says only the addresses of its other ports.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let rooms = free.local_addr().expect("it has an address");
        drop(free);
        let listen = rooms.to_string();
        let options = [
            "--rooms",
            "--rooms-listen",
            &listen,
            "--likes-1-min-aggregation-topic-name",
            &topics[0],
            "--likes-5-min-aggregation-topic-name",
            &topics[1],
            "--likes-10-min-aggregation-topic-name",
            &topics[2],
            "--ring-messages",
            "20",
            "--ring-time",
            "0s",
        ];
        (Replica::start(kafka, broadcasts, &options).await, rooms)
    }

    async fn produce(&self, window: usize, records: &[Record]) {
        produce(&self.kafka, &self.topics[window], records).await;
    }
}

fn result(key: Option<&str>, id: &str, count: i64) -> Record {
    let value =
        json!({ "type": "1min", "video_uid": id, "count": count, "start": 0, "__faust": {} });
    Record {
        key: key.map(|key| key.as_bytes().to_vec()),
        ..Record::new(0, value.to_string())
    }
}

/// A client as a browser's library is one, over a WebSocket.
struct Browser(WebSocketStream<TcpStream>);

impl Browser {
    async fn connect(address: SocketAddr) -> Self {
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (socket, _) = tokio_tungstenite::client_async(url, stream)
            .await
            .expect("it accepts");
        let mut browser = Self(socket);
        assert!(browser.packet().await.starts_with('0'));
        browser.send("40").await;
        // The library's first ping may come before.
        while !browser.packet().await.starts_with("40") {}
        browser
    }

    async fn send(&mut self, packet: &str) {
        self.0
            .send(Message::text(packet))
            .await
            .expect("it is connected");
    }

    async fn emit(&mut self, event: &str, payload: Json) {
        self.send(&format!("42{}", json!([event, payload]))).await;
    }

    async fn packet(&mut self) -> String {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.0.next()).await;
            let message = message.expect("a packet comes").expect("it is connected");
            if let Message::Text(text) = message.expect("it is connected") {
                return text.to_string();
            }
        }
    }

    /// The next event of rooms.
    async fn next(&mut self) -> (String, Json) {
        loop {
            let packet = self.packet().await;
            if packet == "2" {
                self.send("3").await;
            }
            if let Some(event) = packet.strip_prefix("42") {
                let (name, payload): (String, Json) =
                    serde_json::from_str(event).expect("an event");
                if name == "error" || name.starts_with("live_") {
                    return (name, payload);
                }
            }
        }
    }

    /// The next results, ascending.
    async fn results(&mut self, count: usize) -> Vec<(String, Json)> {
        let mut results = Vec::new();
        while results.len() < count {
            results.push(self.next().await);
        }
        results.sort_by_key(|(name, payload)| (name.clone(), payload["id"].to_string()));
        results
    }
}

fn sent(window: &str, id: &str, count: i64) -> (String, Json) {
    (
        format!("live_aggregations_{window}"),
        json!({ "id": id, "count": count }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_go_to_the_rooms_and_windows_of_a_client_in_whichever_order_it_requested_them() {
    let Some(rooms) = Rooms::start(&[]).await else {
        return;
    };
    for address in [rooms.rooms, rooms.replica.public] {
        let mut python = Browser::connect(address).await;
        python
            .emit("register_room", json!({ "rooms": ["a"] }))
            .await;
        python.emit("consume_1_min_aggregations", json!({})).await;
        python.send(r#"42["consume_10_min_aggregations"]"#).await;
        let mut page = Browser::connect(address).await;
        page.emit("consume_1_min_aggregations", json!({})).await;
        page.emit("consume_5_min_aggregations", json!("ignored"))
            .await;
        page.emit("register_room", json!({ "rooms": [] })).await;
        page.emit("register_room", json!({ "rooms": ["b", "a"] }))
            .await;
        // Both have been received: an invalid request is answered after everything before it.
        for browser in [&mut python, &mut page] {
            browser.emit("register_room", json!({})).await;
            while browser.next().await.0 != "error" {}
        }
        let (one, five) = (result(None, "a", 3), result(Some("a"), "a", 5));
        rooms
            .produce(0, &[result(None, "b", 1), result(Some("c"), "c", 9), one])
            .await;
        rooms.produce(1, &[five]).await;
        rooms.produce(2, &[result(Some("a"), "a", 7)]).await;
        assert_eq!(
            python.results(2).await,
            [sent("1", "a", 3), sent("10", "a", 7)]
        );
        let expected = [sent("1", "a", 3), sent("1", "b", 1), sent("5", "a", 5)];
        assert_eq!(page.results(3).await, expected);
        page.emit("leave_room", json!({ "rooms": ["a"] })).await;
        page.emit("leave_room", json!({ "rooms": 1 })).await;
        assert_eq!(page.next().await.0, "error");
        rooms
            .produce(0, &[result(None, "a", 4), result(None, "b", 5)])
            .await;
        assert_eq!(page.next().await, sent("1", "b", 5));
        assert_eq!(python.next().await, sent("1", "a", 4));
        // For the second round, nothing that a late joiner would receive.
        for window in 0..3 {
            let gone = ["a", "b", "c"].map(|room| Record {
                value: None,
                ..keyed(0, room, "")
            });
            rooms.produce(window, &gone).await;
        }
        let topic = &rooms.topics[0];
        herald_testing::eventually(
            Duration::from_secs(10),
            "the tombstones to be read",
            async || {
                let (_, page) = rooms
                    .replica
                    .get(&format!("/messages?topic={topic}&limit=1"))
                    .await;
                page["messages"][0]["data"].is_null()
            },
        )
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let delivered = |window: &str| format!("herald_results_delivered_total{{window={window:?}}}");
    assert_eq!(rooms.replica.metric(&delivered("1min")).await, 10.0);
    assert_eq!(rooms.replica.metric(&delivered("5min")).await, 2.0);
    assert_eq!(rooms.replica.metric(&delivered("10min")).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_joiner_receives_the_last_value_of_each_window_once_at_every_replica() {
    let mut before: Vec<(usize, Record)> = vec![
        (0, result(None, "a", 1)),
        (0, result(Some("a"), "a", 2)),
        (1, result(None, "a", 3)),
    ];
    // More than the ring holds.
    before.extend((0..60).map(|n| (0, result(None, &format!("other {n}"), n))));
    before.push((0, Record::new(0, "no result")));
    before.push((0, Record::new(0, r#"{"video_uid":"a"}"#)));
    let Some(rooms) = Rooms::start(&before).await else {
        return;
    };
    let (_other, address) =
        Rooms::replica(&rooms.kafka, &rooms.topics, &random_topic("none")).await;
    for address in [rooms.rooms, rooms.replica.public, address] {
        let mut late = Browser::connect(address).await;
        for event in [
            "consume_1_min_aggregations",
            "consume_5_min_aggregations",
            "consume_10_min_aggregations",
        ] {
            late.emit(event, json!({})).await;
        }
        for names in [json!([]), json!(["a", "other 3"]), json!(["a", "other 4"])] {
            late.emit("register_room", json!({ "rooms": names })).await;
        }
        let expected = [
            sent("1", "a", 2),
            sent("1", "other 3", 3),
            sent("1", "other 4", 4),
            sent("5", "a", 3),
        ];
        assert_eq!(late.results(4).await, expected);
        late.emit("register_room", json!({ "rooms": ["a"] })).await;
        late.emit("consume_1_min_aggregations", json!({})).await;
        late.emit("register_room", json!({ "rooms": "a" })).await;
        assert_eq!(late.next().await.0, "error", "and nothing twice before it");
    }
    let skipped = format!(
        "herald_results_skipped_total{{reason=\"not-a-result\",topic={:?}}}",
        rooms.topics[0]
    );
    assert_eq!(rooms.replica.metric(&skipped).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn around_the_moment_of_joining_no_result_is_missed_or_comes_twice() {
    let Some(rooms) = Rooms::start(&[]).await else {
        return;
    };
    let publishing = async {
        for count in 0..300 {
            rooms.produce(0, &[result(None, "a", count)]).await;
        }
    };
    let joining = async {
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..10 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            let address = if number % 2 == 0 {
                rooms.rooms
            } else {
                rooms.replica.public
            };
            clients.spawn(async move {
                let mut client = Browser::connect(address).await;
                client.emit("consume_1_min_aggregations", json!({})).await;
                client
                    .emit("register_room", json!({ "rooms": ["a"] }))
                    .await;
                let mut last: Option<i64> = None;
                while last != Some(299) {
                    let (_, payload) = client.next().await;
                    let count = payload["count"].as_i64().expect("a count");
                    assert!(
                        last.is_none_or(|last| count == last + 1),
                        "{count} after {last:?}"
                    );
                    last = Some(count);
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.expect("each received every result after its first");
        }
    };
    tokio::join!(publishing, joining);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_is_not_ended_however_many_results_come_at_once() {
    let Some(rooms) = Rooms::start(&[]).await else {
        return;
    };
    let mut client = Browser::connect(rooms.rooms).await;
    client.emit("consume_1_min_aggregations", json!({})).await;
    client
        .emit("register_room", json!({ "rooms": ["a", "b"] }))
        .await;
    client.emit("register_room", json!({})).await;
    assert_eq!(client.next().await.0, "error");
    let results = (0..5_000).map(|count| result(None, "a", count));
    let results: Vec<Record> = results.chain([result(None, "b", 1)]).collect();
    rooms.produce(0, &results).await;
    let mut last = -1;
    loop {
        let (_, payload) = client.next().await;
        if payload["id"] == "b" {
            continue;
        }
        let count = payload["count"].as_i64().expect("a count");
        assert!(count > last, "{count} after {last}");
        last = count;
        if last == 4_999 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_rooms_are_answered_with_one_sentence_and_change_nothing() {
    let Some(rooms) = Rooms::start(&[]).await else {
        return;
    };
    let mut client = Browser::connect(rooms.rooms).await;
    client.emit("consume_1_min_aggregations", json!({})).await;
    client
        .emit("register_room", json!({ "rooms": ["kept"] }))
        .await;
    let shape = "the payload must be an object with rooms, an array of strings, such as {\"rooms\":[\"my-id\"]}";
    for (payload, sentence) in [
        (json!(null), shape),
        (json!({ "rooms": "a" }), shape),
        (json!({ "rooms": ["a", 1] }), shape),
        (
            json!({ "rooms": vec!["a"; 101] }),
            "rooms has 101 entries; it may have at most 100, so register more with another request",
        ),
        (
            json!({ "rooms": ["a", "x".repeat(257)] }),
            "a room has 257 bytes; it may have at most 256",
        ),
    ] {
        client.emit("register_room", payload.clone()).await;
        assert_eq!(
            client.next().await,
            ("error".to_owned(), json!({ "error": sentence })),
            "{payload}"
        );
    }
    client.send(r#"42["register_room"]"#).await;
    assert_eq!(
        client.next().await,
        ("error".to_owned(), json!({ "error": shape }))
    );
    rooms
        .produce(
            0,
            &[
                result(None, "a", 1),
                result(None, "1", 1),
                result(None, "kept", 2),
            ],
        )
        .await;
    assert_eq!(client.next().await, sent("1", "kept", 2));
    let reason = |reason: &str| format!("herald_invalid_room_requests_total{{reason={reason:?}}}");
    assert_eq!(rooms.replica.metric(&reason("shape")).await, 4.0);
    assert_eq!(rooms.replica.metric(&reason("too-many")).await, 1.0);
    assert_eq!(rooms.replica.metric("herald_rooms").await, 1.0);
    drop(client);
    herald_testing::eventually(
        Duration::from_secs(10),
        "the room to be empty",
        async || rooms.replica.metric("herald_rooms").await == 0.0,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_results_are_ordinary_topics_too_and_the_second_address_has_nothing_but_rooms() {
    let Some(rooms) = Rooms::start(&[(0, result(Some("a"), "a", 3))]).await else {
        return;
    };
    let topic = &rooms.topics[0];
    let (status, page) = rooms
        .replica
        .get(&format!("/messages?topic={topic}&key=a"))
        .await;
    assert_eq!(
        (status, page["messages"].as_array().map(Vec::len)),
        (200, Some(1))
    );
    // A missing topic of interim results is no problem, and is served as soon as it exists.
    let live = format!("{topic}.live");
    let (status, _) = rooms.replica.get(&format!("/messages?topic={live}")).await;
    assert_eq!(status, 404);
    let (_, readiness) = rooms.replica.get_admin("/readyz").await;
    assert!(!readiness.contains(&live), "{readiness}");
    create_topic(&rooms.kafka, &live, 1, &[]).await;
    produce(&rooms.kafka, &live, &[result(Some("a"), "a", 4)]).await;
    herald_testing::eventually(
        Duration::from_secs(20),
        "the interim results to be served",
        async || {
            rooms
                .replica
                .get(&format!("/messages?topic={live}&key=a"))
                .await
                .0
                == 200
        },
    )
    .await;
    let origin = [("origin", "https://elsewhere.example")];
    for path in ["/", "/events", "/config", "/messages", "/ws"] {
        assert_eq!(
            once(rooms.rooms, "GET", path, &origin).await.status(),
            404,
            "{path}"
        );
    }
    let polling = "/socket.io/?EIO=4&transport=polling";
    let answer = once(rooms.rooms, "GET", polling, &origin).await;
    assert_eq!(answer.status(), 200);
    assert!(
        ["*", "https://elsewhere.example"]
            .contains(&header(&answer, "access-control-allow-origin"))
    );
    assert!(
        answer.body().contains("\"pingTimeout\":60000"),
        "{}",
        answer.body()
    );
    let answer = once(rooms.replica.public, "GET", polling, &origin).await;
    assert_eq!(answer.status(), 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_topic_of_results_is_recreated_its_rooms_go_on_without_its_old_results() {
    if kafka_with("deletion of topics").is_none() {
        return;
    }
    let before = [(0, result(None, "a", 1)), (0, result(None, "b", 2))];
    let Some(rooms) = Rooms::start(&before).await else {
        return;
    };
    let mut early = Browser::connect(rooms.rooms).await;
    early.emit("consume_1_min_aggregations", json!({})).await;
    early.emit("register_room", json!({ "rooms": ["a"] })).await;
    assert_eq!(early.next().await, sent("1", "a", 1));
    delete_topic(&rooms.kafka, &rooms.topics[0]).await;
    create_topic(&rooms.kafka, &rooms.topics[0], 2, &[]).await;
    rooms.produce(0, &[result(None, "a", 3)]).await;
    assert_eq!(early.next().await, sent("1", "a", 3));
    let mut late = Browser::connect(rooms.rooms).await;
    late.emit("consume_1_min_aggregations", json!({})).await;
    late.emit("register_room", json!({ "rooms": ["b", "a"] }))
        .await;
    assert_eq!(late.next().await, sent("1", "a", 3));
    rooms.produce(0, &[result(None, "b", 4)]).await;
    assert_eq!(late.next().await, sent("1", "b", 4));
}
