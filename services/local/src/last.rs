//! The last session events of the embedded Kafka, which is lost with this process.

use std::time::Duration;

use anyhow::ensure;
use store::{DatabaseUrl, Name, Reader, SESSIONS};
use tokio::time::{Instant, sleep};

use crate::Environment;
use crate::data::Data;
use crate::kafka::Embedded;

/// The user who pressed Ctrl-C is waiting.
const LIMIT: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the databases contain all session events that Kafka has acknowledged.
///
/// # Errors
///
/// If they do not within ten seconds.
pub async fn projected(
    embedded: &Embedded,
    environments: &[Environment],
    data: &Data,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    for environment in environments {
        let topic = &environment.events_topic;
        let end = embedded.end(topic).await?;
        let url: DatabaseUrl = data.url(environment).parse().map_err(anyhow::Error::msg)?;
        let reader = Reader::new(&url, &Name::default());
        while end > 0 && !reader.has_passed(SESSIONS, topic, 0, end - 1).await? {
            ensure!(
                Instant::now() < deadline,
                "the last session events of {} are lost with the embedded kafka: they were not in the database within {LIMIT:?}",
                environment.name
            );
            sleep(PAUSE).await;
        }
    }
    Ok(())
}
