//! The producer of dead letters.

use std::time::Duration;

use anyhow::Context as _;
use herald_runtime::kafka::{Context, create};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use super::topics::create_topic;
use crate::Config;
use crate::projection::Malformed;
use crate::record::Record;

/// The timeout of a request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A record that cannot be projected.
pub struct DeadLetter {
    pub record: Record,
    pub reason: Malformed,
}

/// The topic of the malformed records of another topic.
pub fn dead_letter_topic(topic: &str) -> String {
    format!("{topic}.dlq")
}

/// Sends malformed records to the dead letter topic, each at least once.
pub struct DeadLetters {
    producer: FutureProducer<Context>,
    config: ClientConfig,
    origin: String,
    topic: String,
    /// The topic is created with the first letter.
    creates: bool,
}

impl DeadLetters {
    /// Errors are for the user: properties that librdkafka rejects. An unreachable Kafka is not an error.
    pub fn new(config: &Config, topic: &str) -> anyhow::Result<Self> {
        let defaults = [
            ("linger.ms", "5"),
            // A batch whose letters are not acknowledged is read again.
            ("message.timeout.ms", "15000"),
            // The largest record that Kafka may hold; the broker decides.
            ("message.max.bytes", "67108864"),
            ("topic.metadata.propagation.max.ms", "10000"),
        ];
        let required = [("enable.idempotence", "true"), ("acks", "all")];
        let reserved = required.map(|(key, _)| key);
        let mut client = config
            .kafka
            .client_config("herald-projector", &defaults, &reserved)?;
        for (key, value) in required {
            client.set(key, value);
        }
        Ok(Self {
            producer: create(&client, Context::new())?,
            config: client,
            origin: topic.to_owned(),
            topic: dead_letter_topic(topic),
            creates: config.create_dead_letter_topic,
        })
    }

    /// Returns once Kafka has acknowledged all of them.
    pub async fn send(&mut self, letters: &[DeadLetter]) -> anyhow::Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        if self.creates {
            create_topic(&self.config, &self.topic).await?;
            self.creates = false;
        }
        let sent = letters.iter().map(|letter| self.send_one(letter));
        futures_util::future::try_join_all(sent).await?;
        Ok(())
    }

    async fn send_one(&self, letter: &DeadLetter) -> anyhow::Result<()> {
        let record = &letter.record;
        let (partition, offset) = (record.partition, record.offset);
        let key = format!("{}/{partition}/{offset}", self.origin);
        let sent = self.attempt(&key, letter, true).await;
        // A record as large as Kafka allows leaves no room for the headers.
        let sent = match sent {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) =>
            {
                self.attempt(&key, letter, false).await
            }
            sent => sent,
        };
        sent.with_context(|| {
            format!(
                "cannot write the malformed record {key} to topic {:?}",
                self.topic
            )
        })
    }

    /// Sends the whole record, or its origin alone.
    async fn attempt(&self, key: &str, letter: &DeadLetter, whole: bool) -> Result<(), KafkaError> {
        let record = &letter.record;
        let timestamp = record.timestamp.map(|timestamp| timestamp.to_string());
        let (partition, offset) = (record.partition.to_string(), record.offset.to_string());
        let reason = letter.reason.to_string();
        let mut headers = OwnedHeaders::new();
        let mut add = |key: &str, value: Option<&[u8]>| {
            headers = std::mem::take(&mut headers).insert(Header { key, value });
        };
        for (name, value) in record.headers.iter().filter(|_| whole) {
            add(name, value.as_deref());
        }
        add("origin-topic", Some(self.origin.as_bytes()));
        add("origin-partition", Some(partition.as_bytes()));
        add("origin-offset", Some(offset.as_bytes()));
        add("origin-timestamp", timestamp.as_deref().map(str::as_bytes));
        add("reason", Some(reason.as_bytes()));
        if whole {
            add("origin-key", record.key.as_deref());
        } else {
            add("value-omitted", Some(b"too large"));
        }
        let value = record.value.as_ref().filter(|_| whole);
        let mut message = FutureRecord::to(&self.topic).key(key).headers(headers);
        message.payload = value;
        let sent = self.producer.send(message, Timeout::After(TIMEOUT)).await;
        sent.map(drop).map_err(|(error, _)| error)
    }
}
