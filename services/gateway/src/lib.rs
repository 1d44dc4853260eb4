//! Session events from clients to Kafka: each valid frame of a WebSocket becomes one record, in the order of its session.

mod address;
mod config;
mod http;
mod kafka;
mod metrics;
mod page;
mod publish;
mod rates;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use herald_runtime::http::server::{self, Limits, ServerMetrics, Stop};
use herald_runtime::http::{Connections, Drain};
use herald_runtime::{Readiness, admin};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::config::Config;
use crate::kafka::Kafka;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::rates::Rates;

/// The sockets of a gateway.
pub struct Listeners {
    /// For clients.
    pub public: TcpListener,
    /// For operators: health and metrics.
    pub admin: TcpListener,
}

/// The state that the endpoints share.
struct App {
    config: Config,
    kafka: Kafka,
    publisher: Publisher,
    rates: Arc<Rates>,
    drain: Drain,
    metrics: Metrics,
    server_metrics: ServerMetrics,
    /// WebSockets, which outlive their request.
    tasks: TaskTracker,
}

/// Serves until `shutdown` is cancelled, then drains.
///
/// # Errors
///
/// If the configuration is invalid.
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
    let kafka = Kafka::new(&config)?;
    let publisher = Publisher::new(&config)?;
    let largest = config.max_frame_bytes.max(config.max_message_bytes);
    let rates = Arc::new(Rates::new(&config.rates, largest)?);
    metrics.registry.register(Box::new(rates.metric()))?;
    // Operators also observe the drain.
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    let mut admin = tokio::spawn(admin::serve(
        listeners.admin,
        readiness.clone(),
        metrics.registry.clone(),
        ended,
    ));
    let watching = tokio::spawn(kafka.clone().watch(readiness.clone()));
    let pruning = tokio::spawn(rates.clone().prune());
    let tasks = TaskTracker::new();
    let app = Arc::new(App {
        kafka,
        publisher,
        rates: rates.clone(),
        drain: Drain::new(config.drain_window),
        metrics,
        server_metrics: server_metrics.clone(),
        tasks: tasks.clone(),
        config,
    });
    let stop = Stop::default();
    let connections = Connections::default();
    let mut accept = tokio::spawn(server::serve(
        listeners.public,
        Limits::new(app.config.max_connections as usize, app.config.keep_alive),
        connections.clone(),
        server_metrics,
        {
            let app = app.clone();
            move |request| http::answer(app.clone(), request)
        },
        tasks.clone(),
        stop.clone(),
    ));
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = &mut admin => {
            return ended.context("the admin server panicked").and(Err(anyhow::anyhow!("the admin server ended")));
        }
        ended = &mut accept => {
            return ended.context("the accept loop panicked").and(Err(anyhow::anyhow!("the accept loop ended")));
        }
    }
    // Load balancers notice the shutdown with a delay.
    watching.abort();
    pruning.abort();
    readiness.drain();
    app.drain.reject();
    tracing::info!(delay = ?app.config.drain_delay, window = ?app.config.drain_window, "draining");
    tokio::time::sleep(app.config.drain_delay).await;
    stop.shutdown.cancel();
    _ = accept.await;
    app.drain.end();
    stop.closing.cancel();
    tasks.close();
    let second = Duration::from_secs(1);
    if timeout(app.config.drain_window + second, tasks.wait())
        .await
        .is_err()
    {
        connections.cut_all("drain");
    }
    let all = timeout(second, tasks.wait()).await.is_ok();
    tracing::info!(all, "drained");
    Ok(())
}
