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

/// The inputs of projections are kept, so that the results can be computed again.
const KEPT: &str = "--topic-config=retention.ms=-1";

/// The configurations of one environment.
pub struct Configs {
    pub consumer: consumer::Config,
    pub producer: producer::Config,
    pub projector: projector::Config,
    pub gateway: gateway::Config,
    /// The feed of foods.
    pub foods: producer::Config,
    /// For creating all topics but that of the broadcasts; none with the embedded Kafka, which has them.
    pub topics: Vec<producer::Config>,
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
            foods: self.foods(environment)?,
            topics: self.topics(environment)?,
        })
    }

    fn consumer(
        &self,
        environment: &Environment,
        address: IpAddr,
    ) -> anyhow::Result<consumer::Config> {
        let topic = format!("--kafka-topic={}", environment.topic);
        let header = format!("--custom-header={}", environment.custom_header);
        let [one, five, ten] = environment.window_topics();
        let results = [
            format!("--likes-1-min-aggregation-topic-name={one}"),
            format!("--likes-5-min-aggregation-topic-name={five}"),
            format!("--likes-10-min-aggregation-topic-name={ten}"),
        ];
        let [one, five, ten] = &results;
        let args = [
            "consumer", &topic, &header, "--rooms", one, five, ten, DRAIN[0], DRAIN[1],
        ];
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

    /// The feed of foods.
    fn foods(&self, environment: &Environment) -> anyhow::Result<producer::Config> {
        let topic = format!("--kafka-topic={}", environment.counts_topic());
        // An interval that the user sets is that of the broadcasts.
        let interval = ["--interval-min=1s", "--interval-max=2s"];
        let args = ["producer", "--feed=foods", &topic, "--create-topic=false"];
        let mut config: producer::Config = parse_from(&[&args[..], &interval].concat())?;
        config.kafka = self.kafka.clone();
        Ok(config)
    }

    /// For creating all topics but that of the broadcasts; none with the embedded Kafka, which has them.
    fn topics(&self, environment: &Environment) -> anyhow::Result<Vec<producer::Config>> {
        if self.embedded {
            return Ok(Vec::new());
        }
        let create = |topic: &str, settings: &str| {
            let topic = format!("--kafka-topic={topic}");
            let args = ["producer", &topic, settings, "--create-topic=only"];
            let mut config: producer::Config = parse_from(&args)?;
            config.kafka = self.kafka.clone();
            anyhow::Ok(config)
        };
        let mut topics = vec![
            create(&environment.events_topic(), KEPT)?,
            create(&environment.counts_topic(), KEPT)?,
        ];
        for likes in environment.likes_topics() {
            topics.push(create(&likes, KEPT)?);
        }
        for results in environment.window_topics() {
            topics.push(create(&results, "--topic-config=")?);
            let interim = format!("{results}.live");
            topics.push(create(&interim, "--topic-config=retention.ms=3600000")?);
        }
        Ok(topics)
    }

    fn projector(&self, environment: &Environment) -> anyhow::Result<projector::Config> {
        let [likes, partitioned] = environment.likes_topics();
        let args = [
            "projector".to_owned(),
            "--projections=sessions,counts,windows".to_owned(),
            format!("--group-prefix={}", environment.group_prefix()),
            format!("--events-topic={}", environment.events_topic()),
            format!("--counts-topic={}", environment.counts_topic()),
            format!("--likes-topic={likes}"),
            format!("--partitioned-likes-topic={partitioned}"),
            format!("--windows={}", windows(environment)),
            format!("--create-dead-letter-topic={}", !self.embedded),
            format!("--database-url={}", self.data.url(environment)),
        ];
        let mut config: projector::Config = parse_from(&args.each_ref().map(String::as_str))?;
        config.kafka = self.reader_kafka();
        Ok(config)
    }

    fn gateway(
        &self,
        environment: &Environment,
        address: IpAddr,
    ) -> anyhow::Result<gateway::Config> {
        let [likes, partitioned] = environment.likes_topics();
        let args = [
            "gateway".to_owned(),
            format!("--events-topic={}", environment.events_topic()),
            format!("--likes-topic={likes}"),
            format!("--partitioned-likes-topic={partitioned}"),
            format!("--windows={}", windows(environment)),
            format!("--database-url={}", self.data.url(environment)),
            DRAIN[0].to_owned(),
            DRAIN[1].to_owned(),
        ];
        let mut config: gateway::Config = parse_from(&args.each_ref().map(String::as_str))?;
        config.kafka = self.reader_kafka();
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

/// The sizes of the windows and the topics of their results.
fn windows(environment: &Environment) -> String {
    let [one, five, ten] = environment.window_topics();
    format!("1m={one},5m={five},10m={ten}")
}

/// A page on the internet may rebind its own name to this machine's address (DNS rebinding).
fn allow_local_names(hosts: &mut Hosts, address: IpAddr) {
    if address.is_loopback() {
        hosts.extend(["localhost", "127.0.0.1", "[::1]"]);
    }
}
