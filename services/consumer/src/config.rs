//! The consumer's configuration.

mod rooms;

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use herald_runtime::CommonArgs;
use herald_runtime::config::{duration, invalid};
use herald_runtime::http::{AccessArgs, FrameAncestors, Hosts, Origins, Proxies, TlsArgs};
use herald_runtime::kafka::KafkaArgs;
use rdkafka::ClientConfig;

pub use self::rooms::RoomsArgs;
use crate::read_one::ReadOne;

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

    /// Text that the page shows above the messages.
    #[arg(long, env, default_value = "default")]
    pub custom_header: String,

    /// Origins of pages that may read, besides the page's own: `https://a.example,https://b.example`, or `*`.
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

    /// Proxies whose `X-Forwarded-For` is trusted: `10.0.0.0/8,fd00::/8`. The client's address in the audit log is the rightmost
    /// one in it that is not such a proxy.
    #[arg(long, env, default_value = "", hide_default_value = true)]
    pub trusted_proxies: Proxies,

    /// How long an idle connection is kept open. Must exceed the idle timeout of the load balancer in front: 620s for Google's,
    /// 3610s for Envoy's default.
    #[arg(long, env, default_value = "75s", value_parser = duration)]
    pub keep_alive: Duration,

    /// Maximum number of concurrent connections; further ones are rejected, with the time after which to retry. Over HTTP/2, each
    /// request in progress counts as one.
    #[arg(long, env, default_value_t = 10_000, value_parser = at_least_one)]
    pub max_connections: usize,

    /// Maximum number of them from one IP address, or one /64 network of IPv6. 0 is no limit, which is needed behind a proxy, where all
    /// clients share its address.
    #[arg(long, env, default_value_t = 0)]
    pub max_connections_per_address: usize,

    /// Messages over this many bytes (value, key and headers together) are announced as a gap, not delivered.
    #[arg(long, env, default_value_t = 1 << 20, value_parser = at_least_one)]
    pub max_message_bytes: usize,

    /// Messages per topic that are kept in memory regardless of their age. Older ones are read from Kafka.
    #[arg(long, env, default_value_t = 10_000, value_parser = at_least_one)]
    pub ring_messages: usize,

    /// Messages read within this time are kept beyond that number, so that clients that reconnect after a rollout find them.
    #[arg(long, env, default_value = "60s", value_parser = duration)]
    pub ring_time: Duration,

    /// Maximum bytes per topic that are kept in memory, including the frames encoded for the transports.
    #[arg(long, env, default_value_t = 64 << 20, value_parser = at_least_one)]
    pub ring_bytes: usize,

    /// Maximum bytes per topic for the latest record of each key (`from=latest-per-key`), besides the messages above. A topic
    /// whose latest records are larger together answers that request with an error. Also the maximum for the last results of
    /// all rooms, per window; over it, rooms without a new result for the longest time have none any more.
    #[arg(long, env, default_value_t = 64 << 20, value_parser = at_least_one)]
    pub latest_bytes: usize,

    /// Maximum number of concurrent reads of older messages from Kafka, for all topics. Pages of history use at most half.
    #[arg(long, env, default_value_t = 4, value_parser = at_least_one)]
    pub replay_readers: usize,

    /// How long new connections are still accepted after SIGTERM, because load balancers react with a delay.
    #[arg(long, env, default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,

    /// Period, after the drain delay, over which the open streams are ended one by one.
    #[arg(long, env, default_value = "10s", value_parser = duration)]
    pub drain_window: Duration,

    /// The consumer group that this reader names to Kafka. Nothing is ever committed for it.
    #[arg(long, env, default_value = "herald-consumer")]
    pub kafka_group_id_for_consumer: String,

    #[command(flatten)]
    pub rooms: RoomsArgs,

    #[command(flatten)]
    pub read_one: ReadOne,
}

impl Config {
    /// Whether the options fit each other.
    ///
    /// # Errors
    ///
    /// When the process would exit before its streams have ended, or the options of rooms contradict each other.
    pub fn check(&self) -> anyhow::Result<()> {
        self.rooms.check()?;
        self.tls.check().map_err(invalid)?;
        self.access.check(&self.allowed_origins).map_err(invalid)?;
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

    /// The topics that are served, the default first, each once.
    pub fn topics(&self) -> Vec<Served> {
        let served = |name: &String, optional| Served {
            name: name.clone(),
            optional,
        };
        let mut topics: Vec<Served> = self
            .kafka_topic
            .names()
            .iter()
            .map(|name| served(name, false))
            .collect();
        let mut add = |topic: Served| {
            if !topics.iter().any(|other| other.name == topic.name) {
                topics.push(topic);
            }
        };
        if self.rooms.rooms {
            for name in self.rooms.topics() {
                add(served(&name.0, false));
            }
            for name in self.rooms.topics() {
                add(served(&format!("{}.live", name.0), true));
            }
        }
        topics
    }

    /// The configuration of a client that reads.
    ///
    /// # Errors
    ///
    /// If the Kafka properties are invalid.
    pub fn kafka_client(&self) -> anyhow::Result<ClientConfig> {
        // Nothing is ever committed, but librdkafka rejects an assignment without a group. An offset that no longer exists must
        // be reported, not skipped.
        let required: [(&str, &str); 4] = [
            ("group.id", &self.kafka_group_id_for_consumer),
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "error"),
            // A batch with a wrong checksum must become a gap, not corrupt records.
            ("check.crcs", "true"),
        ];
        const DEFAULTS: [(&str, &str); 4] = [
            // The default delays the next fetch of a full queue by a second.
            ("fetch.queue.backoff.ms", "10"),
            // The memory for prefetched messages per partition, and the size of one fetch response.
            ("queued.max.messages.kbytes", "1024"),
            ("fetch.max.bytes", "8388608"),
            // The largest compressed batch; with zstd also the largest decompressed one.
            ("receive.message.max.bytes", "67108864"),
        ];
        let reserved: Vec<&str> = required
            .iter()
            .map(|(key, _)| *key)
            .chain(["enable.partition.eof"])
            .collect();
        let mut config = self
            .kafka
            .client_config("herald-consumer", &DEFAULTS, &reserved)?;
        for (key, value) in required {
            config.set(key, value);
        }
        Ok(config)
    }
}

/// A topic that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub name: String,
    /// It need not exist.
    pub optional: bool,
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
            check_topic(name)?;
            if names[..index].contains(name) {
                return Err(format!("topic {name:?} is named twice"));
            }
        }
        Ok(Self(names))
    }
}

fn check_topic(name: &str) -> Result<(), String> {
    // Kafka's own rule.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let length = 1..=249;
    if length.contains(&name.len()) && name != "." && name != ".." && name.bytes().all(legal) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a valid topic name; use letters, digits, \".\", \"_\" and \"-\""
    ))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "give a whole number of at least 1".to_owned())
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
    fn several_topics_are_separated_by_commas() {
        let topics: Topics = "my-topic, dev-topic".parse().unwrap();
        assert_eq!(topics.names(), ["my-topic", "dev-topic"]);
    }

    #[test]
    fn an_invalid_or_repeated_topic_is_rejected_by_name() {
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
