//! The clock speaks: one broadcast into a Kafka topic, then a random pause, until it is told to end.

mod config;
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

pub use config::{Config, CreateTopic};
pub use message::{Broadcast, FACES};
pub use metrics::Metrics;
pub use pause::Pauses;

use kafka::{Kafka, Outbox, RETRY_PAUSE};

/// Speaks until `shutdown` is cancelled, and answers on `admin` meanwhile; ready once Kafka has acknowledged a message.
///
/// Waits for Kafka and for the topic as long as it takes, and gives up on no message but one that Kafka will never take. With
/// [`CreateTopic::Only`] it returns when the topic is there. An error means that the configuration is wrong, that the
/// idempotent producer cannot go on without losing or doubling something, or that messages were left unacknowledged when the
/// grace period ended.
pub async fn run(
    config: Config,
    admin: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pauses = Pauses::new(config.interval_min, config.interval_max)?;
    let metrics = Metrics::new();
    let readiness = Readiness::new();
    readiness.not_ready("no message has been acknowledged yet");
    let kafka = Kafka::new(&config)?;
    if config.create_topic == CreateTopic::Only {
        return kafka.declare_topic(&shutdown).await;
    }

    // It stops when this function returns, not at the first signal: operators watch the end, too.
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
    speak(
        environment_name(&config.kafka_topic),
        pauses,
        &mut outbox,
        &shutdown,
    )
    .await?;

    readiness.not_ready("ending");
    // A little of the grace period is kept for saying what was lost.
    let flushed =
        tokio::time::timeout(config.common.shutdown_grace.mul_f32(0.9), outbox.flush()).await;
    let left = outbox.unacknowledged();
    outbox.close().await;
    match flushed {
        Ok(result) => result,
        Err(_) => bail!("{left} messages were not acknowledged by kafka before the end"),
    }
}

/// One broadcast after the other, on time; what Kafka does with them is looked at in between.
async fn speak(
    environment: &str,
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
                outbox.send(Broadcast::new(environment, pause::face(pause), &Zoned::now()))?;
                // After a standstill (a full outbox, a laptop asleep) the clock goes on; it does not catch up.
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
