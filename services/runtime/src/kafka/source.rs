//! Whether Kafka is available, according to librdkafka's statistics.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Deserialize;

/// What a client knows about Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client was just created.
    Unknown,
    /// The brokers that this client needs answer it.
    Up,
    /// They do not answer.
    Down {
        /// When that was first observed.
        since: SystemTime,
        /// The problem, for users: a clause such as `Kafka does not answer`.
        reason: &'static str,
    },
}

/// The reason when brokers cannot be reached.
pub const UNREACHABLE: &str = "Kafka does not answer";

/// The part of librdkafka's statistics that is needed here; the whole is a hundred times larger.
#[derive(Deserialize, Debug, Default)]
pub struct Statistics {
    #[serde(rename = "type")]
    pub client_type: String,
    pub brokers: HashMap<String, Broker>,
    pub topics: HashMap<String, Topic>,
}

#[derive(Deserialize, Debug, Default)]
pub struct Broker {
    /// -1 until it is known.
    pub nodeid: i32,
    pub source: String,
    pub state: String,
}

#[derive(Deserialize, Debug, Default)]
pub struct Topic {
    pub partitions: HashMap<String, Partition>,
}

#[derive(Clone, Copy, Deserialize, Debug)]
#[serde(default)]
pub struct Partition {
    /// The broker that the partition is read from or written to: its leader, or a follower nearby. -1: none.
    pub broker: i32,
    /// Assigned to this consumer.
    pub desired: bool,
    /// Messages waiting to be sent.
    pub msgq_cnt: i64,
    pub xmit_msgq_cnt: i64,
    /// Messages that were fetched but not polled yet.
    pub fetchq_cnt: i64,
    /// The offset that is fetched next; negative if unknown, as are the next two.
    pub next_offset: i64,
    /// The offset after the last record (the high watermark).
    pub hi_offset: i64,
    /// The offset after the last record that no open transaction withholds (the last stable offset).
    pub ls_offset: i64,
}

impl Default for Partition {
    fn default() -> Self {
        Self {
            broker: -1,
            desired: false,
            msgq_cnt: 0,
            xmit_msgq_cnt: 0,
            fetchq_cnt: 0,
            next_offset: -1,
            hi_offset: -1,
            ls_offset: -1,
        }
    }
}

/// Whether at least one broker is connected, including every leader of a partition that this client is assigned to or has
/// messages for. librdkafka keeps no connection to the others.
pub fn is_healthy(statistics: &Statistics) -> bool {
    let names = statistics.topics.keys();
    is_connected(statistics) && names.into_iter().all(|name| is_led(statistics, name))
}

/// The same for one topic alone.
pub fn is_topic_healthy(statistics: &Statistics, topic: &str) -> bool {
    is_connected(statistics) && is_led(statistics, topic)
}

fn connected(statistics: &Statistics) -> impl Iterator<Item = &Broker> {
    let connected = |broker: &&Broker| matches!(broker.state.as_str(), "UP" | "REAUTH");
    // "internal" is librdkafka's own queue, which is always up; "logical" is a role, on top of a real broker.
    let real = |broker: &&Broker| broker.source != "internal" && broker.source != "logical";
    statistics.brokers.values().filter(real).filter(connected)
}

fn is_connected(statistics: &Statistics) -> bool {
    connected(statistics).next().is_some()
}

fn is_led(statistics: &Statistics, topic: &str) -> bool {
    let needed = |partition: &&Partition| match statistics.client_type.as_str() {
        "producer" => partition.msgq_cnt + partition.xmit_msgq_cnt > 0,
        _ => partition.desired,
    };
    let leads = |partition: &Partition| {
        connected(statistics)
            .any(|broker| partition.broker >= 0 && broker.nodeid == partition.broker)
    };
    let topic = statistics.topics.get(topic);
    let mut partitions = topic
        .iter()
        .flat_map(|topic| topic.partitions.values())
        .filter(needed);
    partitions.all(leads)
}

/// Turns one observation per second into a [`Source`], and ignores flapping: a single failure is not an outage. Detects an
/// outage within 2 s, or 3 s at startup.
#[derive(Debug)]
pub struct HealthTracker {
    source: Source,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: SystemTime,
    seen: u32,
}

impl Default for HealthTracker {
    fn default() -> HealthTracker {
        HealthTracker {
            source: Source::Unknown,
            failing: None,
        }
    }
}

impl HealthTracker {
    pub fn new() -> HealthTracker {
        HealthTracker::default()
    }

    /// The state after the latest statistics.
    pub fn observe(&mut self, healthy: bool, now: SystemTime) -> Source {
        if healthy {
            self.failing = None;
            self.source = Source::Up;
            return self.source;
        }
        let failing = self.failing.get_or_insert(Failing {
            since: now,
            seen: 0,
        });
        failing.seen += 1;
        let threshold = if self.source == Source::Unknown { 3 } else { 2 };
        if failing.seen >= threshold {
            self.source = Source::Down {
                since: failing.since,
                reason: UNREACHABLE,
            };
        }
        self.source
    }

