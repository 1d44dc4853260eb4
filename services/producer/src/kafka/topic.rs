//! The topic: waited for, and created where that is the producer's task.

use std::time::Duration;

use anyhow::{Context as _, bail};
use herald_runtime::kafka::{Context, create};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::Producer;
use tracing::{debug, info, warn};

use super::Kafka;

/// Between two looks at a topic that is not there.
const PAUSE: Duration = Duration::from_millis(500);

/// How long one question to Kafka may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns when the topic exists. That Kafka is away is told by the client's context; what else is wrong is told here,
/// once for each thing that is.
pub async fn wait(kafka: &Kafka) {
    let mut told = String::new();
    loop {
        let problem = match look(kafka).await {
            Ok(true) => return,
            Ok(false) => match kafka.create_with {
                Some(partitions) => create_topic(kafka, partitions).await.err(),
                None => Some(anyhow::anyhow!(
                    "topic \"{}\" does not exist; waiting until somebody creates it",
                    kafka.topic
                )),
            },
            Err(error) => {
                debug!("{error:#}");
                None
            }
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

async fn look(kafka: &Kafka) -> anyhow::Result<bool> {
    let (producer, topic) = (kafka.producer.clone(), kafka.topic.clone());
    tokio::task::spawn_blocking(move || {
        let metadata = producer
            .client()
            .fetch_metadata(Some(&topic), PATIENCE)
            .with_context(|| format!("cannot look for topic \"{topic}\""))?;
        Ok(metadata
            .topics()
            .iter()
            .any(|found| found.name() == topic && !found.partitions().is_empty()))
    })
    .await?
}

async fn create_topic(kafka: &Kafka, partitions: i32) -> anyhow::Result<()> {
    let topic = kafka.topic.as_str();
    let admin: AdminClient<Context> = create(&kafka.config, Context::new())?;
    // -1: as many replicas as the cluster makes by default.
    let wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE));
    let attempt = || format!("cannot create topic \"{topic}\"");
    let results = admin
        .create_topics([&wanted], &options)
        .await
        .with_context(attempt)?;
    match results.into_iter().next() {
        Some(Ok(_)) => info!(topic, partitions, "topic created"),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => debug!(topic, "topic exists"),
        Some(Err((_, code))) => return Err(anyhow::Error::new(code)).with_context(attempt),
        None => bail!("cannot create topic \"{topic}\": kafka did not answer for it"),
    }
    Ok(())
}
