//! The producer: sends a message to a Kafka topic, then pauses for a random time, until it is shut down.

mod config;
mod food;
mod kafka;
mod message;
mod metrics;
mod pause;

use std::time::Duration;

use anyhow::bail;
use herald_runtime::{Readiness, admin, environment_name};
use jiff::Zoned;
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

pub use config::{Config, CreateTopic, Feed};
pub use message::{Broadcast, FACES};
pub use metrics::Metrics;
pub use pause::Pauses;

use kafka::{Kafka, Outbox, RETRY_PAUSE};

/// Creates the topic, or gives it the partitions that it lacks. Waits for Kafka indefinitely; serves nothing, so that several can
/// run beside each other.
///
/// # Errors
///
/// If the configuration is invalid, or Kafka rejects it.
pub async fn create_topic(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<()> {
    Kafka::new(config)?.declare_topic(shutdown).await
}

/// Produces messages until `shutdown` is cancelled, and serves `admin` meanwhile; ready once Kafka has acknowledged a message.
///
/// Waits for Kafka and the topic indefinitely, and retries every message unless Kafka rejects it permanently. An error means that
/// the configuration is invalid, that the idempotent producer cannot continue without losing or duplicating messages, or that
/// messages were unacknowledged when the grace period ended.
pub async fn run(
    config: Config,
    admin: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pauses = Pauses::new(config.interval_min, config.interval_max())?;
    let metrics = Metrics::new();
    let readiness = Readiness::new();
    readiness.not_ready("no message has been acknowledged yet");
    let kafka = Kafka::new(&config)?;
    // It stops when this function returns, not at the first signal: operators also observe the shutdown.
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    tokio::spawn(admin::serve(
        admin,
        readiness.clone(),
        metrics.registry().clone(),
        ended,
    ));

    if !kafka.wait_for_topic(&shutdown).await {
        return Ok(());
    }
    let mut outbox = kafka.into_outbox(metrics, readiness.clone());
    let next = |pause| match config.feed {
        Feed::Broadcasts => {
            let environment = environment_name(&config.kafka_topic);
            Broadcast::new(environment, pause::face(pause), &Zoned::now())
        }
        Feed::Foods => Broadcast::food(food::random(), &Zoned::now()),
    };
    produce(next, pauses, &mut outbox, &shutdown).await?;

    readiness.not_ready("shutting down");
    // Part of the grace period is reserved for reporting what was lost.
    let flushed =
        tokio::time::timeout(config.common.shutdown_grace.mul_f32(0.9), outbox.flush()).await;
    let left = outbox.unacknowledged();
    outbox.close().await;
    match flushed {
        Ok(result) => result,
        Err(_) => bail!("{left} messages were not acknowledged by kafka before the shutdown"),
    }
}

/// Produces one message after another on schedule, each for the pause that follows it, and handles deliveries in between.
async fn produce(
    next_message: impl Fn(Duration) -> Broadcast,
    pauses: Pauses,
    outbox: &mut Outbox,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut retry = tokio::time::interval(RETRY_PAUSE);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = sleep_until(next), if outbox.has_room() => {
                let pause = pauses.draw();
                outbox.send(next_message(pause))?;
                // After a standstill (a full outbox, a sleeping laptop), continue from now instead of catching up.
                if next.elapsed() > Duration::from_secs(1) {
                    next = Instant::now();
                }
                next += pause;
            }
            delivery = outbox.delivery() => outbox.settle(delivery)?,
            _ = retry.tick(), if outbox.can_retry() => outbox.retry(shutdown).await?,
        }
    }
}