    /// librdkafka has reported the loss of all brokers; the next statistics must confirm it.
    pub fn suspect(&mut self, now: SystemTime) {
        self.failing.get_or_insert(Failing {
            since: now,
            seen: 1,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn statistics(
        client_type: &str,
        brokers: &[(i32, &str, &str)],
        partitions: &[Partition],
    ) -> Statistics {
        let broker = |&(nodeid, source, state): &(i32, &str, &str)| {
            (
                format!("{source}/{nodeid}"),
                Broker {
                    nodeid,
                    source: source.to_owned(),
                    state: state.to_owned(),
                },
            )
        };
        let partitions = partitions
            .iter()
            .enumerate()
            .map(|(index, partition)| (index.to_string(), *partition));
        Statistics {
            client_type: client_type.to_owned(),
            brokers: brokers.iter().map(broker).collect(),
            topics: HashMap::from([(
                "topic".to_owned(),
                Topic {
                    partitions: partitions.collect(),
                },
            )]),
        }
    }

    fn assigned(broker: i32) -> Partition {
        Partition {
            broker,
            desired: true,
            ..Partition::default()
        }
    }

    fn waiting(broker: i32) -> Partition {
        Partition {
            broker,
            msgq_cnt: 1,
            ..Partition::default()
        }
    }

    #[test]
    fn librdkafkas_own_broker_does_not_count() {
        assert!(!is_healthy(&statistics(
            "consumer",
            &[(-1, "internal", "UP"), (-1, "configured", "DOWN")],
            &[]
        )));
        assert!(is_healthy(&statistics(
            "consumer",
            &[(-1, "internal", "UP"), (-1, "configured", "UP")],
            &[]
        )));
    }

    #[test]
    fn every_assigned_partition_needs_its_broker() {
        let brokers = [(1, "learned", "UP"), (2, "learned", "TRY_CONNECT")];
        assert!(is_healthy(&statistics(
            "consumer",
            &brokers,
            &[assigned(1)]
        )));
        assert!(!is_healthy(&statistics(
            "consumer",
            &brokers,
            &[assigned(1), assigned(2)]
        )));
        assert!(!is_healthy(&statistics(
            "consumer",
            &brokers,
            &[assigned(-1)]
        )));
        let elsewhere = Partition {
            broker: 2,
            ..Partition::default()
        };
        assert!(is_healthy(&statistics(
            "consumer",
            &brokers,
            &[assigned(1), elsewhere]
        )));
    }

    #[test]
    fn a_producer_needs_the_brokers_that_it_has_messages_for() {
        let brokers = [(1, "learned", "UP"), (2, "learned", "INIT")];
        assert!(is_healthy(&statistics(
            "producer",
            &brokers,
            &[waiting(1), assigned(2)]
        )));
        assert!(!is_healthy(&statistics(
            "producer",
            &brokers,
            &[waiting(2)]
        )));
        assert!(!is_healthy(&statistics(
            "producer",
            &brokers,
            &[waiting(-1)]
        )));
    }

    #[test]
    fn a_single_failure_is_not_an_outage_and_an_outage_begins_with_its_first_failure() {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let mut tracker = HealthTracker::new();
        assert_eq!(tracker.observe(true, second(1)), Source::Up);
        assert_eq!(tracker.observe(false, second(2)), Source::Up);
        assert_eq!(tracker.observe(true, second(3)), Source::Up);
        assert_eq!(tracker.observe(false, second(4)), Source::Up);
        let down = Source::Down {
            since: second(4),
            reason: UNREACHABLE,
        };
        assert_eq!(tracker.observe(false, second(5)), down);
        assert_eq!(tracker.observe(false, second(6)), down);
        assert_eq!(tracker.observe(true, second(7)), Source::Up);
    }

    #[test]
    fn a_client_that_never_connected_is_down_after_three_seconds() {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let mut tracker = HealthTracker::new();
        assert_eq!(tracker.observe(false, second(1)), Source::Unknown);
        assert_eq!(tracker.observe(false, second(2)), Source::Unknown);
        assert_eq!(
            tracker.observe(false, second(3)),
            Source::Down {
                since: second(1),
                reason: UNREACHABLE
            }
        );
    }

    #[test]
    fn a_suspected_loss_must_be_confirmed_once() {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let mut tracker = HealthTracker::new();
        tracker.observe(true, second(1));
        tracker.suspect(second(2));
        tracker.suspect(second(3));
        assert_eq!(
            tracker.observe(false, second(4)),
            Source::Down {
                since: second(2),
                reason: UNREACHABLE
            }
        );
    }
}
