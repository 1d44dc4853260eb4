//! A client that returns its cursor, and the law that it is to see kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use consumer::cursor::Vector;
use serde_json::Value as Json;

use crate::client::{Client, Transport};

/// One reader over many connections: everything it was given, and where it began.
#[derive(Default)]
pub struct Reader {
    pub topic: String,
    pub cursor: Option<String>,
    start: Option<Vector>,
    delivered: BTreeMap<(usize, i64), usize>,
    last: BTreeMap<usize, i64>,
    pub gaps: Vec<(String, usize, i64, Option<i64>)>,
    /// Events without a range: `unknown-cursor`, byes, statuses.
    pub heard: Vec<String>,
}

impl Reader {
    pub fn new(topic: &str) -> Self {
        Self { topic: topic.to_owned(), ..Self::default() }
    }

    /// Connects with the newest cursor.
    pub fn connect(&self, address: SocketAddr, transport: Transport) -> Client {
        let parameters: Vec<_> = self.cursor.iter().map(|cursor| ("after", cursor.clone())).collect();
        Client::connect(address, transport, &parameters)
    }

    /// Notes an event; what would break the law by itself panics.
    pub fn take(&mut self, event: &Json) {
        let kind = event["type"].as_str().expect("every event has a type");
        if let Some(cursor) = event["cursor"].as_str() {
            if kind == "start" && self.start.is_none() {
                self.start = Some(Vector::decode(cursor, &self.topic).expect("a cursor can be read"));
            }
            self.cursor = Some(cursor.to_owned());
        }
        match kind {
            "message" => {
                let partition = event["partition"].as_u64().expect("a partition") as usize;
                let offset = event["offset"].as_i64().expect("an offset");
                let before = self.last.insert(partition, offset);
                assert!(before.is_none_or(|before| before < offset), "partition {partition}: {offset} came after {before:?}");
                *self.delivered.entry((partition, offset)).or_default() += 1;
            }
            "gap" => {
                let reason = event["reason"].as_str().expect("a reason");
                let ranges = event["ranges"].as_array().expect("ranges");
                if ranges.is_empty() {
                    self.heard.push(reason.to_owned());
                }
                for range in ranges {
                    let partition = range["partition"].as_u64().expect("a partition") as usize;
                    if reason == "recreated" {
                        // Another log: its offsets begin again, and what was read of the old one is no part of it.
                        self.last.remove(&partition);
                        self.delivered.retain(|(of, _), _| *of != partition);
                        self.start.get_or_insert_default().set(partition, Default::default());
                    }
                    self.gaps.push((reason.to_owned(), partition, range["from"].as_i64().expect("from"), range["to"].as_i64()));
                }
            }
            "start" | "env" | "custom_header" => {}
            "status" => self.heard.push(event["source"].as_str().expect("a source").to_owned()),
            "bye" => self.heard.push(format!("bye {}", event["reason"].as_str().expect("a reason"))),
            other => self.heard.push(format!("{other} {event}")),
        }
    }

    /// How many messages came.
    pub fn count(&self) -> usize {
        self.delivered.values().sum()
    }

    /// Whether everything is delivered or announced.
    pub fn has_all(&self, records: &BTreeSet<(usize, i64)>) -> bool {
        records.iter().all(|&(partition, offset)| {
            self.start.as_ref().is_some_and(|start| offset < start.get(partition).offset)
                || self.delivered.contains_key(&(partition, offset))
                || self.in_gaps(partition, offset) > 0
        })
    }

    fn in_gaps(&self, partition: usize, offset: i64) -> usize {
        let holds = |&&(ref reason, of, from, to): &&(String, usize, i64, Option<i64>)| {
            // A log that has no end any more is another log than the one that the records are of.
            reason != "recreated" && of == partition && from <= offset && to.is_none_or(|to| offset < to)
        };
        self.gaps.iter().filter(holds).count()
    }

    /// The law: each record at or after the start is delivered exactly once or lies in exactly one announced range.
    pub fn check(&self, records: &BTreeSet<(usize, i64)>) {
        let start = self.start.as_ref().expect("the client got a start");
        for &(partition, offset) in records {
            let times = self.delivered.get(&(partition, offset)).copied().unwrap_or(0) + self.in_gaps(partition, offset);
            let expected = usize::from(offset >= start.get(partition).offset);
            assert_eq!(times, expected, "partition {partition}, offset {offset}; start {start:?}, gaps {:?}", self.gaps);
        }
        for place in self.delivered.keys() {
            assert!(records.contains(place), "{place:?} was delivered and is no committed record");
        }
    }

    /// Reads until everything has come, over as many connections as it takes.
    pub async fn read_all(&mut self, address: SocketAddr, transport: Transport, records: &BTreeSet<(usize, i64)>) {
        let reading = async {
            while self.start.is_none() || !self.has_all(records) {
                let mut client = self.connect(address, transport);
                while self.start.is_none() || !self.has_all(records) {
                    match client.next().await {
                        Some(event) => self.take(&event),
                        None => {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            break;
                        }
                    }
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), reading).await.is_ok();
        assert!(ended, "{transport:?}: {} messages of {} came; gaps {:?}, heard {:?}", self.count(), records.len(), self.gaps, self.heard);
    }
}

/// The places of what Kafka holds.
pub fn places(records: &[herald_testing::Stored]) -> BTreeSet<(usize, i64)> {
    records.iter().map(|record| (record.partition as usize, record.offset)).collect()
}
