//! Kafka to browsers: every message of a topic, to any number of clients, with history and without a silent gap.
//!
//! A message passes through the modules in this order: `kafka` reads it, `feed` buffers and encodes it once, `stream` carries it
//! to one client, and `sse`, `websocket` or `socketio` writes it. `history` and `kafka::log` serve messages older than the feed.

mod app;
mod config;
pub mod cursor;
mod encode;
mod feed;
mod http;
mod kafka;
mod metrics;
mod page;
mod query;
mod read_one;
mod record;
mod sessions;
mod stream;
mod transports;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use herald_runtime::http::server::{self, Limits, ServerMetrics, Stop};
use herald_runtime::http::{Connections, Drain};
use herald_runtime::{Readiness, admin};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
pub use crate::config::Config;
use crate::kafka::{Reader, Topic};
use crate::metrics::Metrics;
pub use crate::read_one::read_one;

/// The sockets of a consumer.
pub struct Listeners {
    /// For browsers: the transports and the page.
    pub public: TcpListener,
    /// For operators: health and metrics.
    pub admin: TcpListener,
}

/// Serves the topics until `shutdown` is cancelled, then drains.
///
/// # Errors
///
/// If the configuration is invalid, or a topic cannot be served.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    config.check()?;
    let metrics = Metrics::new().context("cannot register the metrics")?;
    let server_metrics =
        ServerMetrics::new(&metrics.registry).context("cannot register the metrics")?;
    let readiness = Readiness::new();
    if let (Ok(public), Ok(admin)) = (listeners.public.local_addr(), listeners.admin.local_addr()) {
        tracing::info!(%public, %admin, "listening");
    }
    // The reader threads and the admin server keep running while the streams drain.
    let reading = CancellationToken::new();
    let _stop_reading = reading.clone().drop_guard();
    let reader = Reader::new(&config, metrics.clone())?;
    let topics = reader.topics();
    let mut reader = tokio::spawn(reader.run(reading.clone()));
    let mut watching = tokio::spawn(watch_topics(topics.clone(), readiness.clone()));
    let mut admin = tokio::spawn(admin::serve(
        listeners.admin,
        readiness.clone(),
        metrics.registry.clone(),
        reading.clone(),
    ));

    let tasks = TaskTracker::new();
    let app = Arc::new(App {
        topics,
        custom_header: config.custom_header.clone(),
        origins: config.allowed_origins.clone(),
        hosts: config.allowed_hosts.clone(),
        drain: Drain::new(config.drain_window),
        metrics,
        server_metrics: server_metrics.clone(),
        max_connections: config.max_connections,
        sessions: Default::default(),
        tasks: tasks.clone(),
    });
    let service = http::service(app.clone());
    let answer = {
        let app = app.clone();
        move |request| http::answer(app.clone(), service.clone(), request)
    };
    let stop = Stop::default();
    let limits = Limits::new(config.max_connections, config.keep_alive);
    let connections = Connections::default();
    let mut accept = tokio::spawn(server::serve(
        listeners.public,
        limits,
        connections.clone(),
        server_metrics,
        answer,
        tasks.clone(),
        stop.clone(),
    ));

    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = &mut reader => return ended.context("the Kafka reader panicked")?,
        ended = &mut admin => {
            return ended.context("the admin server panicked").and(Err(anyhow::anyhow!("the admin server ended")));
        }
        ended = &mut accept => {
            return ended.context("the accept loop panicked").and(Err(anyhow::anyhow!("the accept loop ended")));
        }
        ended = &mut watching => return ended.context("the topic watcher panicked"),
    }
    // Kubernetes endpoints and load balancers notice the shutdown with a delay; until then this replica still answers.
    readiness.drain();
    app.drain.reject();
    tracing::info!(delay = ?config.drain_delay, window = ?config.drain_window, "draining");
    tokio::time::sleep(config.drain_delay).await;
    stop.shutdown.cancel();
    _ = accept.await;
    app.drain.end();
    tasks.close();
    let second = Duration::from_secs(1);
    let ended = async {
        while app.metrics.open_streams() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // One more second for the last streams to end, and for closing handshakes.
    _ = timeout(config.drain_window + second, ended).await;
    // What remains are idle keep-alive connections, and clients that do not read.
    stop.closing.cancel();
    if timeout(second, tasks.wait()).await.is_err() {
        connections.cut_all("drain");
    }
    let all = timeout(second, tasks.wait()).await.is_ok();
    tracing::info!(all, "drained");
    reading.cancel();
    reader.await.context("the Kafka reader panicked")?
}

/// A topic that still cannot be read after this time does not block the others from being served.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Reports ready once every topic has been read up to the end that it had at startup, or once some have and every other has a
/// known problem.
///
/// After that, the readiness lists the topics that cannot be read.
async fn watch_topics(topics: Vec<Arc<Topic>>, readiness: Readiness) {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tick.tick().await;
        let (filled, missing): (Vec<_>, Vec<_>) =
            topics.iter().partition(|topic| topic.feed.is_filled());
        let known = missing.iter().all(|topic| topic.problem().is_some());
        if missing.is_empty() || (!filled.is_empty() && known && begun.elapsed() > STARTUP_TIMEOUT)
        {
            let missing: Vec<_> = missing.iter().map(|topic| &topic.name).collect();
            tracing::info!(?missing, "caught up with Kafka; ready");
            readiness.ready();
            break;
        }
        if let Some((topic, problem)) = missing
            .iter()
            .find_map(|topic| Some((topic, topic.problem()?)))
        {
            readiness.not_ready(format!("starting; topic {:?}: {problem}", topic.name));
        }
    }
    let notes = topics.iter().map(async |topic| {
        let part = format!("topic {:?}", topic.name);
        let mut source = topic.source.clone();
        loop {
            readiness.note(&part, topic.problem());
            if source.changed().await.is_err() {
                // The reader has ended; its result holds the reason.
                return std::future::pending().await;
            }
        }
    });
    futures_util::future::join_all(notes).await;
}
