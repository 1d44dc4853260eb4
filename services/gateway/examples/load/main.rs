//! What an event costs on its way into Kafka, beside a gateway of Node.js in the same run, and how long it takes until its document
//! contains it: `cargo run --release -p gateway --example load-events`.
//!
//! The servers run on one core; this client, and a Kafka that it starts, on the other. `docs/performance.md` has the numbers.

mod delay;
mod frames;
mod kafka;
mod measure;
// The consumer's, so that the numbers mean the same in both.
#[path = "../../../consumer/examples/load/pieces.rs"]
mod pieces;
#[allow(dead_code)]
#[path = "../../../consumer/examples/load/process.rs"]
mod process;
mod report;
mod sessions;
#[path = "../../../consumer/examples/load/statistics.rs"]
mod statistics;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use gateway::Listeners;
use herald_runtime::{config, launch, listen};

use crate::delay::Store;
use crate::kafka::Kafka;
use crate::report::{Delays, Loads};

/// Measures the gateway: events per CPU second, and the delay from a frame to its document.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Kafka, `host:port`. Without it, one is started from the jars, on the core of this client.
    #[arg(long, env)]
    kafka_bootstrap_servers: Option<String>,

    /// Folder with the jars of Apache Kafka.
    #[arg(long, env = "HERALD_KAFKA_JARS")]
    kafka_jars: Option<PathBuf>,

    /// Partitions of the topic.
    #[arg(long, default_value_t = 3)]
    partitions: i32,

    /// A folder whose `node_modules` holds `ws`, `bufferutil` and `kafkajs`: gateways of Node.js are measured too.
    #[arg(long)]
    peers: Option<PathBuf>,

    /// How often everything is measured; the report has the medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// How long each load lasts, after 3 seconds without measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// Sessions, each with a connection.
    #[arg(long, default_value_t = 500)]
    sessions: usize,

    /// Events in a frame, of about 80 bytes each.
    #[arg(long, default_value_t = 10)]
    frame_events: usize,

    /// Unacknowledged frames of each session, in the load without a rate.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    in_flight: u16,

    /// Frames per second, in the load with a rate.
    #[arg(long, default_value_t = 1000)]
    rate: u32,

    /// Sessions while the delay to the document is measured.
    #[arg(long, default_value_t = 200)]
    delay_sessions: usize,

    /// Frames per second while the delay to the document is measured.
    #[arg(long, default_value_t = 200)]
    delay_rate: u32,

    /// How long the delay to the document is measured.
    #[arg(long, default_value_t = 20)]
    delay_seconds: u32,

    /// Every how many frames of a session its document is read.
    #[arg(long, default_value_t = 4)]
    read_every: usize,

    /// A database of PostgreSQL, `postgres://user:password@host:port/database`, to measure the delay with it too. Each round leaves a
    /// schema there.
    #[arg(long)]
    postgres: Option<String>,

    /// What to measure, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "load,delay")]
    only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Events per CPU second.
    Load,
    /// From a frame to its document.
    Delay,
}

/// A gateway that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Herald,
    /// One request to Kafka per frame.
    NodeEach,
    /// One request to Kafka for the frames of some milliseconds.
    NodeBatched,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Herald => "Herald",
            Self::NodeEach => "node, a send per frame",
            Self::NodeBatched => "node, batched sends",
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // This binary is its own servers too, so that one command builds all that is measured.
    let result = match arguments.get(1) {
        Some(&"gateway") => match config::parse_from::<gateway::Config>(&arguments[1..]) {
            Ok(config) => return serve(config),
            Err(error) => Err(error),
        },
        Some(&"projector") => match config::parse_from::<projector::Config>(&arguments[1..]) {
            Ok(config) => return project(config),
            Err(error) => Err(error),
        },
        _ => compare(&config::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => config::fail(&error),
    }
}

/// The gateway's own `main`.
fn serve(config: gateway::Config) -> ExitCode {
    let common = config.common.clone();
    launch(&common, |shutdown| async move {
        let listeners = Listeners {
            public: listen::bind(config.listen)?,
            likes: None,
            counts: None,
            admin: listen::bind(config.common.admin_listen)?,
        };
        gateway::run(config, listeners, shutdown).await
    })
}

/// The projector's, which also prints where it listens.
fn project(config: projector::Config) -> ExitCode {
    let common = config.common.clone();
    launch(&common, |shutdown| async move {
        let admin = listen::bind(config.common.admin_listen)?;
        let address: SocketAddr = admin.local_addr()?;
        println!(r#"{{"public":"{address}","admin":"{address}"}}"#);
        projector::run(config, admin, shutdown).await
    })
}

/// Round by round, so that what disturbs the machine disturbs all.
fn compare(args: &Args) -> anyhow::Result<()> {
    process::pin_this();
    let kafka = Kafka::start(args)?;
    let mut targets = vec![Target::Herald];
    if args.peers.is_some() {
        targets.extend([Target::NodeEach, Target::NodeBatched]);
    }
    let mut stores = vec![Store::Sqlite];
    stores.extend(args.postgres.clone().map(Store::Postgres));
    let (mut loads, mut delays) = (Loads::new(&targets), Delays::new(&stores));
    for round in 1..=args.rounds {
        if args.only.contains(&Part::Load) {
            for &target in &targets {
                let measured = measure::measure(args, target, &kafka)?;
                println!("round {round}, {}: {}", target.name(), measured.line());
                loads.add(target, measured);
            }
        }
        if args.only.contains(&Part::Delay) {
            for store in &stores {
                let measured = delay::measure(args, store, &kafka)?;
                println!("round {round}, {}: {}", store.name(), measured.line());
                delays.add(store, measured);
            }
        }
    }
    if args.only.contains(&Part::Load) {
        print!("\n{}", loads.table(args));
    }
    if args.only.contains(&Part::Delay) {
        print!("\n{}", delays.table(args));
    }
    Ok(())
}
