//! One server, from its start to its end: connections, silence, then the two loads.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::clients::{Clients, Tally};
use crate::kafka::Kafka;
use crate::process::{Server, our_cpu, server_core_busy};
use crate::publisher::Publisher;
use crate::wire::Protocol;
use crate::{Args, Target};

/// Messages that are pending at each wake-up, in the two loads.
pub const PENDING: [u64; 2] = [1, 16];

/// Over this share of its core the client measures itself.
const OUR_SHARE: f64 = 0.8;

/// What was found out about one server in one round.
pub struct Measured {
    /// KiB per connection: idle, and after both loads.
    pub idle: f64,
    pub after: f64,
    /// One for each of [`PENDING`].
    pub loads: Vec<Load>,
}

/// What one load came to.
pub struct Load {
    pub expected: u64,
    pub delivered: u64,
    pub misplaced: u64,
    /// CPU time of the server for each delivery, in µs.
    pub cpu: f64,
    /// Of the server's core, taken by others.
    pub disturbed: f64,
    /// Of our core.
    pub share: f64,
    pub delays: Vec<Duration>,
}

pub fn measure(args: &Args, target: Target, kafka: &Kafka) -> anyhow::Result<Measured> {
    let of_kafka = matches!(target, Target::Sse | Target::Websocket | Target::Socketio);
    let topic = if of_kafka {
        kafka.create_topic()?
    } else {
        String::new()
    };
    let server = start(args, target, kafka, &topic)?;
    let protocol = match target {
        Target::Floor => Protocol::Bare,
        Target::Sse | Target::NodeSse => Protocol::Sse,
        Target::Websocket | Target::NodeWebsocket => Protocol::WebSocket,
        Target::Socketio | Target::NodeSocketio => Protocol::SocketIo,
    };
    let mut control = server.control.map(Publisher::control).transpose()?;
    let empty = server.memory()?;
    let mut clients = Clients::open(server.public, protocol, args.connections, args.rooms)?;
    let per_connection = |now: u64| now.saturating_sub(empty) as f64 / args.connections as f64;
    clients.read_until(
        Instant::now() + Duration::from_secs(2),
        &mut Tally::default(),
    )?;
    let idle = per_connection(server.memory()?);
    let mut loads = Vec::new();
    let mut number = 0;
    for (pending, rate) in PENDING.into_iter().zip([args.rate, args.burst_rate]) {
        let mut of_topic = if of_kafka {
            Some(Publisher::kafka(kafka.address(), &topic, pending)?)
        } else {
            None
        };
        let publisher = of_topic
            .as_mut()
            .or(control.as_mut())
            .context("the server has no control address")?;
        loads.push(load(
            args,
            &server,
            &mut clients,
            publisher,
            pending,
            rate,
            &mut number,
        )?);
    }
    let after = per_connection(server.memory()?);
    drop((clients, server));
    if of_kafka {
        kafka.delete_topic(&topic)?;
    }
    Ok(Measured { idle, after, loads })
}

fn start(args: &Args, target: Target, kafka: &Kafka, topic: &str) -> anyhow::Result<Server> {
    let this = std::env::current_exe()?;
    let folder = args.peers.as_deref();
    let node = |kind: &str| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/load/peers.mjs");
        Server::start(
            Path::new("node"),
            &[&script.to_string_lossy(), kind],
            folder,
        )
    };
    match target {
        Target::Floor => Server::start(&this, &["floor"], None),
        Target::NodeSse => node("sse"),
        Target::NodeWebsocket => node("ws"),
        Target::NodeSocketio => node("socketio"),
        Target::Sse | Target::Websocket | Target::Socketio => {
            let (program, mut arguments): (PathBuf, Vec<&str>) = match &args.server {
                Some(server) => (server.clone(), vec![]),
                None => (this, vec!["consumer"]),
            };
            let room = (args.connections + 100).to_string();
            arguments.extend([
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--log-format",
                "json",
                "--kafka-topic",
                topic,
            ]);
            arguments.extend([
                "--kafka-bootstrap-servers",
                kafka.address(),
                "--kafka-properties",
                kafka.properties(),
                "--max-connections",
                &room,
            ]);
            let server = Server::start(&program, &arguments, None)?;
            server.ready()?;
            Ok(server)
        }
    }
}

/// Publishes by the clock, whatever is delivered, and waits for the rest afterwards.
fn load(
    args: &Args,
    server: &Server,
    clients: &mut Clients,
    publisher: &mut Publisher,
    pending: u64,
    rate: u64,
    number: &mut u64,
) -> anyhow::Result<Load> {
    let interval = Duration::from_secs(1) / rate as u32;
    let mut tally = Tally {
        published: vec![Instant::now(); *number as usize],
        ..Tally::default()
    };
    let mut publish = |clients: &mut Clients, tally: &mut Tally, times: u64| {
        let start = Instant::now();
        for time in 0..times {
            let due = start + interval * time as u32;
            clients.read_until(due, tally)?;
            tally.published.extend((0..pending).map(|_| due));
            publisher.publish(*number..*number + pending, args.message_bytes, args.rooms)?;
            *number += pending;
        }
        clients.read_until(start + interval * times as u32, tally)
    };
    // One second to get warm, one of silence.
    publish(clients, &mut tally, rate)?;
    clients.read_until(Instant::now() + Duration::from_secs(1), &mut tally)?;
    tally.delays.clear();

    let (cpu, ours, busy, start) = (
        server.cpu()?,
        our_cpu()?,
        server_core_busy()?,
        Instant::now(),
    );
    publish(clients, &mut tally, rate * args.seconds)?;
    let share = (our_cpu()? - ours).as_secs_f64() / start.elapsed().as_secs_f64();
    let receivers = args.connections as u64 / args.rooms.unwrap_or(1);
    let expected = rate * args.seconds * pending * receivers;
    let deadline = Instant::now() + Duration::from_secs(5);
    while (tally.delays.len() as u64) < expected && Instant::now() < deadline {
        clients.read_until(Instant::now() + Duration::from_millis(20), &mut tally)?;
    }
    let cpu = server.cpu()?.saturating_sub(cpu);
    let others = (server_core_busy()? - busy).saturating_sub(cpu);
    let delivered = tally.delays.len() as u64;
    Ok(Load {
        expected,
        delivered,
        misplaced: tally.misplaced,
        cpu: cpu.as_secs_f64() * 1e6 / delivered as f64,
        disturbed: others.as_secs_f64() / start.elapsed().as_secs_f64(),
        share,
        delays: tally.delays,
    })
}

impl Load {
    /// Whether it says something about the server, not about us.
    pub fn counts(&self) -> bool {
        self.share < OUR_SHARE
    }
}
