//! What a consumer can be told.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use herald_runtime::CommonArgs;
use herald_runtime::config::{duration, invalid};
use herald_runtime::http::{Hosts, Origins};
use herald_runtime::kafka::KafkaArgs;
use rdkafka::ClientConfig;

use crate::read_one;

/// Relays every message of Kafka topics to browsers, over server-sent events, WebSocket and Socket.IO.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    /// Address of the page and the transports, for browsers.
    #[arg(long, env, default_value = "[::]:5000")]
    pub listen: SocketAddr,

    #[command(flatten)]
    pub common: CommonArgs,

    #[command(flatten)]
    pub kafka: KafkaArgs,

    /// Topics to serve, separated by commas; the first is the default.
    #[arg(long, env, default_value = "my-topic")]
    pub kafka_topic: Topics,

    /// A text that the page shows above the messages.
    #[arg(long, env, default_value = "default")]
    pub custom_header: String,

    /// Origins of pages that may read, beside our own: `https://a.example,https://b.example`, or `*`.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = Origins::parse)]
    pub allowed_origins: Origins,

    /// Names under which browsers may call this server, beside its addresses: `herald.example,localhost`. Without it, any name: a page
    /// that rebinds its own name to this address (DNS rebinding) then counts as a page of ours.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = Hosts::parse)]
    pub allowed_hosts: Hosts,

    /// How long a connection without a request is kept open. Longer than the idle time of the balancer before it: 620s for
    /// Google's, 3610s for Envoy's default.
    #[arg(long, env, default_value = "75s", value_parser = duration)]
    pub keep_alive: Duration,

    /// Connections at one time; more are told to come back.
    #[arg(long, env, default_value_t = 10_000, value_parser = at_least_one)]
    pub max_connections: usize,

    /// Messages over this many bytes (value, key and headers together) are announced as a gap, not delivered.
    #[arg(long, env, default_value_t = 1 << 20, value_parser = at_least_one)]
    pub max_message_bytes: usize,

    /// Messages of a topic that are kept in memory whatever their age. Older ones come from Kafka.
    #[arg(long, env, default_value_t = 10_000, value_parser = at_least_one)]
    pub ring_messages: usize,

    /// Messages that were read within this time are kept beyond that number: clients that come back after a rollout find them.
    #[arg(long, env, default_value = "60s", value_parser = duration)]
    pub ring_time: Duration,

    /// Bytes of a topic that are kept in memory at most, with what the transports make of them.
    #[arg(long, env, default_value_t = 64 << 20, value_parser = at_least_one)]
    pub ring_bytes: usize,

    /// Reads of older messages from Kafka at the same time, for all topics together. Pages of history take at most half of them.
    #[arg(long, env, default_value_t = 4, value_parser = at_least_one)]
    pub replay_readers: usize,

    /// After SIGTERM: how long new connections are still accepted, since balancers lag.
    #[arg(long, env, default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,

    /// After that: the time over which the ends of the open streams are spread.
    #[arg(long, env, default_value = "10s", value_parser = duration)]
    pub drain_window: Duration,

    /// Instead of serving: print the next live message of the consumer at this address, such as `http://consumer-service`, and
    /// leave; with exit code 1 when none comes within a minute.
    #[arg(long, value_name = "URL", value_parser = read_one::server)]
    pub read_one: Option<String>,
}

impl Config {
    /// Whether the options fit each other.
    ///
    /// # Errors
    ///
    /// When the process would exit before its streams have ended.
    pub fn check(&self) -> anyhow::Result<()> {
        let (grace, delay) = (self.common.shutdown_grace, self.drain_delay);
        if grace > delay + self.drain_window {
            return Ok(());
        }
        Err(invalid(format!(
            "--shutdown-grace ({grace:?}) must be longer than --drain-delay ({delay:?}) and --drain-window ({:?}) together, \
             or open streams are cut off",
            self.drain_window
        )))
    }

    /// The configuration of a client that reads.
    ///
    /// # Errors
    ///
    /// When the Kafka properties cannot be used.
    pub fn kafka_client(&self) -> anyhow::Result<ClientConfig> {
        // Nothing is ever committed; librdkafka refuses an assignment without a group all the same. An offset that is not
        // there any more must be seen, not skipped.
        const RELIED_ON: [(&str, &str); 4] = [
            ("group.id", "herald-consumer"),
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "error"),
            // A batch with a wrong checksum is a gap, not records with wrong contents.
            ("check.crcs", "true"),
        ];
        const DEFAULTS: [(&str, &str); 4] = [
            // The next fetch of a full queue would wait a second.
            ("fetch.queue.backoff.ms", "10"),
            // What waits in memory to be read, for each partition; and what one answer of Kafka may bring.
            ("queued.max.messages.kbytes", "1024"),
            ("fetch.max.bytes", "8388608"),
            // The largest batch, packed; for zstd also unpacked.
            ("receive.message.max.bytes", "67108864"),
        ];
        let reserved: Vec<&str> = RELIED_ON
            .iter()
            .map(|(key, _)| *key)
            .chain(["enable.partition.eof"])
            .collect();
        let mut config = self
            .kafka
            .client_config("herald-consumer", &DEFAULTS, &reserved)?;
        for (key, value) in RELIED_ON {
            config.set(key, value);
        }
        Ok(config)
    }
}

/// The names of the topics that are served, at least one, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics(Vec<String>);

impl Topics {
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for Topics {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
        for (index, name) in names.iter().enumerate() {
            // Kafka's own rule.
            let legal =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            if name.is_empty()
                || name.len() > 249
                || name == "."
                || name == ".."
                || !name.bytes().all(legal)
            {
                return Err(format!(
                    "{name:?} is no name of a topic; use letters, digits, \".\", \"_\" and \"-\""
                ));
            }
            if names[..index].contains(name) {
                return Err(format!("topic {name:?} is named twice"));
            }
        }
        Ok(Self(names))
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "give a whole number from 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_that_would_cut_the_drain_off_is_refused_in_one_sentence() {
        let config = |grace: &str| {
            let drain = ["--drain-delay", "5s", "--drain-window", "10s"];
            let kafka = ["--kafka-bootstrap-servers", "a:1", "--kafka-topic", "a"];
            let args = ["consumer", "--shutdown-grace", grace].into_iter();
            Config::parse_from(args.chain(drain).chain(kafka))
        };
        assert!(config("16s").check().is_ok());
        let error = config("15s").check().unwrap_err();
        assert!(herald_runtime::config::is_invalid(&error));
        assert_eq!(
            error.to_string(),
            "--shutdown-grace (15s) must be longer than --drain-delay (5s) and --drain-window (10s) together, \
             or open streams are cut off"
        );
    }

    #[test]
    fn several_topics_are_named_with_commas() {
        let topics: Topics = "my-topic, dev-topic".parse().unwrap();
        assert_eq!(topics.names(), ["my-topic", "dev-topic"]);
    }

    #[test]
    fn a_wrong_or_repeated_topic_is_refused_by_name() {
        for (list, named) in [
            ("a,,b", "\"\""),
            ("a b", "\"a b\""),
            ("a,b,a", "\"a\""),
            ("", "\"\""),
        ] {
            assert!(
                list.parse::<Topics>()
                    .is_err_and(|error| error.contains(named)),
                "{list}"
            );
        }
    }
}
