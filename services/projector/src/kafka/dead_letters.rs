//! The producer of dead letters.

use std::time::Duration;

use anyhow::Context as _;
use herald_runtime::kafka::{Context, create};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::util::Timeout;
use tracing::{debug, info};

use crate::Config;
use crate::sessions::{Malformed, Record};

/// The timeout of a request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A record that is not a frame of a session.
pub struct DeadLetter {
    pub record: Record,
    pub reason: Malformed,
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
    pub fn new(config: &Config) -> anyhow::Result<Self> {
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
            origin: config.events_topic.clone(),
            topic: config.dead_letter_topic(),
            creates: config.create_dead_letter_topic,
        })
    }

    /// Returns once Kafka has acknowledged all of them.
    pub async fn send(&mut self, letters: &[DeadLetter]) -> anyhow::Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        if self.creates {
            self.create_topic().await?;
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

    async fn create_topic(&self) -> anyhow::Result<()> {
        // The embedded broker never answers the request below, and creates a topic when it is looked up.
        let client = self.producer.client();
        let known = client.fetch_metadata(Some(&self.topic), TIMEOUT);
        let exists = known?.topics().iter().any(|topic| {
            topic.name() == self.topic && topic.error().is_none() && !topic.partitions().is_empty()
        });
        if exists {
            return Ok(());
        }
        let admin: AdminClient<Context> = create(&self.config, Context::new())?;
        let new = NewTopic::new(&self.topic, 1, TopicReplication::Fixed(-1));
        let options = AdminOptions::new()
            .request_timeout(Some(TIMEOUT))
            .operation_timeout(Some(TIMEOUT));
        let results = admin.create_topics([&new], &options).await?;
        for result in results {
            match result {
                Ok(_) => info!(topic = self.topic, "topic for malformed records created"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {
                    debug!(topic = self.topic, "topic exists");
                }
                Err((_, code)) => {
                    return Err(code)
                        .with_context(|| format!("cannot create topic {:?}", self.topic));
                }
            }
        }
        Ok(())
    }
}
