//! Kafka to results: the projector reads events from a topic and keeps a document of each session in a database.
//!
//! A record passes through the modules in this order: `kafka` reads it, `sessions` turns it into changes, and `project` commits
//! the changes of a batch together with the position after it.

mod config;
mod kafka;
mod metrics;
mod project;
mod sessions;

use std::time::Duration;

use anyhow::Context as _;
use herald_events::SessionId;
use herald_runtime::{Readiness, admin};
use store::Writer;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::{Command, Config};

use kafka::{DeadLetters, Group};
use metrics::Metrics;
use project::Projector;

/// The pause between two attempts to open the database.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Projects until `shutdown` is cancelled, and serves `admin` meanwhile; ready once the topic was read to its end.
///
/// Waits for the database, Kafka and the topic indefinitely. An error means that the configuration is invalid,
/// or that the consumer group has rejected this member for good.
pub async fn run(
    config: Config,
    admin: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = Metrics::new(&config.events_topic);
    let readiness = Readiness::new();
    let group = Group::subscribe(&config)?;
    let dead_letters = DeadLetters::new(&config)?;

    // It stops when this function returns, not at the first signal: operators also observe the shutdown.
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    tokio::spawn(admin::serve(
        admin,
        readiness.clone(),
        metrics.registry().clone(),
        ended,
    ));

    let opened = shutdown.run_until_cancelled(open(&config, &readiness));
    let Some(writer) = opened.await else {
        return Ok(());
    };
    let projector = Projector {
        config,
        group,
        dead_letters,
        writer,
        metrics,
        readiness,
        shutdown,
        runtime: Handle::current(),
    };
    // librdkafka is polled on a thread of its own.
    tokio::task::spawn_blocking(|| projector.run())
        .await
        .context("the projector panicked")?
}

/// Deletes one session, and prints whether there was one.
///
/// # Errors
///
/// If the database fails.
pub async fn delete_session(config: &Config, id: &SessionId) -> anyhow::Result<()> {
    let writer = Writer::open(
        &config.database_url,
        &config.database_schema,
        config.database_reader_role.as_ref(),
    )
    .await?;
    let deleted = writer.delete_session(id).await?;
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

/// The database, as soon as it answers.
async fn open(config: &Config, readiness: &Readiness) -> Writer {
    let mut logged = String::new();
    loop {
        let opened = Writer::open(
            &config.database_url,
            &config.database_schema,
            config.database_reader_role.as_ref(),
        );
        match opened.await {
            Ok(writer) => {
                info!(database = %config.database_url, "database open");
                return writer;
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if problem != logged {
                    warn!("{problem}; trying again until it succeeds");
                }
                readiness.not_ready(problem.as_str());
                logged = problem;
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
