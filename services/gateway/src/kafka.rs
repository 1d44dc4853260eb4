//! Kafka: how it is read in `log`, and here the producer of frames: idempotent, acknowledged by all replicas, in order per session.

pub mod log;
pub mod murmur2;

use std::time::Duration;

use herald_events::SessionId;
use herald_runtime::Readiness;
use herald_runtime::kafka::{Context, create};
use jiff::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};

use crate::Config;

/// Properties that the order and the acknowledgement of frames depend on, so the user cannot set them.
pub const RESERVED: [&str; 9] = [
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "transactional.id",
    "retries",
    "message.send.max.retries",
    "delivery.report.only.error",
];

/// Every topic accepts at least this.
const BATCH_BYTES: &str = "65536";

/// How often the producer is checked for a fatal error.
const CHECK: Duration = Duration::from_millis(500);

/// Publishes frames.
///
/// A frame that is not acknowledged may be in the topic or not, and may still be written later: librdkafka keeps it until Kafka
/// answers, also after its connection was closed. A client that sends it again has it published at least once. An acknowledged
/// frame is on all in-sync replicas.
#[derive(Clone)]
pub struct Kafka {
    pub producer: FutureProducer<Context>,
    topic: String,
    key: herald_events::KeyFormat,
}

/// What the frames of one connection have in common.
pub struct Origin {
    pub session: SessionId,
    pub request_id: String,
    pub traceparent: Option<String>,
}

impl Kafka {
    /// # Errors
    ///
    /// If librdkafka rejects a property. An unreachable Kafka is not an error.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let kbytes = config.total_buffer_kbytes.to_string();
        let defaults = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // A frame that expired here would let later ones of its session overtake it. The connection has a timeout instead.
            ("message.timeout.ms", "0"),
            ("queue.buffering.max.kbytes", kbytes.as_str()),
            ("linger.ms", "1"),
            // Kafka rejects a batch as a whole. A frame that is larger than this is alone in its batch, so that one that is too
            // large for the topic takes no other one with it.
            ("batch.size", BATCH_BYTES),
            // The partitioner of the Java and JavaScript clients, so that a session stays in its partition.
            ("partitioner", "murmur2_random"),
            ("allow.auto.create.topics", "false"),
        ];
        let client = config
            .kafka
            .client_config("herald-gateway", &defaults, &RESERVED)?;
        Ok(Self {
            producer: create(&client, Context::new())?,
            topic: config.events_topic.clone(),
            key: config.session_key,
        })
    }

    /// Queues a frame for the topic. `None` if the queue is full: the caller retries with the same frame.
    ///
    /// # Errors
    ///
    /// If librdkafka rejects the frame.
    pub fn publish(
        &self,
        origin: &Origin,
        frame: &str,
    ) -> Result<Option<DeliveryFuture>, KafkaError> {
        let key = self.key.encode(&origin.session);
        let record = FutureRecord::to(&self.topic)
            .key(&key)
            .payload(frame)
            .headers(headers(origin));
        match self.producer.send_result(record) {
            Ok(delivery) => Ok(Some(delivery)),
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                Ok(None)
            }
            Err((error, _)) => Err(error),
        }
    }

    /// Waits until Kafka has acknowledged every frame, for `limit` at most. Returns how many it has not.
    pub async fn flush(&self, limit: Duration) -> i32 {
        let producer = self.producer.clone();
        tokio::task::spawn_blocking(move || {
            // The remaining number says more than a timeout.
            _ = producer.flush(limit);
            producer.in_flight_count()
        })
        .await
        .expect("flushing does not panic")
    }

    /// Reports ready once Kafka knows the topic, and afterwards notes when it does not answer.
    pub async fn watch(self, readiness: Readiness) {
        let mut was_ready = false;
        loop {
            let this = self.clone();
            let problem = tokio::task::spawn_blocking(move || this.problem())
                .await
                .expect("fetching metadata does not panic");
            match problem {
                None if !was_ready => {
                    was_ready = true;
                    readiness.ready();
                }
                Some(problem) if !was_ready => readiness.not_ready(problem),
                problem => readiness.note("kafka", problem.as_deref()),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn problem(&self) -> Option<String> {
        let client = self.producer.client();
        let metadata = match client.fetch_metadata(Some(&self.topic), Duration::from_secs(5)) {
            Ok(metadata) => metadata,
            Err(error) => return Some(format!("kafka does not answer: {error}")),
        };
        let found = metadata
            .topics()
            .iter()
            .any(|topic| topic.name() == self.topic && !topic.partitions().is_empty());
        (!found).then(|| format!("topic {:?} does not exist", self.topic))
    }
}

/// Waits until one of the producers can no longer guarantee the order of its records, and returns why. Only a new process can go
/// on: it gets a new id from Kafka.
pub async fn failed(producers: Vec<FutureProducer<Context>>) -> anyhow::Error {
    loop {
        let mut fatal = producers.iter().map(|producer| producer.client());
        if let Some((code, reason)) = fatal.find_map(|client| client.fatal_error()) {
            return anyhow::anyhow!("the Kafka producer failed: {reason} ({code})");
        }
        tokio::time::sleep(CHECK).await;
    }
}

fn headers(origin: &Origin) -> OwnedHeaders {
    cloud_event(
        "herald.session.events",
        Some("application/json"),
        &origin.request_id,
        origin.traceparent.as_deref(),
    )
}

/// CloudEvents in binary mode, the trace context and the request id.
pub fn cloud_event(
    kind: &str,
    content_type: Option<&str>,
    request_id: &str,
    traceparent: Option<&str>,
) -> OwnedHeaders {
    let id = format!("{:032x}", rand::random::<u128>());
    let time = format!("{:.3}", Timestamp::now());
    let mut headers = OwnedHeaders::new();
    for (key, value) in [
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some(id.as_str())),
        ("ce_source", Some("/herald/gateway")),
        ("ce_type", Some(kind)),
        ("ce_time", Some(time.as_str())),
        ("content-type", content_type),
        ("traceparent", traceparent),
        ("x-request-id", Some(request_id)),
    ] {
        if value.is_some() {
            headers = headers.insert(Header { key, value });
        }
    }
    headers
}

/// The trace context that a client sent, if it is valid (W3C, version 00).
pub fn traceparent(sent: &str) -> Option<String> {
    let parts: Vec<&str> = sent.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else {
        return None;
    };
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let nonzero = |text: &str| text.bytes().any(|byte| byte != b'0');
    let valid = version == "00"
        && hex(trace, 32)
        && nonzero(trace)
        && hex(parent, 16)
        && nonzero(parent)
        && hex(flags, 2);
    valid.then(|| sent.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_trace_context_is_kept_and_an_invalid_one_is_not() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(valid).as_deref(), Some(valid));
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for invalid in ["", "00-1-2-3", &valid.to_uppercase()[..], zero] {
            assert_eq!(traceparent(invalid), None, "{invalid}");
        }
    }
}
