//! Creates topics.

use std::time::Duration;

use anyhow::Context as _;
use herald_runtime::kafka::{Context, create};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use tracing::{debug, info};

/// The timeout of a request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a topic for malformed records, if it does not exist. `config` is that of a client.
pub async fn create_topic(config: &ClientConfig, topic: &str) -> anyhow::Result<()> {
    let admin: AdminClient<Context> = create(config, Context::new())?;
    // The embedded broker never answers the request below, and creates a topic when it is looked up.
    let known = admin.inner().fetch_metadata(Some(topic), TIMEOUT);
    let exists = known?.topics().iter().any(|found| {
        found.name() == topic && found.error().is_none() && !found.partitions().is_empty()
    });
    if exists {
        return Ok(());
    }
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(-1));
    let options = AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT));
    let results = admin.create_topics([&new], &options).await?;
    for result in results {
        match result {
            Ok(_) => info!(topic, "topic for malformed records created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {
                debug!(topic, "topic exists");
            }
            Err((_, code)) => {
                return Err(code).with_context(|| format!("cannot create topic {topic:?}"));
            }
        }
    }
    Ok(())
}
