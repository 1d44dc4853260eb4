//! What clients send goes to Kafka: session events, each valid frame of a WebSocket one record, in the order of its session; and
//! messages and likes over HTTP. What the projector computes from it is read back: documents, counts and windows.

mod config;
mod counts;
mod cursor;
mod data;
mod http;
mod in_flight;
mod kafka;
mod likes;
mod messages;
mod metrics;
mod page;
mod publish;
mod rates;
mod sse;
mod websocket;
mod windows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::select_all;
use herald_runtime::http::server::{Limits, Server, ServerMetrics};
use herald_runtime::http::{Access, Drain, Hosts, Origins, Tls};
use herald_runtime::{Readiness, admin, task_ended};
use store::Reader;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::field::display;

pub use crate::config::Config;
use crate::http::Scope;
use crate::kafka::Kafka;
use crate::kafka::log::Log;
use crate::messages::Messages;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::rates::Rates;

/// The sockets of a gateway.
pub struct Listeners {
    /// For clients.
    pub public: TcpListener,
    /// For clients of the likes alone.
    pub likes: Option<TcpListener>,
    /// For clients of the counts alone.
    pub counts: Option<TcpListener>,
    /// For operators: health and metrics.
    pub admin: TcpListener,
}

/// The state that the endpoints share.
struct App {
    config: Config,
    kafka: Kafka,
    publisher: Publisher,
    access: Access,
    access_without_cookie: Access,
    /// `None` without a database.
    reader: Option<Reader>,
    /// `None` without a database.
    counts: Option<Arc<counts::Feed>>,
    /// `None` without likes.
    windows: Option<Arc<windows::Feed>>,
    messages: Messages,
    /// For the listeners that pages of any origin may use, under whatever name of a host.
    any_host: Hosts,
    any_origin: Origins,
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
    /// Cancelled when what feeds the streams of results has failed.
    feeds: CancellationToken,
    admin: JoinHandle<()>,
    /// One accept loop for each public listener.
    accept: Vec<JoinHandle<()>>,
    server: Server,
    /// Stops the admin server, with which operators observe the drain.
    observing: DropGuard,
}

