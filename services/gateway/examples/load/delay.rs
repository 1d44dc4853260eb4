//! From a frame to its document: gateway and projector on one core, and sessions that send at a steady rate and read with
//! `GET /data?after=…&wait=…`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use herald_testing::{Database, random_topic};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::Args;
use crate::frames::Frames;
use crate::kafka::Kafka;
use crate::measure::{common, gateway};
use crate::process::{Server, our_cpu, server_core_busy};

/// Before delays are measured.
const WARM_UP: u32 = 3;

const DEADLINE: Duration = Duration::from_secs(60);

/// Where the documents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    Sqlite,
    /// At this address.
    Postgres(String),
}

impl Store {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }
}

/// What was found out about one database in one round.
pub struct Measured {
    /// Frames.
    pub acknowledged: u64,
    pub in_kafka: u64,
    /// Events in all documents at the end.
    pub events: u64,
    /// From the time at which a frame was due to its acknowledgement, and to the end of the response that contains it.
    pub to_kafka: Vec<Duration>,
    pub to_document: Vec<Duration>,
    /// Of the server's core.
    pub gateway: f64,
    pub projector: f64,
    pub disturbed: f64,
    /// Of our core, taken by this client.
    pub share: f64,
}

pub fn measure(args: &Args, store: &Store, kafka: &Kafka) -> anyhow::Result<Measured> {
    let topic = kafka.create_topic(args.partitions)?;
    let file = Database::sqlite();
    let (address, schema) = match store {
        Store::Sqlite => (file.address.clone(), file.schema.clone()),
        Store::Postgres(address) => (address.clone(), random_topic("load")),
    };
    let database = ["--database-url", &address, "--database-schema", &schema];
    let mut arguments = vec!["projector", "--group-prefix", &topic];
    arguments.extend(common(kafka, &topic));
    arguments.extend(database);
    let projector = Server::start(&std::env::current_exe()?, &arguments, None)?;
    projector.ready()?;
    let gateway = gateway(kafka, &topic, &database)?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut measured = runtime.block_on(run(args, &gateway, &projector))?;
    drop((gateway, projector));
    measured.in_kafka = kafka.records(&topic, args.partitions)?;
    let (acknowledged, in_kafka) = (measured.acknowledged, measured.in_kafka);
    ensure!(
        in_kafka >= acknowledged,
        "{acknowledged} frames were acknowledged, of which Kafka has {in_kafka}"
    );
    kafka.delete_topic(&topic)?;
    Ok(measured)
}

/// What one session has seen.
struct Seen {
    frames: u64,
    to_kafka: Vec<Duration>,
    reads: Vec<JoinHandle<anyhow::Result<Duration>>>,
    cursor: String,
}

async fn run(args: &Args, gateway: &Server, projector: &Server) -> anyhow::Result<Measured> {
    let start = Instant::now() + Duration::from_secs(1);
    let measured_from = start + Duration::from_secs(WARM_UP.into());
    let mut sessions = JoinSet::new();
    for number in 0..args.delay_sessions {
        let (args, address) = (args.clone(), gateway.public);
        sessions.spawn(async move {
            let seen = session(&args, address, number, start, measured_from).await;
            (number, seen)
        });
    }
    sleep_until(measured_from).await;
    let cpu = [gateway.cpu()?, projector.cpu()?, our_cpu()?];
    let busy = server_core_busy()?;
    sleep_until(measured_from + Duration::from_secs(args.delay_seconds.into())).await;
    let seconds = measured_from.elapsed().as_secs_f64();
    let now = [gateway.cpu()?, projector.cpu()?, our_cpu()?];
    let shares = std::array::from_fn(|index| (now[index] - cpu[index]).as_secs_f64() / seconds);
    let [of_gateway, of_projector, share] = shares;
    let busy = (server_core_busy()? - busy).as_secs_f64() / seconds;

    let mut measured = Measured {
        acknowledged: 0,
        in_kafka: 0,
        events: 0,
        to_kafka: Vec::new(),
        to_document: Vec::new(),
        gateway: of_gateway,
        projector: of_projector,
        disturbed: (busy - of_gateway - of_projector).max(0.0),
        share,
    };
    let mut last = Vec::new();
    while let Some(ended) = sessions.join_next().await {
        let (number, seen) = ended?;
        let seen = seen.with_context(|| format!("session {number} failed"))?;
        measured.acknowledged += seen.frames;
        measured.to_kafka.extend(seen.to_kafka);
        for read in seen.reads {
            let delay = read.await?;
            measured
                .to_document
                .push(delay.with_context(|| format!("session {number} failed"))?);
        }
        last.push((number, seen.frames, seen.cursor));
    }
    // Every document contains every event, once.
    for (number, frames, cursor) in last {
        let document = document(gateway.public, number, &cursor).await?;
        let document: Json = serde_json::from_slice(&document)?;
        let events = document["children"].as_array().map_or(0, Vec::len) as u64;
        let expected = frames * args.frame_events as u64;
        ensure!(
            events == expected,
            "the document of session {number} has {events} events instead of {expected}"
        );
        measured.events += events;
    }
    Ok(measured)
}

/// Sends the frames of one session, at the times at which they are due.
async fn session(
    args: &Args,
    gateway: SocketAddr,
    number: usize,
    start: Instant,
    measured_from: Instant,
) -> anyhow::Result<Seen> {
    let stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{gateway}/websocket?session_id=session-{number}&ack=1");
    let (mut socket, _) = client_async(url, stream).await?;
    let mut frames = Frames::new(args.frame_events);
    let mut seen = Seen {
        frames: 0,
        to_kafka: Vec::new(),
        reads: Vec::new(),
        cursor: String::new(),
    };
    let frames_in_all = args.delay_rate * (WARM_UP + args.delay_seconds);
    let own = (number as u32..frames_in_all).step_by(args.delay_sessions);
    for (turn, frame) in own.enumerate() {
        let due = start + Duration::from_secs(1) * frame / args.delay_rate;
        sleep_until(due).await;
        socket.send(Message::text(frames.text())).await?;
        let answer = loop {
            let answer = timeout(DEADLINE, socket.next()).await?;
            match answer.context("the server has ended it")?? {
                Message::Text(text) => break text,
                Message::Ping(_) => {}
                other => anyhow::bail!("the server answers {other:?}"),
            }
        };
        let to_kafka = due.elapsed();
        let answer: Json = serde_json::from_str(&answer)?;
        let cursor = answer["cursor"].as_str();
        seen.cursor = cursor
            .with_context(|| format!("the server answers {answer}"))?
            .to_owned();
        seen.frames += 1;
        if due < measured_from {
            continue;
        }
        seen.to_kafka.push(to_kafka);
        // In some sessions at a time.
        if (turn + number).is_multiple_of(args.read_every) {
            let cursor = seen.cursor.clone();
            seen.reads.push(tokio::spawn(async move {
                document(gateway, number, &cursor).await?;
                Ok(due.elapsed())
            }));
        }
    }
    socket.close(None).await?;
    Ok(seen)
}

/// Reads the document of a session that contains the frame of this cursor.
async fn document(gateway: SocketAddr, session: usize, cursor: &str) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let uri = format!("/data?session_id=session-{session}&after={cursor}&wait=20000");
    let request = Request::get(uri).header("host", "localhost");
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?);
    let response = timeout(DEADLINE, response).await??;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    drop(sender);
    connection.await??;
    ensure!(
        status == StatusCode::OK,
        "the server answers {status}: {}",
        String::from_utf8_lossy(&body)
    );
    Ok(body)
}
