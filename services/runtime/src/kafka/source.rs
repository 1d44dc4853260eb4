//! Whether Kafka is there, decided from librdkafka's statistics.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Deserialize;

/// What a client knows about Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client has just been made.
    Unknown,
    /// The brokers that this client needs answer it.
    Up,
    /// They do not, and have not since then.
    Down {
        /// When that was first seen.
        since: SystemTime,
    },
}

/// The part of librdkafka's statistics that the decision needs; the whole is a hundred times as much.
#[derive(Deserialize, Debug, Default)]
pub struct Statistics {
    #[serde(rename = "type")]
    pub client_type: String,
    pub brokers: HashMap<String, Broker>,
    pub topics: HashMap<String, Topic>,
}

#[derive(Deserialize, Debug, Default)]
pub struct Broker {
    /// -1 until the client has learnt it.
    pub nodeid: i32,
    pub source: String,
    pub state: String,
}

#[derive(Deserialize, Debug, Default)]
pub struct Topic {
    pub partitions: HashMap<String, Partition>,
}

#[derive(Deserialize, Debug, Default)]
pub struct Partition {
    /// The broker that the partition is read from or written to: its leader, or a follower nearby. -1: none.
    pub broker: i32,
    /// Assigned to this consumer.
    pub desired: bool,
    /// Messages that wait to be sent.
    pub msgq_cnt: i64,
    pub xmit_msgq_cnt: i64,
}

/// Whether one broker at least is connected, and with it all those that lead a partition which this client is assigned to
/// or has messages for. The others need no connection, and librdkafka keeps none.
pub fn is_healthy(statistics: &Statistics) -> bool {
    let connected = |broker: &&Broker| matches!(broker.state.as_str(), "UP" | "REAUTH");
    // "internal" is librdkafka's own queue, which is always up; "logical" is a role, on top of a real broker.
    let real = |broker: &&Broker| broker.source != "internal" && broker.source != "logical";
    let up: Vec<i32> = statistics
        .brokers
        .values()
        .filter(real)
        .filter(connected)
        .map(|broker| broker.nodeid)
        .collect();

    let needed = |partition: &&Partition| match statistics.client_type.as_str() {
        "producer" => partition.msgq_cnt + partition.xmit_msgq_cnt > 0,
        _ => partition.desired,
    };
    let mut partitions = statistics
        .topics
        .values()
        .flat_map(|topic| topic.partitions.values())
        .filter(needed);
    !up.is_empty()
        && partitions.all(|partition| partition.broker >= 0 && up.contains(&partition.broker))
}

/// Turns what is seen once a second into a [`Source`], without a word about a flicker: a single failure is not yet an
/// outage. Takes up to 2 s to notice one, and 3 s at the start.
#[derive(Debug)]
pub struct Judge {
    source: Source,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: SystemTime,
    seen: u32,
}

impl Judge {
    pub fn new() -> Judge {
        Judge {
            source: Source::Unknown,
            failing: None,
        }
    }

    /// What to believe after the statistics of this second.
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
        let patience = if self.source == Source::Unknown { 3 } else { 2 };
        if failing.seen >= patience {
            self.source = Source::Down {
                since: failing.since,
            };
        }
        self.source
    }

    /// librdkafka says that it has lost all brokers: the next statistics only have to confirm it.
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
        let partitions = partitions.iter().enumerate().map(|(index, partition)| {
            let Partition {
                broker,
                desired,
                msgq_cnt,
                xmit_msgq_cnt,
            } = *partition;
            (
                index.to_string(),
                Partition {
                    broker,
                    desired,
                    msgq_cnt,
                    xmit_msgq_cnt,
                },
            )
        });
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
    fn a_flicker_is_no_outage_and_an_outage_begins_where_it_was_first_seen() {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let mut judge = Judge::new();
        assert_eq!(judge.observe(true, second(1)), Source::Up);
        assert_eq!(judge.observe(false, second(2)), Source::Up);
        assert_eq!(judge.observe(true, second(3)), Source::Up);
        assert_eq!(judge.observe(false, second(4)), Source::Up);
        let down = Source::Down { since: second(4) };
        assert_eq!(judge.observe(false, second(5)), down);
        assert_eq!(judge.observe(false, second(6)), down);
        assert_eq!(judge.observe(true, second(7)), Source::Up);
    }

    #[test]
    fn a_client_that_never_got_through_says_so_after_three_seconds() {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let mut judge = Judge::new();
        assert_eq!(judge.observe(false, second(1)), Source::Unknown);
        assert_eq!(judge.observe(false, second(2)), Source::Unknown);
        assert_eq!(
            judge.observe(false, second(3)),
            Source::Down { since: second(1) }
        );
    }

    #[test]
    fn a_suspicion_needs_one_confirmation() {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let mut judge = Judge::new();
        judge.observe(true, second(1));
        judge.suspect(second(2));
        judge.suspect(second(3));
        assert_eq!(
            judge.observe(false, second(4)),
            Source::Down { since: second(2) }
        );
    }
}
