//! The consumer's metrics.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use herald_runtime::http::{Opened, Permit};
use herald_runtime::kafka::Source;
use herald_runtime::kafka::source::Partition;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::cursor::MAX_PARTITIONS;
use crate::encode::Format;
use crate::feed::Batch;
use crate::record::{Event, Payload};
use crate::stream::End;

/// The consumer's metrics, cheap to clone: each stream holds two references.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// The metrics; `Metrics::new` has their help texts.
pub struct Inner {
    pub registry: Registry,
    messages_consumed: IntCounterVec,
    gaps_read: IntCounterVec,
    messages_delivered: IntCounterVec,
    gaps_delivered: IntCounterVec,
    open: AtomicUsize,
    streams: IntGaugeVec,
    keyed_streams: IntGaugeVec,
    streams_ended: IntCounterVec,
    ring_events: IntGaugeVec,
    ring_bytes: IntGaugeVec,
    replay_pages: IntCounterVec,
    lag: IntGaugeVec,
    end_offset: IntGaugeVec,
    withheld: IntGaugeVec,
    source_up: IntGaugeVec,
    delivery_delay: Histogram,
    rooms: IntGauge,
    rooms_live: IntGaugeVec,
    results_delivered: IntCounterVec,
    results_skipped: IntCounterVec,
    invalid_rooms: IntCounterVec,
}

