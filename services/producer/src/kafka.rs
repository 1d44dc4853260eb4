//! The way into Kafka: a producer that neither loses nor doubles a message.

mod outbox;
mod topic;

use anyhow::Context as _;
use herald_runtime::Readiness;
use herald_runtime::kafka::{Context, create};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, Producer};
use tokio_util::sync::CancellationToken;

use crate::{Config, Metrics};

pub use outbox::Outbox;

/// What "neither loses nor doubles" rests on, so the user's properties cannot change it.
const RESERVED: [&str; 8] = [
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "transactional.id",
    "retries",
    "message.send.max.retries",
];

/// A producer that may not have found Kafka yet.
pub struct Kafka {
    producer: FutureProducer<Context>,
    config: ClientConfig,
    topic: String,
    /// The number of partitions of a topic that has to be created; `None` when somebody else creates it.
    create_with: Option<i32>,
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
            // A topic is created here, with the partitions that were asked for, or not at all.
            ("allow.auto.create.topics", "false"),
        ];
        let client_config = config
            .kafka
            .client_config("herald-producer", &defaults, &RESERVED)?;
        Ok(Kafka {
            producer: create(&client_config, Context::new())?,
            config: client_config,
            topic: config.kafka_topic.clone(),
            create_with: config.create_topic.then_some(config.topic_partitions),
        })
    }

    /// Returns as soon as the topic exists; `false` when `shutdown` came first.
    pub async fn wait_for_topic(&self, shutdown: &CancellationToken) -> bool {
        shutdown
            .run_until_cancelled(topic::wait(self))
            .await
            .is_some()
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
