//! The process: wrong input, signals, exit codes.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use herald_testing::{Broker, eventually, random_topic};

use crate::{DEADLINE, get};

fn producer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    command.env_clear().args([
        "--admin-listen",
        "127.0.0.1:0",
        "--kafka-bootstrap-servers",
        "127.0.0.1:9",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The one line that a wrong start leaves behind.
fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", name, &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

async fn ended(child: &mut Child) -> i32 {
    let mut code = None;
    eventually(DEADLINE, "the process to end", async || {
        code = child
            .try_wait()
            .unwrap()
            .map(|status| status.code().unwrap());
        code.is_some()
    })
    .await;
    code.unwrap()
}

#[test]
fn wrong_input_is_one_line_and_exit_code_2() {
    let said = refused(producer().args(["--kafka-bootstrap-servers", "nonsense"]));
    assert!(
        said.contains("--kafka-bootstrap-servers")
            || said.contains("cannot be used multiple times"),
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

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_reached_is_told_once_and_the_signal_ends_the_wait() {
    let mut child = producer().spawn().unwrap();
    // Long enough for several attempts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    signal(&child, "TERM");
    assert_eq!(ended(&mut child).await, 0);
    let log = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(log.matches("no connection to kafka").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unacknowledged_messages_hold_the_process_until_the_grace_period_or_a_second_signal() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let mut children = Vec::new();
    for grace in ["2s", "60s"] {
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
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let connect = async || tokio::net::TcpStream::connect(port).await.is_ok();
        eventually(DEADLINE, "the admin server", connect).await;
        eventually(DEADLINE, "the producer to be ready", async || {
            get(port, "/readyz").await.starts_with("HTTP/1.1 200")
        })
        .await;
        children.push(child);
    }
    broker.kill().await;
    tokio::time::sleep(Duration::from_millis(200)).await;

    let [patient, hurried] = children.as_mut_slice() else {
        unreachable!()
    };
    let start = Instant::now();
    signal(patient, "TERM");
    assert_eq!(ended(patient).await, 1);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );

    let start = Instant::now();
    signal(hurried, "TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(hurried.try_wait().unwrap().is_none());
    signal(hurried, "INT");
    assert_eq!(ended(hurried).await, 130);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );

    let said = String::from_utf8(children.remove(0).wait_with_output().unwrap().stderr).unwrap();
    assert!(
        said.contains("messages were not acknowledged by kafka"),
        "{said}"
    );
}
