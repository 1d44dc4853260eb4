//! What the producer can be told.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use herald_runtime::config::{CommonArgs, duration};
use herald_runtime::kafka::{KafkaArgs, properties};

/// Speaks a greeting with the time of day into a Kafka topic, again and again.
///
/// Each option is also an environment variable: --kafka-topic is KAFKA_TOPIC.
#[derive(Parser, Clone, Debug)]
#[command(name = "producer", version)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,

    #[command(flatten)]
    pub kafka: KafkaArgs,

    /// The topic that the messages go to. What stands before its first `-` names the environment.
    #[arg(long, env, default_value = "my-topic", value_parser = topic)]
    pub kafka_topic: String,

    /// Whether a topic that does not exist is created. Where it is not, the producer waits until somebody else has.
    #[arg(long, env, value_enum, default_value = "true")]
    pub create_topic: CreateTopic,

    /// How many partitions a topic gets that the producer creates.
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=256))]
    pub topic_partitions: i32,

    /// On how many brokers each of its partitions is kept; -1 is the brokers' own default.
    #[arg(long, env, default_value_t = -1, allow_negative_numbers = true, value_parser = replication_factor)]
    pub topic_replication_factor: i32,

    /// Kafka's own configuration of a topic that the producer creates, such as `retention.ms=-1`, one `key=value` a line.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = topic_config)]
    pub topic_config: String,

    /// The shortest pause between two messages, such as 1s; shorter ones, such as 1ms, are for tests and load.
    #[arg(long, env, default_value = "1s", value_parser = duration)]
    pub interval_min: Duration,

    /// The longest pause between two messages.
    #[arg(long, env, default_value = "10s", value_parser = duration)]
    pub interval_max: Duration,
}

/// Who creates the topic.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateTopic {
    /// The producer, when it is not there.
    True,
    /// Somebody else.
    False,
    /// The producer, which gives it the partitions it lacks too, says nothing into it, and leaves with exit code 0.
    Only,
}

fn replication_factor(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(-1) => Ok(-1),
        Ok(factor @ 1..=32767) => Ok(factor),
        _ => Err("give a number from 1, or -1 for the brokers' own default".to_owned()),
    }
}

fn topic_config(text: &str) -> Result<String, String> {
    properties(text).map(|_| text.to_owned())
}

/// A name that Kafka takes, so that a typing error is told here and not by a broker.
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
            (config.interval_min.as_secs(), config.interval_max.as_secs()),
            (1, 10)
        );
        assert_eq!(config.create_topic, CreateTopic::True);
        assert_eq!(config.topic_partitions, 1);
    }

    #[test]
    fn a_line_of_the_topics_configuration_that_is_none_is_refused_by_its_number() {
        let error = Config::try_parse_from(["producer", "--topic-config", "retention.ms=-1\nhush"]);
        let sentence = error.unwrap_err().to_string();
        assert!(sentence.contains("line 2: not key=value"), "{sentence}");
    }

    #[test]
    fn a_topic_that_kafka_would_refuse_is_refused() {
        assert!(topic("dev-topic").is_ok());
        for bad in ["", ".", "a b", "a,b", "ä", &"a".repeat(250)] {
            assert!(topic(bad).is_err(), "{bad}");
        }
    }
}
