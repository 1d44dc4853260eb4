//! The producer's configuration.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use herald_runtime::config::{CommonArgs, duration};
use herald_runtime::kafka::{KafkaArgs, properties};

/// Repeatedly sends a message to a Kafka topic: a greeting with the time of day, or the name of a food.
///
/// Each option is also an environment variable: --kafka-topic is KAFKA_TOPIC.
#[derive(Parser, Clone, Debug)]
#[command(name = "producer", version)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,

    #[command(flatten)]
    pub kafka: KafkaArgs,

    /// What to send: broadcasts (a greeting with the time of day), or foods (one of 107 names as `{"food": "<name>"}`).
    #[arg(long, env, value_enum, default_value = "broadcasts")]
    pub feed: Feed,

    /// Topic that the messages are sent to. The part before its first `-` is the name of the environment.
    #[arg(long, env, default_value = "my-topic", value_parser = topic)]
    pub kafka_topic: String,

    /// Whether to create a topic that does not exist. Otherwise the producer waits until it exists.
    #[arg(long, env, value_enum, default_value = "true")]
    pub create_topic: CreateTopic,

    /// Number of partitions of a topic that the producer creates.
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=256))]
    pub topic_partitions: i32,

    /// Replication factor of a topic that the producer creates; -1 is the brokers' own default.
    #[arg(long, env, default_value_t = -1, allow_negative_numbers = true, value_parser = replication_factor)]
    pub topic_replication_factor: i32,

    /// Kafka's configuration of a topic that the producer creates, such as `retention.ms=-1`, one `key=value` per line.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = topic_config)]
    pub topic_config: String,

    /// Shortest pause between two messages, such as 1s; much shorter ones, such as 1ms, are for tests and load.
    #[arg(long, env, default_value = "1s", value_parser = duration)]
    pub interval_min: Duration,

    /// Longest pause between two messages. By default 10s, and 2s with --feed foods.
    #[arg(long, env, value_parser = duration)]
    pub interval_max: Option<Duration>,
}

/// What is sent.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// A greeting with the time of day, for the page.
    Broadcasts,
    /// The name of a food, to be counted.
    Foods,
}

impl Config {
    /// The longest pause between two messages.
    pub fn interval_max(&self) -> Duration {
        self.interval_max.unwrap_or(match self.feed {
            Feed::Broadcasts => Duration::from_secs(10),
            Feed::Foods => Duration::from_secs(2),
        })
    }
}

/// Who creates the topic.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateTopic {
    /// Create the topic if it does not exist.
    True,
    /// Wait until the topic exists.
    False,
    /// Create the topic, or add missing partitions, then exit with code 0 without sending messages.
    Only,
}

fn replication_factor(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(-1) => Ok(-1),
        Ok(factor @ 1..=32767) => Ok(factor),
        _ => Err("give a number of at least 1, or -1 for the brokers' own default".to_owned()),
    }
}

fn topic_config(text: &str) -> Result<String, String> {
    properties(text).map(|_| text.to_owned())
}

/// Checks the name against Kafka's rules, so that a typo is reported here and not by a broker.
fn topic(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&text.len()) && text.chars().all(legal) && text != "." && text != ".." {
        Ok(text.to_owned())
    } else {
        Err("a topic is 1 to 249 letters, digits, dots, underscores and hyphens".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_contracts() {
        let config = Config::parse_from(["producer"]);
        assert_eq!(config.kafka_topic, "my-topic");
        assert_eq!(
            config.kafka.kafka_bootstrap_servers,
            "my-cluster-kafka-bootstrap:9092"
        );
        assert_eq!(
            (
                config.interval_min.as_secs(),
                config.interval_max().as_secs()
            ),
            (1, 10)
        );
        let foods = Config::parse_from(["producer", "--feed", "foods"]);
        assert_eq!(foods.interval_max().as_secs(), 2);
        assert_eq!(config.create_topic, CreateTopic::True);
        assert_eq!(config.topic_partitions, 1);
    }

    #[test]
    fn an_invalid_line_of_the_topics_configuration_is_rejected_by_its_number() {
        let error = Config::try_parse_from(["producer", "--topic-config", "retention.ms=-1\nhush"]);
        let sentence = error.unwrap_err().to_string();
        assert!(sentence.contains("line 2: not key=value"), "{sentence}");
    }

    #[test]
    fn a_topic_that_kafka_would_reject_is_rejected() {
        assert!(topic("dev-topic").is_ok());
        for bad in ["", ".", "a b", "a,b", "ä", &"a".repeat(250)] {
            assert!(topic(bad).is_err(), "{bad}");
        }
    }
}