impl Metrics {
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| -> anyhow::Result<IntCounterVec> {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| -> anyhow::Result<IntGaugeVec> {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let delays = vec![
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ];
        let delay = HistogramOpts::new(
            "herald_delivery_delay_seconds",
            "from a message's timestamp in Kafka to the write to a socket; live messages only, not backlog",
        );
        let delivery_delay = Histogram::with_opts(delay.buckets(delays))?;
        registry.register(Box::new(delivery_delay.clone()))?;
        let rooms = IntGauge::new("herald_rooms", "rooms that have a client now")?;
        registry.register(Box::new(rooms.clone()))?;
        Ok(Self(Arc::new(Inner {
            rooms,
            rooms_live: gauges(
                "herald_rooms_live",
                "1 when the last results of all rooms have been read, so that clients receive results; by window",
                &["window"],
            )?,
            results_delivered: counters(
                "herald_results_delivered_total",
                "results of windows written to the clients of rooms, by window",
                &["window"],
            )?,
            results_skipped: counters(
                "herald_results_skipped_total",
                "records of a topic of results that are not results, and gaps in it, by reason",
                &["topic", "reason"],
            )?,
            invalid_rooms: counters(
                "herald_invalid_room_requests_total",
                "requests to register or leave rooms that were rejected, by reason",
                &["reason"],
            )?,
            messages_consumed: counters(
                "herald_messages_consumed_total",
                "messages read from Kafka into the ring",
                &["topic"],
            )?,
            gaps_read: counters(
                "herald_gaps_total",
                "gaps found while reading Kafka, by reason",
                &["topic", "reason"],
            )?,
            messages_delivered: counters(
                "herald_messages_delivered_total",
                "messages written to clients, by transport",
                &["transport"],
            )?,
            gaps_delivered: counters(
                "herald_gaps_delivered_total",
                "gaps announced to clients, by reason",
                &["reason"],
            )?,
            open: AtomicUsize::new(0),
            streams: gauges(
                "herald_streams",
                "streams open now, by transport",
                &["transport"],
            )?,
            keyed_streams: gauges(
                "herald_keyed_streams",
                "open streams of some keys only, by transport",
                &["transport"],
            )?,
            streams_ended: counters(
                "herald_streams_ended_total",
                "streams ended, by transport and reason",
                &["transport", "reason"],
            )?,
            ring_events: gauges("herald_ring_events", "events in the ring", &["topic"])?,
            ring_bytes: gauges(
                "herald_ring_bytes",
                "bytes in the ring, records and frames",
                &["topic"],
            )?,
            replay_pages: counters(
                "herald_replay_pages_total",
                "pages of backlog for streams, by source: kafka, or memory if another stream had just read them",
                &["source"],
            )?,
            lag: gauges(
                "herald_lag_messages",
                "offsets between the last read and the end of the log; absent when unknown",
                &["topic", "partition"],
            )?,
            end_offset: gauges(
                "herald_end_offset",
                "end of the log: the offset of the next committed record",
                &["topic", "partition"],
            )?,
            withheld: gauges(
                "herald_withheld_messages",
                "offsets that open transactions withhold: high watermark minus last stable offset",
                &["topic", "partition"],
            )?,
            source_up: gauges(
                "herald_source_up",
                "1 when the topic can be read, 0 when not",
                &["topic"],
            )?,
            delivery_delay,
            registry,
        })))
    }

    pub fn consumed(&self, topic: &str, events: &[Event]) {
        for event in events {
            match &event.payload {
                Payload::Message(_) => self.messages_consumed.with_label_values(&[topic]).inc(),
                Payload::Gap(gap) => self
                    .gaps_read
                    .with_label_values(&[topic, gap.reason.name()])
                    .inc(),
            }
        }
    }

    /// Counts a page of a stream's backlog: read from `kafka`, or found in `memory`.
    pub fn replayed(&self, source: &str) {
        self.replay_pages.with_label_values(&[source]).inc();
    }

    /// Counts a batch that was just handed to a socket.
    pub fn delivered(&self, format: Format, batch: &Batch) {
        if batch.messages > 0 {
            self.messages_delivered
                .with_label_values(&[transport(format)])
                .inc_by(batch.messages as u64);
        }
        if !batch.timestamps.is_empty() {
            let now = jiff::Timestamp::now().as_millisecond();
            for timestamp in &batch.timestamps {
                self.delivery_delay
                    .observe(now.saturating_sub(*timestamp).max(0) as f64 / 1000.0);
            }
        }
        for gap in &batch.gaps {
            self.gaps_delivered.with_label_values(&[gap.name()]).inc();
        }
    }

    pub fn ring(&self, topic: &str, events: usize, bytes: usize) {
        self.ring_events
            .with_label_values(&[topic])
            .set(events as i64);
        self.ring_bytes
            .with_label_values(&[topic])
            .set(bytes as i64);
    }

    /// Sets a partition's end offset, its lag, and the number of offsets that open transactions withhold. The lag is unknown
    /// while the topic cannot be read.
    pub fn log(&self, topic: &str, number: usize, partition: &Partition, source: Source) {
        let labels = [topic, &number.to_string()];
        // A negative offset means unknown. The position is also past transaction markers.
        let known = partition.ls_offset >= 0 && partition.next_offset >= 0;
        if !known || source != Source::Up {
            _ = self.lag.remove_label_values(&labels);
        } else {
            let unread = (partition.ls_offset - partition.next_offset).max(0);
            let lag = unread + partition.fetchq_cnt;
            self.lag.with_label_values(&labels).set(lag);
        }
        if partition.ls_offset >= 0 {
            self.end_offset
                .with_label_values(&labels)
                .set(partition.ls_offset);
            let withheld = (partition.hi_offset - partition.ls_offset).max(0);
            self.withheld.with_label_values(&labels).set(withheld);
        }
    }

    /// Removes the metrics of partitions that a topic no longer has: `count` are left.
    pub fn partitions(&self, topic: &str, count: usize) {
        for number in count..MAX_PARTITIONS {
            let labels = [topic, &number.to_string()];
            for metric in [&self.lag, &self.end_offset, &self.withheld] {
                _ = metric.remove_label_values(&labels);
            }
        }
    }

    pub fn source(&self, topic: &str, source: Source) {
        let up = i64::from(source == Source::Up);
        self.source_up.with_label_values(&[topic]).set(up);
    }

    /// Streams open now, over all transports.
    pub fn open_streams(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts and logs a stream, of some keys only if `keyed`, as open until the guard is dropped.
    ///
    /// # Errors
    ///
    /// If its client has too many.
    pub fn open(&self, permit: &Permit, format: Format, keyed: bool) -> Result<Open, End> {
        self.open_as(permit, transport(format), keyed)
    }

    /// The same for a client of nothing but rooms.
    ///
    /// # Errors
    ///
    /// If it has too many.
    pub fn open_rooms(&self, permit: &Permit) -> Result<Open, End> {
        self.open_as(permit, "rooms", false)
    }

    /// Sets the number of rooms that have a client.
    pub fn rooms(&self, rooms: usize) {
        self.rooms.set(rooms as i64);
    }

    /// Counts a result that was written to a client.
    pub fn result_delivered(&self, window: &str) {
        self.results_delivered.with_label_values(&[window]).inc();
    }

    /// Makes the counter of a window exist from the start.
    pub fn results_of(&self, window: &str) {
        self.results_delivered.with_label_values(&[window]);
    }

    /// Counts records that are not results, or gaps.
    pub fn results_skipped(&self, topic: &str, reason: &str, count: u64) {
        self.results_skipped
            .with_label_values(&[topic, reason])
            .inc_by(count);
    }

    /// Whether the clients of a window's rooms receive results.
    pub fn rooms_live(&self, window: &str, live: bool) {
        let gauge = self.rooms_live.with_label_values(&[window]);
        gauge.set(i64::from(live));
    }

    /// Counts an invalid request about rooms.
    pub fn invalid_rooms(&self, reason: &str) {
        self.invalid_rooms.with_label_values(&[reason]).inc();
    }

    fn open_as(&self, permit: &Permit, transport: &'static str, keyed: bool) -> Result<Open, End> {
        let opened = permit.open(transport).map_err(End::OverLimit)?;
        self.open.fetch_add(1, Ordering::Relaxed);
        self.streams.with_label_values(&[transport]).inc();
        if keyed {
            self.keyed_streams.with_label_values(&[transport]).inc();
        }
        Ok(Open {
            metrics: self.clone(),
            opened,
            transport,
            keyed,
            reason: "client",
        })
    }
}

/// An open stream. It counts as ended by the client unless `reason` is set.
pub struct Open {
    metrics: Metrics,
    opened: Opened,
    transport: &'static str,
    keyed: bool,
    pub reason: &'static str,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.opened.end(self.reason);
        self.metrics.open.fetch_sub(1, Ordering::Relaxed);
        let labels = [self.transport];
        self.metrics.streams.with_label_values(&labels).dec();
        if self.keyed {
            self.metrics.keyed_streams.with_label_values(&labels).dec();
        }
        self.metrics
            .streams_ended
            .with_label_values(&[self.transport, self.reason])
            .inc();
    }
}

fn transport(format: Format) -> &'static str {
    match format {
        Format::SseText | Format::SseJson => "sse",
        Format::WebSocket => "websocket",
        Format::Json => "history",
        Format::SocketIo => "socketio",
    }
}
