//! The table of environments, which `cargo xtask` reads too.

use serde::Deserialize;

/// One row of `environments.toml`, without the fields that only a cluster needs.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `default`, `dev` or `prod`.
    pub name: String,
    /// Its Kafka topic.
    pub topic: String,
    /// The text that its page shows above the messages.
    pub custom_header: String,
    /// The ports of its services on a laptop.
    pub local_ports: LocalPorts,
}

/// A service without a public port has none.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LocalPorts {
    /// The port of its page.
    pub consumer: u16,
}

#[derive(Deserialize)]
struct Table {
    environment: Vec<Environment>,
}

/// All environments, in the order of the table.
pub fn all() -> Vec<Environment> {
    let table: Table = toml::from_str(include_str!("../../../environments.toml"))
        .expect("environments.toml has the fields of an environment");
    table.environment
}

#[cfg(test)]
mod tests {
    use herald_runtime::environment_name;

    use super::*;

    #[test]
    fn the_table_is_the_contracts() {
        let rows: Vec<_> = all()
            .into_iter()
            .map(|row| (row.name, row.topic, row.local_ports.consumer))
            .collect();
        let row = |name: &str, topic: &str, port| (name.to_owned(), topic.to_owned(), port);
        assert_eq!(
            rows,
            [
                row("default", "my-topic", 8001),
                row("dev", "dev-topic", 8002),
                row("prod", "prod-topic", 8003)
            ]
        );
    }

    #[test]
    fn every_topic_contains_the_name_of_its_environment() {
        for environment in all() {
            assert_eq!(environment_name(&environment.topic), environment.name);
        }
    }
}
