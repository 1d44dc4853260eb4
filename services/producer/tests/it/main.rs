//! The producer as a whole, against a real Kafka.

mod broker;
mod process;
mod topic;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use herald_runtime::config::parse_from;
use herald_runtime::listen;
use herald_testing::eventually;
use producer::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What anything may take on a busy machine before a test gives up.
const DEADLINE: Duration = Duration::from_secs(120);

fn config(kafka: &str, topic: &str, options: &[&str]) -> Config {
    let args = [&["producer", "--kafka-topic", topic], options].concat();
    let mut config: Config = parse_from(&args).unwrap();
    config.kafka.kafka_bootstrap_servers = kafka.to_owned();
    config
}

/// A producer that runs inside the test.
struct Running {
    admin: SocketAddr,
    shutdown: CancellationToken,
    run: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Starts one that produces to `topic` every 5 to 20 ms, with more `options`.
    fn start(kafka: &str, topic: &str, options: &[&str]) -> Running {
        let mut config = config(kafka, topic, options);
        config.interval_min = Duration::from_millis(5);
        config.interval_max = Some(Duration::from_millis(20));
        let admin = listen::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = admin.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(producer::run(config, admin, shutdown.clone()));
        Running {
            admin: addr,
            shutdown,
            run,
        }
    }

    async fn is_ready(&self) -> bool {
        get(self.admin, "/readyz").await.starts_with("HTTP/1.1 200")
    }

    /// A metric without labels.
    async fn metric(&self, name: &str) -> u64 {
        let metrics = get(self.admin, "/metrics").await;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect("the metric is there").parse().unwrap()
    }

    /// Waits until Kafka has acknowledged what was kept while it was away.
    async fn catches_up(&self) {
        let is_caught_up = async || self.metric("herald_messages_unacknowledged").await < 50;
        eventually(DEADLINE, "all to be acknowledged", is_caught_up).await;
    }

    async fn end(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.run)
            .await
            .expect("the producer ends")
            .unwrap()
    }
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
