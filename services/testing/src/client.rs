//! What every client of a test's Kafka needs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::FutureProducer;

/// For one request, and for a change to be seen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn config(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("reconnect.backoff.max.ms", "500");
    config
}

/// A new idempotent producer takes a second to get its id, so those that were made are kept, by address.
pub(crate) static PRODUCERS: Mutex<BTreeMap<String, FutureProducer>> = Mutex::new(BTreeMap::new());

/// Forgets what the producers know of their topics, because a test has changed one.
pub(crate) fn forget_topics(address: &str) {
    PRODUCERS
        .lock()
        .expect("no panic while it is held")
        .remove(address);
}

/// Runs what blocks beside the test's own tasks.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
