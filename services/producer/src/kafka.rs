//! The way into Kafka: a producer that neither loses nor doubles a message.

mod outbox;
mod topic;

use anyhow::{Context as _, bail};
use herald_runtime::Readiness;
use herald_runtime::kafka::{Context, create};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, Producer};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::CreateTopic;
use crate::{Config, Metrics};

pub use outbox::Outbox;
pub(crate) use outbox::RETRY_PAUSE;

/// What "neither loses nor doubles" rests on, so the user's properties cannot change it.
const RESERVED: [&str; 12] = [
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "transactional.id",
    "retries",
    "message.send.max.retries",
    // A refused message would end the process.
    "enable.gapless.guarantee",
    // Acknowledgements would not arrive.
    "delivery.report.only.error",
    "batch.num.messages",
    "queuing.strategy",
];

/// A producer that may not have found Kafka yet.
pub struct Kafka {
    producer: FutureProducer<Context>,
    config: ClientConfig,
    topic: String,
    wanted: topic::Wanted,
    /// Bytes of values that librdkafka's own queue holds.
    queue_bytes: usize,
    /// Whether the topic is ours to create.
    creates: bool,
}

impl Kafka {
    /// Errors are for the user: properties that librdkafka refuses. That Kafka is away is no error.
    pub fn new(config: &Config) -> anyhow::Result<Kafka> {
        let defaults = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // A message waits for Kafka as long as it takes.
            ("message.timeout.ms", "0"),
            // A broadcast is alone, so waiting for others to make a batch would only delay it.
            ("linger.ms", "0"),
            // Kafka refuses a batch as a whole, and those in flight behind it are written: only alone is a message judged by
            // itself, and only so does the order stay. 3,000 messages a second were seen with one broker on two busy cores.
            ("batch.num.messages", "1"),
            // A topic is created here, with the partitions that were asked for, or not at all.
            ("allow.auto.create.topics", "false"),
        ];
        let client_config = config
            .kafka
            .client_config("herald-producer", &defaults, &RESERVED)?;
        let kbytes = client_config
            .get("queue.buffering.max.kbytes")
            .and_then(|kbytes| kbytes.parse::<usize>().ok());
        Ok(Kafka {
            producer: create(&client_config, Context::new())?,
            config: client_config,
            topic: config.kafka_topic.clone(),
            wanted: topic::Wanted::new(config),
            // Without the property 1 GiB, which is more than a message may have.
            queue_bytes: kbytes.map_or(usize::MAX, |kbytes| kbytes.saturating_mul(1024)),
            creates: config.create_topic != CreateTopic::False,
        })
    }

    /// Returns as soon as the topic exists; `false` when `shutdown` came first.
    pub async fn wait_for_topic(&self, shutdown: &CancellationToken) -> bool {
        shutdown
            .run_until_cancelled(topic::wait(self, 1))
            .await
            .is_some()
    }

    /// Returns as soon as the topic exists with at least the partitions that were asked for. An error when `shutdown` came
    /// first.
    pub async fn declare_topic(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let declared = topic::wait(self, self.wanted.partitions);
        let Some(found) = shutdown.run_until_cancelled(declared).await else {
            bail!("told to end before topic \"{}\" existed", self.topic);
        };
        info!(topic = self.topic, partitions = found, "the topic is there");
        Ok(())
    }

    /// Ready to send.
    pub fn into_outbox(self, metrics: Metrics, readiness: Readiness) -> Outbox {
        Outbox::new(self, metrics, readiness)
    }

    /// An error when the idempotent producer cannot go on; a new process can.
    fn check_fatal(&self) -> anyhow::Result<()> {
        match self.producer.client().fatal_error() {
            Some((code, why)) => Err(anyhow::Error::new(code)).with_context(|| {
                format!("the producer cannot go on without losing or doubling a message: {why}")
            }),
            None => Ok(()),
        }
    }
}
