//! The Kafka embedded in this process, if the user sets no other.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;

use crate::Environment;

/// librdkafka's mock of Kafka, on a free port of 127.0.0.1. It keeps the newest 5 MiB or 100,000 messages of each topic in
/// memory. Dropping this value stops it.
pub struct Embedded {
    address: String,
    /// Before the time of every record.
    since: Timestamp,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// For services that read from it: the mock answers an empty fetch only after this time, even if messages arrive meanwhile.
pub const READER_PROPERTIES: &str = "fetch.wait.max.ms=20";

/// The topics of the services of these environments.
pub fn topics(environments: &[Environment]) -> Vec<String> {
    let of = |environment: &Environment| {
        let mut topics = vec![environment.topic.clone()];
        let [likes, partitioned] = environment.likes_topics();
        for input in [
            environment.events_topic(),
            environment.counts_topic(),
            likes,
        ] {
            topics.push(format!("{input}.dlq"));
            topics.push(input);
        }
        topics.push(partitioned);
        for results in environment.window_topics() {
            topics.push(format!("{results}.live"));
            topics.push(results);
        }
        topics
    };
    environments.iter().flat_map(of).collect()
}

impl Embedded {
    /// Starts it, with `topics` of one partition each: it does not support requests that would create them later.
    pub fn start(topics: Vec<String>) -> anyhow::Result<Embedded> {
        let since = Timestamp::now();
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, address) = mpsc::channel();
        // The cluster must not leave the thread that created it.
        let thread = thread::Builder::new()
            .name("embedded-kafka".to_owned())
            .spawn(move || {
                let cluster = MockCluster::new(1).and_then(|cluster| {
                    topics
                        .iter()
                        .try_for_each(|topic| cluster.create_topic(topic, 1, 1))?;
                    Ok(cluster)
                });
                match cluster {
                    Ok(cluster) => {
                        let _ = started.send(Ok(cluster.bootstrap_servers()));
                        // Returns an error when the sender is dropped.
                        let _ = stopped.recv();
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })?;
        let address = address
            .recv()
            .context("the embedded kafka did not start")?
            .context("cannot start the embedded kafka")?;
        Ok(Embedded {
            address,
            since,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The offset after the last record of a topic's only partition.
    pub async fn end(&self, topic: &str) -> anyhow::Result<i64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        let topic = topic.to_owned();
        let end = tokio::task::spawn_blocking(move || {
            let client: BaseConsumer = config.create()?;
            client.fetch_watermarks(&topic, 0, Duration::from_secs(5))
        });
        let (_, end) = end.await?.context("cannot look up the end of a topic")?;
        Ok(end)
    }

    /// When it was started.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
