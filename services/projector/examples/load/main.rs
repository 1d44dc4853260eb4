//! How many records a projector counts per CPU second, beside a straightforward consumer in Python on the same topic:
//! `cargo run --release -p projector --example load-projections`.
//!
//! The counting process runs on one core; this client, and a Kafka that it starts, on the other. `docs/performance.md` has the
//! numbers.

// The consumer's, so that the numbers mean the same.
#[allow(dead_code)]
#[path = "../../../consumer/examples/load/process.rs"]
mod process;
#[allow(dead_code)]
#[path = "../../../consumer/examples/load/statistics.rs"]
mod statistics;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use herald_runtime::{config, launch, listen};
use herald_testing::{KafkaProcess, Record};
use process::Server;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Row as _};
use store::Reader;

/// What may take longer than this is stuck.
const DEADLINE: Duration = Duration::from_secs(600);

/// Measures projections: records per second, and per CPU second.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Folder with the jars of Apache Kafka, which is started on the core of this client.
    #[arg(long, env = "HERALD_KAFKA_JARS")]
    kafka_jars: PathBuf,

    /// Records of each topic.
    #[arg(long, default_value_t = 200_000)]
    records: usize,

    /// Partitions of each topic.
    #[arg(long, default_value_t = 3)]
    partitions: i32,

    /// How often everything is measured; the report has the medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// A Python with kafka-python: its consumers are measured too.
    #[arg(long)]
    python: Option<PathBuf>,

    /// A database of PostgreSQL, `postgres://user:password@host:port/database`, to be measured too. Each round leaves a schema there.
    #[arg(long)]
    postgres: Option<String>,
}

/// What is measured.
#[derive(Clone, Debug)]
enum Target {
    /// Counts in a file that other programs read, with its rollback journal.
    File,
    /// Counts in the product's own database.
    Sqlite,
    Postgres(String),
    /// Likes, from the topic of likes to windows.
    Windows,
    /// The Python consumer, with this many records in a transaction.
    Python(PathBuf, usize),
}

impl Target {
    fn name(&self) -> String {
        match self {
            Self::File => "counts, file with rollback journal".to_owned(),
            Self::Sqlite => "counts, SQLite".to_owned(),
            Self::Postgres(_) => "counts, PostgreSQL".to_owned(),
            Self::Windows => "likes, partitioned and counted in three windows".to_owned(),
            Self::Python(_, 1) => "Python, a transaction per record".to_owned(),
            Self::Python(_, batch) => format!("Python, transactions of up to {batch} records"),
        }
    }

    /// How many records it is given: a slow one fewer, so that a round ends.
    fn records(&self, args: &Args) -> usize {
        match self {
            Self::Python(_, 1) => args.records / 20,
            Self::Python(..) => args.records / 2,
            _ => args.records,
        }
    }
}

