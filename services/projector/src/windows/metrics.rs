//! The metrics of the windows.

use std::time::Duration;

use herald_events::Windows;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

use crate::clock;

/// Those of both stages. The help texts describe each one.
#[derive(Clone)]
pub struct Metrics {
    pub read: IntCounter,
    pub partitioned: IntCounter,
    pub dead_letters: IntCounterVec,
    pub counted: IntCounter,
    pub ignored: IntCounter,
    pub results: IntCounterVec,
    pub interim: IntCounterVec,
    pub late: IntCounterVec,
    pub open: IntGauge,
    pub closed: Gauge,
    stages: Stages,
}

/// By stage: `likes` or `windows`.
#[derive(Clone)]
struct Stages {
    lag: IntGaugeVec,
    lag_seconds: GaugeVec,
    last_commit: GaugeVec,
    partitions: IntGaugeVec,
    seconds: HistogramVec,
    records: HistogramVec,
    failures: IntCounterVec,
    recreated: IntCounterVec,
    missing: IntCounterVec,
}

/// The metrics of one stage.
#[derive(Clone)]
pub struct StageMetrics {
    stages: Stages,
    name: &'static str,
}

impl Metrics {
    pub fn new(registry: &Registry, windows: &Windows) -> Self {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("the name is valid");
            register(registry, counter)
        };
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label]);
            register(registry, counters.expect("the name is valid"))
        };
        let by_window = |name: &str, help: &str| {
            let counters = counters(name, help, "window");
            // They are 0 before the first one, not missing.
            for (size, _) in windows.iter() {
                counters.with_label_values(&[size.label()]);
            }
            counters
        };
        let gauges = |name: &str, help: &str| {
            let gauges = GaugeVec::new(Opts::new(name, help), &["stage"]);
            register(registry, gauges.expect("the name is valid"))
        };
        let int_gauges = |name: &str, help: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["stage"]);
            register(registry, gauges.expect("the name is valid"))
        };
        let histograms = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histograms = HistogramVec::new(options, &["stage"]);
            register(registry, histograms.expect("the buckets are valid"))
        };
        Self {
            read: counter(
                "herald_windows_likes_read_total",
                "Records of the topic of likes whose position is committed, malformed ones included.",
            ),
            partitioned: counter(
                "herald_windows_likes_partitioned_total",
                "Likes that were copied to the partitioned topic.",
            ),
            dead_letters: counters(
                "herald_windows_dead_letters_total",
                "Malformed records that were sent to the dead letter topic, by reason.",
                "reason",
            ),
            counted: counter(
                "herald_windows_likes_counted_total",
                "Likes of the partitioned topic whose position is committed. Each is counted, or late, once for each window size.",
            ),
            ignored: counter(
                "herald_windows_ignored_total",
                "Records of the partitioned topic that are not likes: another program has written them.",
            ),
            results: by_window(
                "herald_windows_results_total",
                "Final counts that were published, by window size.",
            ),
            interim: by_window(
                "herald_windows_interim_total",
                "Interim counts that were published, by window size.",
            ),
            late: by_window(
                "herald_windows_late_total",
                "Likes that came after their window was closed, by window size.",
            ),
            open: register(
                registry,
                IntGauge::new(
                    "herald_windows_open",
                    "Counts in open windows, one for each identifier and window. Memory is proportional to it.",
                )
                .expect("the name is valid"),
            ),
            closed: register(
                registry,
                Gauge::new(
                    "herald_windows_closed_timestamp_seconds",
                    "Time up to which windows are closed in all partitions of this projector, in seconds since 1970.",
                )
                .expect("the name is valid"),
            ),
            stages: Stages {
                lag: int_gauges(
                    "herald_windows_lag_records",
                    "Offsets between the position and the end of the topic, over all partitions of this projector.",
                ),
                lag_seconds: gauges(
                    "herald_windows_lag_seconds",
                    "Age of the latest record that was read in the partition that is furthest behind, or the time since it was assigned if none was; 0 if all were read to their end.",
                ),
                last_commit: gauges(
                    "herald_windows_last_commit_timestamp_seconds",
                    "Time of the latest transaction, in seconds since 1970.",
                ),
                partitions: int_gauges(
                    "herald_windows_partitions",
                    "Partitions that this projector reads.",
                ),
                seconds: histograms(
                    "herald_windows_transaction_seconds",
                    "Time to commit a transaction.",
                    &[
                        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                    ],
                ),
                records: histograms(
                    "herald_windows_transaction_records",
                    "Records that a transaction has written.",
                    &[0.0, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 10000.0],
                ),
                failures: register(
                    registry,
                    IntCounterVec::new(
                        Opts::new(
                            "herald_windows_failures_total",
                            "Transactions and look-ups that failed; the records are read again.",
                        ),
                        &["stage"],
                    )
                    .expect("the name is valid"),
                ),
                recreated: register(
                    registry,
                    IntCounterVec::new(
                        Opts::new(
                            "herald_windows_recreated_logs_total",
                            "Partitions whose offsets began again, because the topic was deleted or cleared.",
                        ),
                        &["stage"],
                    )
                    .expect("the name is valid"),
                ),
                missing: register(
                    registry,
                    IntCounterVec::new(
                        Opts::new(
                            "herald_windows_missing_offsets_total",
                            "Offsets that were deleted from the topic before they were read, or before their window was closed.",
                        ),
                        &["stage"],
                    )
                    .expect("the name is valid"),
                ),
            },
        }
    }

    /// Those of the stage of this name.
    pub fn stage(&self, name: &'static str) -> StageMetrics {
        let stage = StageMetrics {
            stages: self.stages.clone(),
            name,
        };
        // They are 0 before the first one, not missing.
        stage.stages.failures.with_label_values(&[name]);
        stage.recreated(0);
        stage.missing(0);
        stage
    }
}

impl StageMetrics {
    /// A transaction with this many records was committed.
    pub fn committed(&self, records: usize, took: Duration) {
        let (stages, label) = (&self.stages, [self.name]);
        let seconds = stages.seconds.with_label_values(&label);
        seconds.observe(took.as_secs_f64());
        let histogram = stages.records.with_label_values(&label);
        histogram.observe(records as f64);
        let last = stages.last_commit.with_label_values(&label);
        last.set(clock::now() as f64 / 1000.0);
    }

    pub fn failed(&self) {
        let failures = &self.stages.failures;
        failures.with_label_values(&[self.name]).inc();
    }

    pub fn recreated(&self, partitions: u64) {
        let recreated = self.stages.recreated.with_label_values(&[self.name]);
        recreated.inc_by(partitions);
    }

    pub fn missing(&self, offsets: u64) {
        let missing = self.stages.missing.with_label_values(&[self.name]);
        missing.inc_by(offsets);
    }

    /// The lag in offsets and in seconds, and the number of partitions.
    pub fn progress(&self, lag: i64, seconds: f64, partitions: usize) {
        let label = [self.name];
        self.stages.lag.with_label_values(&label).set(lag);
        let gauge = self.stages.lag_seconds.with_label_values(&label);
        gauge.set(seconds);
        let gauge = self.stages.partitions.with_label_values(&label);
        gauge.set(i64::try_from(partitions).unwrap_or(i64::MAX));
    }
}

fn register<T: Collector + Clone + 'static>(registry: &Registry, metric: T) -> T {
    registry
        .register(Box::new(metric.clone()))
        .expect("each name is registered once");
    metric
}
