//! Kafka to results: the projector reads records from topics, and keeps what it computes from them in a database.
//!
//! A record passes through the modules in this order: `kafka` reads it, `projection` (with `sessions` and `counts`) turns it into
//! changes, and `project` commits the changes of a batch together with the position after it.

mod clock;
mod config;
mod counts;
mod kafka;
mod metrics;
mod project;
mod projection;
mod readiness;
mod record;
mod sessions;
mod verify;
mod windows;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use herald_events::SessionId;
use herald_runtime::config::invalid;
use herald_runtime::{Readiness, admin};
use prometheus::Registry;
use store::{CountsFile, Refused, Writer};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::{Command, Config, Kind};
pub use verify::verify;

use kafka::{DeadLetters, Group};
use metrics::Metrics;
use project::{Projector, Target};
use projection::Projection;
use readiness::{Part, Parts};
use windows::WindowsProjection;

/// The pause between two attempts to open the database.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Projects until `shutdown` is cancelled, and serves `admin` meanwhile; ready once every topic was read to its end.
///
/// Waits for the database, Kafka and the topics indefinitely. An error means that the configuration is invalid,
/// or that a consumer group has rejected this member for good.
pub async fn run(
    config: Config,
    admin: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let registry = Registry::new();
    let readiness = Readiness::new();
    let parts = Parts::new(readiness.clone());
    let mut members = Vec::new();
    for projection in config.chosen()? {
        members.push(Member::new(&config, projection, &registry, &parts)?);
    }
    let likes = config.counts_windows();
    let likes = likes.then(|| WindowsProjection::new(&config, &registry, &parts));
    let likes = likes.transpose()?;

    // It stops when this function returns, not at the first signal: operators also observe the shutdown.
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    tokio::spawn(admin::serve(admin, readiness, registry, ended));

    let stop = shutdown.child_token();
    let mut running = JoinSet::new();
    let database = Arc::default();
    for member in members {
        running.spawn(member.run(config.clone(), Arc::clone(&database), stop.clone()));
    }
    if let Some(likes) = likes {
        running.spawn(likes.run(stop.clone()));
    }
    let mut result = Ok(());
    while let Some(ended) = running.join_next().await {
        // If one ends on its own, all end.
        stop.cancel();
        result = result.and(ended.context("a projection panicked").flatten());
    }
    result
}

/// A projection before its database is open.
struct Member {
    projection: Projection,
    topic: String,
    group: Group,
    dead_letters: DeadLetters,
    metrics: Metrics,
    readiness: Part,
}

impl Member {
    fn new(
        config: &Config,
        projection: Projection,
        registry: &Registry,
        parts: &Parts,
    ) -> anyhow::Result<Self> {
        let topic = config.topic(projection);
        Ok(Self {
            projection,
            topic: topic.to_owned(),
            group: Group::subscribe(config, topic, &config.group(projection))?,
            dead_letters: DeadLetters::new(config, topic)?,
            metrics: Metrics::new(registry, projection.name(), topic),
            readiness: parts.part(projection.name()),
        })
    }

    async fn run(
        self,
        config: Config,
        database: Arc<OnceCell<Writer>>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let opened = shutdown.run_until_cancelled(self.open(&config, &database));
        let Some(target) = opened.await.transpose()? else {
            return Ok(());
        };
        let projector = Projector {
            config,
            projection: self.projection,
            topic: self.topic,
            group: self.group,
            dead_letters: self.dead_letters,
            target,
            metrics: self.metrics,
            readiness: self.readiness,
            shutdown,
            runtime: Handle::current(),
        };
        // librdkafka is polled on a thread of its own.
        tokio::task::spawn_blocking(|| projector.run())
            .await
            .context("the projector panicked")?
    }

    /// The database, as soon as it answers. An error is for the user: a file that cannot be counted into.
    async fn open(&self, config: &Config, database: &OnceCell<Writer>) -> anyhow::Result<Target> {
        if self.projection == Projection::Counts
            && let Some(path) = &config.counts_database
        {
            return self.open_file(path).await.map(Target::CountsFile);
        }
        let mut logged = String::new();
        loop {
            // The first one opens it for all.
            match database.get_or_try_init(|| open(config)).await {
                Ok(writer) => return Ok(Target::Database(writer.clone())),
                Err(error) => self.wait_after(&error, &mut logged).await,
            }
        }
    }

    async fn open_file(&self, path: &Path) -> anyhow::Result<CountsFile> {
        let mut logged = String::new();
        loop {
            match CountsFile::open(path).await {
                Ok(file) => {
                    info!(file = %path.display(), "counting into a file");
                    return Ok(file);
                }
                Err(error) if error.is::<Refused>() => return Err(invalid(format!("{error:#}"))),
                Err(error) => self.wait_after(&error, &mut logged).await,
            }
        }
    }

    /// Reports a failure, the first time, and waits before the next attempt.
    async fn wait_after(&self, error: &anyhow::Error, logged: &mut String) {
        let problem = format!("{error:#}");
        if problem != *logged {
            warn!("{problem}; trying again until it succeeds");
        }
        self.readiness.not_ready(problem.as_str());
        *logged = problem;
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Deletes one session, and prints whether there was one.
///
/// # Errors
///
/// If there is no database, or it fails.
pub async fn delete_session(config: &Config, id: &SessionId) -> anyhow::Result<()> {
    let deleted = open(config).await?.delete_session(id).await?;
    println!(
        "{}",
        if deleted {
            "deleted"
        } else {
            "no such session"
        }
    );
    Ok(())
}

async fn open(config: &Config) -> anyhow::Result<Writer> {
    let url = config.database_url.as_ref();
    let url = url.ok_or_else(|| invalid("--database-url is not set"))?;
    let role = config.database_reader_role.as_ref();
    let writer = Writer::open(url, &config.database_schema, role).await?;
    info!(database = %url, "database open");
    Ok(writer)
}
