//! The options for connecting to Kafka.

use std::path::PathBuf;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;

use super::properties;
use crate::config::invalid;

/// The keys that every client relies on, besides those that a service reserves itself.
const RESERVED: [&str; 4] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "statistics.interval.ms",
    "log.queue",
];

/// Kafka's addresses, and other properties of librdkafka.
#[derive(clap::Args, Clone, Debug)]
pub struct KafkaArgs {
    /// Kafka's addresses, `host:port`, separated by commas. If it is not set, KAFKA_BROKER_URL and KAFKA_BROKER are read instead.
    #[arg(
        long,
        env,
        default_value_t = default_addresses(),
        value_parser = addresses,
    )]
    pub kafka_bootstrap_servers: String,

    /// Properties of librdkafka (TLS, SASL, tuning), one `key=value` per line; empty lines and lines that
    /// begin with # are ignored. They override Herald's own defaults.
    #[arg(
        long,
        env,
        default_value = "",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub kafka_properties: String,

    /// A file of such properties, for example from a Secret. They override those of --kafka-properties.
    #[arg(long, env)]
    pub kafka_properties_file: Option<PathBuf>,
}

impl KafkaArgs {
    /// The configuration of one client with this `client_id`. `defaults` are the service's own, which the user's properties
    /// override; `reserved` are the keys that the service relies on, which the user may not set.
    ///
    /// Errors are for the user (exit code 2) and never contain a value, which may be a secret: a line that is not
    /// `key=value`, a reserved key, a key or value that librdkafka rejects, a file that cannot be read.
    pub fn client_config(
        &self,
        client_id: &str,
        defaults: &[(&str, &str)],
        reserved: &[&str],
    ) -> anyhow::Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.kafka_bootstrap_servers)
            .set("client.id", client_id)
            .set("statistics.interval.ms", "1000")
            // Reconnect to a restarted broker within 2 s instead of 10, and give up on one that hangs
            // after 10 s instead of 60.
            .set("reconnect.backoff.max.ms", "2000")
            .set("socket.timeout.ms", "10000")
            // The address of a deleted pod never responds: 5 s instead of 30.
            .set("socket.connection.setup.timeout.ms", "5000")
            .set_log_level(log_level());
        for (key, value) in defaults {
            config.set(*key, *value);
        }
        add_properties(
            &mut config,
            "KAFKA_PROPERTIES",
            &self.kafka_properties,
            reserved,
        )?;
        if let Some(path) = &self.kafka_properties_file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                invalid(format!(
                    "cannot read KAFKA_PROPERTIES_FILE {}: {error}",
                    path.display()
                ))
            })?;
            add_properties(&mut config, &path.display().to_string(), &text, reserved)?;
        }
        Ok(config)
    }
}

/// From the variables that the systems have which Herald replaces.
fn default_addresses() -> String {
    let names = ["KAFKA_BROKER_URL", "KAFKA_BROKER"];
    let set = names
        .into_iter()
        .filter_map(|name| std::env::var(name).ok());
    let mut set = set.filter(|value| !value.is_empty());
    set.next()
        .unwrap_or("my-cluster-kafka-bootstrap:9092".to_owned())
}

/// A client of librdkafka. What it rejects only now (a missing certificate, two options that exclude each other) is also an
/// error for the user: exit code 2.
pub fn create<C, T>(config: &ClientConfig, context: C) -> anyhow::Result<T>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    config
        .create_with_context(context)
        .map_err(|error| match error {
            KafkaError::ClientCreation(why) => {
                invalid(format!("librdkafka rejects KAFKA_PROPERTIES: {why}"))
            }
            error => anyhow::Error::new(error).context("cannot create a Kafka client"),
        })
}

/// Sets the properties in `text`; an error names `origin`, the line and the key.
fn add_properties(
    config: &mut ClientConfig,
    origin: &str,
    text: &str,
    reserved: &[&str],
) -> anyhow::Result<()> {
    for property in
        properties::parse(text).map_err(|error| invalid(format!("{origin}: {error}")))?
    {
        let properties::Property { line, key, value } = property;
        let reject = |why: &str| Err(invalid(format!("{origin}: line {line}: {why}")));
        if key == "bootstrap.servers" || key == "metadata.broker.list" {
            return reject(&format!(
                "\"{key}\" cannot be set here; use KAFKA_BOOTSTRAP_SERVERS"
            ));
        }
        if RESERVED.contains(&key) || reserved.contains(&key) {
            return reject(&format!(
                "\"{key}\" cannot be set; the service relies on its own value"
            ));
        }
        // One key at a time, so that an error can name its line.
        let mut alone = ClientConfig::new();
        if let Err(error) = alone.set(key, value).create_native_config() {
            return reject(&rejection(key, value, error));
        }
        config.set(key, value);
    }
    Ok(())
}

/// librdkafka's own message, unless it contains the value.
fn rejection(key: &str, value: &str, error: KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, why, ..)
            if value.parse::<f64>().is_ok() || !why.contains(value) || value == key =>
        {
            format!("librdkafka reports: {}", why.trim())
        }
        _ => format!("librdkafka rejects this value of \"{key}\""),
    }
}

