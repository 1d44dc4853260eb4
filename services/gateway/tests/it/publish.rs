//! `POST /topics/<topic>/messages`.

use herald_testing::{create_topic, random_topic, read_all};

use crate::http::{Answer, send};
use crate::{Gateway, start};

async fn post(gateway: &Gateway, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    send(&gateway.address, "POST", path, headers, body).await
}

/// A gateway whose own topic may be published to.
async fn gateway(name: &str, options: &[&str]) -> Option<Gateway> {
    let kafka = herald_testing::kafka()?;
    let topic = random_topic(name);
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = [&["--publish-topics", &topic], options].concat();
    Some(start(&kafka, &topic, &options).await)
}

#[tokio::test]
async fn a_message_is_answered_with_its_position_in_kafka_and_keeps_its_bytes_and_key() {
    let Some(gateway) = gateway("post", &[]).await else {
        return;
    };
    let path = format!("/topics/{}/messages", gateway.topic);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [
        ("content-type", "text/plain"),
        ("x-request-id", "r-1"),
        ("traceparent", trace),
    ];
    let first = post(&gateway, &path, &headers, "Grüße").await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.header("x-request-id"), Some("r-1"));
    let position = serde_json::json!({"topic": gateway.topic, "partition": 0, "offset": 0});
    assert_eq!(first.json(), position);
    let keyed = format!("{path}?key=a%20b");
    let second = post(&gateway, &keyed, &[], "").await;
    assert_eq!(second.json()["offset"], 1, "{}", second.body);

    let records = read_all(&gateway.kafka, &gateway.topic).await;
    assert_eq!(records[0].text(), "Grüße");
    assert_eq!(records[0].key, None);
    assert_eq!(records[1].key.as_deref(), Some(&b"a b"[..]));
    let header = |name: &str| {
        let found = records[0].headers.iter().find(|(key, _)| key == name);
        let value = found.and_then(|(_, value)| value.clone());
        value.map(|value| String::from_utf8(value).unwrap())
    };
    assert_eq!(header("ce_type").as_deref(), Some("herald.message"));
    assert_eq!(header("content-type").as_deref(), Some("text/plain"));
    assert_eq!(header("x-request-id").as_deref(), Some("r-1"));
    assert_eq!(header("traceparent").as_deref(), Some(trace));
}

#[tokio::test]
async fn a_topic_that_is_not_listed_another_method_and_a_large_body_are_rejected() {
    let options = ["--max-publish-bytes", "10"];
    let Some(gateway) = gateway("rejected", &options).await else {
        return;
    };
    let other = post(&gateway, "/topics/other/messages", &[], "a").await;
    assert_eq!(other.status, 404);
    assert!(other.body.contains("--publish-topics"), "{}", other.body);
    let path = format!("/topics/{}/messages", gateway.topic);
    let get = send(&gateway.address, "GET", &path, &[], "").await;
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    assert_eq!(
        post(&gateway, &path, &[], &"a".repeat(11)).await.status,
        413
    );
    // Without a length, the body is counted as it arrives.
    let chunked = [("transfer-encoding", "chunked")];
    let body = "b\r\naaaaaaaaaaa\r\n0\r\n\r\n";
    let chunked = post(&gateway, &path, &chunked, body).await;
    assert_eq!(chunked.status, 413);
    let unknown = post(&gateway, &format!("{path}?partition=1"), &[], "a").await;
    assert_eq!(unknown.status, 400, "{}", unknown.body);
    assert_eq!(
        post(&gateway, &path, &[], &"a".repeat(10)).await.status,
        200
    );
    assert_eq!(read_all(&gateway.kafka, &gateway.topic).await.len(), 1);
}

#[tokio::test]
async fn while_kafka_is_away_the_client_is_asked_to_try_later() {
    let options = ["--publish-topics", "away", "--message-timeout", "500ms"];
    let gateway = start("127.0.0.1:1", "away", &options).await;
    let answer = post(&gateway, "/topics/away/messages", &[], "a").await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.header("retry-after").is_some());
    assert!(answer.json()["error"].as_str().unwrap().contains("kafka"));
}

#[tokio::test]
async fn a_topic_that_kafka_does_not_have_is_named() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let missing = random_topic("missing");
    let gateway = start(&kafka, "other", &["--publish-topics", &missing]).await;
    let path = format!("/topics/{missing}/messages");
    let answer = post(&gateway, &path, &[], "a").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("does not exist"), "{}", answer.body);
}

#[tokio::test]
async fn pages_of_listed_origins_may_publish_and_others_may_not() {
    let options = [
        "--publish-topics",
        "a",
        "--allowed-origins",
        "https://a.example",
    ];
    let gateway = start("127.0.0.1:1", "origins", &options).await;
    let preflight = async |origin| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
        ];
        send(
            &gateway.address,
            "OPTIONS",
            "/topics/a/messages",
            &headers,
            "",
        )
        .await
    };
    let listed = preflight("https://a.example").await;
    assert_eq!(listed.status, 204);
    let header = |name: &str| listed.header(name);
    assert_eq!(
        header("access-control-allow-origin"),
        Some("https://a.example")
    );
    assert_eq!(header("access-control-allow-headers"), Some("content-type"));
    assert!(
        header("access-control-allow-methods")
            .unwrap()
            .contains("POST")
    );
    let other = preflight("https://b.example").await;
    assert_eq!(other.status, 403);
    assert_eq!(other.header("access-control-allow-origin"), None);
}
