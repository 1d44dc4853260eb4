//! An Apache Kafka for tests: from Maven Central with Java, or the `apache/kafka` image where a container engine runs.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use herald_testing::KafkaProcess;

use crate::command::{command, run as run_command, show};
use crate::tools::{JAVA, MAVEN};

const IMAGE: &str = "apache/kafka:4.3.1";

/// Removes the container when its parent closes the pipe, however that happens.
const GUARD: &str = r#"read -r _; "$0" rm -f "$1" > /dev/null"#;

/// A Kafka that stops when it is dropped or when this process exits in any other way.
pub struct Kafka {
    /// `host:port`.
    pub address: String,
    /// The folder with the jars, for tests that start their own Kafka.
    pub jars: Option<PathBuf>,
    process: Option<KafkaProcess>,
    guard: Option<Child>,
}

/// `cargo xtask kafka`: runs until Ctrl-C.
pub fn run() -> anyhow::Result<ExitCode> {
    let kafka = start()?;
    println!("\nKafka runs at {} until Ctrl-C.\n", kafka.address);
    println!("export KAFKA_BOOTSTRAP_SERVERS={}", kafka.address);
    println!("export HERALD_TEST_KAFKA={}", kafka.address);
    if let Some(jars) = &kafka.jars {
        println!("export HERALD_KAFKA_JARS={}", jars.display());
    }
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// The Kafka of HERALD_TEST_KAFKA, or a new one.
pub fn given_or_started() -> anyhow::Result<Kafka> {
    match std::env::var("HERALD_TEST_KAFKA") {
        Ok(address) if !address.is_empty() => {
            // Most tests would wait for it.
            TcpStream::connect(&address).with_context(|| {
                format!("no Kafka listens at {address}, which HERALD_TEST_KAFKA names; start it, or unset the variable")
            })?;
            Ok(Kafka {
                address,
                jars: jars().ok(),
                process: None,
                guard: None,
            })
        }
        _ => start(),
    }
}

fn start() -> anyhow::Result<Kafka> {
    let why = match jars() {
        Ok(jars) => {
            println!("starting Apache Kafka");
            let process = KafkaProcess::start(&jars, &[])?;
            return Ok(Kafka {
                address: process.address(),
                jars: Some(jars),
                process: Some(process),
                guard: None,
            });
        }
        Err(why) => why,
    };
    for engine in ["docker", "podman"] {
        if works(engine) {
            return start_container(engine);
        }
    }
    bail!("{why:#}; neither docker nor podman is running either");
}

/// The folder with Kafka's jars, downloaded if missing.
fn jars() -> anyhow::Result<PathBuf> {
    if JAVA.find().is_none() {
        bail!("{}", JAVA.missing());
    }
    if let Some(jars) = std::env::var_os("HERALD_KAFKA_JARS").filter(|jars| !jars.is_empty()) {
        return Ok(jars.into());
    }
    let jars = crate::target().join("kafka");
    let wanted = crate::root().join("xtask/kafka/pom.xml");
    let had = jars.join("pom.xml");
    if fs::read(&had).ok() == Some(fs::read(&wanted)?) {
        return Ok(jars);
    }
    if MAVEN.find().is_none() {
        bail!("{}", MAVEN.missing());
    }
    println!("fetching Apache Kafka from Maven Central, about 100 MB, once");
    let _ = fs::remove_dir_all(&jars);
    let output = format!("-DoutputDirectory={}", jars.display());
    let args = [
        "-q",
        "-f",
        "xtask/kafka/pom.xml",
        "dependency:copy-dependencies",
        &output,
    ];
    run_command(&mut command("mvn", args))?;
    // Last, so that an interrupted download is not taken for a complete one.
    fs::copy(&wanted, &had)?;
    Ok(jars)
}

fn works(engine: &str) -> bool {
    let mut info = command(engine, ["info"]);
    info.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    info.status().is_ok_and(|status| status.success())
}

fn start_container(engine: &str) -> anyhow::Result<Kafka> {
    // Kafka must advertise the published port, so it is chosen first.
    let port = KafkaProcess::free_port()?;
    let name = format!("herald-kafka-{port}");
    let publish = format!("127.0.0.1:{port}:{port}");
    let mut docker = command(
        engine,
        ["run", "--detach", "--rm", "--name", &name, "-p", &publish],
    );
    // Any such variable replaces the image's whole configuration.
    for (key, value) in [
        ("NODE_ID", "1"),
        ("PROCESS_ROLES", "broker,controller"),
        ("CONTROLLER_QUORUM_VOTERS", "1@localhost:9093"),
        (
            "LISTENERS",
            &format!("PLAINTEXT://:{port},CONTROLLER://:9093"),
        ),
        (
            "ADVERTISED_LISTENERS",
            &format!("PLAINTEXT://127.0.0.1:{port}"),
        ),
        ("CONTROLLER_LISTENER_NAMES", "CONTROLLER"),
        (
            "LISTENER_SECURITY_PROTOCOL_MAP",
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        ),
        ("AUTO_CREATE_TOPICS_ENABLE", "false"),
        ("OFFSETS_TOPIC_REPLICATION_FACTOR", "1"),
        ("TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1"),
        ("TRANSACTION_STATE_LOG_MIN_ISR", "1"),
        ("GROUP_INITIAL_REBALANCE_DELAY_MS", "0"),
        ("MESSAGE_MAX_BYTES", "16777216"),
        ("LOG_INITIAL_TASK_DELAY_MS", "500"),
        ("LOG_RETENTION_CHECK_INTERVAL_MS", "500"),
        ("LOG_CLEANER_BACKOFF_MS", "500"),
    ] {
        docker.args(["-e", &format!("KAFKA_{key}={value}")]);
    }
    run_command(docker.arg(IMAGE))?;
    let guard = command("sh", ["-c", GUARD, engine, &name])
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot run sh")?;
    let kafka = Kafka {
        address: format!("127.0.0.1:{port}"),
        jars: None,
        process: None,
        guard: Some(guard),
    };
    let mut ready = command(engine, ["exec", &name, "/opt/kafka/bin/kafka-topics.sh"]);
    ready.args(["--bootstrap-server", &kafka.address, "--list"]);
    ready.stdout(Stdio::null()).stderr(Stdio::null());
    show(&ready);
    let deadline = Instant::now() + Duration::from_secs(120);
    while !(TcpStream::connect(&kafka.address).is_ok() && ready.status()?.success()) {
        if Instant::now() > deadline {
            bail!("Kafka in {name} did not start within 120 s; see {engine} logs {name}");
        }
        sleep(Duration::from_millis(500));
    }
    Ok(kafka)
}

impl Drop for Kafka {
    fn drop(&mut self) {
        drop(self.process.take());
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

impl Kafka {
    /// The environment variables that tests read.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("HERALD_TEST_KAFKA", self.address.clone())];
        if let Some(jars) = &self.jars {
            variables.push(("HERALD_KAFKA_JARS", path(jars)));
        }
        variables
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
