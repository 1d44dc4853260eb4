//! What operators see and do.

use std::process::Command;

use herald_testing::{
    Authority, Broker, Database, Postgres, create_topic, eventually, produce, random_topic,
};

use crate::{DEADLINE, Running, arguments, document, frame, projected, reader_of};

const FRAME: &str = r#"[{"timestamp":1,"type":"EVENT"}]"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_reported_until_it_exists() {
    let Some(kafka) = herald_testing::kafka_with("missing topics") else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("missing");
    let projector = Running::start(&kafka, &topic, &database, &[]);
    eventually(DEADLINE, "the reason to be reported", async || {
        let readiness = projector.readiness().await;
        readiness.contains("does not exist") || readiness.contains("no partition is assigned")
    })
    .await;
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &[frame(0, "s", FRAME)]).await;
    projected(&kafka, &topic, 1, &reader_of(&database)).await;
    projector.becomes_ready().await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_for_a_while_loses_nothing() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let database = Database::of(&postgres);
    let topic = random_topic("away");
    create_topic(&kafka, &topic, 1, &[]).await;
    postgres.stop();
    let projector = Running::start(&kafka, &topic, &database, &[]);
    let away = async || projector.readiness().await.contains("in postgres://");
    eventually(DEADLINE, "the missing database to be reported", away).await;
    postgres.start_again().unwrap();
    projector.becomes_ready().await;

    postgres.stop();
    produce(&kafka, &topic, &[frame(0, "s", FRAME)]).await;
    let away = async || projector.readiness().await.contains("in postgres://");
    eventually(DEADLINE, "the missing database to be reported", away).await;
    postgres.start_again().unwrap();
    let reader = reader_of(&database);
    projected(&kafka, &topic, 1, &reader).await;
    assert!(document(&reader, "s").await.is_some());
    projector.becomes_ready().await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_rejects_the_connection_is_reported_with_what_to_do() {
    let Some(ca) = Authority::new("database-ca") else {
        return;
    };
    let Some(postgres) = Postgres::start() else {
        return;
    };
    postgres
        .demand_tls(&ca.sign("server", &["DNS:localhost"], 1), &ca)
        .unwrap();
    let login = format!("postgres://herald:hush@localhost:{}", postgres.port());
    let mut database = Database::of(&postgres);
    for (parameters, problem) in [
        (
            "sslmode=verify-full",
            "no known CA has signed its certificate; add sslrootcert=FILE",
        ),
        ("sslmode=disable", "it admits this user only over TLS"),
    ] {
        database.address = format!("{login}/postgres?{parameters}");
        let projector = Running::start("127.0.0.1:9", "events", &database, &[]);
        eventually(DEADLINE, problem, async || {
            let readiness = projector.readiness().await;
            assert!(!readiness.contains("hush"), "{readiness}");
            readiness.starts_with("HTTP/1.1 503") && readiness.contains(problem)
        })
        .await;
        projector.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_is_away_for_a_while_is_reported() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let kafka = broker.address().to_owned();
    let database = Database::sqlite();
    create_topic(&kafka, "events", 1, &[]).await;
    let projector = Running::start(&kafka, "events", &database, &[]);
    projector.becomes_ready().await;
    broker.kill().await;
    let away = async || {
        projector
            .readiness()
            .await
            .contains("Kafka does not answer")
    };
    eventually(DEADLINE, "the outage to be reported", away).await;
    broker.start_again().await;
    produce(&kafka, "events", &[frame(0, "s", FRAME)]).await;
    projected(&kafka, "events", 1, &reader_of(&database)).await;
    projector.becomes_ready().await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_deleted_by_a_command() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    for database in Database::all() {
        let topic = random_topic("delete");
        create_topic(&kafka, &topic, 1, &[]).await;
        produce(
            &kafka,
            &topic,
            &[frame(0, "s", FRAME), frame(0, "other", FRAME)],
        )
        .await;
        let projector = Running::start(&kafka, &topic, &database, &[]);
        let reader = reader_of(&database);
        projected(&kafka, &topic, 1, &reader).await;
        let delete = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_projector"));
            command.args(arguments(&kafka, &topic, &database));
            let output = command.args(["delete-session", "s"]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(delete().ends_with("deleted\n"));
        assert!(delete().ends_with("no such session\n"));
        assert_eq!(document(&reader, "s").await, None);
        assert!(document(&reader, "other").await.is_some());
        projector.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_sessions_are_deleted() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("age");
    create_topic(&kafka, &topic, 1, &[("retention.ms", "-1")]).await;
    let mut old = frame(0, "old", FRAME);
    old.timestamp = Some(1_500_000_000_000);
    produce(&kafka, &topic, &[old, frame(0, "new", FRAME)]).await;
    let projector = Running::start(&kafka, &topic, &database, &["--retention", "1h"]);
    let reader = reader_of(&database);
    projected(&kafka, &topic, 1, &reader).await;
    let gone = async || document(&reader, "old").await.is_none();
    eventually(DEADLINE, "the old session to be deleted", gone).await;
    assert!(document(&reader, "new").await.is_some());
    let counted = async || {
        projector
            .metric("herald_projector_expired_sessions_total")
            .await
            == 1.0
    };
    eventually(DEADLINE, "it to be counted", counted).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_read_is_reported_until_it_may() {
    let Some(mut broker) = Broker::start_with(&Broker::AUTHORIZER).await else {
        return;
    };
    let kafka = broker.address().to_owned();
    let database = Database::sqlite();
    create_topic(&kafka, "events", 1, &[]).await;
    produce(&kafka, "events", &[frame(0, "s", FRAME)]).await;
    broker.deny_read("events", true).await;
    let projector = Running::start(&kafka, "events", &database, &[]);
    let denied = async || projector.readiness().await.contains("authorization failed");
    eventually(DEADLINE, "the denial to be reported", denied).await;
    broker.deny_read("events", false).await;
    projected(&kafka, "events", 1, &reader_of(&database)).await;
    projector.becomes_ready().await;
    projector.end().await;
}
