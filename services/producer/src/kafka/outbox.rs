//! The messages between being said and being acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

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

/// Lines a second that say what was sent.
const SENT_LINES: u32 = 10;

/// Hands messages to librdkafka, which keeps them in order and retries; takes back those that it gives up on (a topic that
/// was deleted, a full queue) and sends them again, in the order in which they were said.
pub struct Outbox {
    kafka: Kafka,
    metrics: Metrics,
    readiness: Readiness,
    sampler: Sampler,
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
    said: Instant,
    /// It was in a batch that Kafka will never take, perhaps because of another message: it is sent alone.
    suspect: bool,
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
            sampler: Sampler::new(SENT_LINES),
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
        self.metrics.said();
        let message = Message {
            broadcast,
            said: Instant::now(),
            suspect: false,
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

    /// Messages that were said and not acknowledged.
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

    /// Takes note of a delivery, or keeps the message for another attempt. Errors are fatal.
    pub fn settle(&mut self, settled: Settled) -> anyhow::Result<()> {
        let Settled {
            number,
            message,
            result,
        } = settled;
        match result {
            Ok(delivery) => {
                self.metrics.acknowledged(message.said.elapsed());
                self.readiness.ready();
                self.complained = false;
                if let Some(skipped) = self.sampler.admit() {
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
            Err(error) => self.keep(number, message, &error, false),
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
        let mut alone = false;
        for (number, message) in std::mem::take(&mut self.waiting) {
            // A suspect message is sent when nothing else is under way, and nothing else before it is settled.
            alone |= message.suspect && !self.in_flight.is_empty();
            if self.waiting.is_empty() && !alone {
                alone = message.suspect;
                self.hand_over(number, message)?;
            } else {
                self.waiting.insert(number, message);
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
            Err((error, _)) => self.keep(number, message, &error, true),
        }
    }

    /// Keeps a message for another attempt, unless Kafka will never take it. `alone` says that the error is about this message
    /// and not about its batch. Errors are fatal.
    fn keep(
        &mut self,
        number: u64,
        mut message: Message,
        error: &KafkaError,
        alone: bool,
    ) -> anyhow::Result<()> {
        self.kafka.check_fatal()?;
        let code = error.rdkafka_error_code();
        let reason = code.and_then(never_taken);
        if reason.is_some() && !alone && !message.suspect {
            message.suspect = true;
        } else if let Some(reason) = reason {
            self.metrics.refused(reason);
            let bytes = message.broadcast.text.len();
            let text = shortened(&message.broadcast.text, 200);
            warn!(%error, bytes, text, "kafka will never take this message; going on without it");
            return Ok(());
        }
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
        Ok(())
    }
}

/// Why Kafka will never take a message, however often it is sent: the message itself is wrong. What depends on rights, on the
/// topic's existence or on the brokers' state may change.
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
    use std::time::Duration;

    use herald_testing::{create_topic, kafka_with, random_topic, read_all};

    use super::*;
    use crate::Config;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// Sends these messages, and returns what the topic holds when none is left.
    async fn sent(
        properties: &str,
        topic_limit: &str,
        texts: &[String],
    ) -> Option<(Vec<String>, String)> {
        let kafka = kafka_with("limit on the size of messages")?;
        let topic = random_topic("refused");
        create_topic(&kafka, &topic, 1, &[("max.message.bytes", topic_limit)]).await;
        let args = [
            "producer",
            "--kafka-topic",
            &topic,
            "--kafka-properties",
            properties,
        ];
        let mut config: Config = herald_runtime::config::parse_from(&args).unwrap();
        config.kafka.kafka_bootstrap_servers = kafka.clone();
        let metrics = Metrics::new();
        let client = Kafka::new(&config).unwrap();
        assert!(client.wait_for_topic(&CancellationToken::new()).await);
        let mut outbox = client.into_outbox(metrics.clone(), Readiness::new());
        for text in texts {
            // Younger than the retention of the topic.
            let (headers, timestamp) = (Vec::new(), jiff::Timestamp::now().as_millisecond());
            let text = text.clone();
            outbox
                .send(Broadcast {
                    text,
                    headers,
                    timestamp,
                })
                .unwrap();
        }
        let settled = async {
            while outbox.unacknowledged() > 0 {
                if outbox.can_retry() {
                    outbox.retry(&CancellationToken::new()).await.unwrap();
                }
                let settled = outbox.delivery().await;
                outbox.settle(settled).unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, settled)
            .await
            .expect("no message blocks the others");
        let stored = read_all(&kafka, &topic)
            .await
            .iter()
            .map(|stored| stored.text())
            .collect();
        let counted = prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather());
        Some((stored, counted.unwrap()))
    }

    #[tokio::test]
    async fn a_message_that_kafka_will_never_take_is_refused_and_the_rest_goes_on_in_order() {
        let texts = [
            "a".to_owned(),
            "x".repeat(20_000),
            "b".to_owned(),
            "c".to_owned(),
        ];
        for (properties, topic_limit) in [("message.max.bytes=5000", "1000000"), ("", "5000")] {
            let Some((stored, counted)) = sent(properties, topic_limit, &texts).await else {
                return;
            };
            assert_eq!(stored, ["a", "b", "c"], "{properties} {topic_limit}");
            assert!(
                counted.contains("herald_messages_refused_total{reason=\"too-large\"} 1\n"),
                "{counted}"
            );
        }
    }
}
