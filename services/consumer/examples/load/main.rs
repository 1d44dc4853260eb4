//! What a delivery and a connection cost, beside a bare floor in the same run: `cargo run --release -p consumer --example load`.
//!
//! The server runs on one core, this client, on epoll and without a task per connection, on the other. `docs/performance.md` has
//! the numbers.

mod clients;
mod floor;
mod kafka;
mod measure;
mod pieces;
mod process;
mod publisher;
mod report;
mod statistics;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use consumer::{Config, Listeners};
use herald_runtime::{config, launch, listen};

use crate::kafka::Kafka;
use crate::measure::Measured;
use crate::report::Report;

/// Measures the consumer's transports: memory per connection, CPU per delivery, delay.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Clients that are connected at the same time.
    #[arg(long, default_value_t = 4000)]
    connections: usize,

    /// How often everything is measured; the report has the medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// How long messages are published, for each of the two loads.
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// Messages a second when one is pending at each wake-up.
    #[arg(long, default_value_t = 10)]
    rate: u64,

    /// Bursts of 16 messages a second, each in one batch of Kafka's.
    #[arg(long, default_value_t = 1)]
    burst_rate: u64,

    /// Spread the connections over this many rooms, each with its own key; a message goes to one room. Must divide the number
    /// of connections. Compare 10000 connections in 10000 rooms with 10000 in one. Not for the floor.
    #[arg(long)]
    rooms: Option<u64>,

    /// Bytes of a message.
    #[arg(long, default_value_t = 200)]
    message_bytes: usize,

    /// Kafka, `host:port`. Without it librdkafka's own model of Kafka, in this process; its fetches delay messages by up to 20 ms.
    #[arg(long, env)]
    kafka_bootstrap_servers: Option<String>,

    /// What to measure, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "floor,sse,websocket,socketio"
    )]
    only: Vec<Target>,

    /// A folder whose `node_modules` holds `ws` and `socket.io`: servers of node's are measured too, for those of `--only`.
    #[arg(long)]
    peers: Option<PathBuf>,

    /// Another consumer's binary, to compare it with this one.
    #[arg(long)]
    server: Option<PathBuf>,
}

/// A server and the way it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// A bare epoll server that writes bytes it was given.
    Floor,
    Sse,
    Websocket,
    Socketio,
    #[value(skip)]
    NodeSse,
    #[value(skip)]
    NodeWebsocket,
    #[value(skip)]
    NodeSocketio,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Sse => "SSE",
            Self::Websocket => "WebSocket",
            Self::Socketio => "Socket.IO",
            Self::NodeSse => "node http SSE",
            Self::NodeWebsocket => "node ws",
            Self::NodeSocketio => "node socket.io",
        }
    }

    /// The Node.js server with the same protocol.
    fn peer(self) -> Option<Self> {
        match self {
            Self::Sse => Some(Self::NodeSse),
            Self::Websocket => Some(Self::NodeWebsocket),
            Self::Socketio => Some(Self::NodeSocketio),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // This binary is its own servers too, so that one command builds all that is measured.
    let result = match arguments.get(1) {
        Some(&"consumer") => match config::parse_from::<Config>(&arguments[1..]) {
            Ok(config) => return serve(config),
            Err(error) => Err(error),
        },
        Some(&"floor") => floor::run(),
        _ => compare(&config::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => config::fail(&error),
    }
}

/// The consumer's own `main`.
fn serve(config: Config) -> ExitCode {
    let common = config.common.clone();
    launch(&common, |shutdown| async move {
        let public = listen::bind(config.listen)?;
        let admin = listen::bind(config.common.admin_listen)?;
        consumer::run(
            config,
            Listeners {
                public,
                rooms: None,
                admin,
            },
            shutdown,
        )
        .await
    })
}

/// Round by round, so that what disturbs the machine disturbs all.
fn compare(args: &Args) -> anyhow::Result<()> {
    if let Some(rooms) = args.rooms {
        let divides = rooms > 0 && (args.connections as u64).is_multiple_of(rooms);
        anyhow::ensure!(divides, "--rooms must divide --connections");
        let keyed = args.peers.is_none() && !args.only.contains(&Target::Floor);
        anyhow::ensure!(
            keyed,
            "--rooms requires --only without floor, and no --peers"
        );
    }
    process::pin_this();
    let kafka = Kafka::start(
        args.kafka_bootstrap_servers.as_deref(),
        args.rounds * args.only.len(),
    )?;
    let targets = args.only.iter().flat_map(|target| {
        let peer = target.peer().filter(|_| args.peers.is_some());
        std::iter::once(*target).chain(peer)
    });
    let targets: Vec<Target> = targets.collect();
    let mut report = Report::new(&targets);
    for round in 1..=args.rounds {
        for &target in &targets {
            let measured: Measured = measure::measure(args, target, &kafka)?;
            println!("round {round}, {}: {}", target.name(), measured.line());
            report.add(target, measured);
        }
    }
    print!("\n{}", report.table());
    Ok(())
}
