//! Frames in, and the document of their session out, with a projector in the same process.

use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use herald_testing::{
    Authority, Database, Postgres, create_topic, delete_topic, eventually, random_topic,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::http::{Answer, send};
use crate::{DEADLINE, GOOD, Gateway, Socket, close_code, next, start};

const SESSION: &str = "e6fa79ca-d142-4046-a134-5134f16a0b5e";

async fn get(gateway: &Gateway, query: &str) -> Answer {
    let path = format!("/data{query}");
    send(&gateway.address, "GET", &path, &[], "").await
}

/// The body without the framing of `transfer-encoding: chunked`.
pub fn body(answer: &Answer) -> String {
    if answer.header("transfer-encoding") != Some("chunked") {
        return answer.body.clone();
    }
    let (mut rest, mut body) = (answer.body.as_str(), String::new());
    loop {
        let (size, after) = rest.split_once("\r\n").expect(&answer.body);
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body += &after[..size];
        rest = &after[size + 2..];
    }
}

/// Starts a projector; it stops when the guard is dropped.
async fn project(kafka: &str, topic: &str, database: &Database, role: Option<&str>) -> DropGuard {
    let schema = database.schema.as_str();
    let mut args = vec!["projector", "--kafka-bootstrap-servers", kafka];
    args.extend(["--events-topic", topic, "--group-prefix", topic]);
    args.extend(["--database-url", &database.address]);
    args.extend(["--database-schema", schema]);
    if let Some(role) = role {
        args.extend(["--database-reader-role", role]);
    }
    let config: projector::Config = herald_runtime::config::parse_from(&args).unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(projector::run(config, admin, shutdown.clone()));
    shutdown.drop_guard()
}

/// Sends a frame, and returns its cursor.
async fn publish(socket: &mut Socket, frame: &str) -> String {
    socket.send(Message::text(frame)).await.unwrap();
    let ack = next(socket).await.into_text().unwrap();
    let ack: Value = serde_json::from_str(&ack).unwrap();
    ack["cursor"].as_str().expect("an ack").to_owned()
}

/// Each database with the address that the gateway reads it with: that of a role that may only read, where there are roles.
fn databases() -> Vec<(Database, Option<String>, String)> {
    let mut all = Vec::new();
    let sqlite = Database::sqlite();
    let url = sqlite.address.clone();
    all.push((sqlite, None, url));
    if let Some(database) = Database::postgres() {
        let postgres = herald_testing::postgres().unwrap();
        let role = database.schema.as_str().replace("herald", "reader");
        let create = format!("CREATE ROLE \"{role}\" LOGIN");
        postgres.sql(&create).unwrap();
        let url = postgres.url_as(&role);
        all.push((database, Some(role), url));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_of_the_original_comes_out() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    for (database, role, url) in databases() {
        let topic = random_topic("data");
        create_topic(&kafka, &topic, 2, &[]).await;
        let _projector = project(&kafka, &topic, &database, role.as_deref()).await;
        let schema = database.schema.as_str();
        let options = ["--database-url", &url, "--database-schema", schema];
        let gateway = start(&kafka, &topic, &options).await;
        let query = format!("?session_id={SESSION}");
        let mut socket = gateway.open(&format!("{query}&ack=1")).await.unwrap();
        let one = format!(
            r#"[{{"timestamp":1569972082,"type":"SESSION_START","session_id":"{SESSION}"}},{{"timestamp":1569972085,"type":"EVENT","name":"last_event"}}]"#
        );
        let two = format!(
            r#"[{{"timestamp":1569972083,"type":"EVENT","name":"middle_event"}},{{"timestamp":1569972083,"type":"EVENT","name":"first_event"}},{{"timestamp":1569972086,"type":"SESSION_END","session_id":"{SESSION}"}}]"#
        );

        let cursor = publish(&mut socket, &one).await;
        let answer = get(&gateway, &format!("{query}&after={cursor}&wait=20000")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let document: Value = serde_json::from_str(&body(&answer)).unwrap();
        let last = json!({"type": "EVENT", "timestamp": 1569972085, "name": "last_event"});
        let begun = json!({"session_id": SESSION, "type": "SESSION", "start": 1569972082, "end": null, "children": [last]});
        assert_eq!(document, begun);
        let first_etag = answer.header("etag").unwrap().to_owned();

        let cursor = publish(&mut socket, &two).await;
        assert_eq!(close_code(next(&mut socket).await), 1000);
        let answer = get(&gateway, &format!("{query}&after={cursor}&wait=20000")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let event =
            |timestamp, name| json!({"type": "EVENT", "timestamp": timestamp, "name": name});
        let expected = json!({
            "session_id": SESSION, "type": "SESSION", "start": 1569972082, "end": 1569972086,
            "children": [event(1569972083, "middle_event"), event(1569972083, "first_event"), event(1569972085, "last_event")],
        });
        let document = body(&answer);
        assert_eq!(serde_json::from_str::<Value>(&document).unwrap(), expected);
        let head = format!(
            r#"{{"session_id":"{SESSION}","type":"SESSION","start":1569972082,"end":1569972086,"children":["#
        );
        assert!(document.starts_with(&head), "{document}");

        let path = format!("/data{query}");
        let etag = answer.header("etag").unwrap();
        assert_ne!(etag, first_etag);
        let known = [("if-none-match", etag)];
        let answer = send(&gateway.address, "GET", &path, &known, "").await;
        assert_eq!((answer.status, answer.body.as_str()), (304, ""));
        assert_eq!(answer.header("etag"), Some(etag));
        let known = [("if-none-match", first_etag.as_str())];
        let answer = send(&gateway.address, "GET", &path, &known, "").await;
        assert_eq!(body(&answer), document);
        let answer = send(&gateway.address, "HEAD", &path, &[], "").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        assert_eq!(answer.header("etag"), Some(etag));

        let answer = get(&gateway, "?session_id=other").await;
        let missing = "no data found for session_id other";
        assert_eq!((answer.status, answer.body.as_str()), (404, missing));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_not_projected_in_time_and_a_wrong_cursor_are_told_apart() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("wait");
    create_topic(&kafka, &topic, 1, &[]).await;
    // The tables exist, but nothing is projected any more.
    let url = database.address.parse().unwrap();
    store::Writer::open(&url, &database.schema.parse().unwrap(), None)
        .await
        .unwrap();
    let options = ["--database-url", &database.address, "--max-wait", "2s"];
    let gateway = start(&kafka, &topic, &options).await;
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    let cursor = publish(&mut socket, GOOD).await;
    let begun = Instant::now();
    let answer = get(&gateway, &format!("?session_id=a&after={cursor}&wait=300")).await;
    assert_eq!(answer.status, 504);
    let sentence = "the document does not contain this frame yet, after 300 ms; try again";
    assert_eq!(answer.body, sentence);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let text = "after is not the cursor of an acknowledged frame";
    let other = "after is the cursor of a frame in another topic";
    let wait = "wait is a number of milliseconds up to 2000";
    for (query, sentence) in [
        ("session_id=a&after=7", text),
        ("session_id=a&after=", text),
        ("session_id=a&after=00000000-0-0-0", other),
        ("session_id=a&wait=2001", wait),
        ("session_id=a&wait=-1", wait),
        ("session_id=a&wait=soon", wait),
        ("", "query is missing session_id"),
        ("session_id=", "query is missing session_id"),
        ("session_id=a%00", "a session id must not contain NUL"),
    ] {
        let answer = get(&gateway, &format!("?{query}")).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (400, sentence),
            "{query}"
        );
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("text/plain"), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_a_recreated_topic_is_not_taken_for_one_that_was_projected_before() {
    let Some(kafka) = herald_testing::kafka_with("deletion of topics") else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("recreated");
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = ["--database-url", &database.address];
    {
        let _projector = project(&kafka, &topic, &database, None).await;
        let gateway = start(&kafka, &topic, &options).await;
        let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
        publish(&mut socket, GOOD).await;
        let cursor = publish(&mut socket, GOOD).await;
        let answer = get(&gateway, &format!("?session_id=a&after={cursor}&wait=9000")).await;
        assert_eq!(answer.status, 200);
    }
    delete_topic(&kafka, &topic).await;
    create_topic(&kafka, &topic, 1, &[]).await;
    let gateway = start(&kafka, &topic, &options).await;
    let mut socket = gateway.open("?session_id=b&ack=1").await.unwrap();
    let cursor = publish(&mut socket, GOOD).await;
    let query = format!("?session_id=b&after={cursor}&wait=");
    assert_eq!(get(&gateway, &format!("{query}300")).await.status, 504);
    let _projector = project(&kafka, &topic, &database, None).await;
    assert_eq!(get(&gateway, &format!("{query}30000")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_the_gateway_starts_and_explains_itself_without_secrets() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let topic = random_topic("no-database");
    create_topic(&kafka, &topic, 1, &[]).await;
    let url = "postgres://me:hush@127.0.0.1:1/herald?password=hush";
    let gateway = start(&kafka, &topic, &["--database-url", url]).await;
    let answer = get(&gateway, "?session_id=a").await;
    assert_eq!(answer.status, 500);
    assert!(
        answer
            .body
            .starts_with("cannot read a session in postgres://127.0.0.1:1/herald: "),
        "{}",
        answer.body
    );
    assert!(!answer.body.contains("hush"), "{}", answer.body);
    eventually(
        DEADLINE,
        "the gateway to be ready with a note",
        async || {
            let answer = send(&gateway.admin, "GET", "/readyz", &[], "").await;
            assert!(!answer.body.contains("hush"), "{}", answer.body);
            answer.status == 200 && answer.body.contains("database: cannot read the positions")
        },
    )
    .await;
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    publish(&mut socket, GOOD).await;

    let gateway = start(&kafka, &topic, &[]).await;
    assert_eq!(get(&gateway, "?session_id=a").await.status, 501);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_rejects_the_connection_is_reported_with_what_to_do() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let Some(ca) = Authority::new("database-ca") else {
        return;
    };
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let own = ca.sign("server", &["DNS:localhost"], 1);
    postgres.demand_tls(&own, &ca).unwrap();
    let topic = random_topic("rejected");
    create_topic(&kafka, &topic, 1, &[]).await;
    let port = postgres.port();
    let (file, known) = (
        ca.certificate.display(),
        "database: cannot read the positions",
    );
    let url = format!(
        "postgres://reader:hush@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={file}"
    );
    let gateway = start(&kafka, &topic, &["--database-url", &url]).await;
    eventually(DEADLINE, "a note about the password", async || {
        let answer = send(&gateway.admin, "GET", "/readyz", &[], "").await;
        assert!(!answer.body.contains("hush"), "{}", answer.body);
        let problem = "it rejects the user or the password; correct them in the address";
        answer.body.contains(known) && answer.body.contains(problem)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_many_events_is_streamed() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("many");
    create_topic(&kafka, &topic, 1, &[]).await;
    let _projector = project(&kafka, &topic, &database, None).await;
    let gateway = start(&kafka, &topic, &["--database-url", &database.address]).await;
    let mut socket = gateway.open("?session_id=a&ack=1").await.unwrap();
    let mut cursor = String::new();
    for frame in 0..20 {
        let event = |n: usize| {
            let timestamp = frame * 1000 + n;
            format!(
                r#"{{"timestamp":{timestamp},"type":"EVENT","name":"{}"}}"#,
                "x".repeat(50)
            )
        };
        let events: Vec<String> = (0..1000).map(event).collect();
        cursor = publish(&mut socket, &format!("[{}]", events.join(","))).await;
    }
    let answer = get(
        &gateway,
        &format!("?session_id=a&after={cursor}&wait=30000"),
    )
    .await;
    let document: Value = serde_json::from_str(&body(&answer)).unwrap();
    let children = document["children"].as_array().unwrap();
    assert!(
        children
            .iter()
            .map(|child| child["timestamp"].as_u64().unwrap())
            .eq(0..20_000)
    );
}
