//! Records that are not frames of a session.

use herald_testing::{Database, Record, create_topic, eventually, produce, random_topic, read_all};

use crate::{DEADLINE, Running, document, frame, projected, reader_of};

#[tokio::test(flavor = "multi_thread")]
async fn malformed_records_become_dead_letters_and_stop_nothing() {
    let Some(kafka) = herald_testing::kafka_with("admin requests") else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("malformed");
    create_topic(&kafka, &topic, 1, &[]).await;
    let good = r#"[{"timestamp":1,"type":"EVENT"}]"#;
    let large = format!("[{{\"timestamp\":\"{}\"}}]", "x".repeat(900_000));
    let bad = [
        frame(0, "s", "[]"),
        frame(
            0,
            "s",
            r#"[{"timestamp":1,"type":"EVENT"},{"timestamp":"1","type":"EVENT"}]"#,
        ),
        Record::new(0, good),
        Record {
            key: Some(b"s".to_vec()),
            ..Record::new(0, good)
        },
        Record {
            value: None,
            timestamp: Some(77),
            ..frame(0, "s", "")
        },
        Record {
            headers: vec![("x-request-id".to_owned(), Some(b"r1".to_vec()))],
            ..frame(0, "s", "\u{0}not json")
        },
        frame(0, "s", &large),
    ];
    let mut records = vec![frame(0, "s", good)];
    records.extend(bad.clone());
    records.push(frame(0, "s", r#"[{"timestamp":2,"type":"EVENT"}]"#));
    produce(&kafka, &topic, &records).await;
    let projector = Running::start(&kafka, &topic, &database, &[]);
    let reader = reader_of(&database);
    projected(&kafka, &topic, 1, &reader).await;
    let document = document(&reader, "s").await.unwrap();
    assert!(
        document.ends_with(r#"[{"timestamp":1,"type":"EVENT"},{"timestamp":2,"type":"EVENT"}]}"#)
    );

    let letters = read_all(&kafka, &format!("{topic}.dlq")).await;
    let reasons = [
        "a frame must contain at least one event",
        "element 1: \"timestamp\" must be a finite number",
        "the record has no key",
        "the key is not a JSON string",
        "the record has no value",
        "a frame must be JSON",
        "element 0: \"timestamp\" must be a finite number",
    ];
    assert_eq!(letters.len(), bad.len());
    for (((letter, record), reason), offset) in letters.iter().zip(&bad).zip(reasons).zip(1..) {
        let header = |name: &str| {
            let found = letter.headers.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| String::from_utf8(value.clone().unwrap_or_default()).unwrap())
        };
        assert_eq!(letter.key, Some(format!("{topic}/0/{offset}").into_bytes()));
        assert_eq!(letter.value, record.value);
        assert_eq!(header("origin-topic").as_ref(), Some(&topic));
        assert_eq!(header("origin-partition").as_deref(), Some("0"));
        assert_eq!(header("origin-offset"), Some(offset.to_string()));
        assert_eq!(header("reason").as_deref(), Some(reason));
        assert!(header("origin-timestamp").is_some());
        if offset == 6 {
            assert_eq!(header("x-request-id").as_deref(), Some("r1"));
        }
    }
    let counted = async || {
        projector
            .metric("herald_projector_dead_letters_total")
            .await
            == 7.0
    };
    eventually(DEADLINE, "the dead letters to be counted", counted).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_kafka_does_not_take_is_tried_again() {
    let Some(kafka) = herald_testing::kafka_with("admin requests") else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("no-dlq");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(
        &kafka,
        &topic,
        &[
            frame(0, "s", "[]"),
            frame(0, "s", r#"[{"timestamp":1,"type":"EVENT"}]"#),
        ],
    )
    .await;
    let projector = Running::start(
        &kafka,
        &topic,
        &database,
        &["--create-dead-letter-topic", "false"],
    );
    eventually(DEADLINE, "the missing topic to be reported", async || {
        projector.readiness().await.contains("malformed record")
    })
    .await;
    let reader = reader_of(&database);
    assert_eq!(document(&reader, "s").await, None);
    create_topic(&kafka, &format!("{topic}.dlq"), 1, &[]).await;
    projected(&kafka, &topic, 1, &reader).await;
    assert!(document(&reader, "s").await.is_some());
    assert!(!read_all(&kafka, &format!("{topic}.dlq")).await.is_empty());
    projector.becomes_ready().await;
    projector.end().await;
}
