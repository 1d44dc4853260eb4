//! The latest results in Kafka, for when a position is lost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use herald_runtime::kafka::{Context, create};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;

use crate::Config;

/// The timeout of a request to Kafka, and of each partition.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many offsets before the end of a partition are read. The latest window is among them unless a projector that was behind has
/// published more results after it.
const OFFSETS: i64 = 100_000;

/// The end of the window of a result. Results of other programs may have none.
#[derive(Deserialize)]
struct Published {
    end: i64,
    partition: Option<i32>,
}

/// The latest end of a window among the latest results in these topics that were counted from this partition of likes, or do not
/// say from which; in milliseconds since 1970. `None` if there is no such result: other partitions may be ahead of this one.
///
/// # Errors
///
/// If Kafka does not answer in time.
pub fn latest_result<'a>(
    config: &Config,
    likes: i32,
    topics: impl Iterator<Item = &'a str>,
) -> anyhow::Result<Option<i64>> {
    let required = [
        ("group.id", "herald-projector"),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "true"),
        ("isolation.level", "read_committed"),
        ("statistics.interval.ms", "0"),
    ];
    let reserved = required.map(|(key, _)| key);
    let mut client = config
        .kafka
        .client_config("herald-projector", &[], &reserved)?;
    for (key, value) in required {
        client.set(key, value);
    }
    let consumer: BaseConsumer<Context> = create(&client, Context::new())?;
    let mut latest = None;
    for topic in topics {
        let found = consumer.fetch_metadata(Some(topic), TIMEOUT);
        let found = found.with_context(|| format!("cannot look up topic {topic:?}"))?;
        for partition in found.topics().iter().flat_map(|topic| topic.partitions()) {
            let number = partition.id();
            let end = latest_of(&consumer, likes, topic, number);
            let end = end.with_context(|| {
                format!("cannot read the latest results in topic {topic:?}, partition {number}")
            })?;
            latest = latest.max(end);
        }
    }
    Ok(latest)
}

/// The same for a partition.
fn latest_of(
    consumer: &BaseConsumer<Context>,
    likes: i32,
    topic: &str,
    partition: i32,
) -> anyhow::Result<Option<i64>> {
    let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT)?;
    let mut latest = None;
    if low >= high {
        return Ok(latest);
    }
    let mut list = TopicPartitionList::new();
    let from = Offset::Offset(low.max(high - OFFSETS));
    list.add_partition_offset(topic, partition, from)?;
    consumer.assign(&list)?;
    let mut received = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                received = Instant::now();
                let value = message.payload().unwrap_or_default();
                if let Ok(published) = serde_json::from_slice::<Published>(value)
                    && published.partition.is_none_or(|counted| counted == likes)
                {
                    latest = latest.max(Some(published.end));
                }
                if message.offset() + 1 >= high {
                    break;
                }
            }
            // The last offsets may be those of transactions' markers.
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            // librdkafka goes on by itself.
            Some(Err(_)) | None => {
                ensure!(received.elapsed() < TIMEOUT, "Kafka does not answer");
            }
        }
    }
    consumer.unassign()?;
    Ok(latest)
}
