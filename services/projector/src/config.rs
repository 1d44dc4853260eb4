//! The projector's configuration.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use herald_events::{KeyFormat, SessionId};
use herald_runtime::config::{CommonArgs, duration, invalid, secret};
use herald_runtime::kafka::KafkaArgs;
use store::{DatabaseUrl, Name};

use crate::projection::Projection;
use crate::windows::WindowArgs;

/// Computes results from Kafka topics: a document of each session and the counts of foods in a database, and the likes of each
/// video in windows of time.
///
/// Each option is also an environment variable: --events-topic is EVENTS_TOPIC.
#[derive(Parser, Clone, Debug)]
#[command(name = "projector", version)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,

    #[command(flatten)]
    pub kafka: KafkaArgs,

    /// What to compute, separated by commas: sessions, counts, windows. By default sessions; counts if --counts-database is set.
    #[arg(long, env, value_delimiter = ',')]
    pub projections: Vec<Kind>,

    /// First part of the names of the consumer groups: with `herald`, that of the sessions is `herald-sessions`. The projectors of
    /// a group share the partitions of its topic.
    #[arg(long, env, default_value = "herald", value_parser = topic)]
    pub group_prefix: String,

    /// Topic with the session events. Malformed records go to the topic of this name with `.dlq` added.
    #[arg(long, env, default_value = "websocket.events", value_parser = topic)]
    pub events_topic: String,

    /// How the key of a record contains the session id: json (a JSON string, with its quotes) or raw.
    #[arg(long, env, default_value_t)]
    pub session_key: KeyFormat,

    /// Topic with the occurrences of foods, `{"food": "<name>"}`. Malformed records go to the topic of this name with `.dlq` added.
    #[arg(long, env, default_value = "message", value_parser = topic)]
    pub counts_topic: String,

    /// File of SQLite with the table `aggregated(food, count)`, to count foods into instead of --database-url: /data/db.sqlite. Other
    /// programs may read it at any time, at the same absolute path. The positions are kept beside it.
    #[arg(long, env)]
    pub counts_database: Option<PathBuf>,

    #[command(flatten)]
    pub likes: WindowArgs,

    /// Whether to create the topic for malformed records when the first one is found.
    #[arg(long, env, default_value_t = true, action = clap::ArgAction::Set)]
    pub create_dead_letter_topic: bool,

    /// Database of the results: sqlite:///path/to/file.db or postgres://user:password@host:5432/database.
    #[arg(long, env, hide_env_values = true, value_parser = secret::<DatabaseUrl>())]
    pub database_url: Option<DatabaseUrl>,

    /// Schema of PostgreSQL that the tables are in. It is created if it does not exist.
    #[arg(long, env, default_value_t)]
    pub database_schema: Name,

    /// Existing role of PostgreSQL that may read the results, and nothing else.
    #[arg(long, env)]
    pub database_reader_role: Option<Name>,

    /// Maximum number of records that are committed in one transaction.
    #[arg(long, env, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_records: u32,

    /// Longest time that a record waits for others of its transaction. If there are none, only likes wait.
    #[arg(long, env, default_value = "200ms", value_parser = duration)]
    pub batch_interval: Duration,

    /// Age at which sessions are deleted, counted from their latest record, such as 720h. By default they are kept.
    #[arg(long, env, value_parser = retention)]
    pub retention: Option<Duration>,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A projection, as it is chosen.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sessions,
    Counts,
    Windows,
}

impl Config {
    /// The chosen projections that are kept in a database.
    ///
    /// # Errors
    ///
    /// If one of them has no database; the error is for the user.
    pub fn chosen(&self) -> anyhow::Result<Vec<Projection>> {
        let kinds = match (&self.projections[..], &self.counts_database) {
            ([], None) => &[Kind::Sessions],
            ([], Some(_)) => &[Kind::Counts][..],
            (chosen, _) => chosen,
        };
        let mut projections = Vec::new();
        for kind in kinds {
            let projection = match kind {
                Kind::Sessions => Projection::Sessions(self.session_key),
                Kind::Counts => Projection::Counts,
                // Kafka has its results.
                Kind::Windows => continue,
            };
            let has_file = *kind == Kind::Counts && self.counts_database.is_some();
            if self.database_url.is_none() && !has_file {
                let name = projection.name();
                return Err(invalid(format!(
                    "the projection {name} needs --database-url"
                )));
            }
            if !projections.contains(&projection) {
                projections.push(projection);
            }
        }
        Ok(projections)
    }

    /// Whether likes are counted in windows.
    pub fn counts_windows(&self) -> bool {
        self.projections.contains(&Kind::Windows)
    }

    /// The topic of a projection.
    pub fn topic(&self, projection: Projection) -> &str {
        match projection {
            Projection::Sessions(_) => &self.events_topic,
            Projection::Counts => &self.counts_topic,
        }
    }

    /// The consumer group of a projection. Counts in a file have a group of their own: with those of a database, each would count a
    /// part of the topic.
    pub fn group(&self, projection: Projection) -> String {
        let (prefix, name) = (&self.group_prefix, projection.name());
        match (projection, &self.counts_database) {
            (Projection::Counts, Some(_)) => format!("{prefix}-{name}-file"),
            _ => format!("{prefix}-{name}"),
        }
    }
}

/// What to do instead of projecting.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Delete one session, and exit. Its records stay in Kafka: a rebuild brings it back.
    DeleteSession { id: SessionId },

    /// Compute the counts and windows of --projections again from Kafka, compare them with the results, and exit: with exit code 1
    /// if they differ. Projectors may run meanwhile.
    Verify,
}

fn retention(text: &str) -> Result<Duration, String> {
    let age = duration(text)?;
    if age.is_zero() {
        return Err("0 would delete every session at once; leave it out to keep them".to_owned());
    }
    Ok(age)
}

/// Kafka's rule, with room for `.dlq`.
pub(crate) fn topic(text: &str) -> Result<String, String> {
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
        assert_eq!(config.counts_topic, "message");
        let sessions = Projection::Sessions(KeyFormat::Json);
        assert_eq!(config.chosen().unwrap(), [sessions]);
        assert_eq!(config.group(sessions), "herald-sessions");
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
    fn each_projection_has_a_database() {
        let chosen = |args: &[&str]| {
            let config: Config = parse_from(&[&["projector"], args].concat()).unwrap();
            config.chosen()
        };
        let file = ["--counts-database", "/data/db.sqlite"];
        assert_eq!(chosen(&file).unwrap(), [Projection::Counts]);
        let both = ["--projections", "sessions,counts"];
        for args in [&[][..], &both, &[both, file].concat()] {
            let error = chosen(args).unwrap_err().to_string();
            assert!(error.contains("sessions needs --database-url"), "{error}");
        }
        let url = ["--database-url", "sqlite:///a.db"];
        assert_eq!(chosen(&[both, url].concat()).unwrap().len(), 2);
    }

    #[test]
    fn a_password_is_not_printed() {
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
