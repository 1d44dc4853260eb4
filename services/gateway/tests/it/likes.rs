//! `POST /videos/<identifier>/likes` and `GET /videos/metadata`.

use herald_testing::{create_topic, random_topic, read_all};
use serde_json::json;

use crate::http::{Answer, send};
use crate::{Gateway, start};

const VIDEO: &str = "93f98662-8907-4f43-bb4c-280501481046";

async fn post(address: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(address, "POST", path, headers, r#"{"ignored": true}"#).await
}

/// A gateway with a topic of likes.
async fn gateway(options: &[&str]) -> Option<(Gateway, String)> {
    let kafka = herald_testing::kafka()?;
    let topic = random_topic("likes");
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = [&["--likes-topic", &topic], options].concat();
    Some((start(&kafka, "other", &options).await, topic))
}

#[tokio::test]
async fn a_like_is_the_bare_identifier_in_kafka_and_is_answered_as_by_the_original() {
    let Some((gateway, topic)) = gateway(&[]).await else {
        return;
    };
    let path = format!("/videos/{VIDEO}/likes");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("x-request-id", "r-1"), ("traceparent", trace)];
    let first = post(&gateway.address, &path, &headers).await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.body, format!("{{\"new video\": \"{VIDEO}\"}}"));
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.header("x-request-id"), Some("r-1"));
    let odd = "a%20%22b%22%2F%C3%A4+";
    let second = post(&gateway.likes, &format!("/dev/videos/{odd}/likes"), &[]).await;
    assert_eq!(second.json(), json!({"new video": "a \"b\"/ä+"}));

    let records = read_all(&gateway.kafka, &topic).await;
    let texts: Vec<String> = records.iter().map(|record| record.text()).collect();
    assert_eq!(texts, [VIDEO, "a \"b\"/ä+"]);
    assert!(records.iter().all(|record| record.key.is_none()));
    let header = |name: &str| {
        let found = records[0].headers.iter().find(|(key, _)| key == name);
        let value = found.and_then(|(_, value)| value.clone());
        value.map(|value| String::from_utf8(value).unwrap())
    };
    assert_eq!(header("ce_type").as_deref(), Some("herald.like"));
    assert_eq!(header("x-request-id").as_deref(), Some("r-1"));
    assert_eq!(header("traceparent").as_deref(), Some(trace));
    let metrics = send(&gateway.admin, "GET", "/metrics", &[], "").await.body;
    assert!(metrics.contains("herald_gateway_likes_published_total 2"));
}

#[tokio::test]
async fn what_is_no_identifier_is_rejected_and_another_method_too() {
    let Some((gateway, topic)) = gateway(&[]).await else {
        return;
    };
    let long = "a".repeat(257);
    for bad in ["", "%FF", "a%00", &long] {
        let answer = post(&gateway.address, &format!("/videos/{bad}/likes"), &[]).await;
        assert_eq!(answer.status, 400, "{bad}: {}", answer.body);
    }
    let path = format!("/videos/{}/likes", &long[1..]);
    let get = send(&gateway.likes, "GET", &path, &[], "").await;
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    assert_eq!(post(&gateway.likes, &path, &[]).await.status, 200);
    assert_eq!(read_all(&gateway.kafka, &topic).await.len(), 1);
}

#[tokio::test]
async fn the_videos_are_those_of_the_option() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let gateway = start(&kafka, "other", &[]).await;
    let default = send(&gateway.address, "GET", "/dev/videos/metadata", &[], "").await;
    let list = default.json();
    assert_eq!(list[0]["unique_identifier"], VIDEO);
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert!(list[0]["title"].is_string());
    let gateway = start(&kafka, "other", &["--videos", "a=One"]).await;
    let own = send(&gateway.likes, "GET", "/videos/metadata", &[], "").await;
    assert_eq!(
        own.json(),
        json!([{"unique_identifier": "a", "title": "One"}])
    );
}

#[tokio::test]
async fn without_a_topic_there_are_no_likes() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let gateway = start(&kafka, "other", &["--likes-topic", ""]).await;
    for (method, path) in [
        ("POST", "/videos/a/likes"),
        ("GET", "/videos/metadata"),
        ("GET", "/windows/stream?video=a"),
        ("GET", "/windows/1min/0/a/messages"),
    ] {
        let answer = send(&gateway.address, method, path, &[], "").await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("--likes-topic"), "{}", answer.body);
    }
}

#[tokio::test]
async fn while_kafka_is_away_the_client_is_asked_to_try_later() {
    let options = ["--message-timeout", "500ms"];
    let gateway = start("127.0.0.1:1", "away", &options).await;
    let answer = post(&gateway.address, "/videos/a/likes", &[]).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.header("retry-after").is_some());
    let metrics = send(&gateway.admin, "GET", "/metrics", &[], "").await.body;
    assert!(metrics.contains("herald_gateway_likes_failed_total{reason=\"timeout\"} 1"));
}

#[tokio::test]
async fn pages_of_any_origin_may_like_at_their_own_listener_and_only_there() {
    let options = [
        "--message-timeout",
        "500ms",
        "--allowed-hosts",
        "herald.example",
    ];
    let gateway = start("127.0.0.1:1", "origins", &options).await;
    let path = "/videos/a/likes";
    let origin = ("origin", "https://a.example");
    let asking = [origin, ("access-control-request-method", "POST")];
    let preflight = send(&gateway.likes, "OPTIONS", path, &asking, "").await;
    assert_eq!(preflight.status, 204);
    for answer in [preflight, post(&gateway.likes, path, &[origin]).await] {
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
    let elsewhere = post(&gateway.address, path, &[origin]).await;
    let metadata = send(&gateway.likes, "GET", "/videos/metadata", &[origin], "").await;
    assert_eq!(metadata.header("access-control-allow-origin"), Some("*"));
    // The likes themselves are for the page of this address, and those of the configured origins.
    let mut others = vec![elsewhere];
    for path in ["/windows/stream?video=a", "/windows/1min/0/a/messages"] {
        others.push(send(&gateway.likes, "GET", path, &[origin], "").await);
    }
    for answer in others {
        assert_eq!(answer.status, 403, "{}", answer.body);
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn a_client_that_likes_too_often_is_limited() {
    let options = ["--address-requests-per-second", "2"];
    let Some((gateway, _)) = gateway(&options).await else {
        return;
    };
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = send(&gateway.likes, "GET", "/videos/metadata", &[], "").await;
        statuses.push(answer.status);
    }
    assert_eq!(statuses[..2], [200, 200]);
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[tokio::test]
async fn the_listener_of_likes_has_their_page_and_nothing_of_the_others() {
    let Some((gateway, _)) = gateway(&[]).await else {
        return;
    };
    for path in ["/likes", "/likes.js", "/page.css"] {
        let answer = send(&gateway.likes, "GET", path, &[], "").await;
        assert_eq!(answer.status, 200, "{path}");
    }
    for path in [
        "/",
        "/data?session_id=a",
        "/aggregated",
        "/counts",
        "/websocket",
        "/page.js",
    ] {
        let answer = send(&gateway.likes, "GET", path, &[], "").await;
        assert_eq!(answer.status, 404, "{path}");
    }
}
