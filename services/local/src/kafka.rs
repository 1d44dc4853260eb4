//! The Kafka that all environments use: one that lives in this process, or the user's.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use rdkafka::mocking::MockCluster;

/// librdkafka's own model of Kafka, on a free port of 127.0.0.1. It keeps the newest 5 MiB or 100,000 messages of each topic,
/// in memory. It ends with this value.
pub struct Embedded {
    address: String,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// For consumers: an empty fetch is answered only when this time is over, whatever arrives meanwhile.
pub const CONSUMER_PROPERTIES: &str = "fetch.wait.max.ms=20";

impl Embedded {
    /// Starts it, with `topics` of one partition each: it does not answer the requests that would create them later.
    pub fn start(topics: Vec<String>) -> anyhow::Result<Embedded> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, address) = mpsc::channel();
        // The cluster must not leave the thread that made it.
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
                        // Ends with an error, when the sender is dropped.
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
            stop: Some(stop),
            thread: Some(thread),
        })
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
