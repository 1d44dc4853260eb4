//! The messages that were produced but not acknowledged yet.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use herald_runtime::Readiness;
use herald_runtime::telemetry::{Sampler, shortened};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use rdkafka::producer::future_producer::{Delivery, DeliveryFuture};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Kafka;
use crate::{Broadcast, Metrics};

/// Maximum number of messages that wait outside of librdkafka's own queue, before no more are produced.
const MAX_WAITING: usize = 10_000;

/// The delay before messages that Kafka did not accept are sent again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Maximum number of log lines per second, for sent and for rejected messages.
const LINES_PER_SECOND: u32 = 10;

/// Maximum number of characters of a rejected message that are logged.
const LOGGED_CHARS: usize = 200;

/// Passes messages to librdkafka, which keeps their order and retries. Messages that it gives up on (a deleted topic, a full
/// queue) are sent again, in the order in which they were produced. A message that Kafka rejects permanently is dropped,
/// counted and logged; it does not block later ones.
pub struct Outbox {
    kafka: Kafka,
    metrics: Metrics,
    readiness: Readiness,
    sent_lines: Sampler,
    rejected_lines: Sampler,
    /// The number of the next message.
    next: u64,
    in_flight: VecDeque<InFlight>,
    /// By number. While one waits, all later ones wait too.
    waiting: BTreeMap<u64, Message>,
    topic_is_missing: bool,
    warned: bool,
}

struct Message {
    broadcast: Broadcast,
    produced: Instant,
}

struct InFlight {
    number: u64,
    message: Message,
    delivery: DeliveryFuture,
}

/// A message and its result.
pub struct Settled {
    number: u64,
    message: Message,
    result: Result<Delivery, KafkaError>,
}

impl Outbox {
    pub(super) fn new(kafka: Kafka, metrics: Metrics, readiness: Readiness) -> Outbox {
        Outbox {
            kafka,
            metrics,
            readiness,
            sent_lines: Sampler::new(LINES_PER_SECOND),
            rejected_lines: Sampler::new(LINES_PER_SECOND),
            next: 0,
            in_flight: VecDeque::new(),
            waiting: BTreeMap::new(),
            topic_is_missing: false,
            warned: false,
        }
    }

    /// Accepts a message, and retries it until Kafka accepts or rejects it. Errors are fatal.
    pub fn send(&mut self, broadcast: Broadcast) -> anyhow::Result<()> {
        let number = self.next;
        self.next += 1;
        self.metrics.enqueued();
        let message = Message {
            broadcast,
            produced: Instant::now(),
        };
        if self.waiting.is_empty() {
            self.enqueue(number, message)
        } else {
            self.waiting.insert(number, message);
            Ok(())
        }
    }

    /// Whether another message may be sent without exceeding the limit of waiting messages.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    /// The number of messages that are neither acknowledged nor rejected yet.
    pub fn unacknowledged(&self) -> usize {
        self.in_flight.len() + self.waiting.len()
    }

    /// The oldest message in flight, once librdkafka has finished with it. Waits forever if there is none.
    pub async fn delivery(&mut self) -> Settled {
        let Some(oldest) = self.in_flight.front_mut() else {
            return std::future::pending().await;
        };
        let result = match (&mut oldest.delivery).await {
            Ok(result) => result.map_err(|(error, _)| error),
            Err(_) => Err(KafkaError::Canceled),
        };
        let InFlight {
            number, message, ..
        } = self
            .in_flight
            .pop_front()
            .expect("the oldest message is still there");
        Settled {
            number,
            message,
            result,
        }
    }

    /// Records a delivery or a rejection, or keeps the message for another attempt. Errors are fatal.
    pub fn settle(&mut self, settled: Settled) -> anyhow::Result<()> {
        let Settled {
            number,
            message,
            result,
        } = settled;
        match result {
            Ok(delivery) => {
                self.metrics.acknowledged(message.produced.elapsed());
                self.readiness.ready();
                self.warned = false;
                if let Some(skipped) = self.sent_lines.admit() {
                    let Delivery {
                        partition, offset, ..
                    } = delivery;
                    let skipped = (skipped > 0).then_some(skipped);
                    info!(
                        partition,
                        offset, skipped, "Sent: {}", message.broadcast.text
                    );
                }
                Ok(())
            }
            Err(error) => self.handle_failure(number, message, &error),
        }
    }

