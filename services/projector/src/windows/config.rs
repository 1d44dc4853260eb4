//! The options of the windows.

use std::time::Duration;

use herald_events::Windows;
use herald_runtime::config::duration;

/// How likes are counted in windows.
#[derive(clap::Args, Clone, Debug)]
pub struct WindowArgs {
    /// Topic with the likes: the bare identifier, UTF-8, 1 to 256 bytes. Malformed records go to the topic of this name with `.dlq`
    /// added.
    #[arg(long, env, default_value = "video_clicks_ingestion", value_parser = crate::config::topic)]
    pub likes_topic: String,

    /// Topic that the likes are copied to, keyed by identifier. Its number of partitions must not change.
    #[arg(long, env, default_value = "video_clicks_partitioned", value_parser = crate::config::topic)]
    pub partitioned_likes_topic: String,

    /// Window sizes and the topics of their results. Interim counts go to the topics of the same names with `.live` added.
    #[arg(
        long,
        env,
        default_value = "1m=one_minute_aggregation_topic,5m=five_minute_aggregation_topic,10m=ten_minute_aggregation_topic"
    )]
    pub windows: Windows,

    /// How long after its end a window is closed, by the clock. Likes that reach Kafka later are counted as late.
    #[arg(long, env, default_value = "5s", value_parser = duration)]
    pub window_grace: Duration,

    /// How often interim counts are published, for windows that have changed. 0s: never.
    #[arg(long, env, default_value = "5s", value_parser = duration)]
    pub interim_interval: Duration,
}
