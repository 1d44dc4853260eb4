//! The table of environments, which `services/local` reads too.

use std::collections::BTreeMap;

use anyhow::bail;
use serde::Deserialize;

use crate::port;
use crate::services::{Public, Service};

/// One row of `environments.toml`.
#[derive(Clone, Debug, Deserialize)]
pub struct Environment {
    pub name: String,
    pub namespace: String,
    /// The name of the helm release.
    pub release: String,
    /// The topic of its broadcasts.
    pub topic: String,
    /// The first part of the names of its other topics.
    pub topic_prefix: String,
    /// The schema of PostgreSQL, and the name of the role that owns it.
    pub database_schema: String,
    /// The ports on localhost by the names of the services.
    pub local_ports: BTreeMap<String, u16>,
}

#[derive(Deserialize)]
struct Table {
    environment: Vec<Environment>,
}

/// A public port of a service, on localhost.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    pub environment: &'a Environment,
    pub public: &'a Public,
    pub local_port: u16,
    /// Whether it serves TLS.
    pub tls: bool,
}

impl Environment {
    /// The topic of this name: `dev.message` for `message`.
    pub fn prefixed(&self, topic: &str) -> String {
        format!("{}{topic}", self.topic_prefix)
    }

    /// Those of its services that have a public port.
    pub fn endpoints<'a>(
        &'a self,
        services: impl IntoIterator<Item = &'a Service>,
        tls: bool,
    ) -> Vec<Endpoint<'a>> {
        let endpoint = |service: &'a Service| {
            Some(Endpoint {
                environment: self,
                public: service.public.as_ref()?,
                local_port: *self.local_ports.get(&service.name)?,
                tls,
            })
        };
        services.into_iter().filter_map(endpoint).collect()
    }
}

impl Endpoint<'_> {
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.local_port)
    }

    pub fn answers(&self) -> bool {
        // A server of TLS answers a request without TLS with a sentence.
        let status = if self.tls { 400 } else { 200 };
        port::answers(self.local_port, &self.public.path, status)
    }
}

/// The environments with these names, in the order of the table; all of them when none is named.
pub fn chosen(names: &[String]) -> anyhow::Result<Vec<Environment>> {
    let Table { environment: all } = toml::from_str(include_str!("../../environments.toml"))?;
    let known: Vec<&str> = all
        .iter()
        .map(|environment| environment.name.as_str())
        .collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        bail!("there is no environment \"{unknown}\"; choose from {known}");
    }
    Ok(all
        .into_iter()
        .filter(|environment| names.is_empty() || names.contains(&environment.name))
        .collect())
}

/// Prints the URLs: a table of all pages, then one of each other kind.
pub fn print_table(endpoints: &[Endpoint]) {
    let mut printed: Vec<&str> = Vec::new();
    for Endpoint { public, .. } in endpoints {
        let what = public.what.as_str();
        if printed.contains(&what) {
            continue;
        }
        printed.push(what);
        println!("\n{:<13} {what}", "environment");
        for endpoint in endpoints.iter().filter(|one| one.public.what == what) {
            println!("{:<13} {}", endpoint.environment.name, endpoint.url());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services;

    #[test]
    fn every_environment_has_a_local_port_for_each_public_port_and_no_port_twice() {
        let public = services::all().iter().filter(|one| one.public.is_some());
        let mut public: Vec<&str> = public.map(|one| one.name.as_str()).collect();
        public.sort_unstable();
        let mut ports = Vec::new();
        for environment in chosen(&[]).unwrap() {
            let names: Vec<&str> = environment.local_ports.keys().map(String::as_str).collect();
            assert_eq!(names, public, "{}", environment.name);
            ports.extend(environment.local_ports.into_values());
        }
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), all);
    }
}
