//! Documents of sessions.

use futures_util::StreamExt as _;
use herald_testing::Database;
use store::Applied;

use crate::{TOPIC, apply, batch, document, id, reader_of, writer_of};

const FRAMES: [&str; 2] = [
    r#"[{"timestamp":1569972082,"type":"SESSION_START","session_id":"e6fa"},{"timestamp":1569972085,"type":"EVENT","name":"last_event"}]"#,
    r#"[{"timestamp":1569972083,"type":"EVENT","name":"middle_event"},{"timestamp":1569972083.0,"type":"EVENT","name":"first_event","x":1.10},{"timestamp":1569972086,"type":"SESSION_END","session_id":"e6fa"}]"#,
];

#[tokio::test]
async fn a_document_is_in_order_and_as_sent() {
    let expected = concat!(
        r#"{"session_id":"e6fa","type":"SESSION","start":1569972082,"end":1569972086,"children":["#,
        r#"{"timestamp":1569972083,"type":"EVENT","name":"middle_event"},"#,
        r#"{"timestamp":1569972083.0,"type":"EVENT","name":"first_event","x":1.10},"#,
        r#"{"timestamp":1569972085,"type":"EVENT","name":"last_event"}]}"#,
    );
    for database in Database::all() {
        let writer = writer_of(&database).await;
        apply(&writer, "e6fa", &FRAMES).await;
        let reader = reader_of(&database);
        assert_eq!(document(&reader, "e6fa").await.as_deref(), Some(expected));
        assert_eq!(document(&reader, "other").await, None);
        assert!(
            reader
                .has_passed(store::SESSIONS, TOPIC, 0, 1, 0)
                .await
                .unwrap()
        );
        assert!(
            !reader
                .has_passed(store::SESSIONS, TOPIC, 0, 2, 0)
                .await
                .unwrap()
        );
        assert!(
            !reader
                .has_passed(store::SESSIONS, TOPIC, 1, 0, 0)
                .await
                .unwrap()
        );
    }
}

#[tokio::test]
async fn a_frame_that_is_sent_again_changes_neither_document_nor_version() {
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        apply(&writer, "s", &FRAMES).await;
        let before = document(&reader, "s").await;
        let version = reader.session(&id("s")).await.unwrap().unwrap().version();
        let again = batch("s", 2, FRAMES[1]);
        let applied = writer.apply(store::SESSIONS, TOPIC, &again).await.unwrap();
        let Applied::Committed(summary) = applied else {
            panic!("{applied:?}")
        };
        assert_eq!(
            (summary.events, summary.duplicates, summary.extra_bounds),
            (0, 3, 0)
        );
        assert_eq!(document(&reader, "s").await, before);
        let session = reader.session(&id("s")).await.unwrap().unwrap();
        assert_eq!(session.version(), version);

        apply(&writer, "s", &[r#"[{"timestamp":1,"type":"EVENT"}]"#]).await;
        let session = reader.session(&id("s")).await.unwrap().unwrap();
        assert_ne!(session.version(), version);
    }
}

#[tokio::test]
async fn the_first_start_and_the_last_end_count() {
    let bound =
        |time: u32, kind: &str| format!(r#"[{{"timestamp":{time},"type":"SESSION_{kind}"}}]"#);
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        let frames = [
            bound(7, "END"),
            bound(5, "START"),
            bound(3, "START"),
            bound(6, "END"),
        ];
        apply(&writer, "s", &frames.each_ref().map(String::as_str)).await;
        let expected = r#"{"session_id":"s","type":"SESSION","start":5,"end":6,"children":[]}"#;
        assert_eq!(document(&reader, "s").await.as_deref(), Some(expected));
        let extra = batch("s", 4, &bound(4, "START"));
        let applied = writer.apply(store::SESSIONS, TOPIC, &extra).await.unwrap();
        let Applied::Committed(summary) = applied else {
            panic!("{applied:?}")
        };
        assert_eq!(summary.extra_bounds, 1);
    }
}

#[tokio::test]
async fn a_document_that_is_read_slowly_does_not_contain_later_events() {
    let events: Vec<String> = (0..1200)
        .map(|time| format!(r#"{{"timestamp":{time},"type":"EVENT"}}"#))
        .collect();
    let frame = format!("[{}]", events.join(","));
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        apply(&writer, "s", &[&frame]).await;
        let expected = document(&reader, "s").await.unwrap();
        let session = reader.session(&id("s")).await.unwrap().unwrap();
        let mut pieces = Box::pin(session.into_document());
        let mut read = Vec::new();
        for _ in 0..2 {
            read.extend(pieces.next().await.unwrap().unwrap());
        }
        apply(&writer, "s", &[r#"[{"timestamp":1100.5,"type":"EVENT"}]"#]).await;
        while let Some(piece) = pieces.next().await {
            read.extend(piece.unwrap());
        }
        assert_eq!(String::from_utf8(read).unwrap(), expected);
        assert!(document(&reader, "s").await.unwrap().contains("1100.5"));
    }
}

#[tokio::test]
async fn a_session_that_is_deleted_while_it_is_read_is_an_error() {
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        apply(&writer, "s", &FRAMES).await;
        let session = reader.session(&id("s")).await.unwrap().unwrap();
        let version = session.version();
        assert!(writer.delete_session(&id("s")).await.unwrap());
        assert!(!writer.delete_session(&id("s")).await.unwrap());
        let error = session.into_bytes().await.unwrap_err();
        assert!(error.to_string().contains("deleted"), "{error}");
        assert_eq!(document(&reader, "s").await, None);
        // Its events are gone, too.
        apply(
            &writer,
            "s",
            &[r#"[{"timestamp":1,"type":"SESSION_START"}]"#],
        )
        .await;
        let session = reader.session(&id("s")).await.unwrap().unwrap();
        assert_ne!(session.version(), version);
        let expected = r#"{"session_id":"s","type":"SESSION","start":1,"end":null,"children":[]}"#;
        assert_eq!(document(&reader, "s").await.as_deref(), Some(expected));
    }
}

#[tokio::test]
async fn old_sessions_are_deleted_oldest_first() {
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        let frame = r#"[{"timestamp":1,"type":"EVENT"}]"#;
        // Written at 1000, 1001 and 1002.
        for session in ["a", "b", "c"] {
            apply(&writer, session, &[frame]).await;
        }
        assert_eq!(writer.delete_older(1002, 1).await.unwrap(), 1);
        assert_eq!(document(&reader, "a").await, None);
        assert_eq!(writer.delete_older(1002, 10).await.unwrap(), 1);
        assert!(document(&reader, "c").await.is_some());
    }
}

#[tokio::test]
async fn any_json_text_is_kept() {
    let odd = r#"[{"timestamp":-0.0,"type":"EVENT","name":"\u0000 \ud800 '$1 ä","n":123456789012345678901234567890.0,"id":"\u0000"}]"#;
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        let session = "'; DROP TABLE sessions; -- \"ä\n";
        apply(&writer, session, &[odd]).await;
        let document = document(&reader, session).await.unwrap();
        assert!(
            document.ends_with(&format!(r#""children":{odd}}}"#)),
            "{document}"
        );
    }
}
