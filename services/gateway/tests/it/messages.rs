//! `GET /windows/<window>/<start>/<identifier>/messages`, from records as the projector publishes them.

use futures_util::future::join_all;
use herald_testing::{
    Outcome, Record, create_topic, delete_records_before, kafka_with, produce,
    produce_in_transaction, random_topic,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::data::body;
use crate::http::{Answer, send};
use crate::windows::{minute, result};
use crate::{DEADLINE, Gateway, start};

const VIDEO: &str = "a b/ä";
const SEGMENT: &str = "a%20b%2F%C3%A4";

/// A gateway with one window of a minute, the topic of its results and that of the likes.
async fn gateway(kafka: &str, partitions: i32) -> (Gateway, String, String) {
    let (results, likes) = (random_topic("results"), random_topic("likes"));
    create_topic(kafka, &results, partitions, &[]).await;
    create_topic(kafka, &likes, 1, &[("retention.ms", "-1")]).await;
    let windows = format!("1m={results}");
    let options = ["--windows", &windows, "--partitioned-likes-topic", &likes];
    (start(kafka, "messages", &options).await, results, likes)
}

fn like(video: &str, timestamp: i64) -> Record {
    Record {
        key: Some(video.into()),
        value: Some(video.into()),
        headers: vec![("x-request-id".to_owned(), Some(b"r-1".to_vec()))],
        timestamp: Some(timestamp),
        ..Record::default()
    }
}

async fn get(gateway: &Gateway, window: &str, start: &str, id: &str) -> Answer {
    let path = format!("/windows/{window}/{start}/{id}/messages");
    send(&gateway.address, "GET", &path, &[], "").await
}

/// The offsets of the messages.
fn offsets(answer: &Answer) -> Vec<i64> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body: Value = serde_json::from_str(&body(answer)).expect("the whole response");
    let messages = body["messages"].as_array().unwrap().iter();
    messages
        .map(|message| message["offset"].as_i64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_a_result_are_those_of_its_key_window_and_offsets() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let (gateway, results, likes) = gateway(&kafka, 3).await;
    let begin = minute(5);
    let all = [
        like(VIDEO, begin), // before the range
        like(VIDEO, begin),
        like("other", begin + 1),
        like(VIDEO, begin - 1),
        like(VIDEO, begin + 59_999),
        like(VIDEO, begin + 60_000),
        like(VIDEO, begin + 30_000), // out of order
        like(VIDEO, begin + 2),      // late
    ];
    produce(&kafka, &likes, &all).await;
    let unrelated = [
        result("other", 1, begin, (0, 7)),
        result(VIDEO, 9, begin - 60_000, (0, 1)),
    ];
    produce(&kafka, &results, &unrelated).await;
    let label = get(&gateway, "1min", &begin.to_string(), SEGMENT).await;
    assert_eq!(label.status, 404, "{}", label.body);
    assert!(label.body.contains("there is no result"), "{}", label.body);
    for partition in 0..3 {
        // In whichever partition its producer put it.
        let id = format!("{SEGMENT}{partition}");
        let video = format!("{VIDEO}{partition}");
        let own = Record {
            partition,
            ..result(&video, 0, begin, (7, 8))
        };
        produce(&kafka, &results, &[own]).await;
        let answer = get(&gateway, "1min", &begin.to_string(), &id).await;
        assert_eq!(offsets(&answer), [] as [i64; 0]);
    }
    produce(&kafka, &results, &[result(VIDEO, 3, begin, (1, 7))]).await;
    let answer = get(&gateway, "1min", &begin.to_string(), SEGMENT).await;
    assert_eq!(offsets(&answer), [1, 4, 6]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let found: Value = serde_json::from_str(&body(&answer)).unwrap();
    assert_eq!(found["result"]["count"], 3);
    assert_eq!(found["result"]["video_uid"], VIDEO);
    let first = json!({
        "partition": 0, "offset": 1, "timestamp": begin, "key": VIDEO, "data": VIDEO,
        "headers": {"x-request-id": "r-1"},
    });
    assert_eq!(found["messages"][0], first);
    let time = format!("{}", jiff::Timestamp::from_millisecond(begin).unwrap());
    let by_time = get(&gateway, "1min", &time, SEGMENT).await;
    assert_eq!(body(&by_time), body(&answer));
    let first = get(&gateway, "1min", "0", SEGMENT).await;
    assert_eq!(first.status, 404, "{}", first.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_are_all_there_and_aborted_ones_are_not() {
    let Some(kafka) = kafka_with("transactions") else {
        return;
    };
    let (gateway, results, likes) = gateway(&kafka, 1).await;
    let begin = minute(2);
    let all: Vec<Record> = (0..5_000).map(|n| like(VIDEO, begin + n)).collect();
    let written = produce_in_transaction(&kafka, &likes, &all, Outcome::Commit).await;
    let aborted = [like(VIDEO, begin)];
    produce_in_transaction(&kafka, &likes, &aborted, Outcome::Abort).await;
    let last = produce_in_transaction(&kafka, &likes, &aborted, Outcome::Commit).await;
    let to = last[0].1 + 2;
    let of_all = [result(VIDEO, 5_001, begin, (0, to))];
    produce_in_transaction(&kafka, &results, &of_all, Outcome::Commit).await;
    // Kafka writes the markers of a transaction after it has acknowledged it.
    let is_there = async || {
        let answer = get(&gateway, "1min", &begin.to_string(), SEGMENT).await;
        answer.status == 200 && offsets(&answer).len() > all.len()
    };
    herald_testing::eventually(DEADLINE, "all messages to be there", is_there).await;
    let answer = get(&gateway, "1min", &begin.to_string(), SEGMENT).await;
    let expected: Vec<i64> = written
        .iter()
        .chain(&last)
        .map(|(_, offset)| *offset)
        .collect();
    assert_eq!(offsets(&answer), expected);
}

/// Requests messages, and reads nothing but the status of the response.
async fn request(gateway: &Gateway, path: &str) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let address = gateway.address.parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", gateway.address);
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut line = [0; 12];
    let read = timeout(DEADLINE, stream.read_exact(&mut line)).await;
    read.expect("a response").unwrap();
    let status = String::from_utf8_lossy(&line[9..]).into_owned();
    (stream, status)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_their_response_let_no_other_wait() {
    let Some(kafka) = kafka_with("partitions of 16 MiB") else {
        return;
    };
    let (gateway, results, likes) = gateway(&kafka, 1).await;
    let begin = minute(2);
    // More than sockets buffer.
    for _ in 0..64 {
        let large = Record {
            value: Some(vec![b'a'; 256 << 10]),
            ..like("large", begin)
        };
        produce(&kafka, &likes, &[large]).await;
    }
    produce(&kafka, &likes, &[like(VIDEO, begin)]).await;
    let both = [
        result("large", 64, begin, (0, 64)),
        result(VIDEO, 1, begin, (64, 65)),
    ];
    produce(&kafka, &results, &both).await;
    let path = format!("/windows/1min/{begin}/large/messages");
    let stalled = join_all((0..8).map(|_| request(&gateway, &path))).await;
    assert!(stalled.iter().all(|(_, status)| status == "200"));
    let answer = get(&gateway, "1min", &begin.to_string(), SEGMENT).await;
    assert_eq!(offsets(&answer), [64]);
    // One address has so many at once.
    let more = join_all((0..9).map(|_| request(&gateway, &path))).await;
    assert!(more.iter().any(|(_, status)| status == "503"));
    // They are cut off, and then there is room again.
    let is_room = async || request(&gateway, &path).await.1 == "200";
    herald_testing::eventually(DEADLINE, "the clients to be cut off", is_room).await;
    drop((stalled, more));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_kafka_has_deleted_are_gone() {
    let Some(kafka) = kafka_with("deletion of records") else {
        return;
    };
    let (gateway, results, likes) = gateway(&kafka, 1).await;
    let begin = minute(2);
    produce(&kafka, &likes, &[like(VIDEO, begin), like(VIDEO, begin)]).await;
    let one = [
        result(VIDEO, 2, begin, (0, 2)),
        result("b", 2, begin, (1, 9)),
    ];
    produce(&kafka, &results, &one).await;
    delete_records_before(&kafka, &likes, 0, 1).await;
    let gone = get(&gateway, "1min", &begin.to_string(), SEGMENT).await;
    assert_eq!(gone.status, 410, "{}", gone.body);
    assert!(gone.body.contains("begins at offset 1"), "{}", gone.body);
    let beyond = get(&gateway, "1min", &begin.to_string(), "b").await;
    assert_eq!(beyond.status, 410, "{}", beyond.body);
    assert!(beyond.body.contains("ends at offset 2"), "{}", beyond.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_parameters_and_an_open_window_are_one_sentence() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let gateway = start(&kafka, "wrong", &[]).await;
    let begin = minute(1);
    let begin = begin.to_string();
    for (window, start, id, sentence) in [
        (
            "1m",
            begin.as_str(),
            "a",
            "it must be one of 1min, 5min, 10min",
        ),
        ("1min", "yesterday", "a", "it must be a time"),
        ("1min", "60001", "a", "1970-01-01T00:01:00Z (60000)"),
        ("1min", "60000", "%FF", "not UTF-8"),
        ("1min", "60000", "", "must not be empty"),
    ] {
        let answer = get(&gateway, window, start, id).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.contains(sentence), "{}", answer.body);
    }
    let open = minute(0).to_string();
    let answer = get(&gateway, "10min", "7200000000000", "a").await;
    assert_eq!(answer.status, 404, "{}", answer.body);
    let answer = get(&gateway, "1min", &open, "a").await;
    assert_eq!(answer.status, 404, "{}", answer.body);
    assert!(answer.body.contains("not closed"), "{}", answer.body);
}
