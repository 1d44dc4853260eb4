//! One consumer process.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// Kafka's address, a new topic of one partition, and a consumer of it that is ready.
pub async fn with_topic(name: &str, options: &[&str]) -> Option<(String, String, Replica)> {
    let kafka = herald_testing::kafka()?;
    let topic = herald_testing::random_topic(name);
    herald_testing::create_topic(&kafka, &topic, 1, &[]).await;
    let replica = Replica::start(&kafka, &topic, options).await;
    Some((kafka, topic, replica))
}

pub struct Replica {
    process: Child,
    lines: mpsc::UnboundedReceiver<String>,
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

impl Replica {
    /// Starts a consumer and waits until it is ready.
    pub async fn start(kafka: &str, topic: &str, options: &[&str]) -> Self {
        let replica = Self::launch(kafka, topic, "127.0.0.1:0", options).await;
        replica.ready().await;
        replica
    }

    /// Starts a consumer at this address, and does not wait until it is ready.
    pub async fn launch(kafka: &str, topic: &str, listen: &str, options: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(["--kafka-bootstrap-servers", kafka, "--kafka-topic", topic])
            .args([
                "--listen",
                listen,
                "--admin-listen",
                "127.0.0.1:0",
                "--log-format",
                "json",
            ])
            // The embedded broker answers an empty fetch only when this time is over.
            .args(["--kafka-properties", "fetch.wait.max.ms=20"])
            .args(options)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the consumer starts");
        let mut output = BufReader::new(process.stdout.take().expect("piped")).lines();
        let (sender, mut lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                if !line.contains("Received: ") {
                    eprintln!("{line}");
                }
                _ = sender.send(line);
            }
        });
        let address = |line: &serde_json::Value, name: &str| {
            line[name].as_str().and_then(|text| text.parse().ok())
        };
        loop {
            let line = tokio::time::timeout(Duration::from_secs(20), lines.recv())
                .await
                .expect("the consumer listens in time")
                .expect("the consumer goes on");
            let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let (Some(public), Some(admin)) = (address(&line, "public"), address(&line, "admin"))
            {
                return Self {
                    process,
                    lines,
                    public,
                    admin,
                };
            }
        }
    }

    pub async fn ready(&self) {
        herald_testing::eventually(
            Duration::from_secs(30),
            "the consumer to be ready",
            async || self.get_admin("/readyz").await.0 == 200,
        )
        .await;
    }

    /// Status and body of a page of the admin server.
    pub async fn get_admin(&self, path: &str) -> (u16, String) {
        crate::client::get(self.admin, path)
            .await
            .unwrap_or((0, String::new()))
    }

    /// Status and JSON of a page of the public server.
    pub async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        let (status, body) = crate::client::get(self.public, path)
            .await
            .expect("an answer");
        (
            status,
            serde_json::from_str(&body)
                .unwrap_or_else(|error| panic!("{path}: {status} {body}: {error}")),
        )
    }

    /// The value of a metric, 0 when it is not there: `metric("herald_streams{transport=\"sse\"}")`.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get_admin("/metrics").await;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0.0)
    }

    pub fn id(&self) -> u32 {
        self.process.id().expect("the consumer runs")
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.process
            .kill()
            .await
            .expect("the consumer can be killed");
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let status = std::process::Command::new("kill")
            .arg(self.id().to_string())
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the end of the process and returns its exit code.
    pub async fn ended(&mut self, within: Duration) -> Option<i32> {
        tokio::time::timeout(within, self.process.wait())
            .await
            .expect("the consumer leaves in time")
            .expect("it can be waited for")
            .code()
    }

    /// Waits for a line of the log.
    pub async fn said(&mut self, text: &str) {
        let found = async {
            while let Some(line) = self.lines.recv().await {
                if line.contains(text) {
                    return;
                }
            }
            panic!("the consumer ended and never said {text:?}");
        };
        tokio::time::timeout(Duration::from_secs(60), found)
            .await
            .unwrap_or_else(|_| panic!("the consumer did not say {text:?}"));
    }
}
