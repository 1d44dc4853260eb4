//! A private Apache Kafka process: one node, KRaft, on 127.0.0.1, without automatic topic creation.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Starting takes 2 to 4 seconds, and several times as long on two busy cores.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// Kills Kafka and deletes its folder when the parent closes the pipe: deliberately, or because it died (Ctrl-C, `kill -9`).
const GUARD: &str =
    r#"read -r _; [ ! -f "$0/pid" ] || kill -s KILL "$(cat "$0/pid")"; rm -rf "$0""#;

/// A Kafka that is stopped, and its data deleted, when it is dropped or when our process dies in any other way.
pub struct KafkaProcess {
    jars: PathBuf,
    folder: PathBuf,
    port: u16,
    /// `None` while it is stopped.
    java: Option<Child>,
    guard: Child,
    guard_pipe: Option<ChildStdin>,
}

impl KafkaProcess {
    /// Starts Kafka from the folder `jars` with `java` on the PATH, and waits until it accepts connections. `settings` are
    /// added to `server.properties`.
    pub fn start(jars: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("herald-kafka-{:08x}", random() & 0xffff_ffff));
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut guard = Command::new("sh")
            .args(["-c", GUARD])
            .arg(&folder)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot run sh")?;
        let (port, controller) = (Self::free_port()?, Self::free_port()?);
        let mut kafka = Self {
            jars: jars.to_owned(),
            folder,
            port,
            java: None,
            guard_pipe: guard.stdin.take(),
            guard,
        };
        fs::write(
            kafka.properties(),
            properties(&kafka.folder, port, controller, settings),
        )?;
        kafka.format()?;
        kafka.start_again()?;
        Ok(kafka)
    }

    /// A free port that no client is assigned by chance while its Kafka is stopped: ephemeral ports start at 32768.
    pub fn free_port() -> anyhow::Result<u16> {
        for _ in 0..100 {
            let port = 20_000 + u16::try_from(random() % 10_000).expect("a remainder below 10,000");
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
        bail!("no free port between 20000 and 29999");
    }

    /// `127.0.0.1:<port>`, unchanged across restarts.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process id while it is running.
    pub fn id(&self) -> Option<u32> {
        self.java.as_ref().map(Child::id)
    }

    /// Starts it again with the same port and data.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        if self.java.is_some() {
            bail!("Kafka at {} is already running", self.address());
        }
        let mut java = self
            .java("kafka.Kafka")?
            .arg(self.properties())
            .spawn()
            .context("cannot run java")?;
        fs::write(self.pid_file(), java.id().to_string())?;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                self.java = Some(java);
                return Ok(());
            }
            if let Some(status) = java.try_wait()? {
                bail!("Kafka exited with {status}:\n{}", self.log_end());
            }
            if Instant::now() > deadline {
                self.java = Some(java);
                bail!(
                    "Kafka did not start within {START_DEADLINE:?}:\n{}",
                    self.log_end()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it cleanly (SIGTERM) and waits; after `grace` it is killed.
    pub fn stop(&mut self, grace: Duration) -> anyhow::Result<()> {
        let Some(java) = &mut self.java else {
            return Ok(());
        };
        Command::new("sh")
            .args(["-c", "kill -s TERM \"$0\"", &java.id().to_string()])
            .status()
            .context("cannot run sh")?;
        let deadline = Instant::now() + grace;
        while java.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill()
    }

    /// Kills it (SIGKILL); the data is kept.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut java) = self.java.take() {
            // Before the process is reaped, after which another one may get its id.
            fs::remove_file(self.pid_file())?;
            java.kill()?;
            java.wait()?;
        }
        Ok(())
    }

    /// Edits the first segment of a partition's log on disk. Kafka must be stopped.
    pub fn edit_log(
        &self,
        topic: &str,
        partition: i32,
        edit: impl FnOnce(&mut Vec<u8>),
    ) -> anyhow::Result<()> {
        if self.java.is_some() {
            bail!("Kafka at {} is running", self.address());
        }
        let data = self.folder.join("data");
        let segment = data.join(format!("{topic}-{partition}/00000000000000000000.log"));
        let mut bytes =
            fs::read(&segment).with_context(|| format!("cannot read {}", segment.display()))?;
        edit(&mut bytes);
        fs::write(&segment, bytes)?;
        Ok(())
    }

    /// Makes Kafka recover its whole logs at the next start, as after a crash in which the disk lost its last writes.
    pub fn forget_checkpoints(&self) -> anyhow::Result<()> {
        for name in [
            "recovery-point-offset-checkpoint",
            "replication-offset-checkpoint",
            ".kafka_cleanshutdown",
        ] {
            let file = self.folder.join("data").join(name);
            if file.exists() {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }

    /// Runs one of Kafka's own tools.
    pub fn tool(&self, class: &str, args: &[&str]) -> anyhow::Result<()> {
        let status = self
            .java(class)?
            .args(args)
            .status()
            .context("cannot run java")?;
        if !status.success() {
            bail!("{class} exited with {status}:\n{}", self.log_end());
        }
        Ok(())
    }

    fn format(&self) -> anyhow::Result<()> {
        let status = self
            .java("kafka.tools.StorageTool")?
            .args(["format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c"])
            .arg(self.properties())
            .status()
            .context("cannot run java (17 or newer)")?;
        if !status.success() {
            bail!("cannot format Kafka's storage:\n{}", self.log_end());
        }
        Ok(())
    }

    /// A Java command of Kafka that writes its output to the log, and that Ctrl-C in our terminal does not reach.
    fn java(&self, class: &str) -> anyhow::Result<Command> {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.folder.join("log"))?;
        let mut command = Command::new("java");
        command
            .args([
                "-Xmx768m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-cp",
            ])
            .arg(self.jars.join("*"))
            .arg(class)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        Ok(command)
    }

    fn properties(&self) -> PathBuf {
        self.folder.join("server.properties")
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("pid")
    }

    fn log_end(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for KafkaProcess {
    fn drop(&mut self) {
        let _ = self.kill();
        // The guard deletes the folder.
        drop(self.guard_pipe.take());
        let _ = self.guard.wait();
    }
}

/// The broker's session timeout is short (9 s by default), because a killed broker cannot restart before it has passed.
/// Retention and compaction run twice a second, so that their tests need not wait for minutes.
fn properties(folder: &Path, port: u16, controller: u16, settings: &[(&str, &str)]) -> String {
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
message.max.bytes=16777216
log.initial.task.delay.ms=500
log.retention.check.interval.ms=500
log.cleaner.backoff.ms=500
",
        folder.join("data").display()
    );
    for (key, value) in settings {
        text += &format!("{key}={value}\n");
    }
    text
}

/// A random number: the standard library seeds each hasher differently.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
