//! The options of the windows.

use std::collections::BTreeSet;
use std::time::Duration;

use herald_events::Windows;
use herald_runtime::config::{duration, invalid};

use crate::kafka::dead_letter_topic;

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

impl WindowArgs {
    /// # Errors
    ///
    /// If two of the topics are the same: what is written to one would be read from the other. The error is for the user.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut topics = BTreeSet::new();
        let likes = &self.likes_topic;
        let mut all = vec![
            likes.clone(),
            dead_letter_topic(likes),
            self.partitioned_likes_topic.clone(),
        ];
        for (_, topic) in self.windows.iter() {
            all.extend([topic.to_owned(), Windows::live_topic(topic)]);
        }
        for topic in all {
            if topics.contains(&topic) {
                return Err(invalid(format!(
                    "the topic \"{topic}\" is used twice: --likes-topic, its dead letters, --partitioned-likes-topic, and the results and interim counts of --windows need different topics"
                )));
            }
            topics.insert(topic);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use herald_runtime::config::parse_from;

    use crate::Config;

    #[test]
    fn all_topics_are_different() {
        let check = |args: &[&str]| {
            let config: Config = parse_from(&[&["projector"], args].concat()).unwrap();
            config.likes.check()
        };
        check(&[]).unwrap();
        for (args, topic) in [
            (
                ["--partitioned-likes-topic", "video_clicks_ingestion"],
                "video_clicks_ingestion",
            ),
            (
                ["--likes-topic", "video_clicks_partitioned"],
                "video_clicks_partitioned",
            ),
            (
                ["--windows", "1m=video_clicks_ingestion"],
                "video_clicks_ingestion",
            ),
            (
                ["--windows", "1m=a,5m=video_clicks_partitioned"],
                "video_clicks_partitioned",
            ),
            (
                ["--windows", "1m=video_clicks_ingestion.dlq"],
                "video_clicks_ingestion.dlq",
            ),
            (
                ["--likes-topic", "one_minute_aggregation_topic.live"],
                "one_minute_aggregation_topic.live",
            ),
            (
                ["--partitioned-likes-topic", "video_clicks_ingestion.dlq"],
                "video_clicks_ingestion.dlq",
            ),
        ] {
            let error = check(&args).unwrap_err().to_string();
            let expected = format!("the topic \"{topic}\" is used twice");
            assert!(error.starts_with(&expected), "{args:?}: {error}");
        }
    }

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
