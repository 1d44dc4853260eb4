//! The server's process, and what the kernel says about it and us.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value as Json;

/// The server runs on the first core, we on the second.
const SERVER_CORE: &str = "0";
const OUR_CORE: &str = "1";

/// Stays on one core, with all threads that are started later. Without `taskset`, or with one core, that is left to the kernel.
pub fn pin_this() {
    let id = std::process::id().to_string();
    let pinned = Command::new("taskset")
        .args(["-cp", OUR_CORE, &id])
        .stdout(Stdio::null())
        .status();
    if !pinned.is_ok_and(|status| status.success()) {
        println!("not pinned to cores: the numbers mean little");
    }
}

/// A server on its core. It is killed when this is dropped.
pub struct Server {
    process: Child,
    pub public: SocketAddr,
    pub control: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

impl Server {
    /// Starts a server and waits for the line in which it says where it listens.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        folder: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", SERVER_CORE]).arg(program);
        if !Command::new("taskset")
            .arg("-V")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
        {
            command = Command::new(program);
        }
        command.args(arguments).stdout(Stdio::piped());
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        let mut process = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        while let Some(line) = lines.next().transpose()? {
            let line: Json = serde_json::from_str(&line).unwrap_or_default();
            let address = |name: &str| line[name].as_str().and_then(|address| address.parse().ok());
            if let Some(public) = address("public") {
                // A pipe that nobody reads would stop the server.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self {
                    process,
                    public,
                    control: address("control"),
                    admin: address("admin"),
                });
            }
        }
        anyhow::bail!("{} does not say where it listens", program.display())
    }

    /// Waits until one of Herald's services is ready.
    pub fn ready(&self) -> anyhow::Result<()> {
        let admin = self.admin.context("the service has no admin address")?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut answer = String::new();
            let mut stream = TcpStream::connect(admin)?;
            stream.write_all(
                b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            )?;
            stream.read_to_string(&mut answer)?;
            if answer.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the service is not ready after 30 s: {answer}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu(self.process.id())
    }

    /// KiB of memory that it has now.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.process.id());
        let rollup =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Rss:"))
            .context("no Rss")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// CPU time of this process.
pub fn our_cpu() -> anyhow::Result<Duration> {
    cpu(std::process::id())
}

/// `utime` and `stime` of `stat` are of the same source, in steps of 10 ms; this is in ns.
fn cpu(id: u32) -> anyhow::Result<Duration> {
    let mut cpu = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
        // A thread may end meanwhile.
        let Ok(numbers) = std::fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let first = numbers.split_whitespace().next();
        cpu += Duration::from_nanos(first.context("schedstat is empty")?.parse()?);
    }
    Ok(cpu)
}

/// How long the core of the server was busy, with whatever it was.
pub fn server_core_busy() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = format!("cpu{SERVER_CORE} ");
    let line = stat.lines().find_map(|text| text.strip_prefix(&line));
    // user, nice, system, idle, iowait, irq, softirq, steal; in hundredths of a second.
    let ticks: Vec<u64> = line
        .context("no such core")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let all: u64 = ticks.iter().take(8).sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok(Duration::from_millis((all - idle) * 10))
}
