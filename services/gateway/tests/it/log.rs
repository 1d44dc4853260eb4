//! The log of the gateway, as an operator searches it.

use futures_util::SinkExt as _;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::process::Process;
use crate::{GOOD, close_code, http, next};

#[tokio::test]
async fn every_line_of_a_request_has_its_id_and_that_of_its_session() {
    let database = "postgres://me:hush@127.0.0.1:1/herald";
    let options = ["--database-url", database, "--publish-timeout", "300ms"];
    let options = [&options[..], &["--log-level", "gateway=debug,info"]].concat();
    let process = Process::start("127.0.0.1:1", "away", &options).await;
    let headers = [("x-request-id", "request-1")];
    let answer = http::send(
        &process.public,
        "GET",
        "/data?session_id=a%22b",
        &headers,
        "",
    )
    .await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.header("x-request-id"), Some("request-1"));
    let mut socket = process.open("?session_id=s").await;
    socket.send(Message::text(GOOD)).await.unwrap();
    assert_eq!(close_code(next(&mut socket).await), 1013);
    process.line("stream ended").await;

    let log = process.log();
    let of = |name: &str, value: &str| {
        let matches = |line: &&Value| line["spans"][0][name] == value;
        let lines = log.iter().filter(matches);
        lines
            .map(|line| line["message"].as_str().unwrap())
            .collect::<Vec<_>>()
    };
    let lines = ["cannot answer with a document", "request"];
    assert_eq!(of("request_id", "request-1"), lines);
    assert_eq!(of("session_id", "a\"b"), lines);
    let lines = ["stream started", "request", "stream ended"];
    assert_eq!(of("session_id", "s"), lines);
    assert!(!format!("{log:?}").contains("hush"));
}
