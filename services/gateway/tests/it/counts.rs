//! `/aggregated` and its stream, with rows in the store as the projector commits them.

use herald_testing::Database;
use serde_json::json;
use store::{Advance, Applied, Batch, COUNTS, Counts, Name, Position, Writer};

use crate::http::send;
use crate::sse::Events;
use crate::{Gateway, start};

/// A database with counts.
struct Store {
    database: Database,
    writer: Writer,
    next: i64,
}

impl Store {
    async fn new() -> Self {
        let database = Database::sqlite();
        let url = database.address.parse().unwrap();
        let writer = Writer::open(&url, &Name::default(), None).await.unwrap();
        let begin = Position::default();
        writer.begin(COUNTS, "message", 0, begin).await.unwrap();
        Self {
            database,
            writer,
            next: 0,
        }
    }

    /// Commits one more of each of these foods.
    async fn add(&mut self, foods: &[&str]) {
        let at = |next| Position {
            next,
            ..Position::default()
        };
        let mut counts = Counts::default();
        foods.iter().for_each(|food| counts.add(food));
        let batch = Batch {
            advances: vec![Advance {
                partition: 0,
                from: at(self.next),
                to: at(self.next + 1),
            }],
            counts,
            ..Batch::default()
        };
        self.next += 1;
        let applied = self.writer.apply(COUNTS, "message", &batch).await.unwrap();
        assert!(matches!(applied, Applied::Committed(_)), "{applied:?}");
    }

    async fn gateway(&self) -> Option<Gateway> {
        let drain = ["--drain-delay", "0s", "--drain-window", "0s"];
        let options = [&["--database-url", &self.database.address], &drain[..]].concat();
        gateway(&options).await
    }
}

/// It needs no topic, but without a Kafka each of its requests takes 5 seconds to fail.
async fn gateway(options: &[&str]) -> Option<Gateway> {
    let kafka = herald_testing::kafka()?;
    Some(start(&kafka, "counts", options).await)
}

#[tokio::test]
async fn every_row_is_answered_in_the_format_of_the_original() {
    let mut store = Store::new().await;
    let Some(gateway) = store.gateway().await else {
        return;
    };
    for method in ["GET", "POST"] {
        let answer = send(&gateway.counts, method, "/aggregated", &[], "").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "[]"));
    }
    store.add(&["pie", "fig", "pie"]).await;
    store.add(&["apple", "apple", "apple", "fig"]).await;
    let all = r#"[{"count":2,"food":"pie"},{"count":2,"food":"fig"},{"count":3,"food":"apple"}]"#;
    for method in ["GET", "POST"] {
        for address in [&gateway.counts, &gateway.address] {
            let answer = send(address, method, "/aggregated", &[], "").await;
            assert_eq!((answer.status, answer.body.as_str()), (200, all));
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
    }
    let first = r#"[{"count":3,"food":"apple"},{"count":2,"food":"fig"}]"#;
    let sorted = send(
        &gateway.counts,
        "GET",
        "/aggregated?order=count&limit=2",
        &[],
        "",
    )
    .await;
    assert_eq!(sorted.body, first);
    for wrong in ["order=food", "limit=0", "limit=1001", "limit=x", "limit="] {
        let path = format!("/aggregated?{wrong}");
        let answer = send(&gateway.counts, "GET", &path, &[], "").await;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.body);
    }
    let put = send(&gateway.counts, "PUT", "/aggregated", &[], "").await;
    assert_eq!(
        (put.status, put.header("allow")),
        (405, Some("GET, HEAD, POST"))
    );
}

