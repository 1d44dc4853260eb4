//! The gateway's configuration.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use herald_events::{KeyFormat, Windows};
use herald_runtime::CommonArgs;
use herald_runtime::config::{duration, invalid, secret};
use herald_runtime::http::{AccessArgs, FrameAncestors, Hosts, Origins, PathPrefix, TlsArgs};
use herald_runtime::kafka::KafkaArgs;
use store::{DatabaseUrl, Name};

use crate::likes::Videos;
use crate::publish::PublishTopics;
use crate::rates::RateArgs;

const DEFAULT_WINDOWS: &str = "1m=one_minute_aggregation_topic,5m=five_minute_aggregation_topic,10m=ten_minute_aggregation_topic";

/// Publishes what clients send to Kafka (session events, messages, likes), and answers queries for the results.
#[derive(Clone, Debug, Parser)]
#[command(name = "gateway", version)]
pub struct Config {
    /// Address of the endpoints, for clients.
    #[arg(long, env, default_value = "[::]:8080")]
    pub listen: SocketAddr,

    /// A second address, with the likes alone, which pages of any origin may send to: `[::]:3000`. If not set, there is none.
    #[arg(long, env)]
    pub likes_listen: Option<SocketAddr>,

    /// Another address, with the counts (`/aggregated`) alone, which pages of any origin may read: `[::]:5000`. If not set, there
    /// is none.
    #[arg(long, env)]
    pub counts_listen: Option<SocketAddr>,

    #[command(flatten)]
    pub common: CommonArgs,

    #[command(flatten)]
    pub kafka: KafkaArgs,

    /// Topic that the frames are published to. It must exist, and accept batches of 64 KiB (`max.message.bytes`).
    #[arg(long, env, default_value = "websocket.events")]
    pub events_topic: String,

    /// Format of the session id in the record's key: `json` is a JSON string with its quotes, `raw` is the id itself.
    #[arg(long, env, default_value_t = KeyFormat::Json)]
    pub session_key: KeyFormat,

    /// Path below which a proxy publishes this server, if it passes the path on: `/tools/herald`. Any other path is answered with 404.
    /// If the proxy removes the path, leave this empty. The addresses of likes or counts alone have no such path.
    #[arg(long, env, default_value = "", hide_default_value = true)]
    pub path_prefix: PathPrefix,

    /// Origins of pages that may connect, besides the gateway's own: `https://a.example,https://b.example`, or `*`.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = Origins::parse)]
    pub allowed_origins: Origins,

    /// Host names that browsers may use for this server, besides its IP addresses: `herald.example,localhost`. If empty, any name
    /// is accepted, and a page that rebinds its own name to this address (DNS rebinding) counts as same-origin.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = Hosts::parse)]
    pub allowed_hosts: Hosts,

    /// Origins of pages that may show these pages in a frame: `https://a.example,https://b.example`, and `self` for this one. If
    /// empty, none may.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = FrameAncestors::parse)]
    pub frame_ancestors: FrameAncestors,

    #[command(flatten)]
    pub tls: TlsArgs,

    #[command(flatten)]
    pub access: AccessArgs,

    /// How long an idle connection is kept open. Must exceed the idle timeout of the load balancer in front.
    #[arg(long, env, default_value = "75s", value_parser = duration)]
    pub keep_alive: Duration,

    /// Maximum number of concurrent connections, of each address that is listened on; more are rejected and told when to retry. Over
    /// HTTP/2, each request in progress counts as one.
    #[arg(long, env, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,

    /// Maximum number of them from one IP address, or one /64 network of IPv6. 0 is no limit, which is needed behind a proxy, where all
    /// clients share its address.
    #[arg(long, env, default_value_t = 0)]
    pub max_connections_per_address: usize,

    /// Maximum bytes of a frame. A larger one closes its connection with code 1009.
    #[arg(long, env, default_value_t = 256 << 10, value_parser = clap::value_parser!(u32).range(1..=900 << 10))]
    pub max_frame_bytes: u32,

    /// Maximum events in a frame.
    #[arg(long, env, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frame_events: u32,

    /// Invalid frames in a row after which the connection is closed with code 1008.
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_invalid_frames: u32,

