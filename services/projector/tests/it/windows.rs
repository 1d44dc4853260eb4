//! Windowed counts of likes.

mod exactness;
mod lateness;
mod log;
mod malformed;
mod model;
mod recovery;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use herald_testing::{Record, Stored, create_topic, eventually, produce, random_topic};

use crate::{DEADLINE, Running};
use log::Log;
use model::Counted;

/// The labels of the windows.
const LABELS: [&str; 2] = ["1s", "3s"];

/// Their sizes, in milliseconds.
const SIZES: [i64; 2] = [1_000, 3_000];

/// In milliseconds.
const GRACE: i64 = 1_000;

/// The topics and the options of a projector of likes.
struct Setup {
    kafka: String,
    name: String,
    logs: Mutex<BTreeMap<String, Arc<Mutex<Log>>>>,
    sent: Mutex<Vec<Sent>>,
}

/// A like that is in Kafka.
struct Sent {
    id: Vec<u8>,
    timestamp: i64,
    /// When Kafka had it at the latest, in milliseconds since 1970.
    by: i64,
}

impl Setup {
    /// With this many partitions of the topic of likes and of the partitioned topic. Topics accept any timestamp.
    async fn new(kafka: &str, partitions: i32) -> Self {
        let any = [("message.timestamp.after.max.ms", "9223372036854775807")];
        Self::with(kafka, partitions, &any).await
    }

    /// `config` is that of the partitioned topic.
    async fn with(kafka: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        let setup = Self {
            kafka: kafka.to_owned(),
            name: random_topic("likes"),
            logs: Mutex::default(),
            sent: Mutex::default(),
        };
        let any = [("message.timestamp.after.max.ms", "9223372036854775807")];
        create_topic(kafka, &setup.likes_topic(), partitions, &any).await;
        create_topic(kafka, &setup.partitioned_topic(), partitions, config).await;
        for label in LABELS {
            create_topic(kafka, &setup.topic(label), 2, &[]).await;
            create_topic(kafka, &setup.live_topic(label), 2, &[]).await;
        }
        setup
    }

    fn likes_topic(&self) -> String {
        self.name.clone()
    }

    fn partitioned_topic(&self) -> String {
        format!("{}.partitioned", self.name)
    }

    fn topic(&self, label: &str) -> String {
        format!("{}.{label}", self.name)
    }

    fn live_topic(&self, label: &str) -> String {
        format!("{}.live", self.topic(label))
    }

    fn arguments(&self) -> Vec<String> {
        let windows = LABELS.map(|label| format!("{label}={}", self.topic(label)));
        let mut arguments: Vec<String> = [
            ("--kafka-bootstrap-servers", self.kafka.as_str()),
            ("--projections", "windows"),
            ("--group-prefix", &self.name),
            ("--likes-topic", &self.likes_topic()),
            ("--partitioned-likes-topic", &self.partitioned_topic()),
            ("--windows", &windows.join(",")),
            ("--window-grace", "1s"),
            ("--interim-interval", "500ms"),
            ("--batch-interval", "50ms"),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value.to_owned()])
        .collect();
        if herald_testing::is_embedded() {
            let properties = ["--kafka-properties", "fetch.wait.max.ms=20"];
            arguments.extend(properties.map(str::to_owned));
        }
        arguments
    }

    fn start(&self) -> Running {
        Running::with(&self.arguments())
    }

    /// As a process, which its successor of the same name replaces at once.
    fn process(&self, member: &str) -> Process {
        let child = Command::new(env!("CARGO_BIN_EXE_projector"))
            .args(self.arguments())
            .args(["--admin-listen", "127.0.0.1:0", "--batch-records", "200"])
            .env("KAFKA_PROPERTIES", format!("group.instance.id={member}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    async fn like(&self, likes: &[Record]) {
        produce(&self.kafka, &self.likes_topic(), likes).await;
        let by = now();
        let sent = likes.iter().map(|like| Sent {
            id: like.value.clone().unwrap_or_default(),
            timestamp: like.timestamp.unwrap(),
            by,
        });
        self.sent.lock().unwrap().extend(sent);
    }

    /// What a reader of committed records finds.
    async fn read(&self, topic: &str) -> Vec<Stored> {
        let log = self.log(topic);
        let read = tokio::task::spawn_blocking(move || log.lock().unwrap().read());
        read.await.unwrap()
    }

    fn log(&self, topic: &str) -> Arc<Mutex<Log>> {
        let mut logs = self.logs.lock().unwrap();
        let log = logs.entry(topic.to_owned()).or_insert_with(|| {
            let log = Log::new(&self.kafka, topic);
            Arc::new(Mutex::new(log))
        });
        log.clone()
    }

    async fn results(&self, label: &str) -> Vec<Counted> {
        let records = self.read(&self.topic(label)).await;
        records.iter().map(Counted::of).collect()
    }

    async fn interim(&self, label: &str) -> Vec<Counted> {
        let records = self.read(&self.live_topic(label)).await;
        records.iter().map(Counted::of).collect()
    }

    /// The number of late likes that interim counts have reported.
    async fn late(&self, label: &str) -> u64 {
        let interim = self.interim(label).await;
        interim.iter().filter_map(|count| count.late).sum()
    }

    /// Waits until this many likes are counted or late, for each size.
    async fn all_counted(&self, likes: u64) {
        for label in LABELS {
            let what = format!("{likes} likes to be counted in windows of {label}");
            eventually(3 * DEADLINE, &what, async || {
                let results = self.results(label).await;
                let counted: u64 = results.iter().map(|count| count.count).sum();
                counted + self.late(label).await >= likes
            })
            .await;
        }
    }
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    /// Kills it (SIGKILL).
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_millis() as i64
}

/// A like at this time.
fn like(partition: i32, id: &str, timestamp: i64) -> Record {
    Record {
        timestamp: Some(timestamp),
        ..Record::new(partition, id)
    }
}

#[test]
fn topics_that_are_the_same_are_one_line_and_exit_code_2() {
    let output = Command::new(env!("CARGO_BIN_EXE_projector"))
        .env_clear()
        .args(["--projections", "windows", "--admin-listen", "127.0.0.1:0"])
        .args(["--partitioned-likes-topic", "video_clicks_ingestion"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let expected = "the topic \"video_clicks_ingestion\" is used twice";
    assert!(stderr.contains(expected), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lonely_like_is_counted_by_the_clock() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let projector = setup.start();
    projector.becomes_ready().await;
    let time = now();
    setup.like(&[like(0, "a", time)]).await;
    setup.all_counted(1).await;
    let waited = Duration::from_millis((now() - time) as u64);
    // The window of 3 s, the grace, and a busy machine.
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    for (label, size) in LABELS.into_iter().zip(SIZES) {
        let results = setup.results(label).await;
        let start = time - time % size;
        let expected = Counted {
            label: label.to_owned(),
            id: "a".to_owned(),
            count: 1,
            start,
            end: start + size,
            partition: 0,
            from: 0,
            to: 1,
            late: None,
        };
        assert_eq!(results, [expected]);
        assert_eq!(setup.late(label).await, 0);
    }
    let interim = setup.interim("3s").await;
    assert!(interim.iter().any(|count| count.count == 1), "{interim:?}");
    projector.end().await;
}
