//! The table of services, which `services/local` reads too.

use std::sync::LazyLock;

use serde::Deserialize;

/// The port for metrics and probes of every service.
pub const ADMIN_PORT: u16 = 9090;

/// One row of `services.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The name of the package, the program, the image, the stage in the Dockerfile, and the component in the chart.
    pub name: String,
    pub description: String,
    /// A release runs it only if its value `NAME.enabled` is true.
    #[serde(default)]
    pub optional: bool,
    /// `None` for a service that no browser or client connects to.
    pub public: Option<Public>,
}

/// The public port of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Public {
    /// What it serves, as shown to the user: `page`.
    pub what: String,
    /// The port of the pod.
    pub port: u16,
    /// The name of the Service.
    pub service: String,
    /// A path that answers 200.
    pub path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    service: Vec<Service>,
}

impl Service {
    /// The ports of its container: the public one first.
    pub fn ports(&self) -> Vec<u16> {
        let public = self.public.iter().map(|public| public.port);
        public.chain([ADMIN_PORT]).collect()
    }
}

/// All services, in the order of the table.
pub fn all() -> &'static [Service] {
    static SERVICES: LazyLock<Vec<Service>> =
        LazyLock::new(|| parse(include_str!("../../services.toml")));
    &SERVICES
}

pub fn names() -> impl Iterator<Item = &'static str> {
    all().iter().map(|service| service.name.as_str())
}

/// Those that every release runs.
pub fn required() -> Vec<&'static Service> {
    all().iter().filter(|service| !service.optional).collect()
}

/// What else a release does only if its value `NAME.enabled` is true.
const FEATURES: [&str; 4] = ["counts", "counts.feed", "likes", "rooms"];

/// The values of the chart with which a release runs all services and does all that they can do: `gateway.enabled=true`.
pub fn everything() -> impl Iterator<Item = String> {
    let optional = all().iter().filter(|service| service.optional);
    let names = optional.map(|service| service.name.as_str());
    names
        .chain(FEATURES)
        .map(|name| format!("{name}.enabled=true"))
}

/// Panics if there is no such service.
pub fn named(name: &str) -> &'static Service {
    let found = all().iter().find(|service| service.name == name);
    found.expect("the table has every service that the code names")
}

fn parse(text: &str) -> Vec<Service> {
    let table: Table = toml::from_str(text).expect("services.toml has the fields of a service");
    table.service
}

/// A table with more than one public port, and an optional service.
#[cfg(test)]
pub fn fake() -> Vec<Service> {
    parse(
        r#"
        [[service]]
        name = "consumer"
        description = ""
        public = { what = "page", port = 5000, service = "consumer-service", path = "/" }

        [[service]]
        name = "counter"
        description = ""

        [[service]]
        name = "gate"
        description = ""
        optional = true
        public = { what = "gate", port = 8080, service = "gate-service", path = "/healthz" }
        "#,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_consumer_has_a_page() {
        let public = named("consumer").public.as_ref().unwrap();
        assert_eq!((public.what.as_str(), public.port), ("page", 5000));
        assert_eq!(named("consumer").ports(), [5000, ADMIN_PORT]);
        assert_eq!(named("producer").ports(), [ADMIN_PORT]);
    }
}
