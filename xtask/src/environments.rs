//! The table of environments, which `services/local` reads too.

use anyhow::bail;
use serde::Deserialize;

/// One row of `environments.toml`.
#[derive(Clone, Debug, Deserialize)]
pub struct Environment {
    pub name: String,
    pub namespace: String,
    /// The name of the helm release.
    pub release: String,
    pub topic: String,
    /// The port of its page on localhost.
    pub local_port: u16,
}

#[derive(Deserialize)]
struct Table {
    environment: Vec<Environment>,
}

impl Environment {
    pub fn url(&self) -> String {
        format!("http://localhost:{}", self.local_port)
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

/// Prints the URL of each page.
pub fn print_table(environments: &[Environment]) {
    println!("\n{:<13} page", "environment");
    for environment in environments {
        println!("{:<13} {}", environment.name, environment.url());
    }
}
