//! The admin server, on its own port: liveness, readiness and metrics.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Maximum number of concurrent connections; more wait in the backlog. Probes and a scraper need a handful.
const CONNECTIONS: usize = 64;

/// The timeout of a connection, which carries one request and its response.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Whether a service is ready; shared by the service, which sets it, and the admin server, which reports it.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<State>>);

#[derive(Clone, Debug)]
struct State {
    /// Why it is not ready; `None` if it is, unless it waits for something.
    reason: Option<String>,
    /// What it waits for, by part.
    missing: BTreeMap<String, String>,
    /// It is draining, and never becomes ready again.
    draining: bool,
    /// Problems by part, which do not affect readiness.
    notes: BTreeMap<String, String>,
}

impl Readiness {
    /// Not ready: starting.
    pub fn new() -> Readiness {
        Readiness(Arc::new(watch::Sender::new(State {
            reason: Some("starting".to_owned()),
            missing: BTreeMap::new(),
            draining: false,
            notes: BTreeMap::new(),
        })))
    }

    /// Ready from now on, unless it drains.
    pub fn ready(&self) {
        self.set(None, false);
    }

    /// Not ready from now on; `/readyz` answers `reason`.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()), false);
    }

    /// Permanently not ready: the service drains.
    pub fn drain(&self) {
        self.set(Some("draining".to_owned()), true);
    }

    /// Sets or clears the problem of a part of the service. `/readyz` shows it and stays ready: the other parts work, and
    /// another replica would have the same problem.
    pub fn note(&self, part: &str, problem: Option<&str>) {
        self.0.send_if_modified(|state| match problem {
            Some(problem) => {
                state
                    .notes
                    .insert(part.to_owned(), problem.to_owned())
                    .as_deref()
                    != Some(problem)
            }
            None => state.notes.remove(part).is_some(),
        });
    }

    /// Sets or clears what a part of the service waits for: it is not ready before all parts have what they need.
    pub fn wait_for(&self, part: &str, missing: Option<&str>) {
        self.0.send_modify(|state| match missing {
            Some(missing) => _ = state.missing.insert(part.to_owned(), missing.to_owned()),
            None => _ = state.missing.remove(part),
        });
    }

    /// Whether it is ready now.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready()
    }

    /// Returns as soon as it is ready.
    pub async fn became_ready(&self) {
        // The sender lives in `self`, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(State::is_ready).await;
    }

    fn set(&self, reason: Option<String>, draining: bool) {
        self.0.send_if_modified(|state| {
            if state.draining {
                return false;
            }
            state.draining = draining;
            state.reason = reason;
            true
        });
    }

    /// The status and the body of `/readyz`.
    pub(crate) fn answer(&self) -> (StatusCode, String) {
        let state = self.0.borrow();
        let (status, first) = match &state.reason {
            _ if state.is_ready() => (StatusCode::OK, "ok"),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason.as_str()),
            None => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        };
        let problems = state.missing.iter().chain(&state.notes);
        let notes = problems
            .filter(|_| !state.draining)
            .map(|(part, problem)| format!("{part}: {problem}\n"));
        (status, format!("{first}\n{}", notes.collect::<String>()))
    }
}

impl State {
    fn is_ready(&self) -> bool {
        self.reason.is_none() && self.missing.is_empty()
    }
}

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness::new()
    }
}

/// Answers `/livez`, `/readyz` (200 `ok`, or 503 and the reason) and `/metrics` (the Prometheus text of `registry`) until
/// `shutdown` is cancelled. Cancel it last: readiness and metrics matter most while a service drains.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    registry: Registry,
    shutdown: CancellationToken,
) {
    let metrics = move || {
        let registry = registry.clone();
        async move { TextEncoder::new().encode_to_string(&registry.gather()) }
    };
    serve_metrics(listener, readiness, metrics, shutdown).await;
}