    /// Whether there are messages to send again. Those in flight must finish first, to keep the order.
    pub fn can_retry(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// Sends the waiting messages again, after creating the topic if it is missing. Errors are fatal.
    pub async fn retry(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        if self.topic_is_missing && !self.kafka.wait_for_topic(shutdown).await {
            return Ok(());
        }
        self.topic_is_missing = false;
        for (number, message) in std::mem::take(&mut self.waiting) {
            if self.waiting.is_empty() {
                self.enqueue(number, message)?;
            } else {
                self.waiting.insert(number, message);
            }
        }
        Ok(())
    }

    /// Returns once no message is unacknowledged. Errors are fatal.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        if self.unacknowledged() > 0 {
            info!(
                messages = self.unacknowledged(),
                "waiting for kafka to acknowledge the last messages"
            );
        }
        let mut retry = tokio::time::interval(RETRY_PAUSE);
        let never = CancellationToken::new();
        while self.unacknowledged() > 0 {
            tokio::select! {
                delivery = self.delivery() => self.settle(delivery)?,
                _ = retry.tick(), if self.can_retry() => self.retry(&never).await?,
            }
        }
        Ok(())
    }

    /// Closes the client; its threads are joined without blocking the runtime.
    pub async fn close(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    fn enqueue(&mut self, number: u64, message: Message) -> anyhow::Result<()> {
        let Broadcast {
            text,
            headers,
            timestamp,
        } = &message.broadcast;
        let mut owned = OwnedHeaders::new_with_capacity(headers.len());
        for (key, value) in headers {
            owned = owned.insert(Header {
                key,
                value: Some(value),
            });
        }
        let record: FutureRecord<'_, (), str> = FutureRecord::to(&self.kafka.topic)
            .payload(text.as_str())
            .timestamp(*timestamp)
            .headers(owned);
        match self.kafka.producer.send_result(record) {
            Ok(delivery) => {
                self.in_flight.push_back(InFlight {
                    number,
                    message,
                    delivery,
                });
                Ok(())
            }
            // A message larger than the whole queue will never fit.
            Err((error, _)) if text.len() > self.kafka.queue_bytes => {
                self.reject(&message, "too-large", &error);
                Ok(())
            }
            Err((error, _)) => self.handle_failure(number, message, &error),
        }
    }

    /// Drops a message that Kafka rejects permanently, and keeps any other for another attempt. Errors are fatal.
    fn handle_failure(
        &mut self,
        number: u64,
        message: Message,
        error: &KafkaError,
    ) -> anyhow::Result<()> {
        self.kafka.check_fatal()?;
        match error.rdkafka_error_code().and_then(rejection_reason) {
            Some(reason) => self.reject(&message, reason, error),
            None => self.requeue(number, message, error),
        }
        Ok(())
    }

    fn reject(&mut self, message: &Message, reason: &'static str, error: &KafkaError) {
        self.metrics.rejected(reason);
        if let Some(skipped) = self.rejected_lines.admit() {
            let bytes = message.broadcast.bytes();
            let text = shortened(&message.broadcast.text, LOGGED_CHARS);
            let skipped = (skipped > 0).then_some(skipped);
            warn!(reason, %error, bytes, text, skipped, "kafka rejects this message permanently; dropping it");
        }
    }

    fn requeue(&mut self, number: u64, message: Message, error: &KafkaError) {
        let code = error.rdkafka_error_code();
        // A full librdkafka queue is not a failure, only a long wait.
        if code != Some(RDKafkaErrorCode::QueueFull) {
            self.metrics.failed();
            if !std::mem::replace(&mut self.warned, true) {
                warn!(%error, "kafka does not accept messages; retrying until it does");
            }
        }
        self.topic_is_missing |= matches!(
            code,
            Some(
                RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition
                    | RDKafkaErrorCode::UnknownTopicOrPartition
            )
        );
        self.waiting.insert(number, message);
    }
}

