//! The producer of a partition's owner: records and the position after what they were computed from, all or nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use herald_runtime::kafka::{Context, create};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use tracing::{debug, info};

use crate::Config;
use crate::kafka::Group;

/// The timeout of a step of a transaction. A transaction that is open for longer than [`TRANSACTION_TIMEOUT`] is aborted by Kafka.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait after a failure for Kafka's answers to the records that were sent.
const ANSWERS: Duration = Duration::from_secs(2);

/// How long a part of the wait for the delivery of records takes.
const SLICE: Duration = Duration::from_millis(5);

/// How long a transaction of a process that was killed may hold back readers of committed records.
const TRANSACTION_TIMEOUT: &str = "10000";

/// A record to produce. It goes to the partition of its key, as with clients in Java.
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
    /// In milliseconds since 1970; `None` is now.
    pub timestamp: Option<i64>,
    pub headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

/// The position of the group that is committed with the records.
pub struct Position<'a> {
    pub group: &'a Group,
    pub partition: i32,
    /// The offset to read next.
    pub next: i64,
    /// At most 4 KiB.
    pub metadata: &'a str,
}

/// Nothing was committed, or it is not known whether everything was.
#[derive(Debug)]
pub struct Failure {
    pub error: anyhow::Error,
    /// The records that Kafka rejects for good, by their index.
    pub rejected: BTreeMap<usize, Rejection>,
}

/// Why Kafka rejects a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    TooLarge,
    /// Its timestamp, by the configuration of the topic.
    Invalid,
}

/// A producer that one process at a time can have.
pub struct Transactions {
    producer: BaseProducer<Reports>,
    reports: Reports,
    id: String,
    /// Whether offsets are committed with a transaction: librdkafka's mock ignores them. Known after the first one.
    stores_offsets: Option<bool>,
}

impl Transactions {
    /// Creates the producer. Whoever had the same `id` can commit nothing from now on, and what it had begun is aborted.
    ///
    /// # Errors
    ///
    /// If librdkafka rejects its properties, or Kafka does not answer in time.
    pub fn open(config: &Config, id: &str) -> anyhow::Result<Self> {
        let defaults = [
            ("linger.ms", "5"),
            ("message.max.bytes", "67108864"),
            ("queue.buffering.max.messages", "1000000"),
            ("topic.metadata.propagation.max.ms", "10000"),
        ];
        let required = [
            ("transactional.id", id),
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // As in Java, so that other clients find an identifier in the same partition.
            ("partitioner", "murmur2_random"),
        ];
        let reserved = required.map(|(key, _)| key);
        let mut client = config
            .kafka
            .client_config("herald-projector", &defaults, &reserved)?;
        for (key, value) in required {
            client.set(key, value);
        }
        // Nobody reads them. Each would stay in memory until the next commit.
        client.set("statistics.interval.ms", "0");
        let reports = Reports::default();
        let producer: BaseProducer<Reports> = create(&client, reports.clone())?;
        producer
            .init_transactions(TIMEOUT)
            .with_context(|| format!("cannot begin the transactions of {id:?}"))?;
        debug!(id, "transactions begun");
        Ok(Self {
            producer,
            reports,
            id: id.to_owned(),
            stores_offsets: None,
        })
    }

    /// Handles what librdkafka reports between commits; to be called several times a second.
    pub fn serve(&self) {
        self.producer.poll(Duration::ZERO);
    }

