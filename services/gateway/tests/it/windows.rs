//! The stream of results of windows, from records as the projector publishes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use herald_testing::{Broker, Record, create_topic, produce, random_topic};
use serde_json::{Value, json};

use crate::http::send;
use crate::sse::{Event, Events};
use crate::{Gateway, start};

const MINUTE: i64 = 60_000;

/// The start of the minute that is `ago` minutes before the present one.
pub fn minute(ago: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now.as_millis() as i64 / MINUTE - ago) * MINUTE
}

/// A result of the window of a minute.
pub fn result(video: &str, count: i64, start: i64, range: (i64, i64)) -> Record {
    let (from, to) = range;
    let end = start + MINUTE;
    let value = json!({
        "type": "1min", "video_uid": video, "count": count, "start": start, "end": end,
        "partition": 0, "from": from, "to": to,
    });
    Record {
        key: Some(video.into()),
        value: Some(value.to_string().into()),
        ..Record::default()
    }
}

/// A gateway with one window of a minute, and its topic.
async fn gateway() -> Option<(Gateway, String)> {
    let kafka = herald_testing::kafka()?;
    let topic = random_topic("windows");
    create_topic(&kafka, &topic, 2, &[]).await;
    create_topic(&kafka, &format!("{topic}.live"), 2, &[]).await;
    let windows = format!("1m={topic}");
    let drain = ["--drain-delay", "0s", "--drain-window", "0s"];
    let options = [&["--windows", &windows], &drain[..]].concat();
    Some((start(&kafka, "windows", &options).await, topic))
}

