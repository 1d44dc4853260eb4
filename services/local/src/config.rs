//! The configuration of all environments.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use herald_runtime::CommonArgs;
use herald_runtime::config::invalid;
use herald_runtime::kafka::addresses;
use herald_runtime::listen::{bind, bind_chosen};
use tokio::net::TcpListener;

use crate::environments::{self, Environment};
use crate::{Listeners, Originals};

/// Runs all services of every environment in one process, with an embedded Kafka and SQLite.
///
/// Each option is also an environment variable: --log-level is LOG_LEVEL. The options of the services can be set by their
/// variables, for all environments: INTERVAL_MAX=2s, RING_MESSAGES=1000.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "local",
    version,
    mut_arg("admin_listen", |arg| arg.default_value("127.0.0.1:9090")),
    mut_arg("log_format", |arg| arg.default_value("text").help("Format of the log on stdout")),
)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,

    /// Environments to run: default, dev, prod. All of them if none is given.
    #[arg(value_name = "ENVIRONMENT")]
    pub environments: Vec<String>,

    /// Address of the pages and of the session events.
    #[arg(long, env, default_value = "127.0.0.1")]
    pub listen_address: IpAddr,

    /// Ports of the pages, one for each environment, separated by commas; 0 is any free port. By default 8001, 8002, 8003.
    #[arg(long, env, value_delimiter = ',')]
    pub ports: Vec<u16>,

    /// Ports of the session events, one for each environment, separated by commas; 0 is any free port. By default 8080, 8081,
    /// 8082.
    #[arg(long, env, value_delimiter = ',')]
    pub gateway_ports: Vec<u16>,

    /// Port of the likes alone, as the system has it that Herald replaces; 0 is any free port. If another process uses this port or
    /// one of the next two, it is left out.
    #[arg(long, env, default_value_t = 3000)]
    pub likes_port: u16,

    /// Port of the counts alone.
    #[arg(long, env, default_value_t = 5000)]
    pub counts_port: u16,

    /// Port of the rooms alone.
    #[arg(long, env, default_value_t = 8000)]
    pub rooms_port: u16,

    /// Whether to send the name of a food to be counted every 1 or 2 seconds.
    #[arg(long, env, default_value_t = true, action = clap::ArgAction::Set)]
    pub foods: bool,

    /// Folder of the SQLite databases, one for each environment. It is created if it does not exist.
    #[arg(long, env, default_value = "data")]
    pub data_dir: PathBuf,

    /// Delete the databases of the chosen environments first.
    #[arg(long)]
    pub fresh: bool,

    /// Addresses of a Kafka to use instead of the embedded one: `host:port`, separated by commas. Missing topics are created.
    #[arg(long, env, value_parser = addresses)]
    pub kafka_bootstrap_servers: Option<String>,

    /// Properties of librdkafka for that Kafka, one `key=value` per line.
    #[arg(
        long,
        env,
        default_value = "",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub kafka_properties: String,

    /// A file of such properties.
    #[arg(long, env)]
    pub kafka_properties_file: Option<PathBuf>,
}

impl Config {
    /// The requested environments. The error is for the user: a name that is not in the table.
    pub fn chosen(&self) -> anyhow::Result<Vec<Environment>> {
        let all = environments::all();
        if self.environments.is_empty() {
            return Ok(all);
        }
        let names: Vec<&str> = all
            .iter()
            .map(|environment| environment.name.as_str())
            .collect();
        if let Some(unknown) = self
            .environments
            .iter()
            .find(|name| !names.contains(&name.as_str()))
        {
            let names = names.join(", ");
            return Err(invalid(format!(
                "there is no environment \"{unknown}\"; choose from {names}"
            )));
        }
        Ok(all
            .into_iter()
            .filter(|environment| self.environments.contains(&environment.name))
            .collect())
    }

    /// Opens the ports. The error is for the user: a port in use, or another number of ports than of environments.
    pub fn bind(&self) -> anyhow::Result<Listeners> {
        let chosen = self.chosen()?;
        let bind_all = |option: &str, ports: &[u16], default: fn(&Environment) -> u16| {
            if !ports.is_empty() && ports.len() != chosen.len() {
                let (given, needed) = (ports.len(), chosen.len());
                return Err(invalid(format!(
                    "{option} has {given} ports for {needed} environments"
                )));
            }
            let chosen = chosen.iter().enumerate();
            let ports =
                chosen.map(|(index, one)| ports.get(index).copied().unwrap_or(default(one)));
            let bind = |port| bind_chosen(SocketAddr::new(self.listen_address, port), option);
            ports.map(bind).collect::<anyhow::Result<Vec<_>>>()
        };
        Ok(Listeners {
            pages: bind_all("--ports", &self.ports, |one| one.local_ports.consumer)?,
            gateways: bind_all("--gateway-ports", &self.gateway_ports, |one| {
                one.local_ports.gateway
            })?,
            originals: Originals {
                likes: self.bind_original("likes", self.likes_port),
                counts: self.bind_original("counts", self.counts_port),
                rooms: self.bind_original("rooms", self.rooms_port),
            },
            admin: bind(self.common.admin_listen)?,
        })
    }

    /// A port of a replaced system. Others may need it more: macOS uses 5000 itself.
    fn bind_original(&self, what: &str, port: u16) -> Option<TcpListener> {
        let address = SocketAddr::new(self.listen_address, port);
        let option = format!("--{what}-port");
        let bound = bind_chosen(address, &option);
        let left_out = |error| tracing::warn!("{error}; the {what} are served without this port");
        bound.map_err(left_out).ok()
    }
}

#[cfg(test)]
mod tests {
    use herald_runtime::config::{LogFormat, is_invalid, parse_from};

    use super::*;

    fn config(args: &[&str]) -> Config {
        parse_from(&[&["local"], args].concat()).unwrap()
    }

    #[test]
    fn the_defaults_are_the_loopback_address_and_a_text_log() {
        let config = config(&[]);
        assert_eq!(config.common.admin_listen.to_string(), "127.0.0.1:9090");
        assert_eq!(config.listen_address.to_string(), "127.0.0.1");
        assert_eq!(config.common.log_format, Some(LogFormat::Text));
    }

    #[test]
    fn environments_are_chosen_by_name_in_the_order_of_the_table() {
        let names = |config: Config| {
            config
                .chosen()
                .unwrap()
                .into_iter()
                .map(|chosen| chosen.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(config(&[])), ["default", "dev", "prod"]);
        assert_eq!(names(config(&["prod", "default"])), ["default", "prod"]);
    }

    #[test]
    fn an_error_for_an_unknown_environment_lists_the_known_ones() {
        let error = config(&["staging"]).chosen().unwrap_err();
        assert!(is_invalid(&error));
        assert_eq!(
            format!("{error:#}"),
            "there is no environment \"staging\"; choose from default, dev, prod"
        );
    }

    #[tokio::test]
    async fn the_number_of_ports_must_match_the_environments() {
        let error = config(&["--ports", "0,0"]).bind().map(drop).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "--ports has 2 ports for 3 environments"
        );
        let error = config(&["--ports", "0", "--gateway-ports", "0,0", "dev"]);
        let error = error.bind().map(drop).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "--gateway-ports has 2 ports for 1 environments"
        );
        let ports = ["--ports", "0", "--gateway-ports", "0"];
        let args = [&ports[..], &["dev", "--admin-listen", "127.0.0.1:0"]].concat();
        let listeners = config(&args).bind().unwrap();
        assert_eq!((listeners.pages.len(), listeners.gateways.len()), (1, 1));
    }
}
