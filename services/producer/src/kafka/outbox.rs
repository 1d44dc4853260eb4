//! The messages between being said and being acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use herald_runtime::Readiness;
use herald_runtime::telemetry::Sampler;
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
            Err(error) => self.keep(number, message, &error),
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
            Err((error, _)) => self.keep(number, message, &error),
        }
    }

    fn keep(&mut self, number: u64, message: Message, error: &KafkaError) -> anyhow::Result<()> {
        self.kafka.check_fatal()?;
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
        Ok(())
    }
}
