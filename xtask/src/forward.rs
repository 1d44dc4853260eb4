//! Port-forwards that belong to a Service: each stays with one ready pod, and goes on with another when that one is gone.

mod background;
mod client;
mod connection;
mod listener;
mod log;
mod pod_stream;
mod pods;
mod relay;
mod request;
mod service;
mod sleep;

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::environments::{self, Environment};
use log::Log;

pub use background::stop;

/// The Service of every environment's consumer.
const SERVICE: &str = "consumer-service";

/// Forward each environment's port on this machine to its consumer in the cluster, until Ctrl-C.
///
/// A forward stays with one ready pod, as Socket.IO's polling needs it, and goes on with another ready one when that one is
/// gone. It outlives restarts of pods and of the API server, `minikube stop` and a sleeping laptop: what they cut comes back,
/// and a connection waits up to 30 seconds for a pod to be ready.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV", conflicts_with = "services")]
    environments: Vec<String>,

    /// Start a process for each environment in the background, wait until the pages answer, and return.
    ///
    /// They are listed in port_forward_pids.txt and log to target/forward-ENV.log. One that runs already and answers is left
    /// alone.
    #[arg(long, conflicts_with_all = ["stop", "services"])]
    background: bool,

    /// End those in the background.
    #[arg(long, conflicts_with = "services")]
    stop: bool,

    /// Forward the first port of this Service instead: of another release, or of any other program. May be given again.
    #[arg(
        long = "service",
        value_name = "NAMESPACE/NAME:LOCAL_PORT",
        help_heading = "Other services"
    )]
    services: Vec<Forward>,
}

/// From a port of this machine to a Service.
#[derive(Clone, Debug, PartialEq)]
struct Forward {
    /// What its lines in the log begin with.
    name: String,
    namespace: String,
    service: String,
    local_port: u16,
}

impl From<Environment> for Forward {
    fn from(environment: Environment) -> Self {
        Self {
            name: environment.name,
            namespace: environment.namespace,
            service: SERVICE.to_owned(),
            local_port: environment.local_port,
        }
    }
}

impl FromStr for Forward {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let (name, port) = text.rsplit_once(':')?;
            let (namespace, service) = name.split_once('/')?;
            Some(Self {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                service: service.to_owned(),
                local_port: port.parse().ok().filter(|&port| port != 0)?,
            })
        };
        parts()
            .ok_or("write it as NAMESPACE/NAME:LOCAL_PORT, for example dev/consumer-service:8002")
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.services.is_empty() {
        return in_foreground(args.services.clone());
    }
    let environments = environments::chosen(&args.environments)?;
    if args.stop {
        let _lock = crate::lock()?;
        background::stop(&environments)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.background {
        let _lock = crate::lock()?;
        return background::start(&environments);
    }
    in_foreground(environments.into_iter().map(Forward::from).collect())
}

fn in_foreground(forwards: Vec<Forward>) -> anyhow::Result<ExitCode> {
    listener::raise_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start tokio")?;
    let result = runtime.block_on(until_signal(forwards));
    // Open connections are cut, not waited for.
    runtime.shutdown_background();
    result
}

async fn until_signal(forwards: Vec<Forward>) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut bound = Vec::new();
    for forward in forwards {
        let listeners = listener::bind(forward.local_port).await?;
        bound.push((forward, listeners));
    }
    let cluster = Cluster::minikube();
    let mut tasks = JoinSet::new();
    for (forward, listeners) in bound {
        serve(cluster.clone(), forward, listeners, &mut tasks);
    }
    tokio::select! {
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        ended = tasks.join_next() => {
            ended.expect("there is a forward")?;
            unreachable!("a forward goes on until it is ended")
        }
    }
}

fn serve(cluster: Cluster, forward: Forward, listeners: Vec<TcpListener>, tasks: &mut JoinSet<()>) {
    let log = Arc::new(Log::new(&forward.name));
    let (targets, target) = watch::channel(None);
    tasks.spawn(listener::accept(listeners, target, log.clone()));
    tasks.spawn(async move { service::follow(&cluster, &forward, &targets, &log).await });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_read_from_the_command_line() {
        let forward: Forward = "dev/consumer-service:8002".parse().unwrap();
        assert_eq!(forward.namespace, "dev");
        assert_eq!(forward.service, "consumer-service");
        assert_eq!(forward.local_port, 8002);
        for wrong in [
            "consumer-service:8002",
            "dev/consumer-service",
            "dev/a:0",
            "dev/a:http",
        ] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
