//! All environments in one process with an embedded Kafka and SQLite, for a laptop without a cluster.

mod admin;
mod config;
mod data;
mod environments;
mod kafka;
mod last;
mod services;

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use herald_runtime::{Readiness, listen};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use admin::Service;
use data::Data;
use kafka::Embedded;

pub use config::Config;
pub use environments::{Environment, all as environments};

/// The sockets of the process.
pub struct Listeners {
    /// One for each chosen environment, in their order: its page and its transports.
    pub pages: Vec<TcpListener>,
    /// One for each chosen environment: its session events.
    pub gateways: Vec<TcpListener>,
    /// Those of the systems that Herald replaces, for the first chosen environment.
    pub originals: Originals,
    /// Health and metrics of all of them.
    pub admin: TcpListener,
}

/// The ports that clients of the replaced systems know; `None` if another process uses one.
pub struct Originals {
    /// Likes over HTTP.
    pub likes: Option<TcpListener>,
    /// The counts of foods.
    pub counts: Option<TcpListener>,
    /// Rooms over Socket.IO.
    pub rooms: Option<TcpListener>,
}

/// Runs the chosen environments until `shutdown` is cancelled; then the services that write to Kafka end first, those that read
/// from it afterwards, and the embedded Kafka stops last. Prints the URLs of each environment as soon as it is ready.
///
/// If a service ends on its own, all end, with its error.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let environments = config.chosen()?;
    let data = Data::open(&config.data_dir)?;
    let embedded = match config.kafka_bootstrap_servers {
        Some(_) => None,
        None => Some(Embedded::start(kafka::topics(&environments))?),
    };
    let build = services::Builder::new(&config, embedded.as_ref(), &data);
    // Nothing is started or deleted before all options are known to be valid.
    let mut configs = Vec::new();
    let addresses = listeners.pages.iter().zip(&listeners.gateways);
    for (environment, (page, gateway)) in environments.iter().zip(addresses) {
        let [page, gateway] = [page.local_addr()?.ip(), gateway.local_addr()?.ip()];
        configs.push(build.all(environment, page, gateway)?);
    }
    if config.fresh {
        data.delete(&environments)?;
    }
    print(&about_kafka(&config, embedded.as_ref()));
    print(&format!(
        "Sessions and counts are kept in {}; --fresh deletes them.",
        data.folder().display()
    ));

    // Those that write to Kafka, and those that read from it.
    let mut writers = Group::new(shutdown.child_token());
    let mut readers = Group::new(CancellationToken::new());
    let mut services = Vec::new();
    let mut urls = Vec::new();
    let listeners_of = listeners.pages.into_iter().zip(listeners.gateways);
    let mut originals = listeners.originals;
    for ((environment, configs), (page, gateway)) in
        environments.iter().zip(configs).zip(listeners_of)
    {
        urls.push(Urls {
            environment: environment.name.clone(),
            page: format!(
                "{}://{}{}/",
                configs.consumer.tls.scheme(),
                page.local_addr()?,
                configs.consumer.path_prefix
            ),
            gateway: format!(
                "{}://{}{}/",
                configs.gateway.tls.scheme(),
                gateway.local_addr()?,
                configs.gateway.path_prefix
            ),
            printed: false,
        });

        let (admin, service) = own_admin(environment, "consumer", &mut services)?;
        let listeners = consumer::Listeners {
            public: page,
            rooms: originals.rooms.take(),
            admin,
        };
        readers.start(service, |end| {
            consumer::run(configs.consumer, listeners, end)
        });

        let (admin, service) = own_admin(environment, "producer", &mut services)?;
        writers.start(service, |end| producer::run(configs.producer, admin, end));

        if config.foods {
            let (admin, service) = own_admin(environment, "foods", &mut services)?;
            writers.start(service, |end| producer::run(configs.foods, admin, end));
        }

        let (admin, service) = own_admin(environment, "projector", &mut services)?;
        readers.start(service, |end| projector::run(configs.projector, admin, end));

        let (admin, service) = own_admin(environment, "gateway", &mut services)?;
        let listeners = gateway::Listeners {
            public: gateway,
            likes: originals.likes.take(),
            counts: originals.counts.take(),
            admin,
        };
        writers.start(service, async move |end| {
            for topic in configs.topics {
                producer::create_topic(&topic, &end).await?;
            }
            gateway::run(configs.gateway, listeners, end).await
        });
    }

    let readiness = Readiness::new();
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    let watch = watch(urls, services.clone(), readiness.clone());
    tokio::spawn(ended.clone().run_until_cancelled_owned(watch));
    let metrics = move || {
        let services = services.clone();
        async move { admin::metrics(&services).await }
    };
    tokio::spawn(herald_runtime::admin::serve_metrics(
        listeners.admin,
        readiness,
        metrics,
        ended,
    ));

    let first = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Some(ended) = writers.running.join_next() => flatten(ended),
        Some(ended) = readers.running.join_next() => flatten(ended),
    };
    let writers = writers.end().await;
    if first.is_ok()
        && let Some(embedded) = &embedded
        && let Err(error) = last::projected(embedded, &environments, &data).await
    {
        tracing::warn!("{error:#}");
    }
    let readers = readers.end().await;
    tokio::task::spawn_blocking(move || drop(embedded)).await?;
    first.and(writers).and(readers)
}

