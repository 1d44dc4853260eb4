//! Port-forwards to a Service: each uses one ready pod, and switches to another when that one is no longer ready.

mod background;
mod connection;
mod pod_stream;
mod pods;
mod service;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::environments::{self, Endpoint, Environment};
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::release::{self, Running};
use crate::port;
use service::{Log, Target};

pub use background::stop;

/// Each has its own connection to the API server, so it takes two descriptors. Further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 1000;

/// For all connections and other open files. The default limit is 1,024 (Linux) or 256 (macOS).
const DESCRIPTORS: u64 = 4096;

/// Forward each environment's ports on this machine to its services in the cluster, until Ctrl-C.
///
/// A forward uses one ready pod, as Socket.IO polling requires, and switches to another one when that pod terminates.
/// It survives restarts of pods and of the API server, `minikube stop` and a sleeping laptop: it reconnects, and a new
/// connection waits up to 30 seconds for a ready pod.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV", conflicts_with = "services")]
    environments: Vec<String>,

    /// Start a process for each environment in the background, wait until the pages answer, and return.
    ///
    /// They are listed in port_forward_pids.txt and log to target/forward-ENV.log. Running forwards that answer are
    /// kept.
    #[arg(long, conflicts_with_all = ["stop", "services"])]
    background: bool,

    /// Stop the forwards in the background.
    #[arg(long, conflicts_with = "services")]
    stop: bool,

    /// Forward the first port of this Service instead, of another release or any other program. Can be repeated.
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
    /// The prefix of its log lines.
    name: String,
    namespace: String,
    service: String,
    local_port: u16,
}

impl From<&Endpoint<'_>> for Forward {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            name: endpoint.environment.name.clone(),
            namespace: endpoint.environment.namespace.clone(),
            service: endpoint.public.service.clone(),
            local_port: endpoint.local_port,
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
        return background::start(&endpoints(&environments));
    }
    let endpoints = endpoints(&environments);
    in_foreground(endpoints.iter().map(Forward::from).collect())
}

/// The public ports of all services that the environments run.
fn endpoints(environments: &[Environment]) -> Vec<Endpoint<'_>> {
    let cluster = Cluster::minikube();
    let mut endpoints = Vec::new();
    for environment in environments {
        let running = release::running(&cluster, environment).unwrap_or_else(|error| {
            let name = &environment.name;
            println!("{name}: cannot see which optional services it runs, so they are not forwarded: {error:#}");
            Running::at_least()
        });
        endpoints.extend(environment.endpoints(running.services, running.tls));
    }
    endpoints
}

fn in_foreground(forwards: Vec<Forward>) -> anyhow::Result<ExitCode> {
    raise_limit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start tokio")?;
    let result = runtime.block_on(until_signal(forwards));
    // Closes open connections instead of waiting for them.
    runtime.shutdown_background();
    result
}

async fn until_signal(forwards: Vec<Forward>) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut bound = Vec::new();
    for forward in forwards {
        let listeners = bind(forward.local_port).await?;
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
            unreachable!("a forward runs until it is stopped")
        }
    }
}

fn serve(cluster: Cluster, forward: Forward, listeners: Vec<TcpListener>, tasks: &mut JoinSet<()>) {
    let log = Arc::new(Log::new(&forward.name));
    let (targets, target) = watch::channel(None);
    tasks.spawn(accept(listeners, target, log.clone()));
    tasks.spawn(async move { service::follow(&cluster, &forward, &targets, &log).await });
}

/// Raises this process's limit of open files, as far as the system allows.
fn raise_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(DESCRIPTORS) {
        println!(
            "cannot raise the limit of open files, so there may be fewer than {MAX_CONNECTIONS} connections: {error}"
        );
    }
}

/// Listens on both addresses that a browser may use for `localhost`.
async fn bind(port: u16) -> anyhow::Result<Vec<TcpListener>> {
    if !port::is_free(port) {
        bail!("{}; end it and try again", port::in_use(port));
    }
    let mut listeners = Vec::new();
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!("{}; end it and try again", port::in_use(port))
            }
            // A machine without IPv6.
            Err(_) if address.is_ipv6() => {}
            Err(error) => bail!("cannot listen on {address}, port {port}: {error}"),
        }
    }
    Ok(listeners)
}

/// Forwards every connection; does not return.
async fn accept(
    listeners: Vec<TcpListener>,
    target: watch::Receiver<Option<Target>>,
    log: Arc<Log>,
) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept_on(
            listener,
            free.clone(),
            target.clone(),
            log.clone(),
        ));
    }
    while tasks.join_next().await.is_some() {}
}

async fn accept_on(
    listener: TcpListener,
    free: Arc<Semaphore>,
    target: watch::Receiver<Option<Target>>,
    log: Arc<Log>,
) {
    loop {
        let permit = free.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((client, _)) => {
                let connection = connection::forward(client, target.clone(), log.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely out of descriptors, until other connections close.
                log.print(&format!("cannot accept a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
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
        for invalid in [
            "consumer-service:8002",
            "dev/consumer-service",
            "dev/a:0",
            "dev/a:http",
        ] {
            assert!(invalid.parse::<Forward>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn an_environment_has_a_forward_for_each_public_port() {
        let environment = Environment {
            name: "dev".to_owned(),
            namespace: "elsewhere".to_owned(),
            release: "hello-world-dev".to_owned(),
            topic: "dev-topic".to_owned(),
            topic_prefix: "dev.".to_owned(),
            database_schema: "herald_dev".to_owned(),
            local_ports: [("consumer".to_owned(), 8002), ("gate".to_owned(), 8081)].into(),
        };
        let fake = crate::services::fake();
        let endpoints = environment.endpoints(&fake, false);
        let forwards: Vec<Forward> = endpoints.iter().map(Forward::from).collect();
        let forward = |service: &str, local_port| Forward {
            name: "dev".to_owned(),
            namespace: "elsewhere".to_owned(),
            service: service.to_owned(),
            local_port,
        };
        let expected = [
            forward("consumer-service", 8002),
            forward("gate-service", 8081),
        ];
        assert_eq!(forwards, expected);
    }

    #[tokio::test]
    async fn a_port_in_use_is_rejected_in_one_sentence() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let why = bind(port).await.unwrap_err().to_string();
        assert!(
            why.starts_with(&format!("port {port} is in use by ")),
            "{why}"
        );
        assert!(why.ends_with("; end it and try again"), "{why}");
    }
}
