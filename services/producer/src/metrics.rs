//! The producer's metrics.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Why messages are rejected, as labels.
const REJECTION_REASONS: [&str; 3] = ["too-large", "invalid", "invalid-timestamp"];

/// The producer's metrics and their registry. The help texts describe each one.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    produced: IntCounter,
    failures: IntCounter,
    rejected: IntCounterVec,
    unacknowledged: IntGauge,
    delivery: Histogram,
}

impl Metrics {
    /// With their own registry, because several producers may share a process.
    pub fn new() -> Metrics {
        let metrics = Metrics {
            registry: Registry::new(),
            produced: IntCounter::new(
                "herald_messages_produced_total",
                "Messages that Kafka has acknowledged.",
            )
            .expect("the name is valid"),
            failures: IntCounter::new(
                "herald_produce_failures_total",
                "Attempts to deliver a message that failed; the message is sent again.",
            )
            .expect("the name is valid"),
            rejected: IntCounterVec::new(
                Opts::new(
                    "herald_messages_refused_total",
                    "Messages that Kafka rejects permanently, by reason; they are not sent again.",
                ),
                &["reason"],
            )
            .expect("the name is valid"),
            unacknowledged: IntGauge::new(
                "herald_messages_unacknowledged",
                "Messages that Kafka has neither acknowledged nor rejected yet.",
            )
            .expect("the name is valid"),
            delivery: Histogram::with_opts(
                HistogramOpts::new(
                    "herald_produce_seconds",
                    "Time from a message being produced to Kafka acknowledging it.",
                )
                .buckets(vec![
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                    30.0, 60.0,
                ]),
            )
            .expect("the name and the buckets are valid"),
        };
        let Metrics {
            registry,
            produced,
            failures,
            rejected,
            unacknowledged,
            delivery,
        } = &metrics;
        for collector in [
            Box::new(produced.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(failures.clone()),
            Box::new(rejected.clone()),
            Box::new(unacknowledged.clone()),
            Box::new(delivery.clone()),
        ] {
            registry
                .register(collector)
                .expect("no two names are the same");
        }
        // Created at startup, so that the first rejection is an increase.
        for reason in REJECTION_REASONS {
            rejected.with_label_values(&[reason]);
        }
        metrics
    }

    /// For the admin server.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn enqueued(&self) {
        self.unacknowledged.inc();
    }

    /// Counts a message that will never be acknowledged.
    pub(crate) fn rejected(&self, reason: &str) {
        self.unacknowledged.dec();
        self.rejected.with_label_values(&[reason]).inc();
    }

    pub(crate) fn acknowledged(&self, after: Duration) {
        self.unacknowledged.dec();
        self.produced.inc();
        self.delivery.observe(after.as_secs_f64());
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn a_message_is_unacknowledged_until_it_is_produced_or_rejected() {
        let metrics = Metrics::new();
        metrics.enqueued();
        metrics.enqueued();
        metrics.enqueued();
        metrics.rejected("too-large");
        metrics.failed();
        metrics.acknowledged(Duration::from_millis(3));
        let text = TextEncoder::new()
            .encode_to_string(&metrics.registry().gather())
            .unwrap();
        for line in [
            "herald_messages_produced_total 1",
            "herald_produce_failures_total 1",
            "herald_messages_refused_total{reason=\"too-large\"} 1",
            "herald_messages_refused_total{reason=\"invalid\"} 0",
            "herald_messages_unacknowledged 1",
            "herald_produce_seconds_bucket{le=\"0.005\"} 1",
        ] {
            assert!(
                text.lines().any(|exposed| exposed == line),
                "{line} is missing in {text}"
            );
        }
    }
}
