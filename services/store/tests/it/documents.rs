//! Documents of sessions.

use crate::database::Database;
use crate::{apply, document};

const FRAMES: [&str; 2] = [
    r#"[{"timestamp":1569972082,"type":"SESSION_START","session_id":"e6fa"},{"timestamp":1569972085,"type":"EVENT","name":"last_event"}]"#,
    r#"[{"timestamp":1569972083,"type":"EVENT","name":"middle_event"},{"timestamp":1569972083.0,"type":"EVENT","name":"first_event","x":1.10},{"timestamp":1569972086,"type":"SESSION_END","session_id":"e6fa"}]"#,
];

#[tokio::test]
async fn a_document_is_in_order_and_as_sent() {
    let database = Database::sqlite();
    let writer = database.writer().await;
    apply(&writer, "e6fa", &FRAMES).await;
    let expected = concat!(
        r#"{"session_id":"e6fa","type":"SESSION","start":1569972082,"end":1569972086,"children":["#,
        r#"{"timestamp":1569972083,"type":"EVENT","name":"middle_event"},"#,
        r#"{"timestamp":1569972083.0,"type":"EVENT","name":"first_event","x":1.10},"#,
        r#"{"timestamp":1569972085,"type":"EVENT","name":"last_event"}]}"#,
    );
    let reader = database.reader();
    assert_eq!(document(&reader, "e6fa").await.as_deref(), Some(expected));
    assert_eq!(document(&reader, "other").await, None);
}
