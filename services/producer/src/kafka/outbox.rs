//! The messages between being produced and being acknowledged.

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

/// Messages at most that wait outside of librdkafka's own queue, before the clock itself has to wait.
const ROOM: usize = 10_000;

/// How long messages that Kafka did not take wait before they are sent again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Log lines a second at most: of messages sent, and of messages refused.
const LINES: u32 = 10;

/// Characters at most of a refused message that are logged.
const LOGGED_CHARS: usize = 200;

/// Hands messages to librdkafka, which keeps them in order and retries; takes back those that it gives up on (a topic that
/// was deleted, a full queue) and sends them again, in the order in which they were produced. A message that Kafka will
/// never take is dropped, counted and logged; those behind it do not wait.
pub struct Outbox {
    kafka: Kafka,
    metrics: Metrics,
    readiness: Readiness,
    sent_lines: Sampler,
    refused_lines: Sampler,
    /// The number of the next message.
    next: u64,
    in_flight: VecDeque<InFlight>,
    /// By number. While one waits, all later ones wait behind it.
    waiting: BTreeMap<u64, Message>,
    topic_is_lost: bool,
    complained: bool,
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

/// A message and what became of it.
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
            sent_lines: Sampler::new(LINES),
            refused_lines: Sampler::new(LINES),
            next: 0,
            in_flight: VecDeque::new(),
            waiting: BTreeMap::new(),
            topic_is_lost: false,
            complained: false,
        }
    }

    /// Takes a message, for as long as Kafka needs. Errors are fatal.
    pub fn send(&mut self, broadcast: Broadcast) -> anyhow::Result<()> {
        let number = self.next;
        self.next += 1;
        self.metrics.enqueued();
        let message = Message {
            broadcast,
            produced: Instant::now(),
        };
        if self.waiting.is_empty() {
            self.hand_over(number, message)
        } else {
            self.waiting.insert(number, message);
            Ok(())
        }
    }

    /// Whether another message would be taken without growing for ever.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < ROOM
    }

    /// Messages that are neither acknowledged nor refused yet.
    pub fn unacknowledged(&self) -> usize {
        self.in_flight.len() + self.waiting.len()
    }

    /// The oldest message in flight, when librdkafka has done with it. Waits for ever when there is none.
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

    /// Takes note of a delivery or a refusal, or keeps the message for another attempt. Errors are fatal.
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
                self.complained = false;
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
            Err(error) => self.not_delivered(number, message, &error),
        }
    }

    /// Whether there are messages to send again. Those in flight come first, so that the order stays.
    pub fn can_retry(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// Sends the waiting messages again, after creating the topic where that is what they wait for. Errors are fatal.
    pub async fn retry(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        if self.topic_is_lost && !self.kafka.wait_for_topic(shutdown).await {
            return Ok(());
        }
        self.topic_is_lost = false;
        for (number, message) in std::mem::take(&mut self.waiting) {
            if self.waiting.is_empty() {
                self.hand_over(number, message)?;
            } else {
                self.waiting.insert(number, message);
            }
        }
        Ok(())
    }

    /// Returns when no message is unacknowledged. Errors are fatal.
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

    /// Ends the client; its threads are joined where that holds nobody up.
    pub async fn close(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    fn hand_over(&mut self, number: u64, message: Message) -> anyhow::Result<()> {
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
            // Waiting makes no room for a message larger than the whole queue.
            Err((error, _)) if text.len() > self.kafka.queue_bytes => {
                self.refuse(&message, "too-large", &error);
                Ok(())
            }
            Err((error, _)) => self.not_delivered(number, message, &error),
        }
    }

    /// Refuses a message that Kafka will never take, and keeps any other for another attempt. Errors are fatal.
    fn not_delivered(
        &mut self,
        number: u64,
        message: Message,
        error: &KafkaError,
    ) -> anyhow::Result<()> {
        self.kafka.check_fatal()?;
        match error.rdkafka_error_code().and_then(never_taken) {
            Some(reason) => self.refuse(&message, reason, error),
            None => self.keep(number, message, error),
        }
        Ok(())
    }

    fn refuse(&mut self, message: &Message, reason: &'static str, error: &KafkaError) {
        self.metrics.refused(reason);
        if let Some(skipped) = self.refused_lines.admit() {
            let bytes = message.broadcast.bytes();
            let text = shortened(&message.broadcast.text, LOGGED_CHARS);
            let skipped = (skipped > 0).then_some(skipped);
            warn!(reason, %error, bytes, text, skipped, "kafka will never take this message; going on without it");
        }
    }

    fn keep(&mut self, number: u64, message: Message, error: &KafkaError) {
        let code = error.rdkafka_error_code();
        // librdkafka's queue being full is no failure, only a long wait.
        if code != Some(RDKafkaErrorCode::QueueFull) {
            self.metrics.failed();
            if !std::mem::replace(&mut self.complained, true) {
                warn!(%error, "kafka does not take messages, trying again until it does");
            }
        }
        self.topic_is_lost |= matches!(
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

/// Why Kafka will never take a message, which was alone in its batch; `None` when it may be taken later.
///
/// Those are the codes of a produce request that Kafka's protocol calls not retriable and that judge the message. The others
/// of that kind judge what all messages share, so retrying waits until an operator changes it: rights
/// (`TopicAuthorizationFailed`), a policy (`PolicyViolation`), the topic (`InvalidTopic`, `UnsupportedForMessageFormat`,
/// `UnsupportedCompressionType`), the request (`InvalidRequiredAcks`, `InvalidRequest`). A checksum that does not match
/// (`InvalidMessage`) is retriable, and librdkafka retries it by itself.
fn never_taken(code: RDKafkaErrorCode) -> Option<&'static str> {
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

    /// What became of some messages.
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

    /// Sends `texts` all at once into a new topic, with more `properties` of librdkafka and `limits` of the topic, until none
    /// is left. `None` without a real Kafka.
    async fn send_all(properties: &str, limits: &[(&str, &str)], texts: &[String]) -> Option<Sent> {
        // Retention would delete what is much older.
        send_all_at(Timestamp::now(), properties, limits, texts).await
    }

    async fn send_all_at(
        timestamp: Timestamp,
        properties: &str,
        limits: &[(&str, &str)],
        texts: &[String],
    ) -> Option<Sent> {
        let kafka = kafka_with("limits for messages")?;
        let topic = random_topic("refused");
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

    /// `count` messages of which those in `large` have 20,000 bytes and the others few.
    fn texts(count: usize, large: &[usize]) -> Vec<String> {
        let text = |number| match large.contains(&number) {
            true => format!("{number:020000}"),
            false => format!("{number:05}"),
        };
        (0..count).map(text).collect()
    }

    #[tokio::test]
    async fn messages_that_are_too_large_are_refused_and_the_rest_go_on_in_order() {
        let every_second: Vec<usize> = (0..200).step_by(2).collect();
        let places: [&[usize]; 2] = [&[0, 50, 51, 52, 90, 199], &every_second];
        let client: (_, &[_]) = ("message.max.bytes=5000", &[]);
        let topic: (_, &[_]) = ("", &[("max.message.bytes", "5000")]);
        let queue: (_, &[_]) = ("queue.buffering.max.kbytes=5", &[]);
        for large in places {
            for (properties, limits) in [client, topic, queue] {
                let texts = texts(200, large);
                let Some(sent) = send_all(properties, limits, &texts).await else {
                    return;
                };
                let which = format!("{large:?}, {properties}, {limits:?}");
                let small: Vec<_> = texts.iter().filter(|text| text.len() < 5000).collect();
                assert!(sent.stored.iter().eq(small), "{which}: {:?}", sent.stored);
                let refused = format!(
                    "herald_messages_refused_total{{reason=\"too-large\"}} {}",
                    large.len()
                );
                assert!(sent.has_metric(&refused), "{which}: {}", sent.metrics);
                assert!(sent.has_metric("herald_messages_unacknowledged 0"));
                assert!(sent.ready);
            }
        }
    }

    #[tokio::test]
    async fn small_messages_that_would_be_too_large_together_are_all_taken() {
        let texts = texts(5_000, &[]);
        let limits = [("max.message.bytes", "1000")];
        let Some(sent) = send_all("", &limits, &texts).await else {
            return;
        };
        assert_eq!(sent.stored, texts);
    }

    #[tokio::test]
    async fn a_topic_that_refuses_everything_is_never_ready_and_keeps_nothing_waiting() {
        // A compacted topic takes no message without a key.
        let limits = [("cleanup.policy", "compact")];
        let Some(sent) = send_all("", &limits, &texts(100, &[])).await else {
            return;
        };
        assert!(sent.has_metric("herald_messages_refused_total{reason=\"invalid\"} 100"));
        assert!(sent.has_metric("herald_messages_unacknowledged 0"));
        assert!(!sent.ready);
    }

    #[tokio::test]
    async fn a_message_from_the_future_is_refused() {
        // Kafka's limit is an hour unless the topic has another one.
        let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
        let Some(sent) = send_all_at(tomorrow, "", &[], &texts(1, &[])).await else {
            return;
        };
        assert!(sent.has_metric("herald_messages_refused_total{reason=\"invalid-timestamp\"} 1"));
    }
}