    /// Bytes of frames that one connection may have waiting for Kafka before its socket is no longer read.
    #[arg(long, env, default_value_t = 512 << 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub session_buffer_bytes: u32,

    /// Kilobytes of frames that all connections together may have waiting for Kafka before no socket is read.
    #[arg(long, env, default_value_t = 64 << 10, value_parser = clap::value_parser!(u32).range(1024..=2_000_000))]
    pub total_buffer_kbytes: u32,

    /// How long a frame may wait for Kafka before its connection is closed with code 1013 (try again later).
    #[arg(long, env, default_value = "60s", value_parser = duration)]
    pub publish_timeout: Duration,

    /// Topics that clients may publish to with `POST /topics/<topic>/messages`: `dev-topic,news`. They must exist. If empty, there
    /// are none.
    #[arg(long, env, default_value = "", hide_default_value = true)]
    pub publish_topics: PublishTopics,

    /// Maximum bytes of a message that is published over HTTP.
    #[arg(long, env, default_value_t = 256 << 10, value_parser = clap::value_parser!(u32).range(1..=900 << 10))]
    pub max_publish_bytes: u32,

    /// How long a message or a like that is published over HTTP may wait for Kafka before its client receives status 503.
    #[arg(long, env, default_value = "10s", value_parser = duration)]
    pub message_timeout: Duration,

    /// Topic that likes are published to, with `POST /videos/<identifier>/likes`. It must exist. If empty, there are no likes.
    #[arg(long, env, default_value = "video_clicks_ingestion")]
    pub likes_topic: String,

    /// Topic that the projector puts the likes into by identifier, which results of windows are counted from.
    #[arg(long, env, default_value = "video_clicks_partitioned")]
    pub partitioned_likes_topic: String,

    /// Sizes of the windows in which likes are counted, each with the topic of its results, as for the projector.
    #[arg(long, env, default_value = DEFAULT_WINDOWS)]
    pub windows: Windows,

    /// Videos of `GET /videos/metadata` and of the page of likes: `identifier=title`, separated by commas.
    #[arg(long, env, default_value_t)]
    pub videos: Videos,

    /// Database that the projector writes to, for `/data` and `/aggregated`: sqlite:///path/to/file.db or
    /// postgres://user:password@host:5432/database, with a role that may only read. If not set, there are neither.
    #[arg(long, env, hide_env_values = true, value_parser = secret::<DatabaseUrl>())]
    pub database_url: Option<DatabaseUrl>,

    /// Schema of PostgreSQL that the projector's tables are in.
    #[arg(long, env, default_value_t)]
    pub database_schema: Name,

    /// Longest time that a client may wait, with `after` and `wait`, until its frame is in the document.
    #[arg(long, env, default_value = "30s", value_parser = duration)]
    pub max_wait: Duration,

    #[command(flatten)]
    pub rates: RateArgs,

    /// How long new connections are still accepted after SIGTERM, because load balancers react with a delay.
    #[arg(long, env, default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,

    /// Period, after the drain delay, over which the open connections are closed one by one.
    #[arg(long, env, default_value = "10s", value_parser = duration)]
    pub drain_window: Duration,
}

impl Config {
    /// Whether the options fit each other.
    ///
    /// # Errors
    ///
    /// When the process would exit before its connections are closed.
    pub fn check(&self) -> anyhow::Result<()> {
        self.tls.check().map_err(invalid)?;
        self.access.check(&self.allowed_origins).map_err(invalid)?;
        let (grace, delay) = (self.common.shutdown_grace, self.drain_delay);
        if grace > delay + self.drain_window {
            return Ok(());
        }
        Err(invalid(format!(
            "--shutdown-grace ({grace:?}) must be longer than --drain-delay ({delay:?}) and --drain-window ({:?}) together, \
             or open connections are cut off",
            self.drain_window
        )))
    }

    /// The time that a shutdown may still take, `since` it began, with a reserve for exiting.
    pub fn shutdown_left(&self, since: Duration) -> Duration {
        const EXIT: Duration = Duration::from_millis(500);
        self.common.shutdown_grace.saturating_sub(since + EXIT)
    }
}
