//! The gateway as a process, which can be killed and measured.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::{DEADLINE, Socket, http};

/// A process that does not outlive its test.
pub struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    pub public: String,
    pub admin: String,
}

impl Process {
    /// Starts one, and waits until it listens.
    pub async fn start(kafka: &str, topic: &str, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gateway"))
            .env_clear()
            .args(["--kafka-bootstrap-servers", kafka, "--events-topic", topic])
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--log-format", "json"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let collected = lines.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect(&line);
                collected.lock().unwrap().push(line);
            }
        });
        let mut process = Self {
            child,
            lines,
            public: String::new(),
            admin: String::new(),
        };
        let line = process.line("listening").await;
        process.public = line["public"].as_str().unwrap().to_owned();
        process.admin = line["admin"].as_str().unwrap().to_owned();
        process
    }

    pub fn log(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a log line that contains `text`.
    pub async fn line(&self, text: &str) -> Value {
        let contains = |line: &Value| line["message"].as_str().is_some_and(|m| m.contains(text));
        let what = format!("a log line with {text:?}");
        herald_testing::eventually(DEADLINE, &what, async || self.log().iter().any(contains)).await;
        self.log().into_iter().find(contains).unwrap()
    }

    pub async fn open(&self, query: &str) -> Socket {
        let stream = TcpStream::connect(&self.public).await.unwrap();
        let url = format!("ws://{}/websocket{query}", self.public);
        client_async(url, stream).await.unwrap().0
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = http::send(&self.admin, "GET", "/metrics", &[], "").await;
        let line = metrics.body.lines().find_map(|line| {
            let (key, value) = line.split_once(' ')?;
            (key == name).then(|| value.parse().unwrap())
        });
        line.unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> usize {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kbytes = line.unwrap().split_whitespace().nth(1).unwrap();
        kbytes.parse::<usize>().unwrap() << 10
    }

    /// Sends SIGTERM, and waits until it has exited.
    pub async fn terminate(&mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", "TERM", &id]).status();
        assert!(sent.unwrap().success());
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the gateway does not exit");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The frames of a client that may be without an acknowledgement.
const AHEAD: usize = 500;

/// A client that sends frames as fast as it can, and counts the acknowledgements.
pub struct Client {
    pub session: String,
    pub acknowledged: Arc<Mutex<usize>>,
    writing: tokio::task::JoinHandle<()>,
    reading: tokio::task::JoinHandle<()>,
}

impl Client {
    /// Sends frames with the timestamps from 0 to `frames` and about `bytes` each, at most `AHEAD` before they are acknowledged.
    pub fn start(session: &str, socket: Socket, frames: usize, bytes: usize) -> Self {
        let acknowledged = Arc::new(Mutex::new(0));
        let counted = acknowledged.clone();
        let room = Arc::new(Semaphore::new(AHEAD));
        let taken = room.clone();
        let (mut sink, mut stream) = socket.split();
        let fill = "x".repeat(bytes);
        let writing = tokio::spawn(async move {
            for n in 0..frames {
                taken.acquire().await.unwrap().forget();
                let frame = format!(r#"[{{"timestamp":{n},"type":"EVENT","x":"{fill}"}}]"#);
                if sink.send(Message::text(frame)).await.is_err() {
                    return;
                }
            }
        });
        let reading = tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                if let Message::Text(text) = message {
                    assert!(text.contains(r#""type":"ack""#), "{text}");
                    *counted.lock().unwrap() += 1;
                    room.add_permits(1);
                }
            }
        });
        Self {
            session: session.to_owned(),
            acknowledged,
            writing,
            reading,
        }
    }

    pub fn acknowledged(&self) -> usize {
        *self.acknowledged.lock().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.writing.abort();
        self.reading.abort();
    }
}
