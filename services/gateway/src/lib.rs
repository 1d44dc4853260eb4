//! Session events from clients to Kafka: each valid frame of a WebSocket becomes one record, in the order of its session. The
//! documents that the projector computes from them are read back with `GET /data`.

mod address;
mod config;
mod cursor;
mod data;
mod http;
mod in_flight;
mod kafka;
mod metrics;
mod page;
mod publish;
mod rates;
mod websocket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use herald_runtime::http::server::{self, Limits, ServerMetrics, Stop};
use herald_runtime::http::{Connections, Drain};
use herald_runtime::{Readiness, admin, task_ended};
use store::Reader;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
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
    /// `None` without a database.
    reader: Option<Reader>,
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
/// If the configuration is invalid, the Kafka producer can no longer keep the order of frames, or a task that the service needs
/// ends before it is shut down.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    config.check()?;
    let mut gateway = Gateway::start(config, listeners)?;
    tokio::select! {
        () = shutdown.cancelled() => gateway.drain().await,
        reason = gateway.failed() => Err(reason),
    }
}

/// The tasks of a gateway.
struct Gateway {
    app: Arc<App>,
    readiness: Readiness,
    producer: JoinHandle<anyhow::Error>,
    watching: JoinHandle<()>,
    checking: JoinHandle<()>,
    pruning: JoinHandle<()>,
    admin: JoinHandle<()>,
    accept: JoinHandle<()>,
    connections: Connections,
    /// Stops accepting, then the connections.
    stop: Stop,
    /// Stops the admin server, with which operators observe the drain.
    observing: DropGuard,
}

impl Gateway {
    fn start(config: Config, listeners: Listeners) -> anyhow::Result<Self> {
        let metrics = Metrics::new().context("cannot register the metrics")?;
        let server_metrics =
            ServerMetrics::new(&metrics.registry).context("cannot register the metrics")?;
        let readiness = Readiness::new();
        if let (Ok(public), Ok(admin)) =
            (listeners.public.local_addr(), listeners.admin.local_addr())
        {
            tracing::info!(%public, %admin, "listening");
        }
        let kafka = Kafka::new(&config)?;
        let publisher = Publisher::new(&config)?;
        let largest = config.max_frame_bytes.max(config.max_publish_bytes);
        let rates = Arc::new(Rates::new(&config.rates, largest)?);
        metrics.registry.register(Box::new(rates.metric()))?;
        let observing = CancellationToken::new();
        let admin = tokio::spawn(admin::serve(
            listeners.admin,
            readiness.clone(),
            metrics.registry.clone(),
            observing.clone(),
        ));
        let frames = Some(kafka.producer.clone());
        let producers = frames.into_iter().chain(publisher.producer.clone());
        let producers = producers.collect();
        let producer = tokio::spawn(kafka::failed(producers));
        let watching = tokio::spawn(kafka.clone().watch(readiness.clone()));
        let url = config.database_url.as_ref();
        let reader = url.map(|url| Reader::new(url, &config.database_schema));
        let checking = tokio::spawn(data::watch(reader.clone(), readiness.clone()));
        let pruning = tokio::spawn(rates.clone().prune());
        let app = Arc::new(App {
            kafka,
            publisher,
            reader,
            rates,
            drain: Drain::new(config.drain_window),
            metrics,
            server_metrics: server_metrics.clone(),
            tasks: TaskTracker::new(),
            config,
        });
        let (stop, connections) = (Stop::default(), Connections::default());
        let answer = {
            let app = app.clone();
            move |request| http::answer(app.clone(), request)
        };
        let accept = tokio::spawn(server::serve(
            listeners.public,
            Limits::new(app.config.max_connections as usize, app.config.keep_alive),
            connections.clone(),
            server_metrics,
            answer,
            app.tasks.clone(),
            stop.clone(),
        ));
        Ok(Self {
            app,
            readiness,
            producer,
            watching,
            checking,
            pruning,
            admin,
            accept,
            connections,
            stop,
            observing: observing.drop_guard(),
        })
    }

    /// Waits until a task ends that should run until the shutdown, and returns why.
    async fn failed(&mut self) -> anyhow::Error {
        let (task, reason) = tokio::select! {
            ended = &mut self.producer => match ended {
                Ok(reason) => return reason,
                Err(panicked) => ("the Kafka producer", Some(panicked)),
            },
            ended = &mut self.watching => ("the topic watcher", ended.err()),
            ended = &mut self.checking => ("the database watcher", ended.err()),
            ended = &mut self.pruning => ("the rate limits", ended.err()),
            ended = &mut self.admin => ("the admin server", ended.err()),
            ended = &mut self.accept => ("the accept loop", ended.err()),
        };
        task_ended(task, reason)
    }

    async fn drain(self) -> anyhow::Result<()> {
        let Self { app, .. } = self;
        let config = &app.config;
        let begun = Instant::now();
        // Load balancers notice the shutdown with a delay; until then this replica still answers.
        self.watching.abort();
        self.checking.abort();
        self.pruning.abort();
        self.readiness.drain();
        app.drain.reject();
        tracing::info!(delay = ?config.drain_delay, window = ?config.drain_window, "draining");
        tokio::time::sleep(config.drain_delay).await;
        self.stop.shutdown.cancel();
        _ = self.accept.await;
        app.drain.end();
        self.stop.closing.cancel();
        app.tasks.close();
        let second = Duration::from_secs(1);
        if timeout(config.drain_window + second, app.tasks.wait())
            .await
            .is_err()
        {
            self.connections.cut_all("drain");
        }
        let all = timeout(second, app.tasks.wait()).await.is_ok();
        tracing::info!(all, "drained");
        // Frames of clients that disconnected may still wait for Kafka.
        let left = config.shutdown_left(begun.elapsed());
        let lost = app.kafka.flush(left).await;
        if lost > 0 {
            tracing::warn!(
                frames = lost,
                "kafka has not acknowledged these frames; no client was told that it has"
            );
        }
        drop(self.observing);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_service_ends_with_a_reason_when_a_task_that_it_needs_ends() {
        type Task = fn(&Gateway) -> tokio::task::AbortHandle;
        let tasks: [(&str, Task); 6] = [
            ("the Kafka producer", |gateway| {
                gateway.producer.abort_handle()
            }),
            ("the topic watcher", |gateway| {
                gateway.watching.abort_handle()
            }),
            ("the database watcher", |gateway| {
                gateway.checking.abort_handle()
            }),
            ("the rate limits", |gateway| gateway.pruning.abort_handle()),
            ("the admin server", |gateway| gateway.admin.abort_handle()),
            ("the accept loop", |gateway| gateway.accept.abort_handle()),
        ];
        for (name, task) in tasks {
            let args = ["gateway", "--kafka-bootstrap-servers", "127.0.0.1:1"];
            let config: Config = herald_runtime::config::parse_from(&args).unwrap();
            let listen = || TcpListener::bind("127.0.0.1:0");
            let listeners = Listeners {
                public: listen().await.unwrap(),
                admin: listen().await.unwrap(),
            };
            let mut gateway = Gateway::start(config, listeners).unwrap();
            let running = timeout(Duration::from_millis(100), gateway.failed()).await;
            assert!(running.is_err(), "{name}: {running:?}");
            task(&gateway).abort();
            let reason = timeout(Duration::from_secs(5), gateway.failed()).await;
            let reason = reason.expect("it is noticed").to_string();
            assert_eq!(reason, format!("{name} failed"));
        }
    }
}
