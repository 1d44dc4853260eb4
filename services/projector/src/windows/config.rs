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

#[cfg(test)]
mod tests {
    use herald_runtime::config::parse_from;

    use crate::Config;

    #[test]
    fn the_windows_are_those_of_the_contract_and_need_no_database() {
        let config: Config = parse_from(&["projector", "--projections", "windows"]).unwrap();
        assert!(config.counts_windows());
        assert!(config.chosen().unwrap().is_empty());
        let likes = config.likes;
        assert_eq!(likes.likes_topic, "video_clicks_ingestion");
        assert_eq!(likes.partitioned_likes_topic, "video_clicks_partitioned");
        let labels: Vec<String> = likes.windows.iter().map(|(size, _)| size.label()).collect();
        assert_eq!(labels, ["1min", "5min", "10min"]);
    }

    #[test]
    fn wrong_windows_are_one_sentence() {
        let error = parse_from::<Config>(&["projector", "--windows", "1m"]).unwrap_err();
        assert!(error.to_string().contains("size=topic"), "{error}");
    }
}
