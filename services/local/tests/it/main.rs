//! Everything in one process, from the outside: pages, live messages, an end in time.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use herald_runtime::config::parse_from;
use herald_testing::{eventually, random_topic};
use local::{Config, Originals};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// What anything may take on a busy machine before a test gives up.
const DEADLINE: Duration = Duration::from_secs(60);

/// All environments, inside the test.
struct Running {
    pages: Vec<SocketAddr>,
    gateways: Vec<SocketAddr>,
    /// Those of the replaced systems: likes, counts and rooms.
    originals: [SocketAddr; 3],
    admin: SocketAddr,
    data: PathBuf,
    shutdown: CancellationToken,
    run: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// With a data folder of its own.
    fn start(kafka: Option<String>, options: &[&str]) -> Running {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("herald-local-{}-{next}", std::process::id());
        Running::start_in(std::env::temp_dir().join(name), kafka, options)
    }

    fn start_in(data: PathBuf, kafka: Option<String>, options: &[&str]) -> Running {
        let data_dir = format!("--data-dir={}", data.display());
        let args = [
            &["local", "--admin-listen", "127.0.0.1:0", &data_dir],
            options,
        ];
        let mut config: Config = parse_from(&args.concat()).unwrap();
        config.kafka_bootstrap_servers = kafka;
        let count = config.chosen().unwrap().len();
        (config.ports, config.gateway_ports) = (vec![0; count], vec![0; count]);
        (config.likes_port, config.counts_port, config.rooms_port) = (0, 0, 0);
        let listeners = config.bind().unwrap();
        let addresses = |listeners: &[TcpListener]| {
            let all = listeners.iter().map(|one| one.local_addr().unwrap());
            all.collect()
        };
        let pages = addresses(&listeners.pages);
        let gateways = addresses(&listeners.gateways);
        let Originals {
            likes,
            counts,
            rooms,
        } = &listeners.originals;
        let originals =
            [likes, counts, rooms].map(|one| one.as_ref().unwrap().local_addr().unwrap());
        let admin = listeners.admin.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(local::run(config, listeners, shutdown.clone()));
        Running {
            pages,
            gateways,
            originals,
            admin,
            data,
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
        let data = self.data.clone();
        self.end_and_keep_data().await;
        std::fs::remove_dir_all(data).unwrap();
    }

    async fn end_and_keep_data(self) {
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

/// Sends a session of one frame, and returns its document once it is there.
async fn session(gateway: SocketAddr, id: &str) -> String {
    let url = format!("ws://{gateway}/websocket?session_id={id}");
    let stream = TcpStream::connect(gateway).await.unwrap();
    let (mut socket, _) = client_async(url, stream).await.unwrap();
    let frame = r#"[{"timestamp":1,"type":"SESSION_START"},{"timestamp":2,"type":"SESSION_END"}]"#;
    socket.send(Message::text(frame)).await.unwrap();
    let closed = timeout(DEADLINE, socket.next()).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = closed else {
        panic!("not closed: {closed:?}");
    };
    assert_eq!(u16::from(close.code), 1000);
    eventually(DEADLINE, "the document", async || {
        document(gateway, id).await.is_some()
    })
    .await;
    document(gateway, id).await.unwrap()
}

async fn document(gateway: SocketAddr, id: &str) -> Option<String> {
    let answer = get(gateway, &format!("/data?session_id={id}")).await;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

async fn shows_three_live_environments(kafka: Option<String>) {
    let local = Running::start(kafka, &[]);
    local.ready().await;
    for (page, environment) in local.pages.iter().zip(["default", "dev", "prod"]) {
        assert!(get(*page, "/").await.contains("Hello World Broadcasts"));
        let message = first_message(*page).await;
        assert!(
            message.starts_with(&format!("Hello world from {environment} producer - ")),
            "{message}"
        );
    }
    let id = random_topic("session");
    for gateway in &local.gateways {
        let document = session(*gateway, &id).await;
        assert!(document.contains(r#""start":1,"end":2"#), "{document}");
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

/// Clients of the systems that Herald replaces know these ports.
async fn serves_the_ports_of_the_replaced_systems(kafka: Option<String>) {
    let local = Running::start(kafka, &["default"]);
    local.ready().await;
    let [likes, counts, rooms] = local.originals;
    let counted = async || get(counts, "/aggregated").await.contains(r#"[{"count":"#);
    eventually(DEADLINE, "foods to be counted", counted).await;
    let id = "93f98662-8907-4f43-bb4c-280501481046";
    assert!(get(likes, "/dev/videos/metadata").await.contains(id));
    let mut like = TcpStream::connect(likes).await.unwrap();
    let request = format!(
        "POST /dev/videos/{id}/likes HTTP/1.1\r\nhost: {likes}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    like.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    like.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.ends_with(&format!(r#"{{"new video": "{id}"}}"#)),
        "{answer}"
    );
    // Interim counts come within seconds; those of a whole window would take a minute.
    let interim = "/messages?topic=one_minute_aggregation_topic.live";
    let counted = async || get(local.pages[0], interim).await.contains(id);
    eventually(DEADLINE, "the like to be counted", counted).await;
    let handshake = get(rooms, "/socket.io/?EIO=4&transport=polling").await;
    assert!(
        handshake.starts_with("HTTP/1.1 200") && handshake.contains("\"sid\""),
        "{handshake}"
    );
    assert!(get(rooms, "/").await.starts_with("HTTP/1.1 404"));
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ports_of_the_replaced_systems_are_served_with_the_embedded_kafka() {
    serves_the_ports_of_the_replaced_systems(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ports_of_the_replaced_systems_are_served_with_a_real_kafka() {
    let Some(mut broker) = herald_testing::Broker::start().await else {
        return;
    };
    serves_the_ports_of_the_replaced_systems(Some(broker.address().to_owned())).await;
    broker.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_process_uses_is_left_out_with_a_warning() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = format!("--counts-port={}", other.local_addr().unwrap().port());
    let ports = [
        "--ports=0",
        "--gateway-ports=0",
        "--likes-port=0",
        "--rooms-port=0",
    ];
    let args = [
        &["local", "dev", "--admin-listen=127.0.0.1:0", &port],
        &ports[..],
    ]
    .concat();
    let config: Config = parse_from(&args).unwrap();
    let listeners = config.bind().unwrap();
    assert!(listeners.originals.counts.is_none());
    assert!(listeners.originals.likes.is_some() && listeners.originals.rooms.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_the_laptops_is_not_answered() {
    let local = Running::start(None, &["dev"]);
    local.ready().await;
    for (host, status) in [
        ("evil.example:8002", 421),
        ("localhost:8002", 200),
        ("[::1]:8002", 200),
        ("127.0.0.1:8002", 200),
    ] {
        for address in [local.pages[0], local.gateways[0]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{host}: {answer}");
        }
    }
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_environment_can_run_alone() {
    let local = Running::start(None, &["dev"]);
    local.ready().await;
    assert!(
        first_message(local.pages[0])
            .await
            .starts_with("Hello world from dev producer")
    );
    local.end().await;
}

/// Every start has a new log, whose offsets begin again at 0.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_earlier_starts_stay_readable_until_a_fresh_one() {
    let local = Running::start(None, &["dev"]);
    let data = local.data.clone();
    local.ready().await;
    session(local.gateways[0], "first").await;
    session(local.gateways[0], "second").await;
    let counts = async || get(local.gateways[0], "/aggregated").await.contains("food");
    eventually(DEADLINE, "foods to be counted", counts).await;
    local.end_and_keep_data().await;

    let local = Running::start_in(data.clone(), None, &["dev"]);
    local.ready().await;
    session(local.gateways[0], "third").await;
    for id in ["first", "second", "third"] {
        assert!(document(local.gateways[0], id).await.is_some(), "{id}");
    }
    assert!(get(local.gateways[0], "/aggregated").await.contains("food"));
    local.end_and_keep_data().await;

    let local = Running::start_in(data, None, &["dev", "--fresh"]);
    local.ready().await;
    assert!(document(local.gateways[0], "first").await.is_none());
    session(local.gateways[0], "fourth").await;
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_with_the_same_folder_ends_with_a_sentence() {
    let local = Running::start(None, &["dev"]);
    local.ready().await;
    let second = Running::start_in(local.data.clone(), None, &["prod"]);
    let error = timeout(DEADLINE, second.run).await.unwrap().unwrap();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("another process uses --data-dir"), "{error}");
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_event_is_kept_when_it_is_shut_down_under_load() {
    const SESSIONS: usize = 10;
    const FRAMES: usize = 500;
    let local = Running::start(None, &["dev"]);
    local.ready().await;
    let gateway = local.gateways[0];
    let clients: Vec<_> = (0..SESSIONS)
        .map(|session| tokio::spawn(acknowledged(gateway, session, FRAMES)))
        .collect();
    for client in clients {
        timeout(DEADLINE, client).await.unwrap().unwrap();
    }
    let data = local.data.clone();
    local.end_and_keep_data().await;

    let local = Running::start_in(data, None, &["dev"]);
    local.ready().await;
    for session in 0..SESSIONS {
        let document = document(local.gateways[0], &session.to_string()).await;
        let children = document.unwrap().matches("\"EVENT\"").count();
        assert_eq!(children, FRAMES, "session {session}");
    }
    local.end().await;
}

/// Sends frames of one event, and returns when all are acknowledged.
async fn acknowledged(gateway: SocketAddr, session: usize, frames: usize) {
    let url = format!("ws://{gateway}/websocket?session_id={session}&ack=1");
    let stream = TcpStream::connect(gateway).await.unwrap();
    let (socket, _) = client_async(url, stream).await.unwrap();
    let (mut sink, mut answers) = socket.split();
    tokio::spawn(async move {
        for number in 0..frames {
            let frame = format!(r#"[{{"timestamp":{number},"type":"EVENT"}}]"#);
            sink.send(Message::text(frame)).await.unwrap();
        }
        // Keeps the connection open.
        std::future::pending::<()>().await;
    });
    for _ in 0..frames {
        let answer = answers.next().await.unwrap().unwrap();
        assert!(answer.to_text().unwrap().contains("\"ack\""), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_if_an_option_is_invalid() {
    let folder = std::env::temp_dir().join(format!("herald-local-invalid-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("dev.db"), "kept").unwrap();
    let program = env!("CARGO_BIN_EXE_local");
    let mut local = std::process::Command::new(program);
    local.args(["dev", "--fresh", "--ports=0", "--gateway-ports=0"]);
    local.args(["--admin-listen=127.0.0.1:0", "--data-dir"]);
    local.arg(&folder).env("BATCH_RECORDS", "0");
    let ended = local.output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    let error = String::from_utf8(ended.stderr).unwrap();
    assert!(
        error.contains("--batch-records") && error.lines().count() == 1,
        "{error}"
    );
    assert_eq!(std::fs::read(folder.join("dev.db")).unwrap(), b"kept");
    std::fs::remove_dir_all(folder).unwrap();
}
