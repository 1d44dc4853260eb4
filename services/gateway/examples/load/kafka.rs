//! The Kafka that is written to: the user's, or one that is started.

use anyhow::Context as _;
use herald_testing::KafkaProcess;

use crate::Args;

pub struct Kafka {
    pub address: String,
    /// Stopped when it is dropped.
    _process: Option<KafkaProcess>,
}

impl Kafka {
    /// It inherits the core of this process.
    pub fn start(args: &Args) -> anyhow::Result<Self> {
        if let Some(address) = &args.kafka_bootstrap_servers {
            return Ok(Self {
                address: address.clone(),
                _process: None,
            });
        }
        let jars = args.kafka_jars.as_deref().context(
            "there is no Kafka: set --kafka-bootstrap-servers, or --kafka-jars to the folder of its jars",
        )?;
        let process = KafkaProcess::start(jars, &[])?;
        Ok(Self {
            address: process.address(),
            _process: Some(process),
        })
    }

    /// A topic that nobody has written to.
    pub fn create_topic(&self, partitions: i32) -> anyhow::Result<String> {
        let topic = herald_testing::random_topic("load");
        let created = herald_testing::create_topic(&self.address, &topic, partitions, &[]);
        wait(created)?;
        Ok(topic)
    }

    /// How many records the topic has.
    pub fn records(&self, topic: &str, partitions: i32) -> anyhow::Result<u64> {
        wait(async {
            let mut records = 0;
            for partition in 0..partitions {
                let (first, next) =
                    herald_testing::watermarks(&self.address, topic, partition).await;
                records += u64::try_from(next - first).unwrap_or_default();
            }
            records
        })
    }

    pub fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        wait(herald_testing::delete_topic(&self.address, topic))
    }
}

fn wait<T>(done: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(done))
}
