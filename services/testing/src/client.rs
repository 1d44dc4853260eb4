//! Code that all clients of a test's Kafka share.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::FutureProducer;

/// The timeout of one request, and of waiting until a change is visible.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn config(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("reconnect.backoff.max.ms", "500");
    config
}

/// Producers by address, for reuse: a new idempotent producer takes a second to get its id.
pub(crate) static PRODUCERS: Mutex<BTreeMap<String, FutureProducer>> = Mutex::new(BTreeMap::new());

/// Drops the producer with its cached metadata, because a test has changed a topic.
pub(crate) fn forget_topics(address: &str) {
    PRODUCERS
        .lock()
        .expect("no panic while it is held")
        .remove(address);
}

/// Runs blocking work without blocking the test's own tasks.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
