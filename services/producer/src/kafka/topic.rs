//! The topic: waited for, and created where that is the producer's task.

use std::time::Duration;

use anyhow::Context as _;
use herald_runtime::kafka::{Context, create, properties};
use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use tracing::{debug, info, warn};

use super::Kafka;
use crate::Config;

/// Between two looks at a topic that is not there.
const PAUSE: Duration = Duration::from_millis(500);

/// How long one question to Kafka may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a topic gets that is created here.
pub struct Wanted {
    pub partitions: i32,
    replication_factor: i32,
    config: Vec<(String, String)>,
}

impl Wanted {
    pub fn new(config: &Config) -> Wanted {
        let properties = properties(&config.topic_config).expect("its option was parsed so");
        Wanted {
            partitions: config.topic_partitions,
            // -1: as many as the brokers make by default.
            replication_factor: config.topic_replication_factor,
            config: properties
                .into_iter()
                .map(|property| (property.key.to_owned(), property.value.to_owned()))
                .collect(),
        }
    }
}

/// Returns when the topic exists with at least `partitions` partitions, and how many it has. That Kafka is away is told by
/// the client's context; what else is wrong is told here, once for each thing that is.
pub async fn wait(kafka: &Kafka, partitions: i32) -> i32 {
    let mut told = String::new();
    loop {
        let problem = match look(kafka).await {
            None => None,
            Some(Ok(found)) if found >= partitions => return found,
            Some(Ok(0)) if !kafka.creates => Some(anyhow::anyhow!(
                "topic \"{}\" does not exist; waiting until somebody creates it",
                kafka.topic
            )),
            Some(Ok(0)) => create_topic(kafka).await.err(),
            Some(Ok(found)) => add_partitions(kafka, found, partitions).await.err(),
            Some(Err(code)) => Some(
                anyhow::Error::new(code)
                    .context(format!("cannot look for topic \"{}\"", kafka.topic)),
            ),
        };
        if let Some(problem) = problem.map(|problem| format!("{problem:#}"))
            && problem != told
        {
            warn!("{problem}");
            told = problem;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How many partitions the topic has, 0 when it does not exist, or why Kafka does not tell; `None` when Kafka did not answer.
async fn look(kafka: &Kafka) -> Option<Result<i32, RDKafkaErrorCode>> {
    let (producer, topic) = (kafka.producer.clone(), kafka.topic.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let metadata = producer.client().fetch_metadata(Some(&topic), PATIENCE)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map_or(0, |found| found.partitions().len() as i32);
        let refused = found
            .and_then(|found| found.error())
            .map(RDKafkaErrorCode::from);
        Ok::<_, KafkaError>(match refused {
            None | Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(partitions),
            Some(code) => Err(code),
        })
    });
    match looked.await.expect("looking does not panic") {
        Ok(looked) => Some(looked),
        Err(error) => {
            debug!(topic = kafka.topic, %error, "cannot look for the topic");
            None
        }
    }
}

async fn create_topic(kafka: &Kafka) -> anyhow::Result<()> {
    let (topic, wanted) = (kafka.topic.as_str(), &kafka.wanted);
    let replication = TopicReplication::Fixed(wanted.replication_factor);
    let mut new = NewTopic::new(topic, wanted.partitions, replication);
    for (key, value) in &wanted.config {
        new = new.set(key, value);
    }
    let results = admin(kafka)?.create_topics([&new], &options()).await;
    match answer(results).with_context(|| format!("cannot create topic \"{topic}\""))? {
        Some(RDKafkaErrorCode::TopicAlreadyExists) => debug!(topic, "topic exists"),
        Some(code) => {
            return Err(code).with_context(|| format!("cannot create topic \"{topic}\""));
        }
        None => info!(topic, partitions = wanted.partitions, "topic created"),
    }
    Ok(())
}

async fn add_partitions(kafka: &Kafka, found: i32, partitions: i32) -> anyhow::Result<()> {
    let topic = kafka.topic.as_str();
    let attempt = || format!("cannot give topic \"{topic}\" {partitions} partitions");
    let more = NewPartitions::new(topic, partitions as usize);
    let results = admin(kafka)?.create_partitions([&more], &options()).await;
    match answer(results).with_context(attempt)? {
        Some(code) => Err(code).with_context(attempt),
        None => {
            info!(topic, found, partitions, "partitions added");
            Ok(())
        }
    }
}

fn admin(kafka: &Kafka) -> anyhow::Result<AdminClient<Context>> {
    create(&kafka.config, Context::new())
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE))
}

/// What Kafka says of the one topic it was asked about: `None` when it was done, or its reason.
fn answer(results: KafkaResult<Vec<TopicResult>>) -> anyhow::Result<Option<RDKafkaErrorCode>> {
    let answer = results?.into_iter().next();
    let answer = answer.context("kafka did not answer for it")?;
    Ok(answer.err().map(|(_, code)| code))
}
