//! A client that returns its cursor, and the check of the delivery guarantee.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use consumer::cursor::Vector;
use herald_testing::eventually;
use serde_json::Value as Json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, TRANSPORTS, Transport};

/// One reader over many connections: everything it was given, and where it began.
#[derive(Default)]
pub struct Reader {
    pub topic: String,
    pub cursor: Option<String>,
    start: Option<Vector>,
    delivered: BTreeMap<(usize, i64), usize>,
    last: BTreeMap<usize, i64>,
    pub gaps: Vec<(String, usize, i64, Option<i64>)>,
    /// There is more to come as long as fewer gaps were received.
    pub awaited_gaps: usize,
    /// Events without a range: `unknown-cursor`, byes, statuses.
    pub heard: Vec<String>,
}

impl Reader {
    pub fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            ..Self::default()
        }
    }

    /// Connects with the newest cursor.
    pub fn connect(&self, address: SocketAddr, transport: Transport) -> Client {
        let parameters: Vec<_> = self
            .cursor
            .iter()
            .map(|cursor| ("after", cursor.clone()))
            .collect();
        Client::connect(address, transport, &parameters)
    }

    /// Notes an event; one that breaks the guarantee by itself panics.
    pub fn take(&mut self, event: &Json) {
        let kind = event["type"].as_str().expect("every event has a type");
        if let Some(cursor) = event["cursor"].as_str() {
            if kind == "start" && self.start.is_none() {
                self.start =
                    Some(Vector::decode(cursor, &self.topic).expect("a cursor can be read"));
            }
            self.cursor = Some(cursor.to_owned());
        }
        match kind {
            "message" => {
                let partition = event["partition"].as_u64().expect("a partition") as usize;
                let offset = event["offset"].as_i64().expect("an offset");
                let before = self.last.insert(partition, offset);
                assert!(
                    before.is_none_or(|before| before < offset),
                    "partition {partition}: {offset} came after {before:?}"
                );
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
                        self.start
                            .get_or_insert_default()
                            .set(partition, Default::default());
                    }
                    if reason == "truncated" {
                        // The topic lost these records: offsets go on from there again, with other records.
                        let from = range["from"].as_i64().expect("from");
                        self.last.insert(partition, from - 1);
                        self.delivered
                            .retain(|&(of, offset), _| of != partition || offset < from);
                    }
                    self.gaps.push((
                        reason.to_owned(),
                        partition,
                        range["from"].as_i64().expect("from"),
                        range["to"].as_i64(),
                    ));
                }
            }
            "start" | "position" | "env" | "custom_header" => {}
            "status" => self
                .heard
                .push(event["source"].as_str().expect("a source").to_owned()),
            "bye" => self.heard.push(format!(
                "bye {}",
                event["reason"].as_str().expect("a reason")
            )),
            other => self.heard.push(format!("{other} {event}")),
        }
    }

    /// The number of different messages that were received.
    pub fn count(&self) -> usize {
        self.delivered.len()
    }

    /// Whether everything is delivered or announced.
    pub fn has_all(&self, records: &BTreeSet<(usize, i64)>) -> bool {
        self.gaps.len() >= self.awaited_gaps
            && records.iter().all(|&(partition, offset)| {
                self.start
                    .as_ref()
                    .is_some_and(|start| offset < start.get(partition).offset)
                    || self.delivered.contains_key(&(partition, offset))
                    || self.in_gaps(partition, offset) > 0
            })
    }

    fn in_gaps(&self, partition: usize, offset: i64) -> usize {
        let holds = |&&(ref reason, of, from, to): &&(String, usize, i64, Option<i64>)| {
            // A log that has no end any more is another log than the one that the records are of.
            !matches!(reason.as_str(), "recreated" | "truncated")
                && of == partition
                && from <= offset
                && to.is_none_or(|to| offset < to)
        };
        self.gaps.iter().filter(holds).count()
    }

    /// The law: each record at or after the start is delivered exactly once or lies in exactly one announced range.
    pub fn check(&self, records: &BTreeSet<(usize, i64)>) {
        let start = self.start.as_ref().expect("the client got a start");
        for &(partition, offset) in records {
            let times = self
                .delivered
                .get(&(partition, offset))
                .copied()
                .unwrap_or(0)
                + self.in_gaps(partition, offset);
            let expected = usize::from(offset >= start.get(partition).offset);
            assert_eq!(
                times, expected,
                "partition {partition}, offset {offset}; start {start:?}, gaps {:?}",
                self.gaps
            );
        }
        for position in self.delivered.keys() {
            assert!(
                records.contains(position),
                "{position:?} was delivered and is no committed record"
            );
        }
    }

    /// Reads until everything has come, over as many connections as it takes.
    pub async fn read_all(
        &mut self,
        address: SocketAddr,
        transport: Transport,
        records: &BTreeSet<(usize, i64)>,
    ) {
        let reading = async {
            while self.start.is_none() || !self.has_all(records) {
                let mut client = self.connect(address, transport);
                let mut events = 0;
                // Looking through all records after each event would take longer than reading them.
                while self.start.is_none() || events % 500 > 0 || !self.has_all(records) {
                    match tokio::time::timeout(Duration::from_millis(300), client.next())
                        .await
                        .unwrap_or(Some(Json::Null))
                    {
                        Some(Json::Null) => events = 0,
                        Some(event) => {
                            self.take(&event);
                            events += 1;
                        }
                        None => {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            break;
                        }
                    }
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), reading)
            .await
            .is_ok();
        assert!(
            ended,
            "{transport:?}: {} messages of {} came; gaps {:?}, heard {:?}",
            self.count(),
            records.len(),
            self.gaps,
            self.heard
        );
    }
}