/// Services that end together.
struct Group {
    running: JoinSet<anyhow::Result<()>>,
    end: CancellationToken,
}

impl Group {
    fn new(end: CancellationToken) -> Self {
        Self {
            running: JoinSet::new(),
            end,
        }
    }

    fn start<F>(&mut self, service: Service, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let run = run(self.end.clone());
        self.running.spawn(named(service, run));
    }

    /// Ends all services, and returns their first error.
    async fn end(mut self) -> anyhow::Result<()> {
        self.end.cancel();
        let mut result = Ok(());
        while let Some(ended) = self.running.join_next().await {
            result = result.and(flatten(ended));
        }
        result
    }
}

/// What users open, of one environment.
struct Urls {
    environment: String,
    page: String,
    gateway: String,
    printed: bool,
}

/// Prints the URLs of each environment once its services are ready, and keeps the overall readiness up to date.
async fn watch(mut urls: Vec<Urls>, services: Vec<Service>, readiness: Readiness) {
    loop {
        let mut unready = None;
        for urls in &mut urls {
            let mut reason = None;
            for service in &services {
                if service.environment == urls.environment {
                    reason = reason.or(service.unready().await);
                }
            }
            if reason.is_none() && !std::mem::replace(&mut urls.printed, true) {
                print(&format!("{:<8} {}", urls.environment, urls.page));
                print(&format!(
                    "{:<8} {} (session events, food counts, likes)",
                    "", urls.gateway
                ));
            }
            unready = unready.or(reason);
        }
        match unready {
            None => readiness.ready(),
            Some(reason) => readiness.not_ready(reason),
        }
        let all_printed = urls.iter().all(|urls| urls.printed);
        let pause = if all_printed { 1_000 } else { 100 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Prints a line for the user; ignores errors, since the terminal may be closed.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn about_kafka(config: &Config, embedded: Option<&Embedded>) -> String {
    match (embedded, &config.kafka_bootstrap_servers) {
        (Some(embedded), _) => format!(
            "Kafka is embedded in this process, at {}; its messages are lost when it exits. KAFKA_BOOTSTRAP_SERVERS=host:port uses a real one.",
            embedded.address()
        ),
        (None, address) => format!("Using Kafka at {}.", address.as_deref().unwrap_or_default()),
    }
}

async fn named(
    service: Service,
    run: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let Service {
        environment, name, ..
    } = service;
    let span = info_span!("environment", name = environment);
    run.instrument(span)
        .await
        .with_context(|| format!("the {name} of {environment} ended"))
}

/// A service's own admin address, which only this process queries; adds the service to `services`.
fn own_admin(
    environment: &Environment,
    name: &'static str,
    services: &mut Vec<Service>,
) -> anyhow::Result<(TcpListener, Service)> {
    let listener = listen::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let admin = listener.local_addr()?;
    let environment = environment.name.clone();
    let service = Service {
        environment,
        name,
        admin,
    };
    services.push(service.clone());
    Ok((listener, service))
}

fn flatten(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    ended.context("a service panicked")?
}