fn log_level() -> RDKafkaLogLevel {
    if tracing::enabled!(target: "librdkafka", tracing::Level::DEBUG) {
        RDKafkaLogLevel::Debug
    } else {
        RDKafkaLogLevel::Info
    }
}

/// Kafka's addresses, for `#[arg(value_parser = kafka::addresses)]`: `host:port`, separated by commas. librdkafka itself
/// would default to port 9092.
pub fn addresses(text: &str) -> Result<String, String> {
    for address in text.split(',').map(str::trim) {
        let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
            let host_is_plain = !host.is_empty() && !host.contains(char::is_whitespace);
            let bracketed = host.starts_with('[') && host.ends_with(']');
            host_is_plain
                && (bracketed || !host.contains([':', '/']))
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !valid {
            return Err(format!(
                "\"{address}\" is not host:port, such as kafka:9092"
            ));
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::is_invalid;

    #[derive(Parser, Debug)]
    struct Config {
        #[command(flatten)]
        kafka: KafkaArgs,
    }

    fn args(args: &[&str]) -> KafkaArgs {
        Config::try_parse_from(std::iter::once(&"service").chain(args))
            .unwrap()
            .kafka
    }

    fn rejected(properties: &str) -> String {
        let args = args(&["--kafka-properties", properties]);
        let error = args.client_config("test", &[], &["group.id"]).unwrap_err();
        assert!(is_invalid(&error), "{error:#}");
        format!("{error:#}")
    }

    #[test]
    fn an_address_is_host_and_port() {
        for good in [
            "kafka:9092",
            "10.0.0.1:1",
            "[::1]:9092",
            "a:9092,b:9093",
            "a:1, b:2",
        ] {
            assert_eq!(addresses(good), Ok(good.to_owned()));
        }
        for bad in [
            "nonsense",
            "host:",
            ":9092",
            "host:99999",
            "host:0",
            "::1:9092",
            "http://host:1",
            "",
            "a:1,",
            "a b:1",
        ] {
            assert!(
                addresses(bad).unwrap_err().contains("is not host:port"),
                "{bad}"
            );
        }
    }

    #[test]
    fn properties_override_the_defaults_and_the_file_overrides_both() {
        let path = std::env::temp_dir().join(format!("herald-properties-{}", std::process::id()));
        std::fs::write(&path, "client.id=file\n").unwrap();
        let args = args(&[
            "--kafka-properties",
            "client.id=env\r\n\n# tuning\n linger.ms = 5 \n",
            "--kafka-properties-file",
            path.to_str().unwrap(),
        ]);
        let config = args
            .client_config("default", &[("linger.ms", "0"), ("acks", "all")], &[])
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(config.get("client.id"), Some("file"));
        assert_eq!(config.get("linger.ms"), Some("5"));
        assert_eq!(config.get("acks"), Some("all"));
        assert_eq!(config.get("statistics.interval.ms"), Some("1000"));
    }

    #[test]
    fn an_error_names_the_line_and_never_contains_the_value() {
        assert_eq!(
            rejected("acks=all\nhush"),
            "KAFKA_PROPERTIES: line 2: not key=value"
        );
        assert_eq!(
            rejected("\n\nno.such.key=hush"),
            "KAFKA_PROPERTIES: line 3: librdkafka reports: No such configuration property: \"no.such.key\""
        );
        assert_eq!(
            rejected("security.protocol=hush"),
            "KAFKA_PROPERTIES: line 1: librdkafka rejects this value of \"security.protocol\""
        );
        assert!(rejected("linger.ms=-5").contains("outside allowed range"));
        assert!(rejected("group.id=hush").contains("\"group.id\" cannot be set"));
        assert!(rejected("bootstrap.servers=hush:1").contains("use KAFKA_BOOTSTRAP_SERVERS"));
        assert!(rejected("statistics.interval.ms=0").contains("cannot be set"));
    }

    #[test]
    fn an_error_names_a_missing_file() {
        let error = args(&["--kafka-properties-file", "/no/such/file"])
            .client_config("test", &[], &[])
            .unwrap_err();
        assert!(is_invalid(&error));
        assert!(
            format!("{error:#}").starts_with("cannot read KAFKA_PROPERTIES_FILE /no/such/file: "),
            "{error:#}"
        );
    }

    #[tokio::test]
    async fn a_rejection_of_all_properties_together_is_also_for_the_user() {
        use rdkafka::producer::FutureProducer;

        let config = args(&[
            "--kafka-properties",
            "security.protocol=ssl\nssl.ca.location=/no/such/file",
        ])
        .client_config("test", &[], &[])
        .unwrap();
        let error = create::<_, FutureProducer<_>>(&config, super::super::Context::new())
            .map(drop)
            .unwrap_err();
        assert!(
            is_invalid(&error) && format!("{error:#}").contains("ssl.ca.location"),
            "{error:#}"
        );
    }
}
