//! The gateway's metrics.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Registry,
    /// Open WebSocket connections.
    pub sockets: IntGauge,
    /// Frames that Kafka has acknowledged.
    pub published: IntCounter,
    /// Messages of HTTP clients that Kafka has acknowledged.
    pub messages: IntCounter,
    /// Bytes of frames that were read and not answered yet.
    pub unanswered: IntGauge,
    /// Connections that are not read, because their frames wait for Kafka.
    pub paused: IntGauge,
    /// Messages of HTTP clients that Kafka has not acknowledged, by reason.
    pub messages_failed: IntCounterVec,
    /// Likes that Kafka has acknowledged.
    pub likes: IntCounter,
    /// Likes that Kafka has not acknowledged, by reason.
    pub likes_failed: IntCounterVec,
    /// Streams of results that are open, by what they show: `aggregated` or `windows`.
    pub streams: IntGaugeVec,
    /// Invalid frames, by the rule that they break.
    pub invalid: IntCounterVec,
    /// Connections that were closed, by reason.
    pub closed: IntCounterVec,
}

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            sockets: IntGauge::new("herald_gateway_sockets", "WebSocket connections open now")?,
            published: IntCounter::new(
                "herald_gateway_frames_published_total",
                "frames acknowledged by Kafka",
            )?,
            messages: IntCounter::new(
                "herald_gateway_messages_published_total",
                "messages published over HTTP and acknowledged by Kafka",
            )?,
            unanswered: IntGauge::new(
                "herald_gateway_unanswered_bytes",
                "bytes of frames that wait for Kafka, on connections that are open",
            )?,
            paused: IntGauge::new(
                "herald_gateway_sockets_paused",
                "WebSocket connections that are not read, because their frames wait for Kafka",
            )?,
            messages_failed: IntCounterVec::new(
                Opts::new(
                    "herald_gateway_messages_failed_total",
                    "messages sent over HTTP that Kafka has not acknowledged, by reason",
                ),
                &["reason"],
            )?,
            likes: IntCounter::new(
                "herald_gateway_likes_published_total",
                "likes acknowledged by Kafka",
            )?,
            likes_failed: IntCounterVec::new(
                Opts::new(
                    "herald_gateway_likes_failed_total",
                    "likes that Kafka has not acknowledged, by reason",
                ),
                &["reason"],
            )?,
            streams: IntGaugeVec::new(
                Opts::new(
                    "herald_gateway_streams",
                    "streams of results open now, by what they show",
                ),
                &["of"],
            )?,
            invalid: IntCounterVec::new(
                Opts::new(
                    "herald_gateway_frames_invalid_total",
                    "frames rejected, by the rule that they break",
                ),
                &["rule"],
            )?,
            closed: IntCounterVec::new(
                Opts::new(
                    "herald_gateway_sockets_closed_total",
                    "WebSocket connections closed, by reason",
                ),
                &["reason"],
            )?,
        };
        metrics
            .registry
            .register(Box::new(metrics.sockets.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.published.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.messages.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.unanswered.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.paused.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.messages_failed.clone()))?;
        metrics.registry.register(Box::new(metrics.likes.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.likes_failed.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.streams.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.invalid.clone()))?;
        metrics
            .registry
            .register(Box::new(metrics.closed.clone()))?;
        Ok(metrics)
    }
}
