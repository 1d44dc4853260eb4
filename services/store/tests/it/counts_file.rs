//! Counts in a file of SQLite that other programs read.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use herald_testing::random_topic;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Executor as _, Row as _};
use store::{Applied, CountsFile, Position};

use crate::counts::batch;

const TOPIC: &str = "message";

const TABLE: &str =
    r#"CREATE TABLE "aggregated" ("food" TEXT, "count" INTEGER, PRIMARY KEY("food"))"#;

/// Deleted at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(random_topic("herald-counts"));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("db.sqlite")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Another program's connection.
async fn connect(file: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(10));
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// What another program changes.
async fn execute(file: &Path, statement: &'static str) {
    let mut connection = connect(file).await;
    connection.execute(statement).await.unwrap();
    connection.close().await.unwrap();
}

/// What another program reads.
async fn texts(file: &Path, query: &'static str) -> Vec<String> {
    let mut connection = connect(file).await;
    let rows = connection.fetch_all(query).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn rows(file: &Path) -> Vec<String> {
    texts(file, "SELECT food || ' ' || count FROM aggregated").await
}

async fn open(file: &Path) -> CountsFile {
    CountsFile::open(file).await.unwrap()
}

async fn refused(file: &Path) -> String {
    let error = CountsFile::open(file).await.map(drop).unwrap_err();
    let sentence = format!("{error:#}");
    assert!(!sentence.contains('\n'), "{sentence}");
    sentence
}

async fn count(file: &CountsFile, offset: i64, foods: &[&str]) {
    let begin = Position::default();
    file.begin(TOPIC, &[(0, begin)]).await.unwrap();
    let applied = file.apply(TOPIC, &batch(0, offset, foods)).await.unwrap();
    assert!(matches!(applied, Applied::Committed(_)), "{applied:?}");
}

#[tokio::test]
async fn the_file_keeps_its_schema_its_journal_and_the_order_of_its_rows() {
    let folder = Folder::new();
    let file = open(&folder.file()).await;
    count(&file, 0, &["pie", "beer", "pie"]).await;
    count(&file, 1, &["beer", "apple"]).await;
    assert_eq!(rows(&folder.file()).await, ["pie 2", "beer 2", "apple 1"]);
    let schema = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL";
    assert_eq!(texts(&folder.file(), schema).await, [TABLE]);
    let mode = texts(&folder.file(), "PRAGMA journal_mode").await;
    assert_eq!(mode, ["delete"]);
    let position = file.position(TOPIC, 0).await.unwrap().unwrap();
    assert_eq!(position.next, 2);
    let again = file.apply(TOPIC, &batch(0, 0, &["pie"])).await.unwrap();
    assert_eq!(again, Applied::Superseded(vec![0]));
}

#[tokio::test]
async fn an_existing_file_is_continued_and_an_empty_one_begun() {
    let folder = Folder::new();
    execute(&folder.file(), TABLE).await;
    let file = open(&folder.file()).await;
    assert!(!file.is_continued(TOPIC).await.unwrap());
    drop(file);
    // The original stored the first occurrence as 0; it is not repaired.
    execute(&folder.file(), "INSERT INTO aggregated VALUES ('pie', 0)").await;
    let file = open(&folder.file()).await;
    assert!(file.is_continued(TOPIC).await.unwrap());
    count(&file, 0, &["pie"]).await;
    assert!(!file.is_continued(TOPIC).await.unwrap());
    assert_eq!(rows(&folder.file()).await, ["pie 1"]);
}

#[tokio::test]
async fn without_the_counts_the_positions_mean_nothing() {
    let folder = Folder::new();
    count(&open(&folder.file()).await, 0, &["pie"]).await;
    std::fs::remove_file(folder.file()).unwrap();
    let file = open(&folder.file()).await;
    assert_eq!(file.position(TOPIC, 0).await.unwrap(), None);
    assert!(!file.is_continued(TOPIC).await.unwrap());
}

#[tokio::test]
async fn counts_that_another_program_has_changed_are_continued_as_they_are() {
    let folder = Folder::new();
    count(&open(&folder.file()).await, 0, &["pie"]).await;
    execute(&folder.file(), "UPDATE aggregated SET count = 7").await;
    let file = open(&folder.file()).await;
    count(&file, 1, &["pie"]).await;
    assert_eq!(rows(&folder.file()).await, ["pie 8"]);
    assert_eq!(file.position(TOPIC, 0).await.unwrap().unwrap().next, 2);
}

#[tokio::test]
async fn a_batch_that_nobody_waited_for_is_counted_once() {
    let folder = Folder::new();
    let file = open(&folder.file()).await;
    count(&file, 0, &["pie"]).await;
    let mut reader = connect(&folder.file()).await;
    reader.execute("BEGIN").await.unwrap();
    reader.fetch_all("SELECT * FROM aggregated").await.unwrap();
    let second = batch(0, 1, &["pie"]);
    let given_up = tokio::time::timeout(Duration::from_secs(1), file.apply(TOPIC, &second)).await;
    assert!(given_up.is_err());
    reader.execute("COMMIT").await.unwrap();
    let next = file.position(TOPIC, 0).await.unwrap().unwrap().next;
    let applied = file.apply(TOPIC, &batch(0, next, &["pie"])).await.unwrap();
    assert!(matches!(applied, Applied::Committed(_)), "{applied:?}");
    assert_eq!(rows(&folder.file()).await, [format!("pie {}", next + 1)]);
}

#[tokio::test]
async fn what_would_count_wrong_is_refused_in_one_sentence() {
    let folder = Folder::new();
    let first = open(&folder.file()).await;
    let sentence = refused(&folder.file()).await;
    assert!(
        sentence.contains("another projector counts into"),
        "{sentence}"
    );
    drop(first);

    let moved = Folder::new();
    for suffix in ["", "-offsets", "-lock"] {
        let name = format!("db.sqlite{suffix}");
        std::fs::copy(folder.0.join(&name), moved.0.join(&name)).unwrap();
    }
    let sentence = refused(&moved.file()).await;
    assert!(
        sentence.contains("were written at") && sentence.contains("mount"),
        "{sentence}"
    );

    execute(&folder.file(), "PRAGMA journal_mode = WAL").await;
    let sentence = refused(&folder.file()).await;
    assert!(sentence.contains("journal mode"), "{sentence}");

    let other = Folder::new();
    execute(&other.file(), "CREATE TABLE aggregated (name TEXT)").await;
    let sentence = refused(&other.file()).await;
    assert!(sentence.contains("columns [\"name\"]"), "{sentence}");
    std::fs::write(
        other.file(),
        "not a database, but a text that is long enough",
    )
    .unwrap();
    let sentence = refused(&other.file()).await;
    assert!(sentence.contains("not a database"), "{sentence}");
    let sentence = refused(Path::new("/nowhere/db.sqlite")).await;
    assert!(sentence.contains("--counts-database"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_a_reader_that_holds_the_file() {
    let folder = Folder::new();
    let file = open(&folder.file()).await;
    count(&file, 0, &["pie"]).await;
    let mut reader = connect(&folder.file()).await;
    reader.execute("BEGIN").await.unwrap();
    reader.fetch_all("SELECT * FROM aggregated").await.unwrap();
    let begun = Instant::now();
    let path = folder.file();
    let waiting = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // A reader that comes meanwhile waits for the commit, well below its own limit of 10 seconds.
        rows(&path).await
    });
    let held = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        reader.execute("COMMIT").await.unwrap();
    });
    count(&file, 1, &["pie"]).await;
    let waited = begun.elapsed();
    assert!(
        waited > Duration::from_secs(4) && waited < Duration::from_secs(10),
        "{waited:?}"
    );
    assert!(waiting.await.unwrap()[0].starts_with("pie "));
    held.await.unwrap();
    assert_eq!(rows(&folder.file()).await, ["pie 2"]);
}
