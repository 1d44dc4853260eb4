//! What the producer can be told.

use std::time::Duration;

use clap::{ArgAction, Parser};
use herald_runtime::config::{CommonArgs, duration};
use herald_runtime::kafka::KafkaArgs;

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

    /// Whether a topic that does not exist is created. Without it the producer waits until somebody else has.
    #[arg(long, env, default_value_t = true, action = ArgAction::Set)]
    pub create_topic: bool,

    /// How many partitions a topic gets that the producer creates.
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=256))]
    pub topic_partitions: i32,

    /// The shortest pause between two messages, such as 1s; shorter ones, such as 1ms, are for tests and load.
    #[arg(long, env, default_value = "1s", value_parser = duration)]
    pub interval_min: Duration,

    /// The longest pause between two messages.
    #[arg(long, env, default_value = "10s", value_parser = duration)]
    pub interval_max: Duration,
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
        assert!(config.create_topic && config.topic_partitions == 1);
    }

    #[test]
    fn a_topic_that_kafka_would_refuse_is_refused() {
        assert!(topic("dev-topic").is_ok());
        for bad in ["", ".", "a b", "a,b", "ä", &"a".repeat(250)] {
            assert!(topic(bad).is_err(), "{bad}");
        }
    }
}
