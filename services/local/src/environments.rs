//! The table of environments, which `cargo xtask` reads too.

use serde::Deserialize;

/// One row of `environments.toml`, without the fields that only a cluster needs.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `default`, `dev` or `prod`.
    pub name: String,
    /// The Kafka topic of its broadcasts.
    pub topic: String,
    /// The first part of the names of its other topics.
    pub topic_prefix: String,
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
    /// The port of its session events.
    pub gateway: u16,
}

impl Environment {
    /// The topic of this name: `dev.message` for `message`.
    pub fn prefixed(&self, topic: &str) -> String {
        format!("{}{topic}", self.topic_prefix)
    }

    /// The topic of its session events.
    pub fn events_topic(&self) -> String {
        self.prefixed("websocket.events")
    }

    /// The topic of its foods.
    pub fn counts_topic(&self) -> String {
        self.prefixed("message")
    }

    /// The topic of its likes, and that of the same likes by identifier.
    pub fn likes_topics(&self) -> [String; 2] {
        ["video_clicks_ingestion", "video_clicks_partitioned"].map(|topic| self.prefixed(topic))
    }

    /// The topics of the results of windows of 1, 5 and 10 minutes.
    pub fn window_topics(&self) -> [String; 3] {
        let names = ["one", "five", "ten"];
        names.map(|name| self.prefixed(&format!("{name}_minute_aggregation_topic")))
    }

    /// The first part of the names of its consumer groups.
    pub fn group_prefix(&self) -> String {
        match self.name.as_str() {
            "default" => "herald".to_owned(),
            name => format!("herald-{name}"),
        }
    }
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
            .map(|row| {
                let ports = [row.local_ports.consumer, row.local_ports.gateway];
                (
                    row.name.clone(),
                    row.topic.clone(),
                    row.events_topic(),
                    ports,
                )
            })
            .collect();
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, topic, events, ports)| {
                (name.as_str(), topic.as_str(), events.as_str(), *ports)
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("default", "my-topic", "websocket.events", [8001, 8080]),
                ("dev", "dev-topic", "dev.websocket.events", [8002, 8081]),
                ("prod", "prod-topic", "prod.websocket.events", [8003, 8082])
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
