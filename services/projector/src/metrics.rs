//! The projector's metrics.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use store::Summary;

use crate::clock;

/// The metrics of one projection. The help texts describe each one.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub records: IntCounter,
    pub dead_letters: IntCounterVec,
    pub events: IntCounter,
    pub foods: IntCounter,
    pub duplicates: IntCounter,
    pub extra_bounds: IntCounter,
    pub superseded: IntCounter,
    pub failures: IntCounter,
    pub recreated: IntCounter,
    pub missing: IntCounter,
    pub expired: IntCounter,
    pub lag: IntGauge,
    pub lag_seconds: Gauge,
    pub last_commit: Gauge,
    pub partitions: IntGauge,
    pub batch_seconds: Histogram,
    pub batch_records: Histogram,
}

impl Metrics {
    /// Those of one projection of one topic, which are their labels.
    pub fn new(registry: &Registry, projection: &str, topic: &str) -> Self {
        let registry = registry.clone();
        let options = |name: &str, help: &str| {
            let options = Opts::new(name, help).const_label("projection", projection);
            options.const_label("topic", topic)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::with_opts(options(name, help)).expect("the name is valid");
            register(&registry, counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::with_opts(options(name, help)).expect("the name is valid");
            register(&registry, gauge)
        };
        let seconds = |name: &str, help: &str| {
            let gauge = Gauge::with_opts(options(name, help)).expect("the name is valid");
            register(&registry, gauge)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::from(options(name, help)).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options).expect("the buckets are valid");
            register(&registry, histogram)
        };
        Self {
            records: counter(
                "herald_projector_records_total",
                "Records whose results are committed.",
            ),
            dead_letters: register(
                &registry,
                IntCounterVec::new(
                    options(
                        "herald_projector_dead_letters_total",
                        "Malformed records that were sent to the dead letter topic, by reason.",
                    ),
                    &["reason"],
                )
                .expect("the name is valid"),
            ),
            events: counter("herald_projector_events_total", "Events that were stored."),
            foods: counter(
                "herald_projector_foods_total",
                "Occurrences of foods that were counted.",
            ),
            duplicates: counter(
                "herald_projector_duplicate_events_total",
                "Events that were stored before: the client or a producer sent them again.",
            ),
            extra_bounds: counter(
                "herald_projector_extra_bounds_total",
                "Starts and ends of sessions that had one already. The first start and the last end count.",
            ),
            superseded: counter(
                "herald_projector_superseded_batches_total",
                "Batches that were dropped because another projector owns the partition; it commits the same records.",
            ),
            failures: counter(
                "herald_projector_failures_total",
                "Batches that could not be committed to the database or the dead letter topic; they are read again.",
            ),
            recreated: counter(
                "herald_projector_recreated_logs_total",
                "Partitions whose offsets began again, because the topic was deleted or cleared.",
            ),
            missing: counter(
                "herald_projector_missing_offsets_total",
                "Offsets that were deleted from the topic before they were read.",
            ),
            expired: counter(
                "herald_projector_expired_sessions_total",
                "Sessions deleted by their age.",
            ),
            lag: gauge(
                "herald_projector_lag_records",
                "Offsets between the position and the end of the topic, over all partitions of this projector.",
            ),
            lag_seconds: seconds(
                "herald_projector_lag_seconds",
                "Age of the latest committed record while others wait; 0 if none does.",
            ),
            last_commit: seconds(
                "herald_projector_last_commit_timestamp_seconds",
                "When the latest batch was committed, in seconds since 1970; 0 before the first.",
            ),
            partitions: gauge(
                "herald_projector_partitions",
                "Partitions that this projector reads.",
            ),
            batch_seconds: histogram(
                "herald_projector_batch_seconds",
                "Time to commit a batch, including its dead letters.",
                &[
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ],
            ),
            batch_records: histogram(
                "herald_projector_batch_records",
                "Records of a batch.",
                &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0],
            ),
        }
    }

    /// Counts a batch that is committed.
    pub fn committed(&self, records: usize, foods: i64, summary: Summary, took: Duration) {
        self.foods.inc_by(foods.unsigned_abs());
        self.records.inc_by(records as u64);
        self.events.inc_by(summary.events);
        self.duplicates.inc_by(summary.duplicates);
        self.extra_bounds.inc_by(summary.extra_bounds);
        self.batch_seconds.observe(took.as_secs_f64());
        self.batch_records.observe(records as f64);
        self.last_commit.set(clock::now() as f64 / 1000.0);
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry
        .register(Box::new(collector.clone()))
        .expect("no two names are the same");
    collector
}