/// What a client sees of each result of an event.
fn rows(event: &Event) -> Vec<(&str, i64, i64, bool)> {
    let rows = event.data.as_array().unwrap().iter();
    rows.map(|row| {
        assert_eq!(row["type"], "1min");
        assert_eq!(row["end"], row["start"].as_i64().unwrap() + MINUTE);
        let number = |name: &str| row[name].as_i64().unwrap();
        let (video, is_final) = (row["video_uid"].as_str().unwrap(), &row["final"]);
        (
            video,
            number("count"),
            number("start"),
            *is_final == json!(true),
        )
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_the_latest_results_of_its_videos_and_then_each_new_one() {
    let Some((gateway, topic)) = gateway().await else {
        return;
    };
    let live = format!("{topic}.live");
    let (old, new, now) = (minute(3), minute(2), minute(0));
    let kafka = gateway.kafka.clone();
    let finals = [result("a", 3, old, (0, 9)), result("b", 5, old, (0, 9))];
    produce(&kafka, &topic, &finals).await;
    produce(&kafka, &live, &[result("a", 1, now, (0, 9))]).await;
    let start = json!({"windows": [{"type": "1min", "seconds": 60}], "interim": true});
    let mut events = Events::open(&gateway.likes, "/windows/stream?video=a", &[]).await;
    assert_eq!(events.take("start").await.data, start);
    let snapshot = events.take("snapshot").await;
    assert_eq!(rows(&snapshot), [("a", 3, old, true), ("a", 1, now, false)]);

    // What is not for this client, and what is no result, is left out; what is sent again is known.
    let junk = Record {
        key: Some("a".into()),
        ..Record::new(0, "{")
    };
    let more = [
        finals[0].clone(),
        finals[1].clone(),
        junk,
        result("a", 4, new, (0, 9)),
    ];
    produce(&kafka, &topic, &more).await;
    assert_eq!(rows(&events.take("change").await), [("a", 4, new, true)]);
    produce(&kafka, &live, &[result("a", 2, now, (0, 9))]).await;
    assert_eq!(rows(&events.take("change").await), [("a", 2, now, false)]);

    // Another client adds a video, whose history is then read.
    let path = "/windows/stream?video=b&video=a";
    let mut both = Events::open(&gateway.address, path, &[]).await;
    both.take("start").await;
    let snapshot = both.take("snapshot").await;
    let a = [
        ("a", 3, old, true),
        ("a", 4, new, true),
        ("a", 2, now, false),
    ];
    let all = [&a[..], &[("b", 5, old, true)]].concat();
    assert_eq!(rows(&snapshot), all);
    produce(&kafka, &topic, &[result("a", 6, now, (0, 9))]).await;
    for events in [&mut events, &mut both] {
        assert_eq!(rows(&events.take("change").await), [("a", 6, now, true)]);
    }
    let metrics = send(&gateway.admin, "GET", "/metrics", &[], "").await.body;
    assert!(metrics.contains("herald_gateway_streams{of=\"windows\"} 2"));
    drop(gateway._stop);
    assert_eq!(events.take("bye").await.data["reason"], "drain");
    gateway.run.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_video_has_its_results_while_another_client_watches_a_busy_feed() {
    let Some((gateway, topic)) = gateway().await else {
        return;
    };
    let (kafka, live) = (gateway.kafka.clone(), format!("{topic}.live"));
    let (old, now) = (minute(3), minute(0));
    produce(&kafka, &topic, &[result("b", 5, old, (0, 9))]).await;
    let mut busy = Events::open(&gateway.likes, "/windows/stream?video=a", &[]).await;
    busy.take("start").await;
    busy.take("snapshot").await;
    let producing = tokio::spawn(async move {
        for count in 1.. {
            produce(&kafka, &live, &[result("a", count, now, (0, 9))]).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut latest = 0;
    for number in 0..10 {
        let path = format!("/windows/stream?video=b&video=new-{number}");
        let mut other = Events::open(&gateway.address, &path, &[]).await;
        other.take("start").await;
        let snapshot = other.take("snapshot").await;
        assert_eq!(rows(&snapshot), [("b", 5, old, true)]);
        let change = busy.take("change").await;
        let [("a", count, _, false)] = rows(&change)[..] else {
            panic!("{change:?}");
        };
        assert!(count > latest, "{count} after {latest}");
        latest = count;
    }
    producing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_does_not_exist_is_reported_until_it_does() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let topic = random_topic("absent");
    let windows = format!("1m={topic}");
    let gateway = start(&kafka, "windows", &["--windows", &windows]).await;
    let mut events = Events::open(&gateway.address, "/windows/stream?video=a", &[]).await;
    let status = events.take("status").await;
    let reason = status.data["reason"].as_str().unwrap();
    assert!(reason.contains("does not exist"), "{reason}");
    create_topic(&kafka, &topic, 1, &[]).await;
    assert_eq!(events.take("status").await.data, json!({"source": "up"}));
    assert_eq!(events.take("start").await.data["interim"], false);
    assert_eq!(events.take("snapshot").await.data, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_is_away_a_stream_says_so_and_then_goes_on() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let kafka = broker.address().to_owned();
    let topic = random_topic("restart");
    create_topic(&kafka, &topic, 1, &[]).await;
    let windows = format!("1m={topic}");
    let gateway = start(&kafka, "windows", &["--windows", &windows]).await;
    produce(&kafka, &topic, &[result("a", 1, minute(3), (0, 9))]).await;
    let mut events = Events::open(&gateway.address, "/windows/stream?video=a", &[]).await;
    events.take("start").await;
    assert_eq!(rows(&events.take("snapshot").await).len(), 1);
    broker.stop().await;
    assert_eq!(events.take("status").await.data["source"], "down");
    broker.start_again().await;
    produce(&kafka, &topic, &[result("a", 2, minute(2), (0, 9))]).await;
    // The result may be there before the statistics are, which say that Kafka is up.
    let [first, second] = [events.next().await.unwrap(), events.next().await.unwrap()];
    let (change, status) = if first.name == "change" {
        (first, second)
    } else {
        (second, first)
    };
    assert_eq!(status.data, json!({"source": "up"}));
    let [("a", 2, _, true)] = rows(&change)[..] else {
        panic!("{change:?}");
    };
}

#[tokio::test]
async fn a_stream_needs_1_to_20_videos() {
    let Some((gateway, _)) = gateway().await else {
        return;
    };
    let many = "video=a&".repeat(21);
    for query in ["", "video=", &many] {
        let path = format!("/windows/stream?{query}");
        let answer = send(&gateway.address, "GET", &path, &[], "").await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.body);
        let sentence: Value = answer.json();
        assert!(sentence["error"].is_string());
    }
}
