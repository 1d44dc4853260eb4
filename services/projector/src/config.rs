//! The projector's configuration.

use std::time::Duration;

use clap::{Parser, Subcommand};
use herald_events::{KeyFormat, SessionId};
use herald_runtime::config::{CommonArgs, duration, secret};
use herald_runtime::kafka::KafkaArgs;
use store::{DatabaseUrl, Name};

/// Reads session events from a Kafka topic, and keeps a document of each session in a database.
///
/// Each option is also an environment variable: --events-topic is EVENTS_TOPIC.
#[derive(Parser, Clone, Debug)]
#[command(name = "projector", version)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,

    #[command(flatten)]
    pub kafka: KafkaArgs,

    /// Topic with the session events. Malformed records go to the topic of this name with `.dlq` added.
    #[arg(long, env, default_value = "websocket.events", value_parser = topic)]
    pub events_topic: String,

    /// How the key of a record contains the session id: json (a JSON string, with its quotes) or raw.
    #[arg(long, env, default_value_t)]
    pub session_key: KeyFormat,

    /// Consumer group. The projectors of a group share the partitions of the topic.
    #[arg(long, env, default_value = "herald-sessions")]
    pub kafka_group: String,

    /// Whether to create the topic for malformed records when the first one is found.
    #[arg(long, env, default_value_t = true, action = clap::ArgAction::Set)]
    pub create_dead_letter_topic: bool,

    /// Database of the results: sqlite:///path/to/file.db or postgres://user:password@host:5432/database.
    #[arg(long, env, hide_env_values = true, value_parser = secret::<DatabaseUrl>())]
    pub database_url: DatabaseUrl,

    /// Schema of PostgreSQL that the tables are in. It is created if it does not exist.
    #[arg(long, env, default_value_t)]
    pub database_schema: Name,

    /// Existing role of PostgreSQL that may read the results, and nothing else.
    #[arg(long, env)]
    pub database_reader_role: Option<Name>,

    /// Maximum number of records that are committed in one transaction.
    #[arg(long, env, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_records: u32,

    /// Longest time that a record waits for others of its transaction. If there are none, it does not wait.
    #[arg(long, env, default_value = "200ms", value_parser = duration)]
    pub batch_interval: Duration,

    /// Age at which sessions are deleted, counted from their latest record, such as 720h. By default they are kept.
    #[arg(long, env, value_parser = retention)]
    pub retention: Option<Duration>,

    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Config {
    /// The topic that malformed records go to.
    pub fn dead_letter_topic(&self) -> String {
        format!("{}.dlq", self.events_topic)
    }
}

/// What to do instead of projecting.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Delete one session, and exit. Its records stay in Kafka: a rebuild brings it back.
    DeleteSession { id: SessionId },
}

fn retention(text: &str) -> Result<Duration, String> {
    let age = duration(text)?;
    if age.is_zero() {
        return Err("0 would delete every session at once; leave it out to keep them".to_owned());
    }
    Ok(age)
}

/// Kafka's rule, with room for `.dlq`.
fn topic(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=245).contains(&text.len()) && text.chars().all(legal) && text != "." && text != ".." {
        Ok(text.to_owned())
    } else {
        Err("a topic is 1 to 245 letters, digits, dots, underscores and hyphens".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use herald_runtime::config::parse_from;

    use super::*;

    #[test]
    fn the_defaults_are_the_contracts() {
        let config: Config =
            parse_from(&["projector", "--database-url", "sqlite:///a.db"]).unwrap();
        assert_eq!(config.events_topic, "websocket.events");
        assert_eq!(config.dead_letter_topic(), "websocket.events.dlq");
        assert_eq!(config.session_key, KeyFormat::Json);
        assert_eq!(config.database_schema.as_str(), "herald");
        assert_eq!(config.retention, None);
    }

    #[test]
    fn a_retention_of_nothing_is_rejected() {
        let args = ["projector", "--database-url", "sqlite:///a.db"];
        let retention = |age| parse_from::<Config>(&[&args[..], &["--retention", age]].concat());
        assert!(retention("0s").is_err());
        let config = retention("720h").unwrap();
        assert_eq!(config.retention, Some(Duration::from_secs(720 * 3600)));
    }

    #[test]
    fn the_address_of_a_database_is_required_and_its_password_is_not_printed() {
        let error = parse_from::<Config>(&["projector"]).unwrap_err();
        assert!(error.to_string().contains("--database-url"), "{error}");
        let error = parse_from::<Config>(&["projector", "--session-key", "xml"]).unwrap_err();
        assert!(error.to_string().contains("give json or raw"), "{error}");
        let url = "postgres://me:secret@db/herald";
        let config: Config = parse_from(&["projector", "--database-url", url]).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        let url = "postgres://me:secret@db:port/herald";
        let error = parse_from::<Config>(&["projector", "--database-url", url]).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
