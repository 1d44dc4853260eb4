//! Kafka to browsers: every message of a topic, to any number of clients, with history and without a silent gap.
//!
//! A message passes through the modules in this order: `kafka` reads it, `feed` buffers and encodes it once, `stream` carries it
//! to one client, and `sse`, `websocket` or `socketio` writes it. `history` and `kafka::log` serve messages older than the feed.
//! What the process keeps of whole topics is read by a `follower`: `latest` for `from=latest-per-key`, and `rooms`.

mod app;
mod config;
pub mod cursor;
mod encode;
mod feed;
mod follower;
mod http;
mod kafka;
mod keys;
mod latest;
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
use herald_runtime::http::server::{Limits, Server, ServerMetrics};
use herald_runtime::http::{Access, Drain, Tls};
use herald_runtime::{Readiness, admin, task_ended};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::app::App;
pub use crate::config::Config;
use crate::kafka::{Reader, Topic};
use crate::metrics::Metrics;
pub use crate::read_one::{ReadOne, ServerUrl, read_one};
use crate::transports::rooms::{self, Rooms};

/// The sockets of a consumer.
pub struct Listeners {
    /// For browsers: the transports and the page.
    pub public: TcpListener,
    /// For browsers: Socket.IO with nothing but rooms.
    pub rooms: Option<TcpListener>,
    /// For operators: health and metrics.
    pub admin: TcpListener,
}

/// Serves the topics until `shutdown` is cancelled, then drains.
///
/// # Errors
///
/// If the configuration is invalid, a topic cannot be served, or a task that the service needs ends before it is shut down.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    config.check()?;
    let mut consumer = Consumer::start(config, listeners)?;
    tokio::select! {
        () = shutdown.cancelled() => consumer.drain().await,
        reason = consumer.failed() => Err(reason),
    }
}

/// The tasks of a consumer.
struct Consumer {
    config: Config,
    app: Arc<App>,
    readiness: Readiness,
    reader: JoinHandle<anyhow::Result<()>>,
    watching: JoinHandle<()>,
    admin: JoinHandle<()>,
    accept: JoinHandle<()>,
    accept_rooms: Option<JoinHandle<()>>,
    /// What the process keeps of whole topics: the latest records of keys, and the last results of rooms.
    keeping: JoinHandle<()>,
    server: Server,
    /// Stops the reader and the admin server, which keep running while the streams drain.
    reading: DropGuard,
}