    /// Commits the records and the position in one transaction. After a failure, the producer must be opened again; then it is
    /// known what was committed.
    pub fn commit(
        &mut self,
        records: &[Outgoing<'_>],
        position: &Position<'_>,
    ) -> Result<(), Failure> {
        self.reports.take();
        let committed = self.attempt(records, position);
        committed.map_err(|error| {
            // Kafka's answers to what was sent tell which records it rejects; the rest is sent no more.
            self.producer.purge(PurgeConfig::default().queue());
            _ = self.producer.flush(ANSWERS);
            let rejected = self.reports.take().rejected;
            // Readers of committed records wait for this. If it fails, opening the producer again does it, or the timeout.
            if !is_fatal(&error) {
                // Aborting waits until all reports are served, and serves none itself.
                self.producer
                    .purge(PurgeConfig::default().queue().inflight());
                _ = self.producer.flush(ANSWERS);
                _ = self.producer.abort_transaction(TIMEOUT);
            }
            let error = error.context(format!("cannot commit a transaction of {:?}", self.id));
            Failure { error, rejected }
        })
    }

    fn attempt(&mut self, records: &[Outgoing<'_>], position: &Position<'_>) -> anyhow::Result<()> {
        let offsets =
            position
                .group
                .position(position.partition, position.next, position.metadata)?;
        let deadline = Instant::now() + TIMEOUT;
        self.producer.begin_transaction()?;
        for (index, record) in records.iter().enumerate() {
            self.send(index, record, deadline)?;
        }
        self.deliver(deadline)?;
        let group = position.group.member()?;
        self.producer
            .send_offsets_to_transaction(&offsets, &group, TIMEOUT)?;
        self.producer.commit_transaction(TIMEOUT)?;
        self.check_offset(position)
    }

    fn send(&self, index: usize, record: &Outgoing<'_>, deadline: Instant) -> anyhow::Result<()> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: *value });
        }
        let mut message = BaseRecord::with_opaque_to(record.topic, index).key(record.key);
        message.payload = record.value;
        message.timestamp = record.timestamp;
        if !record.headers.is_empty() {
            message = message.headers(headers);
        }
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                    if Instant::now() < deadline =>
                {
                    self.producer.poll(Duration::from_millis(100));
                    message = again;
                }
                Err((error, _)) => {
                    self.reports.reject(index, &error);
                    let topic = record.topic;
                    return Err(error)
                        .with_context(|| format!("cannot produce to topic {topic:?}"));
                }
            }
        }
    }

    /// Waits until all records are delivered, or one is not: then librdkafka sends no more of this transaction, and a longer `flush`
    /// would wait for its end in vain.
    fn deliver(&self, deadline: Instant) -> anyhow::Result<()> {
        while self.producer.flush(SLICE).is_err() {
            if self.reports.has_failed() {
                break;
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "records were not delivered within {TIMEOUT:?}"
            );
        }
        match self.reports.failure() {
            Some(error) => Err(error).context("a record was not delivered"),
            None => Ok(()),
        }
    }

    /// Commits the position by itself to a broker that ignores those of transactions.
    fn check_offset(&mut self, position: &Position<'_>) -> anyhow::Result<()> {
        let Position {
            group,
            partition,
            next,
            metadata,
        } = position;
        let stores = match self.stores_offsets {
            Some(stores) => stores,
            None => {
                let stored = group.committed(*partition)?;
                let stores = stored.is_some_and(|(stored, _)| stored >= *next);
                if !stores {
                    info!(
                        "this Kafka ignores the offsets of transactions; committing them after each one"
                    );
                }
                self.stores_offsets = Some(stores);
                stores
            }
        };
        if !stores {
            group.commit(*partition, *next, metadata)?;
        }
        Ok(())
    }
}

/// Whether the producer can only be created again.
fn is_fatal(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<KafkaError>() {
        Some(KafkaError::Transaction(error)) => error.is_fatal(),
        _ => false,
    }
}

/// The context of the producer: collects the failed records.
#[derive(Clone, Default)]
struct Reports {
    connection: Context,
    failed: Arc<Mutex<Failed>>,
}

/// The records of a transaction that were not delivered.
#[derive(Default)]
struct Failed {
    /// Why the first one was not.
    first: Option<KafkaError>,
    rejected: BTreeMap<usize, Rejection>,
}

impl Reports {
    fn take(&self) -> Failed {
        std::mem::take(&mut self.lock())
    }

    fn failure(&self) -> Option<KafkaError> {
        self.lock().first.clone()
    }

    fn has_failed(&self) -> bool {
        self.lock().first.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Failed> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reject(&self, index: usize, error: &KafkaError) {
        use RDKafkaErrorCode as Code;
        let mut failed = self.lock();
        failed.first.get_or_insert_with(|| error.clone());
        let rejection = match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge) => Rejection::TooLarge,
            Some(Code::InvalidTimestamp | Code::InvalidRecord) => Rejection::Invalid,
            _ => return,
        };
        failed.rejected.insert(index, rejection);
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        self.connection.log(level, fac, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.connection.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        if let Err((error, message)) = result {
            debug!(%error, topic = message.topic(), "a record was not delivered");
            self.reject(index, error);
        }
    }
}