impl Gateway {
    fn start(mut config: Config, listeners: Listeners) -> anyhow::Result<Self> {
        let metrics = Metrics::new().context("cannot register the metrics")?;
        let server_metrics =
            ServerMetrics::new(&metrics.registry).context("cannot register the metrics")?;
        let readiness = Readiness::new();
        let Listeners {
            public,
            likes,
            counts,
            admin,
        } = listeners;
        log_addresses(&public, likes.as_ref(), counts.as_ref(), &admin);
        let kafka = Kafka::new(&config)?;
        let publisher = Publisher::new(&config)?;
        let largest = config.max_frame_bytes.max(config.max_publish_bytes);
        let rates = Arc::new(Rates::new(&config.rates, largest)?);
        metrics.registry.register(Box::new(rates.metric()))?;
        let observing = CancellationToken::new();
        let admin = tokio::spawn(admin::serve(
            admin,
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
        let log = Log::new(&config)?;
        let feeds = CancellationToken::new();
        let windows = windows::Feed::new(log.clone(), config.windows.clone(), feeds.clone());
        let count_feed = |reader| Arc::new(counts::Feed::new(reader, feeds.clone()));
        let access = Access::new(&config.access, &readiness, &observing)?;
        config.allowed_origins = access.origins(config.allowed_origins);
        let any_origin = Origins::parse("*").map_err(anyhow::Error::msg)?;
        let app = Arc::new(App {
            kafka,
            publisher,
            access_without_cookie: access.clone().without_cookie(),
            access,
            counts: reader.clone().map(count_feed),
            windows: (!config.likes_topic.is_empty()).then(|| Arc::new(windows)),
            messages: Messages::new(log),
            any_host: Hosts::default(),
            any_origin,
            reader,
            rates,
            drain: Drain::new(config.drain_window),
            metrics,
            server_metrics: server_metrics.clone(),
            tasks: TaskTracker::new(),
            config,
        });
        let server = Server {
            limits: Limits::new(
                app.config.max_connections as usize,
                app.config.max_connections_per_address,
                app.config.keep_alive,
            ),
            connections: Default::default(),
            metrics: server_metrics,
            tls: Tls::new(&app.config.tls, &observing)?,
            tasks: app.tasks.clone(),
            stop: Default::default(),
        };
        let public = [
            (Some(public), Scope::All),
            (likes, Scope::Likes),
            (counts, Scope::Counts),
        ];
        let public = public
            .into_iter()
            .filter_map(|(listener, scope)| Some((listener?, scope)));
        let accept = public.map(|(listener, scope)| {
            let answer = {
                let app = app.clone();
                move |request| http::answer(app.clone(), scope, request)
            };
            tokio::spawn(server.clone().serve(listener, answer))
        });
        let accept = accept.collect();
        Ok(Self {
            app,
            readiness,
            producer,
            watching,
            checking,
            pruning,
            feeds,
            admin,
            accept,
            server,
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
            () = self.feeds.cancelled() => {
                return anyhow::anyhow!("the reader of results failed");
            }
            ended = &mut self.admin => ("the admin server", ended.err()),
            (ended, ..) = select_all(&mut self.accept) => ("the accept loop", ended.err()),
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
        self.server.stop.rejecting.cancel();
        tracing::info!(delay = ?config.drain_delay, window = ?config.drain_window, "draining");
        tokio::time::sleep(config.drain_delay).await;
        self.server.stop.shutdown.cancel();
        for accept in self.accept {
            _ = accept.await;
        }
        app.drain.end();
        self.server.stop.closing.cancel();
        app.tasks.close();
        let second = Duration::from_secs(1);
        if timeout(config.drain_window + second, app.tasks.wait())
            .await
            .is_err()
        {
            self.server.connections.cut_all("drain");
        }
        let all = timeout(second, app.tasks.wait()).await.is_ok();
        tracing::info!(all, "drained");
        // Frames of clients that disconnected may still wait for Kafka.
        let left = config.shutdown_left(begun.elapsed());
        let lost = app.kafka.flush(left).await;
        if lost > 0 {
            tracing::warn!(
                frames = lost,
                "kafka has not acknowledged these frames; no client received an acknowledgement of them"
            );
        }
        drop(self.observing);
        Ok(())
    }
}

fn log_addresses(
    public: &TcpListener,
    likes: Option<&TcpListener>,
    counts: Option<&TcpListener>,
    admin: &TcpListener,
) {
    let address = |listener: &TcpListener| listener.local_addr().ok().map(display);
    tracing::info!(
        public = address(public),
        likes = likes.and_then(address),
        counts = counts.and_then(address),
        admin = address(admin),
        "listening"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway without Kafka.
    async fn gateway() -> Gateway {
        let args = ["gateway", "--kafka-bootstrap-servers", "127.0.0.1:1"];
        let config: Config = herald_runtime::config::parse_from(&args).unwrap();
        let listen = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners {
            public: listen().await.unwrap(),
            likes: Some(listen().await.unwrap()),
            counts: Some(listen().await.unwrap()),
            admin: listen().await.unwrap(),
        };
        Gateway::start(config, listeners).unwrap()
    }

    #[tokio::test]
    async fn the_service_ends_with_a_reason_when_the_reader_of_results_panics() {
        let mut gateway = gateway().await;
        let guard = gateway.feeds.clone().drop_guard();
        let reader = tokio::spawn(async move {
            let _guard = guard;
            panic!("a bug");
        });
        assert!(reader.await.is_err());
        let reason = timeout(Duration::from_secs(5), gateway.failed()).await;
        let reason = reason.expect("it is noticed").to_string();
        assert_eq!(reason, "the reader of results failed");
    }

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
            ("the accept loop", |gateway| {
                gateway.accept[1].abort_handle()
            }),
        ];
        for (name, task) in tasks {
            let mut gateway = gateway().await;
            let running = timeout(Duration::from_millis(100), gateway.failed()).await;
            assert!(running.is_err(), "{name}: {running:?}");
            task(&gateway).abort();
            let reason = timeout(Duration::from_secs(5), gateway.failed()).await;
            let reason = reason.expect("it is noticed").to_string();
            assert_eq!(reason, format!("{name} failed"));
        }
    }
}
