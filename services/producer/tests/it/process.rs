//! The process: wrong input, signals, exit codes.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use herald_testing::{Broker, eventually, random_topic};

use crate::{DEADLINE, get};

fn producer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    command
        .env_clear()
        .env("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
        .args(["--admin-listen", "127.0.0.1:0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The one line that an invalid start logs.
fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Process {
        Process(command.spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &id])
            .status();
        assert!(status.unwrap().success());
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// The exit code.
    async fn ended(&mut self) -> i32 {
        eventually(DEADLINE, "the process to end", async || self.has_ended()).await;
        self.0.wait().unwrap().code().unwrap()
    }

    /// What an ended process wrote to stdout and stderr, where those are pipes.
    fn said(&mut self) -> String {
        let mut said = String::new();
        if let Some(stdout) = &mut self.0.stdout {
            stdout.read_to_string(&mut said).unwrap();
        }
        if let Some(stderr) = &mut self.0.stderr {
            stderr.read_to_string(&mut said).unwrap();
        }
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn wrong_input_is_one_line_and_exit_code_2() {
    let said = refused(producer().args(["--kafka-bootstrap-servers", "nonsense"]));
    assert!(
        said.contains("'nonsense'") && said.contains("--kafka-bootstrap-servers"),
        "{said}"
    );

    let said = refused(producer().arg("--speed"));
    assert!(said.contains("'--speed'"), "{said}");

    let said = refused(producer().env("KAFKA_PROPERTIES", "sasl.password=hush\nhush"));
    assert!(said.contains("line 2") && !said.contains("hush"), "{said}");

    let said = refused(producer().env("KAFKA_PROPERTIES", "acks=1"));
    assert!(said.contains("\"acks\" cannot be set"), "{said}");

    let said = refused(producer().args(["--interval-min", "3s", "--interval-max", "2s"]));
    assert!(
        said.contains("--interval-min 3s is longer than --interval-max 2s"),
        "{said}"
    );
}

#[test]
fn a_port_in_use_is_one_line_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    let said = refused(
        command
            .env_clear()
            .env("ADMIN_LISTEN", &addr)
            .stdout(Stdio::null())
            .stderr(Stdio::piped()),
    );
    assert!(
        said.contains(&addr) && said.contains("--admin-listen"),
        "{said}"
    );
}

/// The pod of a job has a container for each topic, and all of them one address.
#[test]
fn a_process_that_only_creates_the_topic_needs_no_port() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    let created = command
        .env_clear()
        .env("ADMIN_LISTEN", taken.local_addr().unwrap().to_string())
        .args([
            "--kafka-bootstrap-servers",
            &kafka,
            "--create-topic",
            "only",
        ])
        .args(["--kafka-topic", &random_topic("only")])
        .output();
    let Output { status, stderr, .. } = created.unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_reached_is_logged_once_and_a_signal_ends_the_wait() {
    let mut process = Process::start(&mut producer());
    // Long enough for several attempts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    process.signal("TERM");
    assert_eq!(process.ended().await, 0);
    let log = process.said();
    assert_eq!(log.matches("no connection to kafka").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unacknowledged_messages_hold_the_process_until_the_grace_period_or_a_second_signal() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let mut processes = Vec::new();
    for grace in ["5s", "60s"] {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
        command.env_clear().args([
            "--admin-listen",
            &port.to_string(),
            "--shutdown-grace",
            grace,
        ]);
        command.args([
            "--kafka-bootstrap-servers",
            broker.address(),
            "--kafka-topic",
            &random_topic("dev"),
        ]);
        command.args(["--interval-min", "5ms", "--interval-max", "20ms"]);
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::piped()));
        let connect = async || tokio::net::TcpStream::connect(port).await.is_ok();
        eventually(DEADLINE, "the admin server", connect).await;
        eventually(DEADLINE, "the producer to be ready", async || {
            get(port, "/readyz").await.starts_with("HTTP/1.1 200")
        })
        .await;
        processes.push(process);
    }
    broker.kill().await;
    tokio::time::sleep(Duration::from_millis(200)).await;

    let [patient, hurried] = processes.as_mut_slice() else {
        unreachable!()
    };
    let start = Instant::now();
    patient.signal("TERM");
    assert_eq!(patient.ended().await, 1);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );

    let start = Instant::now();
    hurried.signal("TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!hurried.has_ended());
    hurried.signal("INT");
    assert_eq!(hurried.ended().await, 130);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );

    let said = processes[0].said();
    assert!(
        said.contains("messages were not acknowledged by kafka"),
        "{said}"
    );
}
