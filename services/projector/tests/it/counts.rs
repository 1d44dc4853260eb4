//! Food counts equal the records, to the one, whatever happens meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use herald_testing::{
    Broker, Database, Record, create_topic, delete_topic, eventually, has_program, produce,
    random_topic, read_all, watermarks,
};
use rand::RngExt as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Executor as _, Row as _};

use crate::process::Process;
use crate::{DEADLINE, Running, reader_of};

const PARTITIONS: i32 = 3;

const FOODS: [&str; 5] = [
    "pie",
    "beer",
    "foie-gras",
    "ĸäse",
    "'; DROP TABLE aggregated",
];

type Counts = BTreeMap<String, i64>;

/// The folder of a file that belongs to another system. It is deleted at the end.
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

/// The options of a projector that counts into a file.
fn into_file(kafka: &str, topic: &str, file: &Path) -> Vec<String> {
    let file = file.display().to_string();
    options(kafka, topic, &["--counts-database", &file])
}

/// The options of a projector that counts into a database.
fn into_database(kafka: &str, topic: &str, database: &Database) -> Vec<String> {
    let url = ["--database-url", &database.address];
    let schema = ["--database-schema", &database.schema];
    let counts = ["--projections", "counts"];
    options(kafka, topic, &[url, schema, counts].concat())
}

fn options(kafka: &str, topic: &str, more: &[&str]) -> Vec<String> {
    let kafka = ["--kafka-bootstrap-servers", kafka];
    let topic = ["--counts-topic", topic, "--group-prefix", topic];
    let all = [&kafka[..], &topic, more].concat();
    all.into_iter().map(str::to_owned).collect()
}

/// Random occurrences over all partitions.
fn occurrences(count: usize) -> Vec<Record> {
    let one = |_| {
        let food = FOODS[rand::rng().random_range(0..FOODS.len())];
        let partition = rand::rng().random_range(0..PARTITIONS);
        Record::new(partition, serde_json::json!({"food": food}).to_string())
    };
    (0..count).map(one).collect()
}