impl Consumer {
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
        let reading = CancellationToken::new();
        let reader = Reader::new(&config, metrics.clone())?;
        let topics = reader.topics();
        let rooms = config.rooms.rooms.then(|| {
            let events = config.rooms.events().map(|event| event.0.as_str());
            Arc::new(Rooms::new(events, config.latest_bytes, metrics.clone()))
        });
        let of_rooms = results(&config, &topics, rooms.as_ref());
        let keeping = keep(&topics, of_rooms, reading.clone());
        let keeping = tokio::spawn(keeping);
        let reader = tokio::spawn(reader.run(reading.clone()));
        let watching = tokio::spawn(watch_topics(
            topics.clone(),
            results(&config, &topics, rooms.as_ref()),
            readiness.clone(),
            STARTUP_TIMEOUT,
        ));
        let admin = tokio::spawn(admin::serve(
            listeners.admin,
            readiness.clone(),
            metrics.registry.clone(),
            reading.clone(),
        ));
        let access = Access::new(&config.access, &readiness, &reading)?;
        let app = Arc::new(App {
            topics,
            custom_header: config.custom_header.clone(),
            origins: access.origins(config.allowed_origins.clone()),
            hosts: config.allowed_hosts.clone(),
            frame_ancestors: config.frame_ancestors.clone(),
            access,
            trusted_proxies: config.trusted_proxies.clone(),
            drain: Drain::new(config.drain_window),
            metrics,
            server_metrics: server_metrics.clone(),
            max_connections: config.max_connections,
            sessions: Default::default(),
            rooms,
            tasks: TaskTracker::new(),
        });
        let service = http::service(app.clone());
        let answer = {
            let app = app.clone();
            move |request| http::answer(app.clone(), service.clone(), request)
        };
        let server = Server {
            limits: Limits::new(
                config.max_connections,
                config.max_connections_per_address,
                config.keep_alive,
            ),
            connections: Default::default(),
            metrics: server_metrics,
            tls: Tls::new(&config.tls, &reading)?,
            tasks: app.tasks.clone(),
            stop: Default::default(),
        };
        let accept_rooms = listeners.rooms.map(|listener| {
            let app = Arc::new(app.of_rooms(config.rooms.rooms_allowed_origins.clone()));
            let service = http::rooms_service(app.clone());
            let answer = move |request| http::answer(app.clone(), service.clone(), request);
            tokio::spawn(server.clone().serve(listener, answer))
        });
        let accept = tokio::spawn(server.clone().serve(listeners.public, answer));
        Ok(Self {
            config,
            app,
            readiness,
            reader,
            watching,
            admin,
            accept,
            accept_rooms,
            keeping,
            server,
            reading: reading.drop_guard(),
        })
    }

    /// Waits until a task ends that should run until the shutdown, and returns why.
    async fn failed(&mut self) -> anyhow::Error {
        let (task, reason) = tokio::select! {
            ended = &mut self.reader => match ended {
                Ok(Err(reason)) => return reason,
                Ok(Ok(())) => ("the Kafka reader", None),
                Err(panicked) => ("the Kafka reader", Some(panicked)),
            },
            ended = &mut self.watching => ("the topic watcher", ended.err()),
            ended = &mut self.admin => ("the admin server", ended.err()),
            ended = &mut self.accept => ("the accept loop", ended.err()),
            ended = ended(&mut self.accept_rooms) => ("the accept loop of rooms", ended.err()),
            ended = &mut self.keeping => ("the reader of whole topics", ended.err()),
        };
        task_ended(task, reason)
    }

    async fn drain(self) -> anyhow::Result<()> {
        let Self { config, app, .. } = self;
        // Kubernetes endpoints and load balancers notice the shutdown with a delay; until then this replica still answers.
        self.readiness.drain();
        app.drain.reject();
        self.server.stop.rejecting.cancel();
        tracing::info!(delay = ?config.drain_delay, window = ?config.drain_window, "draining");
        tokio::time::sleep(config.drain_delay).await;
        self.server.stop.shutdown.cancel();
        _ = self.accept.await;
        if let Some(accept) = self.accept_rooms {
            _ = accept.await;
        }
        app.drain.end();
        app.tasks.close();
        let second = Duration::from_secs(1);
        let ended = async {
            while app.metrics.open_streams() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // One more second for the last streams to end, and for closing handshakes.
        _ = timeout(config.drain_window + second, ended).await;
        // What remains are idle keep-alive connections, and clients that do not read.
        self.server.stop.closing.cancel();
        if timeout(second, app.tasks.wait()).await.is_err() {
            self.server.connections.cut_all("drain");
        }
        let all = timeout(second, app.tasks.wait()).await.is_ok();
        tracing::info!(all, "drained");
        drop(self.reading);
        self.reader.await.context("the Kafka reader failed")?
    }
}

/// Waits for a task, if there is one.
async fn ended(task: &mut Option<JoinHandle<()>>) -> Result<(), JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

/// The topic of each window's results, which is read into rooms.
struct Results {
    rooms: Arc<Rooms>,
    window: usize,
    topic: Arc<Topic>,
}

fn results(config: &Config, topics: &[Arc<Topic>], rooms: Option<&Arc<Rooms>>) -> Vec<Results> {
    let Some(rooms) = rooms else {
        return Vec::new();
    };
    let names = config.rooms.topics().into_iter().enumerate();
    let results = names.map(|(window, name)| {
        let topic = topics.iter().find(|topic| topic.name == name.0);
        Results {
            rooms: rooms.clone(),
            window,
            topic: topic.expect("the topics of results are served").clone(),
        }
    });
    results.collect()
}

/// Keeps the latest records of each topic's keys, once a client wants them, and the last results of rooms.
fn keep(
    topics: &[Arc<Topic>],
    results: Vec<Results>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let mut tasks = JoinSet::new();
    for topic in topics {
        let topic = topic.clone();
        tasks.spawn(async move { topic.latest.run(topic.clone()).await });
    }
    for results in results {
        tasks.spawn(rooms::run(results.rooms, results.window, results.topic));
    }
    async move {
        let ended = stop.run_until_cancelled(tasks.join_next()).await;
        if let Some(Some(Err(panicked))) = ended {
            // The process ends with the same reason.
            std::panic::resume_unwind(panicked.into_panic());
        }
    }
}

/// A topic that still cannot be read after this time does not block the others from being served.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);

/// What must be read before the process is ready: a topic into its ring, and if it has results, into rooms too.
struct Required<'a> {
    topic: &'a Topic,
    results: Option<&'a Results>,
}

