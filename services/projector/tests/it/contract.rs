//! The case of the original, and large sessions.

use herald_testing::{Database, create_topic, produce, random_topic};

use crate::{Running, document, frame, projected, reader_of};

const SESSION: &str = "e6fa79ca-d142-4046-a134-5134f16a0b5e";

fn frames(key: &dyn Fn(&str) -> String) -> Vec<herald_testing::Record> {
    let one = format!(
        r#"[{{"timestamp":1569972082,"type":"SESSION_START","session_id":"{SESSION}"}},{{"timestamp":1569972085,"type":"EVENT","name":"last_event"}}]"#
    );
    let two = format!(
        r#"[{{"timestamp":1569972083,"type":"EVENT","name":"middle_event"}},{{"timestamp":1569972083,"type":"EVENT","name":"first_event"}},{{"timestamp":1569972086,"type":"SESSION_END","session_id":"{SESSION}"}}]"#
    );
    [one, two]
        .into_iter()
        .map(|value| herald_testing::Record {
            key: Some(key(SESSION).into_bytes()),
            ..herald_testing::Record::new(0, value)
        })
        .collect()
}

fn expected() -> String {
    format!(
        r#"{{"session_id":"{SESSION}","type":"SESSION","start":1569972082,"end":1569972086,"children":[{{"timestamp":1569972083,"type":"EVENT","name":"middle_event"}},{{"timestamp":1569972083,"type":"EVENT","name":"first_event"}},{{"timestamp":1569972085,"type":"EVENT","name":"last_event"}}]}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_of_the_original_comes_out() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    for database in Database::all() {
        let topic = random_topic("contract");
        create_topic(&kafka, &topic, 1, &[]).await;
        let projector = Running::start(&kafka, &topic, &database, &[]);
        projector.becomes_ready().await;
        produce(&kafka, &topic, &frames(&|id| format!("\"{id}\""))).await;
        let reader = reader_of(&database);
        projected(&kafka, &topic, 1, &reader).await;
        assert_eq!(document(&reader, SESSION).await, Some(expected()));
        assert_eq!(
            projector.metric("herald_projector_records_total").await,
            2.0
        );
        assert_eq!(projector.metric("herald_projector_events_total").await, 5.0);
        assert_eq!(projector.metric("herald_projector_lag_records").await, 0.0);
        projector.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_quotes_is_an_option() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("raw-key");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &frames(&str::to_owned)).await;
    let projector = Running::start(&kafka, &topic, &database, &["--session-key", "raw"]);
    projector.becomes_ready().await;
    assert_eq!(
        document(&reader_of(&database), SESSION).await,
        Some(expected())
    );
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_100_000_events_is_projected_and_read() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    for database in Database::all() {
        let topic = random_topic("large");
        create_topic(&kafka, &topic, 1, &[]).await;
        // In an order of its own: 37 has no divisor in common with 100,000.
        let event = |n: usize| {
            format!(
                r#"{{"timestamp":{},"type":"EVENT","name":"n"}}"#,
                n * 37 % 100_000
            )
        };
        let all: Vec<String> = (0..100_000).map(event).collect();
        let records = all
            .chunks(1000)
            .map(|events| frame(0, "large", &format!("[{}]", events.join(","))));
        produce(&kafka, &topic, &records.collect::<Vec<_>>()).await;
        let projector = Running::start(&kafka, &topic, &database, &[]);
        projector.becomes_ready().await;
        let document = document(&reader_of(&database), "large").await.unwrap();
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        let children = document["children"].as_array().unwrap();
        let timestamps = children
            .iter()
            .map(|child| child["timestamp"].as_u64().unwrap());
        assert!(timestamps.eq(0..100_000));
        projector.end().await;
    }
}