/// Why Kafka permanently rejects a message, which was alone in its batch; `None` if it may be accepted later.
///
/// These are the codes of a produce request that Kafka's protocol defines as not retriable and that concern the message itself.
/// The other such codes concern all messages, so they are retried until an operator intervenes: rights
/// (`TopicAuthorizationFailed`), a policy (`PolicyViolation`), the topic (`InvalidTopic`, `UnsupportedForMessageFormat`,
/// `UnsupportedCompressionType`), the request (`InvalidRequiredAcks`, `InvalidRequest`). A wrong checksum (`InvalidMessage`)
/// is retriable, and librdkafka retries it itself.
fn rejection_reason(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Some("too-large"),
        Code::InvalidRecord | Code::InvalidMessageSize => Some("invalid"),
        Code::InvalidTimestamp => Some("invalid-timestamp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use herald_testing::{create_topic, kafka_with, random_topic, read_all};
    use jiff::{SignedDuration, Timestamp};
    use prometheus::TextEncoder;

    use super::*;
    use crate::Config;

    const DEADLINE: Duration = Duration::from_secs(60);

    /// The results of some messages.
    struct Sent {
        /// In the order of the topic.
        stored: Vec<String>,
        metrics: String,
        ready: bool,
    }

    impl Sent {
        fn has_metric(&self, line: &str) -> bool {
            self.metrics.lines().any(|exposed| exposed == line)
        }
    }

    /// Sends all `texts` at once to a new topic, with these `properties` of librdkafka and `limits` of the topic, and waits until
    /// none is unacknowledged. `None` without a real Kafka.
    async fn send_all(properties: &str, limits: &[(&str, &str)], texts: &[String]) -> Option<Sent> {
        // Retention would delete much older messages.
        send_all_at(Timestamp::now(), properties, limits, texts).await
    }

    async fn send_all_at(
        timestamp: Timestamp,
        properties: &str,
        limits: &[(&str, &str)],
        texts: &[String],
    ) -> Option<Sent> {
        let kafka = kafka_with("limits for messages")?;
        let topic = random_topic("rejected");
        create_topic(&kafka, &topic, 1, limits).await;
        let args = [
            "producer",
            "--kafka-topic",
            &topic,
            "--kafka-properties",
            properties,
        ];
        let mut config: Config = herald_runtime::config::parse_from(&args).unwrap();
        config.kafka.kafka_bootstrap_servers = kafka.clone();
        let client = Kafka::new(&config).unwrap();
        assert!(client.wait_for_topic(&CancellationToken::new()).await);
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        let mut outbox = client.into_outbox(metrics.clone(), readiness.clone());
        for text in texts {
            let message = Broadcast {
                text: text.clone(),
                headers: Vec::new(),
                timestamp: timestamp.as_millisecond(),
            };
            outbox.send(message).unwrap();
        }
        tokio::time::timeout(DEADLINE, outbox.flush())
            .await
            .expect("no message blocks the others")
            .unwrap();
        let records = read_all(&kafka, &topic).await;
        Some(Sent {
            stored: records.iter().map(|record| record.text()).collect(),
            metrics: TextEncoder::new()
                .encode_to_string(&metrics.registry().gather())
                .unwrap(),
            ready: readiness.is_ready(),
        })
    }

    /// `count` messages, of which those in `large` have 20,000 bytes.
    fn texts(count: usize, large: &[usize]) -> Vec<String> {
        let text = |number| match large.contains(&number) {
            true => format!("{number:020000}"),
            false => format!("{number:05}"),
        };
        (0..count).map(text).collect()
    }

    #[tokio::test]
    async fn messages_that_are_too_large_are_rejected_and_the_rest_are_sent_in_order() {
        let every_second: Vec<usize> = (0..200).step_by(2).collect();
        let patterns: [&[usize]; 2] = [&[0, 50, 51, 52, 90, 199], &every_second];
        let client: (_, &[_]) = ("message.max.bytes=5000", &[]);
        let topic: (_, &[_]) = ("", &[("max.message.bytes", "5000")]);
        let queue: (_, &[_]) = ("queue.buffering.max.kbytes=5", &[]);
        for large in patterns {
            for (properties, limits) in [client, topic, queue] {
                let texts = texts(200, large);
                let Some(sent) = send_all(properties, limits, &texts).await else {
                    return;
                };
                let which = format!("{large:?}, {properties}, {limits:?}");
                let small: Vec<_> = texts.iter().filter(|text| text.len() < 5000).collect();
                assert!(sent.stored.iter().eq(small), "{which}: {:?}", sent.stored);
                let rejected = format!(
                    "herald_messages_refused_total{{reason=\"too-large\"}} {}",
                    large.len()
                );
                assert!(sent.has_metric(&rejected), "{which}: {}", sent.metrics);
                assert!(sent.has_metric("herald_messages_unacknowledged 0"));
                assert!(sent.ready);
            }
        }
    }

    #[tokio::test]
    async fn small_messages_that_would_be_too_large_together_are_all_accepted() {
        let texts = texts(5_000, &[]);
        let limits = [("max.message.bytes", "1000")];
        let Some(sent) = send_all("", &limits, &texts).await else {
            return;
        };
        assert_eq!(sent.stored, texts);
    }

    #[tokio::test]
    async fn if_the_topic_rejects_every_message_the_producer_is_not_ready_and_drops_them() {
        // A compacted topic rejects messages without a key.
        let limits = [("cleanup.policy", "compact")];
        let Some(sent) = send_all("", &limits, &texts(100, &[])).await else {
            return;
        };
        assert!(sent.has_metric("herald_messages_refused_total{reason=\"invalid\"} 100"));
        assert!(sent.has_metric("herald_messages_unacknowledged 0"));
        assert!(!sent.ready);
    }

    #[tokio::test]
    async fn a_message_from_the_future_is_rejected() {
        // Kafka's default limit is one hour.
        let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
        let Some(sent) = send_all_at(tomorrow, "", &[], &texts(1, &[])).await else {
            return;
        };
        assert!(sent.has_metric("herald_messages_refused_total{reason=\"invalid-timestamp\"} 1"));
    }
}
