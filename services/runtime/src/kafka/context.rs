//! The context of every Kafka client: forwards librdkafka's log to tracing, and turns its statistics into a [`Source`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::util::Timeout;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::certificate;
use super::remedy::remedy;
use super::source::{HealthTracker, Source, Statistics, is_healthy};

/// Facilities of librdkafka's log that are only logged at debug level. FAIL and ERROR are also passed to `error`, which reports
/// each kind once; GETPID and METADATAUPDATE are errors of a starting broker, which librdkafka retries.
const DEBUG_ONLY: [&str; 4] = ["FAIL", "ERROR", "GETPID", "METADATAUPDATE"];

/// Logged at each attempt, in addition to the error that the broker then returns.
const REPEATED: &str = "not sending any client certificates";

/// The context of a consumer, a producer or an admin client. Its clones share one [`Source`], so keep one and give the
/// other to the client.
#[derive(Clone, Debug)]
pub struct Context(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: watch::Sender<Source>,
    tracker: Mutex<HealthTracker>,
    /// The errors reported since Kafka was last available. Each kind is reported once; librdkafka repeats them for every broker,
    /// address and attempt.
    reported: Mutex<Vec<Kind>>,
}

/// A kind of error, with its remedy: a server that was away may be one that rejects the certificate later, with the same code.
type Kind = (RDKafkaErrorCode, Option<&'static str>);

impl Context {
    /// For one client.
    pub fn new() -> Context {
        Context(Arc::new(Shared {
            source: watch::Sender::new(Source::Unknown),
            tracker: Mutex::new(HealthTracker::new()),
            reported: Mutex::new(Vec::new()),
        }))
    }

    /// Watches whether Kafka is available to the client.
    pub fn source(&self) -> watch::Receiver<Source> {
        self.0.source.subscribe()
    }

    /// Records the health according to the latest statistics.
    pub fn observe(&self, healthy: bool) {
        let next = lock(&self.0.tracker).observe(healthy, SystemTime::now());
        let before = *self.0.source.borrow();
        let mut reported = lock(&self.0.reported);
        match (before, next) {
            (Source::Down { .. }, Source::Up) => info!("kafka answers again"),
            (Source::Unknown | Source::Up, Source::Down { .. }) if reported.is_empty() => {
                warn!("kafka does not answer for the topics of this client");
            }
            _ => {}
        }
        if healthy {
            reported.clear();
        }
        if next != before {
            self.0.source.send_replace(next);
        }
    }

    /// Whether this kind of error is new since Kafka was last available.
    fn is_new(&self, kind: Kind) -> bool {
        let mut reported = lock(&self.0.reported);
        let is_new = !reported.contains(&kind);
        if is_new {
            reported.push(kind);
        }
        is_new
    }
}

impl Default for Context {
    fn default() -> Context {
        Context::new()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
        match level {
            _ if DEBUG_ONLY.contains(&fac) || message.contains(REPEATED) => {
                debug!(target: "librdkafka", fac, "{message}")
            }
            Emerg | Alert | Critical | Error => error!(target: "librdkafka", fac, "{message}"),
            Warning => warn!(target: "librdkafka", fac, "{message}"),
            // librdkafka logs every disconnection at this level.
            Notice | Info | Debug => debug!(target: "librdkafka", fac, "{message}"),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) => self.observe(is_healthy(&statistics)),
            Err(error) => warn!(%error, "cannot read librdkafka's statistics"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else {
            warn!(target: "librdkafka", %error, "{reason}");
            return;
        };
        if !is_about_connection(code) {
            // An error of a partition is also returned by `poll`, where the partition is known.
            debug!(target: "librdkafka", "{reason}");
        } else if code == RDKafkaErrorCode::AllBrokersDown {
            lock(&self.0.tracker).suspect(SystemTime::now());
            debug!(target: "librdkafka", "{reason}");
        } else if code == RDKafkaErrorCode::Fatal {
            error!(target: "librdkafka", "{reason}");
        } else if self.is_new((code, remedy(reason))) {
            report(reason);
        } else {
            debug!(target: "librdkafka", "{reason}");
        }
    }
}

impl ConsumerContext for Context {
    /// The interval at which a blocking `poll` checks the queue of statistics and errors.
    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(250))
    }
}

/// Logs why there is no connection, and what to do.
fn report(reason: &str) {
    if certificate::is_rejected(reason) {
        let reason = reason.to_owned();
        // It connects once more, which must not block the client.
        let look = move || {
            let problem = certificate::problem(&reason);
            warn!(reason, "no connection to kafka: {problem}");
        };
        let thread = std::thread::Builder::new().name("certificate".to_owned());
        if let Err(error) = thread.spawn(look) {
            warn!(%error, "no connection to kafka: {}", certificate::UNKNOWN);
        }
        return;
    }
    match remedy(reason) {
        Some(remedy) => warn!(reason, "no connection to kafka: {remedy}"),
        None => warn!(
            reason,
            "no connection to kafka; retrying until there is one"
        ),
    }
}

/// Whether an error concerns the client as a whole, rather than one topic or partition.
fn is_about_connection(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    !matches!(
        code,
        Code::PartitionEOF
            | Code::AutoOffsetReset
            | Code::OffsetOutOfRange
            | Code::TopicAuthorizationFailed
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicOrPartition
            | Code::BadMessage
            | Code::BadCompression
            | Code::InvalidMessage
            | Code::NotImplemented
            | Code::MessageSizeTooLarge
    )
}

/// None of the locks here protects an invariant that a panic could break.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::FutureProducer;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn client(address: &str) -> (watch::Receiver<Source>, FutureProducer<Context>) {
        let context = Context::new();
        let source = context.source();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", address)
            .set("statistics.interval.ms", "1000");
        (source, config.create_with_context(context).unwrap())
    }

    async fn becomes(source: &mut watch::Receiver<Source>, expected: impl Fn(&Source) -> bool) {
        timeout(DEADLINE, source.wait_for(expected))
            .await
            .expect("it becomes so in time")
            .unwrap();
    }

    #[tokio::test]
    async fn the_loss_and_the_return_of_a_broker_are_detected() {
        let cluster = MockCluster::new(1).unwrap();
        let (mut source, _client) = client(&cluster.bootstrap_servers());
        assert_eq!(*source.borrow(), Source::Unknown);
        becomes(&mut source, |source| *source == Source::Up).await;
        cluster.broker_down(-1).unwrap();
        becomes(&mut source, |source| matches!(source, Source::Down { .. })).await;
        cluster.broker_up(-1).unwrap();
        becomes(&mut source, |source| *source == Source::Up).await;
    }

    #[tokio::test]
    async fn a_broker_that_was_never_reachable_is_down() {
        let (mut source, _client) = client("127.0.0.1:9");
        becomes(&mut source, |source| *source != Source::Unknown).await;
        assert!(matches!(*source.borrow(), Source::Down { .. }));
    }
}
