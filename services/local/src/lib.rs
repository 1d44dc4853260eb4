//! All environments in one process with an embedded Kafka, for a laptop without a cluster.

mod admin;
mod config;
mod environments;
mod kafka;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Context;
use herald_runtime::config::parse_from;
use herald_runtime::kafka::KafkaArgs;
use herald_runtime::{Readiness, listen};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use admin::Service;
use kafka::Embedded;

pub use config::Config;
pub use environments::{Environment, all as environments};

/// The sockets of the process.
pub struct Listeners {
    /// One for each chosen environment, in their order: its page and its transports.
    pub pages: Vec<TcpListener>,
    /// Health and metrics of all of them.
    pub admin: TcpListener,
}

/// Runs the chosen environments until `shutdown` is cancelled; then the producers end first, the consumers drain, and the
/// embedded Kafka stops last. Prints the URL of each page as soon as it is ready.
///
/// If a service ends on its own, all end, with its error.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let environments = config.chosen()?;
    let embedded = match config.kafka_bootstrap_servers {
        Some(_) => None,
        None => Some(Embedded::start(
            environments
                .iter()
                .map(|chosen| chosen.topic.clone())
                .collect(),
        )?),
    };
    print(&about_kafka(&config, embedded.as_ref()));
    let kafka = kafka_args(&config, embedded.as_ref());

    let (mut producers, mut consumers) = (JoinSet::new(), JoinSet::new());
    let (end_producers, end_consumers) = (shutdown.child_token(), CancellationToken::new());
    let mut pages = Vec::new();
    for (environment, public) in environments.into_iter().zip(listeners.pages) {
        let url = format!("http://{}/", public.local_addr()?);
        let span = info_span!("environment", name = environment.name);

        let (admin, consumer) = own_admin(&environment, "consumer")?;
        let config = consumer_config(
            &environment,
            &kafka,
            embedded.is_some(),
            public.local_addr()?.ip(),
        )?;
        let run = consumer::run(
            config,
            consumer::Listeners { public, admin },
            end_consumers.clone(),
        );
        consumers.spawn(named(consumer.clone(), run).instrument(span.clone()));

        let (admin, producer) = own_admin(&environment, "producer")?;
        let config = producer_config(&environment, &kafka, embedded.is_some())?;
        let run = producer::run(config, admin, end_producers.clone());
        producers.spawn(named(producer.clone(), run).instrument(span));

        pages.push(Page {
            name: environment.name,
            url,
            services: [consumer, producer],
        });
    }

    let readiness = Readiness::new();
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    let services: Vec<Service> = pages
        .iter()
        .flat_map(|page| page.services.clone())
        .collect();
    let metrics = move || {
        let services = services.clone();
        async move { admin::metrics(&services).await }
    };
    tokio::spawn(herald_runtime::admin::serve_metrics(
        listeners.admin,
        readiness.clone(),
        metrics,
        ended.clone(),
    ));
    tokio::spawn(ended.run_until_cancelled_owned(watch(pages, readiness.clone())));

    let first = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Some(ended) = producers.join_next() => flatten(ended),
        Some(ended) = consumers.join_next() => flatten(ended),
    };
    end_producers.cancel();
    let producers = all_ended(&mut producers).await;
    end_consumers.cancel();
    let consumers = all_ended(&mut consumers).await;
    tokio::task::spawn_blocking(move || drop(embedded)).await?;
    first.and(producers).and(consumers)
}

/// An environment's page, and the services that must be ready before it is printed.
struct Page {
    name: String,
    url: String,
    services: [Service; 2],
}

/// Prints each page once, when its services are ready, and keeps the overall readiness up to date.
async fn watch(pages: Vec<Page>, readiness: Readiness) {
    let mut printed = vec![false; pages.len()];
    loop {
        let mut unready = None;
        for (page, printed) in pages.iter().zip(&mut printed) {
            let mut reason = None;
            for service in &page.services {
                reason = reason.or(service.unready().await);
            }
            if reason.is_none() && !std::mem::replace(printed, true) {
                print(&format!("{:<8} {}", page.name, page.url));
            }
            unready = unready.or(reason);
        }
        match unready {
            None => readiness.ready(),
            Some(reason) => readiness.not_ready(reason),
        }
        let busy = printed.contains(&false);
        tokio::time::sleep(Duration::from_millis(if busy { 100 } else { 1_000 })).await;
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

/// A service's options for connecting to Kafka.
fn kafka_args(config: &Config, embedded: Option<&Embedded>) -> KafkaArgs {
    match embedded {
        Some(embedded) => KafkaArgs {
            kafka_bootstrap_servers: embedded.address().to_owned(),
            kafka_properties: String::new(),
            kafka_properties_file: None,
        },
        None => KafkaArgs {
            kafka_bootstrap_servers: config.kafka_bootstrap_servers.clone().unwrap_or_default(),
            kafka_properties: config.kafka_properties.clone(),
            kafka_properties_file: config.kafka_properties_file.clone(),
        },
    }
}

/// Options not set here come from the environment of the process, or are the defaults. The addresses are not used: the
/// listeners are bound already.
fn consumer_config(
    environment: &Environment,
    kafka: &KafkaArgs,
    embedded: bool,
    address: IpAddr,
) -> anyhow::Result<consumer::Config> {
    let topic = format!("--kafka-topic={}", environment.topic);
    let header = format!("--custom-header={}", environment.custom_header);
    // There is no load balancer to wait for, and the user who pressed Ctrl-C is waiting.
    let drain = ["--drain-delay=0s", "--drain-window=1s"];
    let mut config: consumer::Config =
        parse_from(&["consumer", &topic, &header, drain[0], drain[1]])?;
    config.kafka = kafka.clone();
    if address.is_loopback() {
        // A page on the internet may rebind its own name to this machine's address (DNS rebinding).
        config
            .allowed_hosts
            .extend(["localhost", "127.0.0.1", "[::1]"]);
    }
    if embedded {
        config.kafka.kafka_properties = kafka::CONSUMER_PROPERTIES.to_owned();
    }
    Ok(config)
}

fn producer_config(
    environment: &Environment,
    kafka: &KafkaArgs,
    embedded: bool,
) -> anyhow::Result<producer::Config> {
    let topic = format!("--kafka-topic={}", environment.topic);
    // The embedded Kafka has its topics from the start.
    let create_topic = format!("--create-topic={}", !embedded);
    let mut config: producer::Config = parse_from(&["producer", &topic, &create_topic])?;
    config.kafka = kafka.clone();
    Ok(config)
}

/// A service's own admin address, which only this process queries.
fn own_admin(
    environment: &Environment,
    name: &'static str,
) -> anyhow::Result<(TcpListener, Service)> {
    let listener = listen::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let admin = listener.local_addr()?;
    Ok((
        listener,
        Service {
            environment: environment.name.clone(),
            name,
            admin,
        },
    ))
}

async fn named(
    service: Service,
    run: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let Service {
        environment, name, ..
    } = service;
    run.await
        .with_context(|| format!("the {name} of {environment} ended"))
}

/// Waits until all services have ended, and returns the first error.
async fn all_ended(services: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut result = Ok(());
    while let Some(ended) = services.join_next().await {
        result = result.and(flatten(ended));
    }
    result
}

fn flatten(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    ended.context("a service panicked")?
}
