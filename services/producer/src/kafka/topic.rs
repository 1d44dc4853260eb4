//! Waits for the topic, and creates it if configured.

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

/// The delay between two checks for a missing topic.
const PAUSE: Duration = Duration::from_millis(500);

/// The timeout of one request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of a topic that is created here.
pub struct Settings {
    pub partitions: i32,
    replication_factor: i32,
    config: Vec<(String, String)>,
}

impl Settings {
    pub fn new(config: &Config) -> Settings {
        let properties = properties(&config.topic_config).expect("the option's parser checked it");
        Settings {
            partitions: config.topic_partitions,
            // -1: the brokers' default.
            replication_factor: config.topic_replication_factor,
            config: properties
                .into_iter()
                .map(|property| (property.key.to_owned(), property.value.to_owned()))
                .collect(),
        }
    }
}

/// Returns the number of partitions once the topic exists with at least `partitions` of them. The client's context logs an
/// unreachable Kafka; every other problem is logged here, once until it changes.
pub async fn wait(kafka: &Kafka, partitions: i32) -> i32 {
    let mut logged = String::new();
    loop {
        let problem = match fetch_partitions(kafka).await {
            None => None,
            Some(Ok(found)) if found >= partitions => return found,
            Some(Ok(0)) if !kafka.creates => Some(anyhow::anyhow!(
                "topic \"{}\" does not exist; waiting until it is created",
                kafka.topic
            )),
            Some(Ok(0)) => create_topic(kafka).await.err(),
            Some(Ok(found)) => add_partitions(kafka, found, partitions).await.err(),
            Some(Err(code)) => Some(
                anyhow::Error::new(code)
                    .context(format!("cannot look up topic \"{}\"", kafka.topic)),
            ),
        };
        if let Some(problem) = problem.map(|problem| format!("{problem:#}"))
            && problem != logged
        {
            warn!("{problem}");
            logged = problem;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The number of the topic's partitions, 0 if it does not exist, or Kafka's error; `None` if Kafka did not answer.
async fn fetch_partitions(kafka: &Kafka) -> Option<Result<i32, RDKafkaErrorCode>> {
    let (producer, topic) = (kafka.producer.clone(), kafka.topic.clone());
    let fetched = tokio::task::spawn_blocking(move || {
        let metadata = producer.client().fetch_metadata(Some(&topic), TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map_or(0, |found| found.partitions().len() as i32);
        let error = found
            .and_then(|found| found.error())
            .map(RDKafkaErrorCode::from);
        Ok::<_, KafkaError>(match error {
            None | Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(partitions),
            Some(code) => Err(code),
        })
    });
    match fetched.await.expect("fetching metadata does not panic") {
        Ok(partitions) => Some(partitions),
        Err(error) => {
            debug!(topic = kafka.topic, %error, "cannot look up the topic");
            None
        }
    }
}

async fn create_topic(kafka: &Kafka) -> anyhow::Result<()> {
    let (topic, settings) = (kafka.topic.as_str(), &kafka.settings);
    let replication = TopicReplication::Fixed(settings.replication_factor);
    let mut new = NewTopic::new(topic, settings.partitions, replication);
    for (key, value) in &settings.config {
        new = new.set(key, value);
    }
    let results = admin(kafka)?.create_topics([&new], &options()).await;
    match answer(results).with_context(|| format!("cannot create topic \"{topic}\""))? {
        Some(RDKafkaErrorCode::TopicAlreadyExists) => debug!(topic, "topic exists"),
        Some(code) => {
            return Err(code).with_context(|| format!("cannot create topic \"{topic}\""));
        }
        None => info!(topic, partitions = settings.partitions, "topic created"),
    }
    Ok(())
}

async fn add_partitions(kafka: &Kafka, found: i32, partitions: i32) -> anyhow::Result<()> {
    let topic = kafka.topic.as_str();
    let attempt = || format!("cannot increase topic \"{topic}\" to {partitions} partitions");
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
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}

/// Kafka's result for the requested topic: `None` on success, or the error.
fn answer(results: KafkaResult<Vec<TopicResult>>) -> anyhow::Result<Option<RDKafkaErrorCode>> {
    let answer = results?.into_iter().next();
    let answer = answer.context("kafka returned no result for it")?;
    Ok(answer.err().map(|(_, code)| code))
}
