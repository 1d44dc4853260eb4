//! The Kafka producer, which neither loses nor duplicates a message.

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

/// Properties that exactly-once delivery depends on, so the user cannot set them.
const RESERVED: [&str; 12] = [
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "transactional.id",
    "retries",
    "message.send.max.retries",
    // A rejected message would end the process.
    "enable.gapless.guarantee",
    // Acknowledgements would not arrive.
    "delivery.report.only.error",
    "batch.num.messages",
    "queuing.strategy",
];

/// A producer that may not be connected to Kafka yet.
pub struct Kafka {
    producer: FutureProducer<Context>,
    config: ClientConfig,
    topic: String,
    settings: topic::Settings,
    /// Capacity of librdkafka's own queue, in bytes of values.
    queue_bytes: usize,
    /// Whether the producer creates the topic.
    creates: bool,
}

impl Kafka {
    /// Errors are for the user: properties that librdkafka rejects. An unreachable Kafka is not an error.
    pub fn new(config: &Config) -> anyhow::Result<Kafka> {
        let defaults = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // A message waits for Kafka indefinitely.
            ("message.timeout.ms", "0"),
            // Messages are rare, so waiting for others to fill a batch would only delay them.
            ("linger.ms", "0"),
            // Kafka rejects a batch as a whole, and still writes the batches in flight after it: only with one message per batch
            // is each message accepted or rejected on its own and the order kept. Measured with one broker on two busy cores:
            // 3,000 messages per second.
            ("batch.num.messages", "1"),
            // The topic is created by this process with the configured partitions, or not at all.
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
            settings: topic::Settings::new(config),
            // The default of 1 GiB is more than the size of any message.
            queue_bytes: kbytes.map_or(usize::MAX, |kbytes| kbytes.saturating_mul(1024)),
            creates: config.create_topic != CreateTopic::False,
        })
    }

    /// Returns as soon as the topic exists; `false` if `shutdown` came first.
    pub async fn wait_for_topic(&self, shutdown: &CancellationToken) -> bool {
        shutdown
            .run_until_cancelled(topic::wait(self, 1))
            .await
            .is_some()
    }

    /// Returns as soon as the topic exists with at least the configured partitions. An error if `shutdown` came first.
    pub async fn declare_topic(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let declared = topic::wait(self, self.settings.partitions);
        let Some(found) = shutdown.run_until_cancelled(declared).await else {
            bail!("shut down before topic \"{}\" existed", self.topic);
        };
        info!(topic = self.topic, partitions = found, "topic exists");
        Ok(())
    }

    /// The outbox, for sending messages.
    pub fn into_outbox(self, metrics: Metrics, readiness: Readiness) -> Outbox {
        Outbox::new(self, metrics, readiness)
    }

    /// An error if the idempotent producer cannot continue; a new process can.
    fn check_fatal(&self) -> anyhow::Result<()> {
        match self.producer.client().fatal_error() {
            Some((code, why)) => Err(anyhow::Error::new(code)).with_context(|| {
                format!(
                    "the producer cannot continue without losing or duplicating a message: {why}"
                )
            }),
            None => Ok(()),
        }
    }
}
