//! Who may do what, and what is said if it fails.

use herald_testing::Database;
use std::process::{Command, Stdio};

use store::{Advance, Applied, Batch, DatabaseUrl, Name, Position, Reader, Writer};

use crate::{TOPIC, apply, document, id, reader_of, schema_of, url_of, writer_of};

const FRAME: &str = r#"[{"timestamp":1,"type":"EVENT"}]"#;

#[tokio::test]
async fn a_reader_without_a_database_fails_clearly_and_recovers() {
    for database in Database::all() {
        let reader = reader_of(&database);
        let error = reader.session(&id("s")).await.unwrap_err().to_string();
        assert!(error.contains("the projector creates"), "{error}");
        assert!(reader.check().await.is_err());
        let writer = writer_of(&database).await;
        apply(&writer, "s", &[FRAME]).await;
        reader.check().await.unwrap();
        assert!(document(&reader, "s").await.is_some());
    }
}

#[tokio::test]
async fn a_reader_of_sqlite_works_after_the_writer_has_closed() {
    let database = Database::sqlite();
    let writer = writer_of(&database).await;
    apply(&writer, "s", &[FRAME]).await;
    writer.close().await;
    assert!(document(&reader_of(&database), "s").await.is_some());
}

#[tokio::test]
async fn a_database_that_is_away_is_named_without_its_password() {
    let url: DatabaseUrl = "postgres://me:secret@127.0.0.1:9/herald".parse().unwrap();
    let reader = Reader::new(&url, &Name::default());
    let error = format!("{:#}", reader.session(&id("s")).await.unwrap_err());
    assert!(error.contains("postgres://127.0.0.1:9/herald"), "{error}");
    assert!(
        !error.contains("secret") && !error.contains('\n'),
        "{error}"
    );
}

#[tokio::test]
async fn several_writers_may_start_at_the_same_time() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (url, schema) = (url_of(&database), schema_of(&database));
    let open = || Writer::open(&url, &schema, None);
    let opened = futures_util::future::join_all((0..4).map(|_| open())).await;
    let working = opened.iter().filter(|writer| writer.is_ok()).count();
    // One may lose the race for the schema; it tries again.
    assert!(working >= 1);
    open().await.unwrap();
}

#[tokio::test]
async fn a_role_that_only_reads_cannot_write_or_see_the_tables() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let postgres = herald_testing::postgres().unwrap();
    let role: Name = database
        .schema
        .as_str()
        .replace("herald", "reader")
        .parse()
        .unwrap();
    postgres
        .sql(&format!("CREATE ROLE \"{role}\" LOGIN"))
        .unwrap();
    let writer = Writer::open(&url_of(&database), &schema_of(&database), Some(&role))
        .await
        .unwrap();
    // Again, as at the next start.
    Writer::open(&url_of(&database), &schema_of(&database), Some(&role))
        .await
        .unwrap();
    apply(&writer, "s", &[FRAME]).await;
    let url = postgres.url_as(role.as_str());
    let reader = Reader::new(&url.parse().unwrap(), &schema_of(&database));
    assert!(document(&reader, "s").await.is_some());
    let attempt = |statement: &str| {
        let output = Command::new("psql")
            .args(["-d", &url, "-c", statement])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let schema = &database.schema;
    for statement in [
        format!("DELETE FROM \"{schema}\".sessions"),
        format!("SELECT * FROM \"{schema}\".session_events"),
        format!("INSERT INTO \"{schema}\".projected_positions VALUES ('a', 'b', 0, 0)"),
        format!("CREATE TABLE \"{schema}\".mine (a int)"),
    ] {
        let error = attempt(&statement);
        assert!(error.contains("permission denied"), "{statement}: {error}");
    }
}

#[tokio::test]
async fn a_position_that_another_projector_has_moved_changes_nothing() {
    for database in Database::all() {
        let (one, reader) = (writer_of(&database).await, reader_of(&database));
        apply(&one, "s", &[FRAME]).await;
        let late = crate::batch("other", 0, FRAME);
        let two = writer_of(&database).await;
        let applied = two.apply(store::SESSIONS, TOPIC, &late).await.unwrap();
        assert_eq!(applied, Applied::Superseded(vec![0]));
        assert_eq!(document(&reader, "other").await, None);
        // The same offsets of a recreated log.
        let from = Position {
            next: 1,
            epoch: 1,
            ..Position::default()
        };
        let advances = vec![Advance {
            partition: 0,
            from,
            to: from,
        }];
        let stale = Batch {
            advances,
            ..Batch::default()
        };
        let applied = two.apply(store::SESSIONS, TOPIC, &stale).await.unwrap();
        assert_eq!(applied, Applied::Superseded(vec![0]));
    }
}