#[tokio::test]
async fn a_stream_has_all_rows_and_then_what_changes_also_when_its_client_reconnects() {
    let mut store = Store::new().await;
    store.add(&["pie", "fig"]).await;
    let Some(gateway) = store.gateway().await else {
        return;
    };
    let path = "/aggregated/stream";
    let mut events = Events::open(&gateway.counts, path, &[]).await;
    assert!(events.head.contains("text/event-stream"), "{}", events.head);
    let snapshot = events.take("snapshot").await;
    let rows = json!([{"count": 1, "food": "pie"}, {"count": 1, "food": "fig"}]);
    assert_eq!(snapshot.data, rows);
    store.add(&["fig"]).await;
    let fig = events.take("change").await;
    assert_eq!(fig.data, json!([{"count": 2, "food": "fig"}]));

    // The id may be one of another database.
    let mut back = Events::open(&gateway.address, path, &[("last-event-id", "1")]).await;
    let rows = json!([{"count": 1, "food": "pie"}, {"count": 2, "food": "fig"}]);
    assert_eq!(back.take("snapshot").await.data, rows);
    let metrics = send(&gateway.admin, "GET", "/metrics", &[], "").await.body;
    let open = "herald_gateway_streams{of=\"aggregated\"} 2";
    assert!(metrics.contains(open), "{metrics}");

    // A shutdown ends the streams with a reason.
    drop(gateway._stop);
    for events in [&mut events, &mut back] {
        let bye = events.take("bye").await;
        assert_eq!(bye.data["reason"], "drain");
        assert_eq!(events.next().await, None);
    }
    gateway.run.await.unwrap().unwrap();
}

#[tokio::test]
async fn while_the_gateway_shuts_down_a_new_stream_is_asked_to_reconnect() {
    let store = Store::new().await;
    let options = [
        "--database-url",
        &store.database.address,
        "--drain-delay",
        "3s",
    ];
    let Some(gateway) = gateway(&options).await else {
        return;
    };
    // Once it has answered, it has started.
    send(&gateway.counts, "GET", "/aggregated", &[], "").await;
    drop(gateway._stop);
    let mut name = String::new();
    while name != "bye" {
        let mut events = Events::open(&gateway.counts, "/aggregated/stream", &[]).await;
        assert!(events.head.starts_with("HTTP/1.1 200"), "{}", events.head);
        name = events.next().await.unwrap().name;
    }
}

#[tokio::test]
async fn a_stream_reports_a_database_that_cannot_be_read_and_goes_on_when_it_can() {
    let database = Database::sqlite();
    let options = ["--database-url", &database.address];
    let Some(gateway) = gateway(&options).await else {
        return;
    };
    let answer = send(&gateway.counts, "GET", "/aggregated", &[], "").await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.header("retry-after").is_some());
    let mut events = Events::open(&gateway.counts, "/aggregated/stream", &[]).await;
    let status = events.take("status").await;
    assert_eq!(status.data["source"], "down", "{status:?}");
    let url = database.address.parse().unwrap();
    let _writer = Writer::open(&url, &Name::default(), None).await.unwrap();
    assert_eq!(events.take("status").await.data, json!({"source": "up"}));
    assert_eq!(events.take("snapshot").await.data, json!([]));
}

#[tokio::test]
async fn without_a_database_there_are_no_counts() {
    let Some(gateway) = gateway(&[]).await else {
        return;
    };
    for path in ["/aggregated", "/aggregated/stream"] {
        let answer = send(&gateway.counts, "GET", path, &[], "").await;
        assert_eq!(answer.status, 501);
        assert!(answer.body.contains("--database-url"), "{}", answer.body);
    }
}

#[tokio::test]
async fn pages_of_any_origin_may_read_the_counts_at_their_own_listener_which_has_nothing_else() {
    let store = Store::new().await;
    let Some(gateway) = store.gateway().await else {
        return;
    };
    let origin = [("origin", "https://a.example")];
    let answer = send(&gateway.counts, "GET", "/aggregated", &origin, "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let elsewhere = send(&gateway.address, "GET", "/aggregated", &origin, "").await;
    assert_eq!(elsewhere.status, 403);
    for path in [
        "/",
        "/counts",
        "/data?session_id=a",
        "/videos/metadata",
        "/likes",
    ] {
        let answer = send(&gateway.counts, "GET", path, &[], "").await;
        assert_eq!(answer.status, 404, "{path}");
    }
}
