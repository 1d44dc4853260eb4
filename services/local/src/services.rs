//! The configurations of the services of an environment.

use std::net::IpAddr;

use herald_runtime::config::parse_from;
use herald_runtime::http::Hosts;
use herald_runtime::kafka::KafkaArgs;

use crate::data::Data;
use crate::kafka::{self, Embedded};
use crate::{Config, Environment};

/// There is no load balancer to wait for, and the user who pressed Ctrl-C is waiting.
const DRAIN: [&str; 2] = ["--drain-delay=0s", "--drain-window=1s"];

/// The configurations of one environment.
pub struct Configs {
    pub consumer: consumer::Config,
    pub producer: producer::Config,
    pub projector: projector::Config,
    pub gateway: gateway::Config,
    /// For creating the topic of the session events; `None` with the embedded Kafka, which has it.
    pub events_topic: Option<producer::Config>,
}

/// Builds the configurations. Options that it does not set come from the environment of the process, or are the defaults. The
/// addresses are not used: the listeners are bound already.
pub struct Builder<'a> {
    kafka: KafkaArgs,
    embedded: bool,
    data: &'a Data,
}

impl<'a> Builder<'a> {
    pub fn new(config: &Config, embedded: Option<&Embedded>, data: &'a Data) -> Self {
        let kafka = match embedded {
            Some(embedded) => KafkaArgs {
                kafka_bootstrap_servers: embedded.address().to_owned(),
                kafka_properties: String::new(),
                kafka_properties_file: None,
            },
            None => KafkaArgs {
                kafka_bootstrap_servers: config.kafka_bootstrap_servers.clone().unwrap_or_default(),
                kafka_properties: config.kafka_properties.clone(),
                kafka_properties_file: config.kafka_properties_file.clone(),
            },
        };
        Self {
            kafka,
            embedded: embedded.is_some(),
            data,
        }
    }

    /// The configurations of an environment's services, whose pages and session events are at these addresses.
    pub fn all(
        &self,
        environment: &Environment,
        page: IpAddr,
        gateway: IpAddr,
    ) -> anyhow::Result<Configs> {
        Ok(Configs {
            consumer: self.consumer(environment, page)?,
            producer: self.producer(environment)?,
            projector: self.projector(environment)?,
            gateway: self.gateway(environment, gateway)?,
            events_topic: self.events_topic(environment)?,
        })
    }

    fn consumer(
        &self,
        environment: &Environment,
        address: IpAddr,
    ) -> anyhow::Result<consumer::Config> {
        let topic = format!("--kafka-topic={}", environment.topic);
        let header = format!("--custom-header={}", environment.custom_header);
        let args = ["consumer", &topic, &header, DRAIN[0], DRAIN[1]];
        let mut config: consumer::Config = parse_from(&args)?;
        config.kafka = self.reader_kafka();
        allow_local_names(&mut config.allowed_hosts, address);
        Ok(config)
    }

    fn producer(&self, environment: &Environment) -> anyhow::Result<producer::Config> {
        let topic = format!("--kafka-topic={}", environment.topic);
        // The embedded Kafka has its topics from the start.
        let create_topic = format!("--create-topic={}", !self.embedded);
        let mut config: producer::Config = parse_from(&["producer", &topic, &create_topic])?;
        config.kafka = self.kafka.clone();
        Ok(config)
    }

    fn events_topic(&self, environment: &Environment) -> anyhow::Result<Option<producer::Config>> {
        if self.embedded {
            return Ok(None);
        }
        let topic = format!("--kafka-topic={}", environment.events_topic);
        // Events are kept, so that the sessions can be computed again.
        let topic = ["producer", &topic, "--topic-config=retention.ms=-1"];
        let mut config: producer::Config =
            parse_from(&[&topic[..], &["--create-topic=only"]].concat())?;
        config.kafka = self.kafka.clone();
        Ok(Some(config))
    }

    fn projector(&self, environment: &Environment) -> anyhow::Result<projector::Config> {
        let topic = format!("--events-topic={}", environment.events_topic);
        let group = format!("--kafka-group={}", environment.sessions_group());
        let create_topic = format!("--create-dead-letter-topic={}", !self.embedded);
        let url = format!("--database-url={}", self.data.url(environment));
        let args = ["projector", &topic, &group, &create_topic, &url];
        let mut config: projector::Config = parse_from(&args)?;
        config.kafka = self.reader_kafka();
        Ok(config)
    }

    fn gateway(
        &self,
        environment: &Environment,
        address: IpAddr,
    ) -> anyhow::Result<gateway::Config> {
        let topic = format!("--events-topic={}", environment.events_topic);
        let url = format!("--database-url={}", self.data.url(environment));
        let args = ["gateway", &topic, &url, DRAIN[0], DRAIN[1]];
        let mut config: gateway::Config = parse_from(&args)?;
        config.kafka = self.kafka.clone();
        allow_local_names(&mut config.allowed_hosts, address);
        Ok(config)
    }

    fn reader_kafka(&self) -> KafkaArgs {
        let mut kafka = self.kafka.clone();
        if self.embedded {
            kafka.kafka_properties = kafka::READER_PROPERTIES.to_owned();
        }
        kafka
    }
}

/// A page on the internet may rebind its own name to this machine's address (DNS rebinding).
fn allow_local_names(hosts: &mut Hosts, address: IpAddr) {
    if address.is_loopback() {
        hosts.extend(["localhost", "127.0.0.1", "[::1]"]);
    }
}
