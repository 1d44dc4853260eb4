//! One gateway, from its start to its end: connections, then the two loads.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::kafka::Kafka;
use crate::process::{Server, our_cpu, server_core_busy};
use crate::sessions::{Pace, Sessions, Tally};
use crate::{Args, Target};

/// Before a load is measured: Node.js compiles meanwhile.
const WARM_UP: Duration = Duration::from_secs(3);

/// What was found out about one gateway in one round.
pub struct Measured {
    /// Frames, in both loads.
    pub acknowledged: u64,
    pub in_kafka: u64,
    /// Memory of the server at the end, in KiB.
    pub memory: u64,
    /// Without a rate, and with one.
    pub loads: [Load; 2],
}

/// What one load came to.
pub struct Load {
    /// Acknowledged ones, per second and per CPU second of the server.
    pub events_per_second: f64,
    pub events_per_cpu: f64,
    /// Of the server's core, taken by the server and by others.
    pub server: f64,
    pub disturbed: f64,
    /// Of our core, taken by this client.
    pub share: f64,
    /// From a frame to its acknowledgement.
    pub delays: Vec<Duration>,
}

pub fn measure(args: &Args, target: Target, kafka: &Kafka) -> anyhow::Result<Measured> {
    let topic = kafka.create_topic(args.partitions)?;
    let server = start(args, target, kafka, &topic)?;
    let mut sessions = Sessions::open(server.public, args.sessions, args.frame_events)?;
    let mut acknowledged = 0;
    let mut run = |pace| load(args, &server, &mut sessions, pace, &mut acknowledged);
    let loads = [
        run(Pace::InFlight(args.in_flight.into()))?,
        run(Pace::Rate(args.rate))?,
    ];
    let memory = server.memory()?;
    drop((sessions, server));
    let in_kafka = kafka.records(&topic, args.partitions)?;
    ensure!(
        in_kafka >= acknowledged,
        "{} acknowledged {acknowledged} frames, of which Kafka has {in_kafka}",
        target.name()
    );
    kafka.delete_topic(&topic)?;
    Ok(Measured {
        acknowledged,
        in_kafka,
        memory,
        loads,
    })
}

fn start(args: &Args, target: Target, kafka: &Kafka, topic: &str) -> anyhow::Result<Server> {
    let node = |kind: &str| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/load/peer.mjs");
        let script = script.to_string_lossy();
        let arguments = [&script, kind, &kafka.address, topic];
        Server::start(Path::new("node"), &arguments, args.peers.as_deref())
    };
    match target {
        Target::Herald => gateway(kafka, topic, &[]),
        Target::NodeEach => node("each"),
        Target::NodeBatched => node("batched"),
    }
}

/// Starts Herald's gateway, and waits until it is ready.
pub fn gateway(kafka: &Kafka, topic: &str, options: &[&str]) -> anyhow::Result<Server> {
    let mut arguments = vec!["gateway", "--listen", "127.0.0.1:0"];
    arguments.extend(common(kafka, topic));
    arguments.extend(options);
    let server = Server::start(&std::env::current_exe()?, &arguments, None)?;
    server.ready()?;
    Ok(server)
}

/// The options of gateway and projector alike.
pub fn common<'a>(kafka: &'a Kafka, topic: &'a str) -> [&'a str; 8] {
    [
        "--admin-listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--kafka-bootstrap-servers",
        &kafka.address,
        "--events-topic",
        topic,
    ]
}

fn load(
    args: &Args,
    server: &Server,
    sessions: &mut Sessions,
    pace: Pace,
    acknowledged: &mut u64,
) -> anyhow::Result<Load> {
    let mut warm_up = Tally::default();
    sessions.run(pace, Instant::now() + WARM_UP, &mut warm_up)?;

    let (cpu, ours, busy) = (server.cpu()?, our_cpu()?, server_core_busy()?);
    let (mut tally, start) = (Tally::default(), Instant::now());
    let end = start + Duration::from_secs(args.seconds);
    sessions.run(pace, end, &mut tally)?;
    let (cpu, ours) = (server.cpu()? - cpu, our_cpu()? - ours);
    let others = (server_core_busy()? - busy).saturating_sub(cpu);
    let seconds = start.elapsed().as_secs_f64();

    let mut rest = Tally::default();
    sessions.drain(Duration::from_secs(60), &mut rest)?;
    let counts = [&warm_up, &tally, &rest].map(|tally| tally.delays.len() as u64);
    *acknowledged += counts.iter().sum::<u64>();
    let events = (tally.delays.len() * args.frame_events) as f64;
    Ok(Load {
        events_per_second: events / seconds,
        events_per_cpu: events / cpu.as_secs_f64(),
        server: cpu.as_secs_f64() / seconds,
        disturbed: others.as_secs_f64() / seconds,
        share: ours.as_secs_f64() / seconds,
        delays: tally.delays,
    })
}