/// Like [`serve`], with metrics that are collected for each request.
pub async fn serve_metrics<M, F, E>(
    listener: TcpListener,
    readiness: Readiness,
    metrics: M,
    shutdown: CancellationToken,
) where
    M: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<String, E>> + Send,
    E: std::fmt::Display + Send,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = async {
            let permit = permits
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Usually out of file descriptors: accepting again immediately would only spin.
                debug!(%error, "cannot accept an admin connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (readiness, metrics, shutdown) = (readiness.clone(), metrics.clone(), shutdown.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, &readiness, &metrics));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 * 1024)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = tokio::time::timeout(CONNECTION_TIME, connection) => {
                    debug!(?ended, "admin connection");
                }
            }
            drop(permit);
        });
    }
}

async fn answer<M, F, E>(
    request: Request<Incoming>,
    readiness: &Readiness,
    metrics: &M,
) -> Result<Response<String>, Infallible>
where
    M: Fn() -> F,
    F: Future<Output = Result<String, E>>,
    E: std::fmt::Display,
{
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(
            StatusCode::METHOD_NOT_ALLOWED,
            "this server only supports GET\n",
        ));
    }
    Ok(match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let (status, body) = readiness.answer();
            text(status, body)
        }
        "/metrics" => match metrics().await {
            Ok(body) => {
                let mut response = Response::new(body);
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
                response
            }
            Err(error) => {
                warn!(%error, "cannot collect the metrics");
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "cannot collect the metrics; see the log\n",
                )
            }
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "not found; the endpoints are /livez, /readyz and /metrics\n",
        ),
    })
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<String> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use prometheus::IntCounter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn started() -> (
        SocketAddr,
        Readiness,
        Registry,
        CancellationToken,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = crate::listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let (readiness, registry, shutdown) =
            (Readiness::new(), Registry::new(), CancellationToken::new());
        let server = tokio::spawn(serve(
            listener,
            readiness.clone(),
            registry.clone(),
            shutdown.clone(),
        ));
        (addr, readiness, registry, shutdown, server)
    }

    #[tokio::test]
    async fn readiness_is_reported_with_its_reason() {
        let (addr, readiness, ..) = started().await;
        assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = get(addr, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("starting\n"),
            "{answer}"
        );
        readiness.ready();
        assert!(get(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        readiness.not_ready("draining");
        assert!(get(addr, "/readyz").await.ends_with("draining\n"));
    }

    #[tokio::test]
    async fn a_service_that_drains_is_never_ready_again() {
        let (addr, readiness, ..) = started().await;
        readiness.drain();
        readiness.ready();
        readiness.not_ready("starting");
        assert!(get(addr, "/readyz").await.ends_with("\r\n\r\ndraining\n"));
    }

    #[tokio::test]
    async fn a_problem_of_a_part_is_reported_and_the_service_stays_ready() {
        let (addr, readiness, ..) = started().await;
        readiness.ready();
        readiness.note("topic \"a\"", Some("it cannot be read"));
        let answer = get(addr, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.ends_with("ok\ntopic \"a\": it cannot be read\n"),
            "{answer}"
        );
        readiness.note("topic \"a\"", None);
        assert!(get(addr, "/readyz").await.ends_with("\r\n\r\nok\n"));
    }

    #[tokio::test]
    async fn a_service_whose_part_waits_for_something_is_not_ready() {
        let (addr, readiness, ..) = started().await;
        readiness.wait_for("keys", Some("the issuer does not answer"));
        readiness.ready();
        assert!(!readiness.is_ready());
        let answer = get(addr, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            answer.ends_with("starting\nkeys: the issuer does not answer\n"),
            "{answer}"
        );
        readiness.wait_for("keys", None);
        assert!(get(addr, "/readyz").await.ends_with("\r\n\r\nok\n"));
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text() {
        let (addr, _, registry, ..) = started().await;
        let counter = IntCounter::new("things_total", "Things.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc();
        let answer = get(addr, "/metrics").await;
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4"),
            "{answer}"
        );
        assert!(
            answer.contains("# HELP things_total Things.\n") && answer.contains("things_total 1\n"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn silent_connections_do_not_block_others_or_the_shutdown() {
        let (addr, _, _, shutdown, server) = started().await;
        let _silent: Vec<TcpStream> = {
            let mut streams = Vec::new();
            for _ in 0..CONNECTIONS / 2 {
                streams.push(TcpStream::connect(addr).await.unwrap());
            }
            streams
        };
        assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 200"));
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), server)
            .await
            .unwrap()
            .unwrap();
    }
}
