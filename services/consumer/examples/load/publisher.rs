//! Who publishes: into Kafka for the consumer, straight into the server for those that read no Kafka.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

use crate::wire::payload;

pub enum Publisher {
    Kafka {
        topic: String,
        producer: ThreadedProducer<DefaultProducerContext>,
    },
    Control(TcpStream),
}

impl Publisher {
    /// Into a topic; `together` messages make one batch.
    pub fn kafka(address: &str, topic: &str, together: u64) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", address)
            .set("batch.num.messages", together.to_string())
            // A batch that is full leaves at once.
            .set("linger.ms", if together > 1 { "5" } else { "0" });
        let producer = config.create().context("cannot create a Kafka producer")?;
        Ok(Self::Kafka {
            topic: topic.to_owned(),
            producer,
        })
    }

    pub fn control(address: SocketAddr) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self::Control(stream))
    }

    /// Publishes messages with these numbers, together. With rooms, each goes to one of them in turn: its key.
    pub fn publish(
        &mut self,
        numbers: std::ops::Range<u64>,
        bytes: usize,
        rooms: Option<u64>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Kafka { topic, producer } => {
                for number in numbers {
                    let value = payload(number, bytes);
                    let key = rooms.map(|rooms| (number % rooms).to_string());
                    let record = BaseRecord::<str, str>::to(topic).payload(&value);
                    let record = match &key {
                        Some(key) => record.key(key.as_str()),
                        None => record,
                    };
                    producer
                        .send(record)
                        .map_err(|(error, _)| error)
                        .context("cannot publish")?;
                }
            }
            // As the consumer frames them for SSE, with a cursor of its length.
            Self::Control(stream) => {
                let events = numbers
                    .map(|number| format!("id: {:A<12}\ndata: {}\n\n", "", payload(number, bytes)));
                let block: String = events.collect();
                stream
                    .write_all(&[&(block.len() as u32).to_be_bytes(), block.as_bytes()].concat())?;
            }
        }
        Ok(())
    }
}