/// The counts of all records of a topic.
async fn expected(kafka: &str, topic: &str) -> Counts {
    let mut counts = Counts::new();
    for record in read_all(kafka, topic).await {
        let value: serde_json::Value = serde_json::from_str(&record.text()).unwrap();
        *counts
            .entry(value["food"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    counts
}

/// What another program reads from the file.
async fn rows(file: &Path) -> sqlx::Result<Counts> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .busy_timeout(Duration::from_secs(10));
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let rows = connection
        .fetch_all("SELECT food, count FROM aggregated")
        .await?;
    connection.close().await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn stored(database: &Database) -> Counts {
    // Before the projector has created the tables, there are none.
    let rows = reader_of(database)
        .counts_after(0)
        .await
        .unwrap_or_default();
    rows.into_iter().map(|row| (row.food, row.count)).collect()
}

async fn file_has(file: &Path, counts: &Counts) {
    eventually(DEADLINE, "the file to have all counts", async || {
        let rows = rows(file).await.unwrap_or_default();
        assert!(
            rows.values().sum::<i64>() <= counts.values().sum::<i64>(),
            "{rows:?} is more than {counts:?}"
        );
        rows == *counts
    })
    .await;
}

async fn database_has(database: &Database, counts: &Counts) {
    eventually(DEADLINE, "the database to have all counts", async || {
        let rows = stored(database).await;
        let (sum, all) = (rows.values().sum::<i64>(), counts.values().sum::<i64>());
        assert!(sum <= all, "{rows:?} is more than {counts:?}");
        rows == *counts
    })
    .await;
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_projector"))
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_when_the_projector_is_killed() {
    killed(5, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: --long"]
async fn counts_of_100_000_records_are_exact_when_the_projector_is_killed_often() {
    killed(50, 100_000).await;
}

/// Kills projectors this many times at random points: one that counts into a file, and one for each database.
async fn killed(times: usize, records: usize) {
    let Some(kafka) = herald_testing::kafka_with("static members of groups") else {
        return;
    };
    let folder = Folder::new();
    let databases: Vec<Database> = Database::all().collect();
    let topic = random_topic("foods");
    create_topic(&kafka, &topic, PARTITIONS, &[]).await;
    let start = || {
        let mut all = vec![into_file(&kafka, &topic, &folder.file())];
        all.extend(
            databases
                .iter()
                .map(|database| into_database(&kafka, &topic, database)),
        );
        let start = |(number, mut options): (usize, Vec<String>)| {
            // Each has a group of its own.
            let group = options
                .iter_mut()
                .skip_while(|option| *option != "--group-prefix")
                .nth(1);
            *group.unwrap() = format!("{topic}-{number}");
            let batch = (records / 200).max(5).to_string();
            options.extend(["--batch-records".to_owned(), batch]);
            Process::run(program(), &options, "a")
        };
        all.into_iter().enumerate().map(start).collect::<Vec<_>>()
    };
    for part in occurrences(records).chunks(records.div_ceil(times)) {
        let processes = start();
        produce(&kafka, &topic, part).await;
        let pause = rand::rng().random_range(400..1500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        processes.into_iter().for_each(Process::kill);
    }
    let _processes = start();
    let counts = expected(&kafka, &topic).await;
    file_has(&folder.file(), &counts).await;
    for database in &databases {
        database_has(database, &counts).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_when_the_projector_is_killed_at_each_step_of_a_commit() {
    killed_at(&[("fsync", 1..8), ("unlink", 1..4), ("pwrite64", 3..5)]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: --long"]
async fn counts_are_exact_when_the_projector_is_killed_at_each_write() {
    killed_at(&[("fsync", 1..40), ("unlink", 1..20), ("pwrite64", 1..80)]).await;
}

/// Kills the projector at the nth call of these system calls, which only SQLite makes.
async fn killed_at(calls: &[(&str, std::ops::Range<usize>)]) {
    let Some(kafka) = herald_testing::kafka_with("static members of groups") else {
        return;
    };
    if !has_program("strace") {
        return;
    }
    let folder = Folder::new();
    let topic = random_topic("steps");
    create_topic(&kafka, &topic, PARTITIONS, &[]).await;
    let options = into_file(&kafka, &topic, &folder.file());
    let mut kills = 0;
    for (call, numbers) in calls {
        for number in numbers.clone() {
            produce(&kafka, &topic, &occurrences(30)).await;
            let mut traced = Command::new("strace");
            traced.args([
                "--follow-forks",
                "--quiet=all",
                "--trace",
                call,
                "--output=/dev/null",
            ]);
            traced.arg(format!("--inject={call}:signal=KILL:when={number}"));
            traced.arg(env!("CARGO_BIN_EXE_projector"));
            let mut process = Process::run(traced, &options, "a");
            let counts = expected(&kafka, &topic).await;
            let ended = async || {
                process.signal().is_some()
                    || rows(&folder.file()).await.is_ok_and(|rows| rows == counts)
            };
            eventually(DEADLINE, "the kill, or all counts", ended).await;
            kills += usize::from(process.signal() == Some(9));
            drop(process);
        }
    }
    let steps: usize = calls.iter().map(|(_, numbers)| numbers.len()).sum();
    assert!(
        kills > steps / 2,
        "only {kills} of {steps} steps were reached"
    );
    let _process = Process::run(program(), &options, "a");
    file_has(&folder.file(), &expected(&kafka, &topic).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_when_the_broker_is_killed_and_another_program_holds_the_file() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let kafka = broker.address().to_owned();
    let folder = Folder::new();
    create_topic(&kafka, "foods", PARTITIONS, &[]).await;
    let projector = Running::with(&into_file(&kafka, "foods", &folder.file()));
    projector.becomes_ready().await;
    let path = folder.file();
    let holding = tokio::spawn(async move {
        for _ in 0..2 {
            let options = SqliteConnectOptions::new().filename(&path);
            let mut reader = SqliteConnection::connect_with(&options).await.unwrap();
            reader.execute("BEGIN").await.unwrap();
            reader.fetch_all("SELECT * FROM aggregated").await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            reader.execute("COMMIT").await.unwrap();
        }
    });
    produce(&kafka, "foods", &occurrences(500)).await;
    broker.kill().await;
    broker.start_again().await;
    produce(&kafka, "foods", &occurrences(500)).await;
    file_has(&folder.file(), &expected(&kafka, "foods").await).await;
    holding.await.unwrap();
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_system_is_continued_from_the_end_of_the_topic() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let folder = Folder::new();
    let topic = random_topic("continued");
    create_topic(&kafka, &topic, PARTITIONS, &[]).await;
    let options = SqliteConnectOptions::new()
        .filename(folder.file())
        .create_if_missing(true);
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    let table = r#"CREATE TABLE "aggregated" ("food" TEXT, "count" INTEGER, PRIMARY KEY("food"))"#;
    other.execute(table).await.unwrap();
    other
        .execute("INSERT INTO aggregated VALUES ('pie', 7)")
        .await
        .unwrap();
    other.close().await.unwrap();
    let pies = |partitions: &[i32]| {
        let pies = partitions.iter();
        pies.map(|&partition| Record::new(partition, r#"{"food": "pie"}"#))
            .collect::<Vec<_>>()
    };
    produce(&kafka, &topic, &pies(&[0, 0, 1])).await;
    let projector = Running::with(&into_file(&kafka, &topic, &folder.file()));
    projector.becomes_ready().await;
    produce(&kafka, &topic, &pies(&[0, 1, 2])).await;
    file_has(&folder.file(), &[("pie".to_owned(), 10)].into()).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleared_topic_is_noticed_and_counted_from_its_start() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    // With fewer records than before, and with more.
    for count in [3, 20] {
        let folder = Folder::new();
        let topic = random_topic("cleared");
        let pies = |count| vec![Record::new(0, r#"{"food": "pie"}"#); count];
        let options = into_file(&kafka, &topic, &folder.file());
        create_topic(&kafka, &topic, 1, &[]).await;
        produce(&kafka, &topic, &pies(10)).await;
        let projector = Running::with(&options);
        file_has(&folder.file(), &[("pie".to_owned(), 10)].into()).await;
        projector.end().await;
        delete_topic(&kafka, &topic).await;
        create_topic(&kafka, &topic, 1, &[]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        produce(&kafka, &topic, &pies(count)).await;
        let projector = Running::with(&options);
        let all = 10 + count as i64;
        file_has(&folder.file(), &[("pie".to_owned(), all)].into()).await;
        let noticed = projector
            .metric("herald_projector_recreated_logs_total")
            .await;
        assert_eq!(noticed, 1.0);
        projector.end().await;
    }
}

/// As after a backup was restored: the topic has earlier records of those that were counted, and not the last ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_lost_its_end_is_not_counted_again() {
    let Some(kafka) = herald_testing::kafka_with("topics that can be deleted") else {
        return;
    };
    let folder = Folder::new();
    let topic = random_topic("restored");
    let old = |_| Record {
        timestamp: Some(1_700_000_000_000),
        ..Record::new(0, r#"{"food": "pie"}"#)
    };
    let options = into_file(&kafka, &topic, &folder.file());
    create_topic(&kafka, &topic, 1, &[("retention.ms", "-1")]).await;
    produce(&kafka, &topic, &(0..10).map(old).collect::<Vec<_>>()).await;
    let projector = Running::with(&options);
    file_has(&folder.file(), &[("pie".to_owned(), 10)].into()).await;
    projector.end().await;
    delete_topic(&kafka, &topic).await;
    create_topic(&kafka, &topic, 1, &[("retention.ms", "-1")]).await;
    produce(&kafka, &topic, &(0..7).map(old).collect::<Vec<_>>()).await;
    let projector = Running::with(&options);
    projector.becomes_ready().await;
    produce(&kafka, &topic, &[Record::new(0, r#"{"food": "beer"}"#)]).await;
    let counts = [("pie".to_owned(), 10), ("beer".to_owned(), 1)];
    file_has(&folder.file(), &counts.into()).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_foods_become_dead_letters_and_operators_see_why() {
    let Some(kafka) = herald_testing::kafka_with("admin requests") else {
        return;
    };
    let database = Database::sqlite();
    let topic = random_topic("bad-foods");
    create_topic(&kafka, &topic, 1, &[]).await;
    // The first is the example of the task that the original was made for.
    let bad = [
        "{\n    \"food\": \"sandwich\",\n}",
        "{}",
        r#"{"food":""}"#,
        "pie",
    ];
    let mut records: Vec<Record> = bad.iter().map(|&value| Record::new(0, value)).collect();
    records.push(Record::new(0, r#"{"food": "sandwich"}"#));
    produce(&kafka, &topic, &records).await;
    let projector = Running::with(&into_database(&kafka, &topic, &database));
    database_has(&database, &[("sandwich".to_owned(), 1)].into()).await;
    let letters = read_all(&kafka, &format!("{topic}.dlq")).await;
    let values: Vec<String> = letters.iter().map(|letter| letter.text()).collect();
    assert_eq!(values, bad);
    let reason = letters[0].headers.iter().find(|(name, _)| name == "reason");
    let reason = reason.and_then(|(_, value)| value.clone()).unwrap();
    assert_eq!(reason, b"the value must be a JSON object");
    assert_eq!(
        projector
            .metric("herald_projector_dead_letters_total")
            .await,
        4.0
    );
    assert_eq!(projector.metric("herald_projector_foods_total").await, 1.0);
    assert!(
        projector
            .metric("herald_projector_last_commit_timestamp_seconds")
            .await
            > 1.7e9
    );
    let (_, end) = watermarks(&kafka, &topic, 0).await;
    assert_eq!(end, 5);
    projector.becomes_ready().await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_projector_on_the_same_file_is_refused_in_one_line() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let folder = Folder::new();
    let topic = random_topic("twice");
    create_topic(&kafka, &topic, 1, &[]).await;
    let options = into_file(&kafka, &topic, &folder.file());
    let projector = Running::with(&options);
    projector.becomes_ready().await;
    let mut second = program();
    second
        .args(&options)
        .args(["--admin-listen", "127.0.0.1:0"]);
    let output = second.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("another projector counts into this file"),
        "{stderr}"
    );
    projector.end().await;
}
