//! The last session events and foods of the embedded Kafka, which is lost with this process.

use std::time::Duration;

use anyhow::ensure;
use store::{COUNTS, DatabaseUrl, Name, Reader, SESSIONS};
use tokio::time::{Instant, sleep};

use crate::Environment;
use crate::data::Data;
use crate::kafka::Embedded;

/// The user who pressed Ctrl-C is waiting.
const LIMIT: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the databases contain all session events and foods that Kafka has acknowledged.
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
    // Until the projector has read the first record, its position is one of an earlier start.
    let since = embedded.since().as_millisecond();
    for environment in environments {
        let url: DatabaseUrl = data.url(environment).parse().map_err(anyhow::Error::msg)?;
        let reader = Reader::new(&url, &Name::default());
        for (projection, topic) in [
            (SESSIONS, environment.events_topic()),
            (COUNTS, environment.counts_topic()),
        ] {
            let end = embedded.end(&topic).await?;
            let passed = || reader.has_passed(projection, &topic, 0, end - 1, since);
            while end > 0 && !passed().await? {
                ensure!(
                    Instant::now() < deadline,
                    "the last records of topic {topic:?} are lost with the embedded kafka: they were not in the database \
                     within {LIMIT:?}"
                );
                sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}