/// One measurement.
struct Measured {
    per_second: f64,
    per_cpu_second: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // This binary is the projector too, so that one command builds all that is measured.
    let result = match arguments.get(1) {
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

/// The projector, which also prints where it listens.
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
#[tokio::main(flavor = "current_thread")]
async fn compare(args: &Args) -> anyhow::Result<()> {
    process::pin_this();
    let kafka = KafkaProcess::start(&args.kafka_jars, &[])?;
    let address = kafka.address();
    let mut targets = vec![Target::File, Target::Sqlite];
    targets.extend(args.postgres.clone().map(Target::Postgres));
    targets.push(Target::Windows);
    if let Some(python) = &args.python {
        targets.extend([1, 1000].map(|batch| Target::Python(python.clone(), batch)));
    }
    let mut all: Vec<Vec<Measured>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        for (target, all) in targets.iter().zip(&mut all) {
            let measured = measure(args, target, &address).await?;
            println!(
                "round {round}, {}: {:.0} records/s, {:.0} per CPU second",
                target.name(),
                measured.per_second,
                measured.per_cpu_second
            );
            all.push(measured);
        }
    }
    println!(
        "\n| {} records | records/s | records per CPU second |\n| --- | --- | --- |",
        args.records
    );
    for (target, all) in targets.iter().zip(&all) {
        let per_second = statistics::median(all.iter().map(|one| one.per_second));
        let per_cpu_second = statistics::median(all.iter().map(|one| one.per_cpu_second));
        println!(
            "| {} | {per_second:.0} | {per_cpu_second:.0} |",
            target.name()
        );
    }
    Ok(())
}

/// Lets a target count a topic that is full already, from its start to its end.
async fn measure(args: &Args, target: &Target, kafka: &str) -> anyhow::Result<Measured> {
    let topic = herald_testing::random_topic("load");
    herald_testing::create_topic(kafka, &topic, args.partitions, &[]).await;
    let count = target.records(args);
    let value = |number: usize| match target {
        Target::Windows => format!("video {}", number % 1000),
        _ => format!("{{\"food\": \"food {}\"}}", number % 107),
    };
    let partitions = usize::try_from(args.partitions)?;
    let records: Vec<Record> = (0..count)
        .map(|number| Record::new((number % partitions) as i32, value(number)))
        .collect();
    herald_testing::produce(kafka, &topic, &records).await;
    let folder = std::env::temp_dir().join(&topic);
    std::fs::create_dir(&folder)?;
    let file = folder.join("db.sqlite");
    let server = start(args, target, kafka, &topic, &file).await?;
    let (begun, cpu) = (Instant::now(), server.cpu()?);
    while counted(target, &server, &topic, &file).await < count as i64 {
        ensure!(
            begun.elapsed() < DEADLINE,
            "{} does not reach the end",
            target.name()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (took, cpu) = (begun.elapsed(), server.cpu()? - cpu);
    drop(server);
    std::fs::remove_dir_all(&folder)?;
    herald_testing::delete_topic(kafka, &topic).await;
    Ok(Measured {
        per_second: count as f64 / took.as_secs_f64(),
        per_cpu_second: count as f64 / cpu.as_secs_f64(),
    })
}

async fn start(
    args: &Args,
    target: &Target,
    kafka: &str,
    topic: &str,
    file: &Path,
) -> anyhow::Result<Server> {
    let program = std::env::current_exe()?;
    let shown = file.display().to_string();
    let url = format!("sqlite://{shown}");
    let mut arguments = vec!["projector", "--kafka-bootstrap-servers", kafka];
    arguments.extend(["--group-prefix", topic, "--admin-listen", "127.0.0.1:0"]);
    arguments.extend([
        "--log-level",
        "warn",
        "--log-format",
        "text",
        "--counts-topic",
        topic,
    ]);
    let [partitioned, results] = ["partitioned", "results"].map(|name| format!("{topic}.{name}"));
    let windows = [("1m", "1"), ("5m", "5"), ("10m", "10")]
        .map(|(size, name)| format!("{size}={results}.{name}"));
    let windows = windows.join(",");
    match target {
        Target::File => arguments.extend(["--counts-database", &shown]),
        Target::Sqlite => arguments.extend(["--projections", "counts", "--database-url", &url]),
        Target::Postgres(url) => {
            arguments.extend([
                "--projections",
                "counts",
                "--database-url",
                url,
                "--database-schema",
                topic,
            ]);
        }
        Target::Windows => {
            herald_testing::create_topic(kafka, &partitioned, args.partitions, &[]).await;
            for name in ["1", "5", "10", "1.live", "5.live", "10.live"] {
                herald_testing::create_topic(kafka, &format!("{results}.{name}"), 1, &[]).await;
            }
            arguments.extend(["--projections", "windows", "--likes-topic", topic]);
            arguments.extend([
                "--partitioned-likes-topic",
                &partitioned,
                "--windows",
                &windows,
            ]);
        }
        Target::Python(python, batch) => {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/load/peer.py");
            let batch = batch.to_string();
            return Server::start(python, &[script, kafka, topic, &shown, &batch], None);
        }
    }
    Server::start(&program, &arguments, None)
}

/// How many records the target has counted. Before it has created its tables, none.
async fn counted(target: &Target, server: &Server, topic: &str, file: &Path) -> i64 {
    let url = match target {
        Target::File | Target::Python(..) => return rows(file).await.unwrap_or_default(),
        Target::Windows => return likes(server).unwrap_or_default(),
        Target::Sqlite => format!("sqlite://{}", file.display()),
        Target::Postgres(url) => url.clone(),
    };
    let (Ok(url), Ok(schema)) = (url.parse(), topic.parse()) else {
        return 0;
    };
    let counts = Reader::new(&url, &schema).counts_after(0).await;
    counts.unwrap_or_default().iter().map(|row| row.count).sum()
}

async fn rows(file: &Path) -> sqlx::Result<i64> {
    let options = SqliteConnectOptions::new().filename(file);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let sum = "SELECT COALESCE(SUM(count), 0) FROM aggregated";
    let row = sqlx::query(sum).fetch_one(&mut connection).await?;
    connection.close().await?;
    row.try_get(0)
}

/// The likes that were counted in windows.
fn likes(server: &Server) -> anyhow::Result<i64> {
    use std::io::{Read as _, Write as _};
    let admin = server.admin.context("there is no admin address")?;
    let mut stream = std::net::TcpStream::connect(admin)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics)?;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("herald_windows_likes_counted_total"));
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.context("there is no such metric")?.parse::<f64>()? as i64)
}
