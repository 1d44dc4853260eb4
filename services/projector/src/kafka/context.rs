//! The context of the consumer: its assignments, and what librdkafka reports about the topic.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use herald_runtime::kafka::Context;
use herald_runtime::kafka::source::{Statistics, is_healthy};
use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::util::Timeout;
use tracing::{debug, warn};

/// The id of a topic before it is known, in base64.
const NO_ID: &str = " from AAAAAAAAAAAAAAAAAAAAAA to ";

/// Shared by the consumer and its owner.
#[derive(Clone)]
pub struct GroupContext(Arc<Shared>);

struct Shared {
    connection: Context,
    topic: String,
    news: Mutex<News>,
}

/// What has happened since it was last taken.
#[derive(Default)]
pub struct News {
    /// The latest rebalance.
    pub assignment: Option<Assignment>,
    /// The topic has another id: it was deleted and created again.
    pub recreated: bool,
    /// The end of each partition, from the latest statistics.
    pub ends: BTreeMap<i32, i64>,
}

/// What a rebalance of the group has decided.
#[derive(Debug)]
pub enum Assignment {
    /// These partitions are this consumer's; it does not read them before `assign`.
    Assigned(Vec<i32>),
    /// None is, until the next assignment.
    Revoked,
}

impl GroupContext {
    pub fn new(topic: &str) -> Self {
        Self(Arc::new(Shared {
            connection: Context::new(),
            topic: topic.to_owned(),
            news: Mutex::default(),
        }))
    }

    pub fn connection(&self) -> &Context {
        &self.0.connection
    }

    pub fn with_news<T>(&self, use_it: impl FnOnce(&mut News) -> T) -> T {
        use_it(&mut self.0.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        // librdkafka reports a new id of a topic in its debug log alone, before it reads from the new topic.
        let changed = format!("Topic {} changed id from ", self.0.topic);
        if message.contains(&changed) && !message.contains(NO_ID) {
            self.with_news(|news| news.recreated = true);
        }
        // The other lines of the debug log come because `debug` is set for this one.
        if !matches!(level, RDKafkaLogLevel::Debug)
            || tracing::enabled!(target: "librdkafka", tracing::Level::DEBUG)
        {
            self.0.connection.log(level, fac, message);
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let statistics = match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) => statistics,
            Err(error) => return warn!(%error, "cannot read librdkafka's statistics"),
        };
        self.0.connection.observe(is_healthy(&statistics));
        let Some(topic) = statistics.topics.get(&self.0.topic) else {
            return;
        };
        let ends = topic.partitions.iter().filter_map(|(number, partition)| {
            let number = number.parse().ok()?;
            (partition.desired && partition.ls_offset >= 0).then_some((number, partition.ls_offset))
        });
        let ends = ends.collect();
        self.with_news(|news| news.ends = ends);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.connection.error(error, reason);
    }
}

impl ConsumerContext for GroupContext {
    /// Partitions are assigned later, when their positions are known, and released at once: a batch that is under way is
    /// rejected by the store if another projector was faster.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let assignment = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let elements = partitions.elements();
                Assignment::Assigned(elements.iter().map(|element| element.partition()).collect())
            }
            _ => Assignment::Revoked,
        };
        debug!(?assignment, "the group has rebalanced");
        // librdkafka waits for this call also if there is nothing to assign.
        let reads =
            matches!(&assignment, Assignment::Assigned(partitions) if !partitions.is_empty());
        if !reads && let Err(error) = consumer.unassign() {
            warn!(%error, "cannot release the partitions");
        }
        self.with_news(|news| news.assignment = Some(assignment));
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        // Nothing is read from these offsets; the store has the positions.
        if let Err(error) = result {
            debug!(%error, "cannot commit the offsets for tools that show lag");
        }
    }

    fn main_queue_min_poll_interval(&self) -> Timeout {
        self.0.connection.main_queue_min_poll_interval()
    }
}