impl Required<'_> {
    fn is_read(&self) -> bool {
        let live = |results: &Results| results.rooms.is_live(results.window);
        self.topic.feed.is_filled() && self.results.is_none_or(live)
    }

    /// Why it cannot be read now, if that is known.
    fn problem(&self) -> Option<String> {
        let of_rooms = || {
            let results = self.results?;
            results.rooms.problem(results.window)
        };
        self.topic.problem().map(str::to_owned).or_else(of_rooms)
    }
}

/// Reports ready once every topic has been read up to the end that it had at startup, and every topic of results into rooms, or
/// once some have and every other has a known problem.
///
/// After that, the readiness lists the topics that cannot be read.
async fn watch_topics(
    topics: Vec<Arc<Topic>>,
    results: Vec<Results>,
    readiness: Readiness,
    startup_timeout: Duration,
) {
    let begun = Instant::now();
    let required = topics.iter().filter(|topic| !topic.optional);
    let required: Vec<_> = required
        .map(|topic| Required {
            topic,
            results: (results.iter()).find(|results| results.topic.name == topic.name),
        })
        .collect();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tick.tick().await;
        let (read, missing): (Vec<&Required>, Vec<_>) =
            required.iter().partition(|required| required.is_read());
        let known = missing.iter().all(|missing| missing.problem().is_some());
        if missing.is_empty() || (!read.is_empty() && known && begun.elapsed() > startup_timeout) {
            let missing: Vec<_> = missing.iter().map(|missing| &missing.topic.name).collect();
            tracing::info!(?missing, "caught up with Kafka; ready");
            readiness.ready();
            break;
        }
        if let Some((topic, problem)) = missing
            .iter()
            .find_map(|missing| Some((missing.topic, missing.problem()?)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_means_that_the_rooms_receive_results_unless_they_have_a_known_problem() {
        let args = [
            "consumer",
            "--kafka-bootstrap-servers",
            "127.0.0.1:1",
            "--rooms",
        ];
        let config: Config = herald_runtime::config::parse_from(&args).unwrap();
        let metrics = Metrics::new().unwrap();
        let topics = Reader::new(&config, metrics.clone()).unwrap().topics();
        let new_rooms = || Arc::new(Rooms::new(["one", "five", "ten"], 1, metrics.clone()));
        for problem in [None, Some("it cannot be read")] {
            let (rooms, readiness) = (new_rooms(), Readiness::new());
            let results = results(&config, &topics, Some(&rooms));
            let watching = watch_topics(topics.clone(), results, readiness.clone(), Duration::ZERO);
            let _watching = tokio::spawn(watching);
            for topic in topics.iter().filter(|topic| !topic.feed.is_filled()) {
                topic.feed.fill(Default::default());
            }
            rooms.caught_up(0);
            rooms.caught_up(2);
            let early = timeout(Duration::from_millis(300), readiness.became_ready());
            assert!(early.await.is_err(), "a window's rooms are not live");
            match problem {
                None => rooms.caught_up(1),
                problem => rooms.set_problem(1, problem),
            }
            let ready = timeout(Duration::from_secs(10), readiness.became_ready());
            assert!(ready.await.is_ok(), "{problem:?}");
        }
    }

    #[tokio::test]
    async fn the_service_ends_with_a_reason_when_a_task_that_it_needs_ends() {
        type Task = fn(&Consumer) -> tokio::task::AbortHandle;
        let tasks: [(&str, Task); 5] = [
            ("the reader of whole topics", |consumer| {
                consumer.keeping.abort_handle()
            }),
            ("the Kafka reader", |consumer| {
                consumer.reader.abort_handle()
            }),
            ("the topic watcher", |consumer| {
                consumer.watching.abort_handle()
            }),
            ("the admin server", |consumer| consumer.admin.abort_handle()),
            ("the accept loop", |consumer| consumer.accept.abort_handle()),
        ];
        for (name, task) in tasks {
            let args = ["consumer", "--kafka-bootstrap-servers", "127.0.0.1:1"];
            let config: Config = herald_runtime::config::parse_from(&args).unwrap();
            let listen = || TcpListener::bind("127.0.0.1:0");
            let listeners = Listeners {
                public: listen().await.unwrap(),
                rooms: None,
                admin: listen().await.unwrap(),
            };
            let mut consumer = Consumer::start(config, listeners).unwrap();
            let running = timeout(Duration::from_millis(100), consumer.failed()).await;
            assert!(running.is_err(), "{name}: {running:?}");
            task(&consumer).abort();
            let reason = timeout(Duration::from_secs(5), consumer.failed()).await;
            let reason = reason.expect("it is noticed").to_string();
            assert_eq!(reason, format!("{name} failed"));
        }
    }
}
