//! Produces records and reads them back.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::client::{DEADLINE, PRODUCERS, blocking, config};
use crate::topics::partitions;

/// A record to produce.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// In order; a name may occur more than once.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970; `None` is now.
    pub timestamp: Option<i64>,
}

impl Record {
    /// A record with only a value.
    pub fn new(partition: i32, value: impl Into<Vec<u8>>) -> Self {
        Self {
            partition,
            value: Some(value.into()),
            ..Self::default()
        }
    }
}

/// A record as stored in Kafka.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Stored {
    /// The value as text; empty for a tombstone.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    Commit,
    Abort,
}

/// Produces `records` in order within each partition, and returns the position of each: (partition, offset).
pub async fn produce(address: &str, topic: &str, records: &[Record]) -> Vec<(i32, i64)> {
    let known = PRODUCERS
        .lock()
        .expect("no panic while it is held")
        .get(address)
        .cloned();
    let producer = known.unwrap_or_else(|| {
        let producer: FutureProducer = config(address)
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("message.max.bytes", "16777216")
            .set("queue.buffering.max.messages", "1000000")
            .create()
            .expect("a valid configuration");
        let mut producers = PRODUCERS.lock().expect("no panic while it is held");
        producers
            .entry(address.to_owned())
            .or_insert(producer)
            .clone()
    });
    send(&producer, topic, records).await
}

/// Produces `records` in one batch compressed with `codec`, however large they are uncompressed.
pub async fn produce_compressed(
    address: &str,
    topic: &str,
    records: &[Record],
    codec: &str,
) -> Vec<(i32, i64)> {
    let producer: FutureProducer = config(address)
        .set("enable.idempotence", "true")
        .set("compression.type", codec)
        .set("linger.ms", "1000")
        .set("batch.size", "500000000")
        .set("message.max.bytes", "500000000")
        .set("queue.buffering.max.kbytes", "1000000")
        .create()
        .expect("a valid configuration");
    send(&producer, topic, records).await
}

/// Produces `records` in a transaction that stays open until the returned value is dropped, or its timeout passes.
pub async fn produce_in_open_transaction(
    address: &str,
    topic: &str,
    records: &[Record],
) -> impl Drop + use<> {
    let producer = begin_transaction(address).await;
    send(&producer, topic, records).await;
    OpenTransaction(producer)
}

struct OpenTransaction(FutureProducer);

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        // The result no longer matters to a test that has ended.
        _ = self.0.abort_transaction(DEADLINE);
    }
}

/// Produces `records` in one transaction, which adds a marker after them in each of their partitions.
pub async fn produce_in_transaction(
    address: &str,
    topic: &str,
    records: &[Record],
    outcome: Outcome,
) -> Vec<(i32, i64)> {
    let producer = begin_transaction(address).await;
    let positions = send(&producer, topic, records).await;
    blocking(move || {
        match outcome {
            Outcome::Commit => producer.commit_transaction(DEADLINE),
            Outcome::Abort => producer.abort_transaction(DEADLINE),
        }
        .expect("cannot end a transaction");
    })
    .await;
    positions
}

/// A new producer with an open transaction.
async fn begin_transaction(address: &str) -> FutureProducer {
    let producer: FutureProducer = config(address)
        .set("transactional.id", crate::random_topic("transaction"))
        .set("message.max.bytes", "16777216")
        .create()
        .expect("a valid configuration");
    let clone = producer.clone();
    blocking(move || {
        clone
            .init_transactions(DEADLINE)
            .and_then(|()| clone.begin_transaction())
            .expect("cannot begin a transaction");
    })
    .await;
    producer
}

/// Every committed record of a topic, in the order of partition and offset.
pub async fn read_all(address: &str, topic: &str) -> Vec<Stored> {
    let count = partitions(address, topic).await;
    assert!(count > 0, "topic {topic:?} does not exist");
    // librdkafka rejects an assignment without a group.id; nothing is ever committed.
    let consumer: BaseConsumer = config(address)
        .set("group.id", "herald-testing")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .expect("a valid configuration");
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition_offset(topic, partition, Offset::Beginning)
            .expect("a valid offset");
    }
    consumer.assign(&list).expect("cannot assign partitions");
    let topic = topic.to_owned();
    blocking(move || read(&consumer, &topic, count)).await
}

async fn send(producer: &FutureProducer, topic: &str, records: &[Record]) -> Vec<(i32, i64)> {
    let mut deliveries = Vec::with_capacity(records.len());
    for record in records {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &record.headers {
            headers = headers.insert(Header {
                key,
                value: value.as_ref(),
            });
        }
        let future_record = FutureRecord {
            topic,
            partition: Some(record.partition),
            payload: record.value.as_ref(),
            key: record.key.as_ref(),
            timestamp: record.timestamp,
            headers: Some(headers),
        };
        let delivery = producer
            .send_result(future_record)
            .unwrap_or_else(|(error, _)| panic!("cannot produce to {topic:?}: {error}"));
        deliveries.push(delivery);
    }
    let mut positions = Vec::with_capacity(records.len());
    for delivery in deliveries {
        let delivered = tokio::time::timeout(DEADLINE, delivery)
            .await
            .unwrap_or_else(|_| panic!("a record for {topic:?} was not acknowledged in time"))
            .expect("the producer is alive")
            .unwrap_or_else(|(error, _)| panic!("cannot produce to {topic:?}: {error}"));
        positions.push((delivered.partition, delivered.offset));
    }
    positions
}

/// Reads every partition to its end.
fn read(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Vec<Stored> {
    let deadline = Instant::now() + DEADLINE;
    let mut unread: Vec<i32> = (0..partitions).collect();
    let mut records = Vec::new();
    while !unread.is_empty() {
        assert!(
            Instant::now() < deadline,
            "partitions {unread:?} of {topic:?} were not read to their end within {DEADLINE:?}"
        );
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => records.push(stored(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => unread.retain(|&p| p != partition),
            // librdkafka reconnects by itself; the deadline decides.
            Some(Err(_)) | None => {}
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

fn stored(message: &impl Message) -> Stored {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect()
    });
    Stored {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}
