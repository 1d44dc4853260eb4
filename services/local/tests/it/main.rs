//! Everything in one process, from the outside: pages, live messages, an end in time.

use std::net::SocketAddr;
use std::time::Duration;

use herald_runtime::config::parse_from;
use herald_testing::eventually;
use local::Config;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// What anything may take on a busy machine before a test gives up.
const DEADLINE: Duration = Duration::from_secs(60);

/// All environments, inside the test.
struct Running {
    pages: Vec<SocketAddr>,
    admin: SocketAddr,
    shutdown: CancellationToken,
    run: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(kafka: Option<String>, options: &[&str]) -> Running {
        let args = [&["local", "--admin-listen", "127.0.0.1:0"], options].concat();
        let mut config: Config = parse_from(&args).unwrap();
        config.kafka_bootstrap_servers = kafka;
        let listeners = config.bind().unwrap();
        let pages = listeners
            .pages
            .iter()
            .map(|page| page.local_addr().unwrap())
            .collect();
        let admin = listeners.admin.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(local::run(config, listeners, shutdown.clone()));
        Running {
            pages,
            admin,
            shutdown,
            run,
        }
    }

    async fn ready(&self) {
        eventually(DEADLINE, "all services to be ready", async || {
            get(self.admin, "/readyz").await.starts_with("HTTP/1.1 200")
        })
        .await;
    }

    async fn end(self) {
        self.shutdown.cancel();
        timeout(Duration::from_secs(10), self.run)
            .await
            .expect("it ends in time")
            .unwrap()
            .unwrap();
    }
}

async fn ask(addr: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    ask(addr, path)
        .await
        .read_to_string(&mut answer)
        .await
        .unwrap();
    answer
}

/// The first live message of a page's event stream.
async fn first_message(page: SocketAddr) -> String {
    let mut lines = BufReader::new(ask(page, "/events").await).lines();
    let message = async {
        loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("the stream goes on");
            if let Some(message) = line.strip_prefix("data: Hello") {
                return format!("Hello{message}");
            }
        }
    };
    timeout(DEADLINE, message).await.expect("a message comes")
}

/// The names of services.toml: `local` runs them all.
fn services() -> Vec<&'static str> {
    let table = include_str!("../../../../services.toml").lines();
    let names = table.filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    names.collect()
}

async fn shows_three_live_environments(kafka: Option<String>) {
    let local = Running::start(kafka, &["--ports", "0,0,0"]);
    local.ready().await;
    for (page, environment) in local.pages.iter().zip(["default", "dev", "prod"]) {
        assert!(get(*page, "/").await.contains("Hello World Broadcasts"));
        let message = first_message(*page).await;
        assert!(
            message.starts_with(&format!("Hello world from {environment} producer - ")),
            "{message}"
        );
    }
    let metrics = get(local.admin, "/metrics").await;
    for environment in ["default", "dev", "prod"] {
        let line = format!(
            "herald_messages_produced_total{{environment=\"{environment}\",service=\"producer\"}} "
        );
        assert!(metrics.contains(&line), "{line} is missing in {metrics}");
        for service in services() {
            let labels = format!("{{environment=\"{environment}\",service=\"{service}\"");
            assert!(
                metrics.contains(&labels),
                "{labels} is missing in {metrics}"
            );
        }
    }
    // A stream that is open does not hold up the end.
    let _open = ask(local.pages[0], "/events").await;
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_environments_are_live_with_the_embedded_kafka() {
    shows_three_live_environments(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_environments_are_live_with_a_real_kafka() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    shows_three_live_environments(Some(kafka)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_the_laptops_is_not_answered() {
    let local = Running::start(None, &["--ports", "0", "dev"]);
    local.ready().await;
    for (host, status) in [
        ("evil.example:8002", 421),
        ("localhost:8002", 200),
        ("[::1]:8002", 200),
        ("127.0.0.1:8002", 200),
    ] {
        let mut stream = TcpStream::connect(local.pages[0]).await.unwrap();
        let request = format!("GET /config HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{host}: {answer}");
    }
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_environment_can_run_alone() {
    let local = Running::start(None, &["--ports", "0", "dev"]);
    local.ready().await;
    assert!(
        first_message(local.pages[0])
            .await
            .starts_with("Hello world from dev producer")
    );
    local.end().await;
}
