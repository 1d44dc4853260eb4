//! The Kafka that the consumer reads: the user's, or librdkafka's own model of one in this process.

use std::sync::mpsc;

use anyhow::Context as _;
use rdkafka::mocking::MockCluster;

/// Where topics come from.
pub enum Kafka {
    External(String),
    Embedded {
        address: String,
        /// Topics that are there and were not used.
        topics: std::cell::RefCell<Vec<String>>,
        /// The cluster lives as long as this and does not leave the thread that made it.
        _stop: mpsc::Sender<()>,
    },
}

impl Kafka {
    /// `topics` is the number of topics that will be requested.
    pub fn start(address: Option<&str>, topics: usize) -> anyhow::Result<Self> {
        if let Some(address) = address {
            return Ok(Self::External(address.to_owned()));
        }
        let topics: Vec<String> = (0..topics).map(|number| format!("load-{number}")).collect();
        let names = topics.clone();
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, address) = mpsc::channel();
        std::thread::spawn(move || {
            let cluster = MockCluster::new(1).and_then(|cluster| {
                names
                    .iter()
                    .try_for_each(|topic| cluster.create_topic(topic, 1, 1))?;
                Ok(cluster)
            });
            _ = started.send(
                cluster
                    .as_ref()
                    .map(|cluster| cluster.bootstrap_servers())
                    .map_err(Clone::clone),
            );
            // Ends with an error, when the sender is dropped.
            _ = stopped.recv();
        });
        let address = address.recv()?.context("cannot start the embedded Kafka")?;
        Ok(Self::Embedded {
            address,
            topics: topics.into(),
            _stop: stop,
        })
    }

    pub fn address(&self) -> &str {
        match self {
            Self::External(address) | Self::Embedded { address, .. } => address,
        }
    }

    /// The options of a consumer, besides the address.
    pub fn properties(&self) -> &'static str {
        match self {
            Self::External(_) => "",
            // An empty fetch is answered only when this time is over, whatever arrives meanwhile.
            Self::Embedded { .. } => "fetch.wait.max.ms=20",
        }
    }

    /// A topic of one partition that nobody has written to.
    pub fn create_topic(&self) -> anyhow::Result<String> {
        match self {
            Self::Embedded { topics, .. } => topics.borrow_mut().pop().context("no topic is left"),
            Self::External(address) => {
                let topic = herald_testing::random_topic("load");
                wait(herald_testing::create_topic(address, &topic, 1, &[]))?;
                Ok(topic)
            }
        }
    }

    pub fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        match self {
            Self::Embedded { .. } => Ok(()),
            Self::External(address) => wait(herald_testing::delete_topic(address, topic)),
        }
    }
}

fn wait(done: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(done);
    Ok(())
}
