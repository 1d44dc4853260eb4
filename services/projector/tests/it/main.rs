//! The projector as a whole, against a real Kafka and each database.

mod contract;
mod counts;
mod exactness;
mod logs;
mod malformed;
mod model;
mod operations;
mod process;
mod verify;
mod windows;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use herald_events::SessionId;
use herald_runtime::config::parse_from;
use herald_runtime::listen;
use herald_testing::{Database, Record, eventually, watermarks};
use projector::Config;
use store::Reader;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What anything may take on a busy machine before a test gives up.
const DEADLINE: Duration = Duration::from_secs(60);

/// A projector that runs inside the test.
struct Running {
    admin: SocketAddr,
    shutdown: CancellationToken,
    run: JoinHandle<anyhow::Result<()>>,
    /// A test that fails would otherwise wait for the projector's threads for ever.
    _stop: DropGuard,
}

impl Running {
    /// Starts one for `topic` and `database`, with more `options`; the consumer group has the name of the topic.
    fn start(kafka: &str, topic: &str, database: &Database, options: &[&str]) -> Self {
        let mut arguments = arguments(kafka, topic, database);
        arguments.extend(options.iter().map(|&option| option.to_owned()));
        Self::with(&arguments)
    }

    /// Starts one with these arguments.
    fn with(arguments: &[String]) -> Self {
        let arguments = arguments.iter().map(String::as_str);
        let arguments: Vec<&str> = std::iter::once("projector").chain(arguments).collect();
        let config: Config = parse_from(&arguments).unwrap();
        let admin = listen::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = admin.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(projector::run(config, admin, shutdown.clone()));
        Self {
            admin: addr,
            _stop: shutdown.clone().drop_guard(),
            shutdown,
            run,
        }
    }

    /// The status line and the body of `/readyz`.
    async fn readiness(&self) -> String {
        get(self.admin, "/readyz").await
    }

    async fn becomes_ready(&self) {
        eventually(DEADLINE, "the projector to be ready", async || {
            self.readiness().await.starts_with("HTTP/1.1 200")
        })
        .await;
    }

    /// The sum of a metric over its labels.
    async fn metric(&self, name: &str) -> f64 {
        let metrics = get(self.admin, "/metrics").await;
        let values = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    async fn end(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.run).await;
        ended.expect("the projector ends").unwrap().unwrap();
    }
}

fn reader_of(database: &Database) -> Reader {
    let (url, schema) = (&database.address, &database.schema);
    Reader::new(&url.parse().unwrap(), &schema.parse().unwrap())
}

/// The options of a projector.
fn arguments(kafka: &str, topic: &str, database: &Database) -> Vec<String> {
    [
        ("--kafka-bootstrap-servers", kafka),
        ("--events-topic", topic),
        ("--group-prefix", topic),
        ("--database-url", &database.address),
        ("--database-schema", database.schema.as_str()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value.to_owned()])
    .collect()
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(addr).await {
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_string(&mut answer).await.unwrap();
    }
    answer
}

/// A record of a session, as the gateway produces it.
fn frame(partition: i32, session: &str, frame: &str) -> Record {
    Record {
        key: Some(format!("\"{session}\"").into_bytes()),
        ..Record::new(partition, frame)
    }
}

async fn document(reader: &Reader, session: &str) -> Option<String> {
    let id = SessionId::new(session).unwrap();
    let session = reader.session(&id).await.unwrap()?;
    Some(String::from_utf8(session.into_bytes().await.unwrap()).unwrap())
}

/// Waits until every record that the topic has now is projected.
async fn projected(kafka: &str, topic: &str, partitions: i32, reader: &Reader) {
    for partition in 0..partitions {
        let (low, high) = watermarks(kafka, topic, partition).await;
        if low == high {
            continue;
        }
        let what = format!("partition {partition} to be projected up to offset {high}");
        eventually(DEADLINE, &what, async || {
            let passed = reader.has_passed(store::SESSIONS, topic, partition, high - 1, 0);
            passed.await.unwrap_or(false)
        })
        .await;
    }
}