/// Readers that come back by themselves whenever their line breaks, one for each transport.
pub struct Followers {
    stop: CancellationToken,
    tasks: JoinSet<(Transport, Reader)>,
    /// How many messages all of them have got.
    counts: Vec<Arc<AtomicUsize>>,
}

impl Followers {
    pub fn start(topic: &str, address: SocketAddr, count: usize) -> Self {
        Self::with(&TRANSPORTS, topic, address, count)
    }

    /// With only these transports.
    pub fn with(transports: &[Transport], topic: &str, address: SocketAddr, count: usize) -> Self {
        let (stop, mut tasks, mut counts) = (CancellationToken::new(), JoinSet::new(), Vec::new());
        for number in 0..count {
            let transport = transports[number % transports.len()];
            let (stop, topic, count) = (
                stop.clone(),
                topic.to_owned(),
                Arc::new(AtomicUsize::new(0)),
            );
            counts.push(count.clone());
            tasks.spawn(async move {
                let mut reader = Reader::new(&topic);
                while !stop.is_cancelled() {
                    let mut client = reader.connect(address, transport);
                    while let Some(Some(event)) = stop.run_until_cancelled(client.next()).await {
                        reader.take(&event);
                        count.store(reader.count(), Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(rand::random_range(20..200))).await;
                }
                (transport, reader)
            });
        }
        Self {
            stop,
            tasks,
            counts,
        }
    }

    /// Waits until each has got as many messages.
    pub async fn have(&self, messages: usize) {
        let all = async || {
            self.counts
                .iter()
                .all(|count| count.load(Ordering::Relaxed) >= messages)
        };
        eventually(
            Duration::from_secs(60),
            &format!("every client to have {messages} messages"),
            all,
        )
        .await;
    }

    /// The number of messages of the client that has received the fewest.
    pub fn least(&self) -> usize {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        counts.min().unwrap_or(0)
    }

    /// Ends them once they have everything, and checks the guarantee for each.
    pub async fn finish(mut self, records: &BTreeSet<(usize, i64)>) -> Vec<Reader> {
        let counted = |counts: &[Arc<AtomicUsize>]| {
            counts
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .collect::<Vec<_>>()
        };
        // A gap counts for what it covers, so not all need as many messages as there are records: until nothing comes any more.
        let mut before = counted(&self.counts);
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = counted(&self.counts);
            if std::mem::replace(&mut before, now.clone()) == now {
                break;
            }
        }
        self.stop.cancel();
        let mut readers = Vec::new();
        while let Some(reader) = self.tasks.join_next().await {
            let (transport, reader) = reader.expect("no reader saw the guarantee broken");
            eprintln!(
                "{transport:?}: {} messages, gaps {:?}, heard {:?}",
                reader.count(),
                reader.gaps,
                reader.heard
            );
            reader.check(records);
            readers.push(reader);
        }
        readers
    }
}

/// The positions of what Kafka holds.
pub fn positions(records: &[herald_testing::Stored]) -> BTreeSet<(usize, i64)> {
    records
        .iter()
        .map(|record| (record.partition as usize, record.offset))
        .collect()
}
