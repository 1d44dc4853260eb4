//! What Kafka can hold, and what can happen to it: nothing of that silences a topic.

use std::time::{Duration, Instant};

use herald_testing::{
    Broker, Record, add_partitions, create_topic, eventually, kafka, kafka_with, produce,
    produce_compressed, produce_in_open_transaction, random_topic, read_all,
};

use crate::client::{Client, Transport};
use crate::reader::{Reader, positions};
use crate::replica::Replica;

/// Reads events until one of this type comes; returns all of them.
async fn read_messages(mut client: Client, count: usize) {
    for _ in 0..count {
        until(&mut client, "message").await;
    }
}

async fn until(client: &mut Client, kind: &str) -> Vec<serde_json::Value> {
    let mut events = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(60), client.next());
        let event = event
            .await
            .unwrap_or_else(|_| panic!("no {kind} came, but {events:?}"));
        events.push(event.expect("the stream goes on"));
        if events.last().unwrap()["type"] == kind {
            return events;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_whose_name_is_not_utf8_is_delivered() {
    use std::os::unix::ffi::OsStrExt as _;

    let Some(kafka) = kafka_with("kcat beside it") else {
        return;
    };
    let topic = random_topic("header");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let mut live = Client::connect(replica.public, Transport::WebSocket, &[]);
    until(&mut live, "start").await;
    let header = std::ffi::OsStr::from_bytes(b"\xe9t\xe9=x");
    let mut kcat = tokio::process::Command::new("kcat")
        .args(["-P", "-b", &kafka, "-t", &topic, "-H"])
        .arg(header)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("kcat is installed");
    let mut input = kcat.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut input, b"hostile")
        .await
        .unwrap();
    drop(input);
    assert!(kcat.wait().await.unwrap().success());
    produce(&kafka, &topic, &[Record::new(0, "after")]).await;
    let events = [
        until(&mut live, "message").await,
        until(&mut live, "message").await,
    ]
    .concat();
    assert_eq!(
        (&events[0]["data"], &events[1]["data"]),
        (&"hostile".into(), &"after".into())
    );
    assert_eq!(events[0]["headers"]["\u{fffd}t\u{fffd}"], "x");
    // At a start, in a page, and in a replay.
    let fresh = Replica::start(
        &kafka,
        &topic,
        &["--ring-messages", "1", "--ring-time", "0s"],
    )
    .await;
    let (status, page) = fresh.get("/messages?from=earliest").await;
    assert_eq!(
        (status, page["messages"].as_array().map(Vec::len)),
        (200, Some(2))
    );
    let mut replay = Client::connect(fresh.public, Transport::Sse, &[("from", "earliest".into())]);
    assert_eq!(
        until(&mut replay, "message").await.last().unwrap()["data"],
        "hostile"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_cannot_be_decompressed_is_a_gap_and_reading_continues() {
    let Some(kafka) = kafka_with("limit of its own") else {
        return;
    };
    let topic = random_topic("zeros");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &[Record::new(0, "before")]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let mut live = Client::connect(replica.public, Transport::WebSocket, &[]);
    until(&mut live, "start").await;
    let zeros: Vec<Record> = (0..150).map(|_| Record::new(0, vec![0; 500_000])).collect();
    let positions = produce_compressed(&kafka, &topic, &zeros, "zstd").await;
    let (first, end) = (positions[0].1, positions.last().unwrap().1 + 1);
    produce(&kafka, &topic, &[Record::new(0, "after")]).await;
    let gap = until(&mut live, "gap").await.pop().unwrap();
    assert_eq!(gap["reason"], "unreadable", "{gap}");
    let range = &gap["ranges"][0];
    assert_eq!(
        (range["from"].as_i64(), range["to"].as_i64()),
        (Some(first), Some(end)),
        "{gap}"
    );
    assert_eq!(
        until(&mut live, "message").await.pop().unwrap()["data"],
        "after"
    );
    let metric = format!("herald_gaps_total{{reason=\"unreadable\",topic=\"{topic}\"}}");
    assert_eq!(replica.metric(&metric).await, 1.0);
    // The same at a start, in pages forward and backward, and in a replay.
    let fresh = Replica::start(
        &kafka,
        &topic,
        &["--ring-messages", "1", "--ring-time", "0s"],
    )
    .await;
    for query in ["from=earliest&limit=500", "limit=500"] {
        let (status, page) = fresh.get(&format!("/messages?{query}")).await;
        assert_eq!(status, 200, "{page}");
        let data = page["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| &message["data"]);
        assert_eq!(
            data.collect::<Vec<_>>(),
            ["before", "after"],
            "{query}: {page}"
        );
        assert_eq!(page["gaps"][0]["reason"], "unreadable", "{query}: {page}");
    }
    let mut replay = Client::connect(
        fresh.public,
        Transport::WebSocket,
        &[("from", "earliest".into())],
    );
    let events = [
        until(&mut replay, "gap").await,
        until(&mut replay, "message").await,
    ]
    .concat();
    assert_eq!(events.last().unwrap()["data"], "after", "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_a_wrong_checksum_is_a_gap_and_reading_continues() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let address = broker.address().to_owned();
    let topic = random_topic("checksum");
    create_topic(&address, &topic, 1, &[]).await;
    for text in ["before", "bitrot", "after"] {
        produce(&address, &topic, &[Record::new(0, text)]).await;
    }
    broker.stop().await;
    broker
        .edit_log(&topic, 0, |log| {
            let at = log
                .windows(6)
                .position(|bytes| bytes == b"bitrot")
                .expect("the record");
            log[at] ^= 1;
        })
        .await;
    broker.start_again().await;
    let replica = Replica::start(&address, &topic, &[]).await;
    let mut client = Client::connect(
        replica.public,
        Transport::WebSocket,
        &[("from", "earliest".into())],
    );
    let events = [
        until(&mut client, "gap").await,
        until(&mut client, "message").await,
    ]
    .concat();
    let gap = events.iter().find(|event| event["type"] == "gap").unwrap();
    assert_eq!(
        (
            &gap["reason"],
            &gap["ranges"][0]["from"],
            &gap["ranges"][0]["to"]
        ),
        (&"unreadable".into(), &1.into(), &2.into())
    );
    assert_eq!(events.last().unwrap()["data"], "after", "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_end_is_truncated_and_read_on_from_there() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let address = broker.address().to_owned();
    let topic = random_topic("truncated");
    create_topic(&address, &topic, 1, &[]).await;
    for number in 0..20 {
        produce(
            &address,
            &topic,
            &[Record::new(0, format!("old {number:02}"))],
        )
        .await;
    }
    let replica = Replica::start(&address, &topic, &[]).await;
    let mut live = Client::connect(replica.public, Transport::WebSocket, &[]);
    let start = until(&mut live, "start").await.pop().unwrap();
    let mut gone = Reader::new(&topic);
    gone.cursor = start["cursor"].as_str().map(str::to_owned);
    broker.kill().await;
    broker.forget_checkpoints().await;
    broker
        .edit_log(&topic, 0, |log| {
            // Each record is a batch of its own, and all are of one length.
            let batch = log.len() / 20;
            log.truncate(batch * 15);
        })
        .await;
    broker.start_again().await;
    let gap = until(&mut live, "gap").await.pop().unwrap();
    assert_eq!(gap["reason"], "truncated", "{gap}");
    let range = &gap["ranges"][0];
    assert_eq!(
        (range["from"].as_i64(), range["to"].as_i64()),
        (Some(15), Some(20)),
        "{gap}"
    );
    // Another producer: the one before would not go on, either.
    produce_compressed(&address, &topic, &[Record::new(0, "new")], "none").await;
    let message = until(&mut live, "message").await.pop().unwrap();
    assert_eq!(
        (&message["offset"], &message["data"]),
        (&15.into(), &"new".into())
    );
    // A client that was away meanwhile, here and at a replica that has not seen the loss.
    let fresh = Replica::start(&address, &topic, &[]).await;
    for (replica, exact) in [(&replica, true), (&fresh, false)] {
        let after = [("after", gone.cursor.clone().unwrap())];
        let mut client = Client::connect(replica.public, Transport::WebSocket, &after);
        let gap = until(&mut client, "gap").await.pop().unwrap();
        assert_eq!(gap["reason"], "truncated", "{gap}");
        assert_eq!(gap["ranges"][0]["to"], 20, "{gap}");
        if exact {
            assert_eq!(gap["ranges"][0]["from"], 15, "{gap}");
            assert_eq!(
                until(&mut client, "message").await.pop().unwrap()["data"],
                "new"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_may_no_longer_be_read_reports_the_reason_and_affects_no_other() {
    let Some(mut broker) = Broker::start_with(&Broker::AUTHORIZER).await else {
        return;
    };
    let address = broker.address().to_owned();
    let (denied, open) = (random_topic("denied"), random_topic("open"));
    for topic in [&denied, &open] {
        create_topic(&address, topic, 1, &[]).await;
        produce(&address, topic, &[Record::new(0, "first")]).await;
    }
    let replica = Replica::start(&address, &format!("{denied},{open}"), &[]).await;
    let mut client = Client::connect(replica.public, Transport::WebSocket, &[]);
    let mut other = Client::connect(replica.public, Transport::Sse, &[("topic", open.clone())]);
    until(&mut client, "start").await;
    until(&mut other, "start").await;
    broker.deny_read(&denied, true).await;
    produce(&address, &denied, &[Record::new(0, "unseen")]).await;
    let status = until(&mut client, "status").await.pop().unwrap();
    assert_eq!(status["source"], "down", "{status}");
    assert!(
        status["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("authorize")),
        "{status}"
    );
    let up = |topic: &str| format!("herald_source_up{{topic=\"{topic}\"}}");
    eventually(
        Duration::from_secs(10),
        "the metrics to say so",
        async || {
            replica.metric(&up(&denied)).await == 0.0 && replica.metric(&up(&open)).await == 1.0
        },
    )
    .await;
    let (_, metrics) = replica.get_admin("/metrics").await;
    assert!(
        !metrics.contains(&format!(
            "herald_lag_messages{{partition=\"0\",topic=\"{denied}\""
        )),
        "the lag is not known"
    );
    let (status, body) = replica.get_admin("/readyz").await;
    assert!(
        status == 200 && body.contains(&denied) && body.contains("authorize"),
        "{status} {body}"
    );
    produce(&address, &open, &[Record::new(0, "second")]).await;
    assert_eq!(
        until(&mut other, "message").await.pop().unwrap()["data"],
        "second"
    );
    broker.deny_read(&denied, false).await;
    let events = until(&mut client, "message").await;
    assert_eq!(events.last().unwrap()["data"], "unseen");
    let mut up = events.iter().filter(|event| event["type"] == "status");
    assert!(
        up.any(|event| event["source"] == "up")
            || until(&mut client, "status").await.pop().unwrap()["source"] == "up"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_cannot_be_served_takes_no_other_along() {
    let Some(kafka) = kafka_with("growing topics") else {
        return;
    };
    let (large, small, absent) = (
        random_topic("large"),
        random_topic("small"),
        random_topic("absent"),
    );
    create_topic(&kafka, &large, 250, &[]).await;
    create_topic(&kafka, &small, 1, &[]).await;
    let replica = Replica::start(&kafka, &format!("{large},{small}"), &[]).await;
    let mut client = Client::connect(replica.public, Transport::WebSocket, &[]);
    until(&mut client, "start").await;
    add_partitions(&kafka, &large, 300).await;
    let status = until(&mut client, "status").await.pop().unwrap();
    assert!(
        status["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("256 partitions")),
        "{status}"
    );
    produce(&kafka, &large, &[Record::new(3, "still read")]).await;
    assert_eq!(
        until(&mut client, "message").await.pop().unwrap()["data"],
        "still read"
    );
    // At the next start the topic is not served, nor is one that is not there; the others are.
    let next = Replica::start(&kafka, &format!("{large},{absent},{small}"), &[]).await;
    for topic in [&large, &absent] {
        let mut client = Client::connect(
            next.public,
            Transport::WebSocket,
            &[("topic", topic.clone())],
        );
        assert_eq!(
            until(&mut client, "status").await.pop().unwrap()["source"],
            "down"
        );
    }
    let mut client = Client::connect(
        next.public,
        Transport::WebSocket,
        &[("topic", small.clone())],
    );
    until(&mut client, "start").await;
    produce(&kafka, &small, &[Record::new(0, "served")]).await;
    assert_eq!(
        until(&mut client, "message").await.pop().unwrap()["data"],
        "served"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_headers_count_for_the_size_of_a_message() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("keys");
    create_topic(&kafka, &topic, 1, &[]).await;
    let large = Record {
        key: Some(vec![b'k'; 2000]),
        ..Record::new(0, "small")
    };
    let header = Record {
        headers: vec![("name".into(), Some(vec![b'h'; 2000]))],
        ..Record::new(0, "small")
    };
    produce(&kafka, &topic, &[large, header, Record::new(0, "fits")]).await;
    let replica = Replica::start(&kafka, &topic, &["--max-message-bytes", "1000"]).await;
    let (_, page) = replica.get("/messages").await;
    let gaps = page["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| &gap["reason"]);
    assert_eq!(
        gaps.collect::<Vec<_>>(),
        ["too-large", "too-large"],
        "{page}"
    );
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_whether_it_missed_anything_is_answered_without_kafka() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let address = broker.address().to_owned();
    let topic = random_topic("idle");
    create_topic(&address, &topic, 2, &[]).await;
    let numbered: Vec<Record> = (0..10)
        .map(|n| Record::new(n % 2, format!("{n}")))
        .collect();
    produce(&address, &topic, &numbered).await;
    let replica = Replica::start(&address, &topic, &[]).await;
    let (_, page) = replica.get("/messages?limit=4").await;
    broker.stop().await;
    let began = Instant::now();
    let cursor = |name: &str| page[name].as_str().unwrap().to_owned();
    let (status, after) = replica
        .get(&format!("/messages?after={}", cursor("after")))
        .await;
    assert_eq!(
        (status, after["messages"].as_array().map(Vec::len)),
        (200, Some(0)),
        "{after}"
    );
    let (status, again) = replica
        .get(&format!("/messages?after={}&limit=500", cursor("before")))
        .await;
    assert_eq!(
        (status, &again["messages"]),
        (200, &page["messages"]),
        "{again}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_open_transaction_withholds_is_a_metric() {
    let Some(kafka) = kafka_with("open transactions") else {
        return;
    };
    let topic = random_topic("withheld");
    create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let records: Vec<Record> = (0..3).map(|n| Record::new(0, format!("{n}"))).collect();
    let _open = produce_in_open_transaction(&kafka, &topic, &records).await;
    let metric = format!("herald_withheld_messages{{partition=\"0\",topic=\"{topic}\"}}");
    eventually(
        Duration::from_secs(10),
        "three messages to be withheld",
        async || replica.metric(&metric).await == 3.0,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_share_one_reader() {
    let Some(kafka) = kafka() else { return };
    let topics: Vec<String> = (0..20).map(|_| random_topic("many")).collect();
    for topic in &topics {
        create_topic(&kafka, topic, 1, &[]).await;
    }
    let replica = Replica::start(&kafka, &topics.join(","), &[]).await;
    let mut clients = Vec::new();
    for topic in &topics {
        let mut client = Client::connect(
            replica.public,
            Transport::WebSocket,
            &[("topic", topic.clone())],
        );
        until(&mut client, "start").await;
        clients.push(client);
    }
    for topic in &topics {
        produce(&kafka, topic, &[Record::new(0, topic.clone())]).await;
    }
    for (client, topic) in clients.iter_mut().zip(&topics) {
        assert_eq!(
            until(client, "message").await.pop().unwrap()["data"],
            *topic
        );
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", replica.id()))
        .unwrap()
        .count();
    assert!(threads < 60, "{threads} threads for 20 topics");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_slower_than_the_ring_continues_by_replay() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("lagging");
    create_topic(&kafka, &topic, 2, &[]).await;
    let replica = Replica::start(
        &kafka,
        &topic,
        &["--ring-messages", "20", "--ring-time", "0s"],
    )
    .await;
    let mut reader = Reader::new(&topic);
    let mut client = reader.connect(replica.public, Transport::WebSocket);
    reader.take(&client.next().await.expect("a start"));
    let text = "x".repeat(20_000);
    for round in 0..20 {
        let batch: Vec<Record> = (0..20)
            .map(|n| Record::new(n % 2, format!("{round} {n} {text}")))
            .collect();
        produce(&kafka, &topic, &batch).await;
    }
    let records = positions(&read_all(&kafka, &topic).await);
    while !reader.has_all(&records) {
        let event = tokio::time::timeout(Duration::from_secs(30), client.next());
        reader.take(&event.await.expect("in time").expect("it is not ended"));
    }
    reader.check(&records);
    assert_eq!(
        (reader.gaps.as_slice(), reader.heard.as_slice()),
        (&[][..], &[][..])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_that_missed_the_same_reads_kafka_once() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("herd");
    create_topic(&kafka, &topic, 3, &[]).await;
    produce(&kafka, &topic, &[Record::new(0, "first")]).await;
    let options = ["--ring-messages", "20", "--ring-time", "0s"];
    let replica = Replica::start(&kafka, &topic, &options).await;
    let mut first = Client::connect(replica.public, Transport::WebSocket, &[]);
    let start = until(&mut first, "start").await.pop().unwrap();
    let batch: Vec<Record> = (0..3000)
        .map(|n| Record::new(n % 3, format!("{n}")))
        .collect();
    produce(&kafka, &topic, &batch).await;
    // Clients that connect while the topic is still being read do not miss the same.
    read_messages(first, 3000).await;
    let after = [("after", start["cursor"].as_str().unwrap().to_owned())];
    let herd = (0..60).map(|_| {
        let client = Client::connect(replica.public, Transport::WebSocket, &after);
        tokio::spawn(read_messages(client, 3000))
    });
    for client in herd.collect::<Vec<_>>() {
        let caught_up = tokio::time::timeout(Duration::from_secs(60), client);
        caught_up
            .await
            .expect("in time")
            .expect("every client catches up");
    }
    let pages = async |source: &str| {
        let metric = format!("herald_replay_pages_total{{source=\"{source}\"}}");
        replica.metric(&metric).await
    };
    let (read, shared) = (pages("kafka").await, pages("memory").await);
    assert!(
        read < 20.0 && shared > 10.0 * read,
        "{read} from Kafka, {shared} from memory"
    );
}
