//! The producer of dead letters.

use std::borrow::Cow;
use std::fmt;
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
        let sent = self.attempt(letter, true).await;
        // A record as large as Kafka allows leaves no room for the headers.
        let sent = match sent {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) =>
            {
                self.attempt(letter, false).await
            }
            sent => sent,
        };
        sent.with_context(|| {
            let key = key(&self.origin, &letter.record);
            format!(
                "cannot write the malformed record {key} to topic {:?}",
                self.topic
            )
        })
    }

    /// Sends the whole record, or its origin alone.
    async fn attempt(&self, letter: &DeadLetter, whole: bool) -> Result<(), KafkaError> {
        let letter = Annotated::new(&self.origin, &letter.record, &letter.reason, whole);
        let mut headers = OwnedHeaders::new();
        for (key, value) in letter.headers() {
            headers = headers.insert(Header { key, value });
        }
        let mut message = FutureRecord::to(&self.topic)
            .key(&letter.key)
            .headers(headers);
        message.payload = letter.value;
        let sent = self.producer.send(message, Timeout::After(TIMEOUT)).await;
        sent.map(drop).map_err(|(error, _)| error)
    }
}

/// A malformed record with its origin, as it is produced to the dead letter topic.
pub struct Annotated<'a> {
    /// `topic/partition/offset`.
    pub key: String,
    pub value: Option<&'a [u8]>,
    headers: Vec<(&'a str, Option<Cow<'a, [u8]>>)>,
}

impl<'a> Annotated<'a> {
    /// Of a record of this topic: the whole record, or its origin alone.
    pub fn new(
        topic: &'a str,
        record: &'a Record,
        reason: &impl fmt::Display,
        whole: bool,
    ) -> Self {
        let borrowed = |value: &'a Option<Vec<u8>>| value.as_deref().map(Cow::Borrowed);
        let text = |value: String| Some(Cow::Owned(value.into_bytes()));
        let kept = record.headers.iter().filter(|_| whole);
        let mut headers: Vec<_> = kept
            .map(|(name, value)| (name.as_str(), borrowed(value)))
            .collect();
        headers.extend([
            ("origin-topic", Some(Cow::Borrowed(topic.as_bytes()))),
            ("origin-partition", text(record.partition.to_string())),
            ("origin-offset", text(record.offset.to_string())),
            (
                "origin-timestamp",
                record.timestamp.and_then(|time| text(time.to_string())),
            ),
            ("reason", text(reason.to_string())),
        ]);
        headers.push(if whole {
            ("origin-key", borrowed(&record.key))
        } else {
            ("value-omitted", Some(Cow::Borrowed(b"too large")))
        });
        Self {
            key: key(topic, record),
            value: record.value.as_deref().filter(|_| whole),
            headers,
        }
    }

    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let headers = self.headers.iter();
        headers.map(|(name, value)| (*name, value.as_deref()))
    }
}

fn key(topic: &str, record: &Record) -> String {
    format!("{topic}/{}/{}", record.partition, record.offset)
}
