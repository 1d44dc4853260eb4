//! Every address on one screen, and what every request passes first.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::{Body, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ALLOW, CONNECTION,
};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    UPGRADE, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response as HttpResponse, StatusCode};
use serde_json::json;
use tokio_util::task::TaskTracker;
use tower::{BoxError, Layer as _, Service, ServiceExt as _};
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::access::{Origins, Permit};
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::server::Connection;
use crate::socketio::{self, Sessions};
use crate::start::Asked;
use crate::stream::{End, Topic};
use crate::{history, sse, websocket};

/// What the doors share.
pub struct App {
    /// The first is the default.
    pub topics: Vec<Arc<Topic>>,
    pub custom_header: String,
    pub origins: Origins,
    pub drain: Drain,
    pub metrics: Metrics,
    /// Streams that Socket.IO may open, whatever the connections they share.
    pub max_connections: usize,
    pub sessions: Sessions,
    /// Streams that outlive their request.
    pub tasks: TaskTracker,
}

impl App {
    /// The topic of this name, or the default.
    ///
    /// # Errors
    ///
    /// One sentence that names those that are served.
    pub fn topic(&self, name: Option<&str>) -> Result<Arc<Topic>, String> {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(self.topics[0].clone());
        };
        self.topics
            .iter()
            .find(|topic| topic.name == name)
            .cloned()
            .ok_or_else(|| {
                let names: Vec<&str> = self
                    .topics
                    .iter()
                    .map(|topic| topic.name.as_str())
                    .collect();
                format!(
                    "topic {name:?} is not served here; these are: {}",
                    names.join(", ")
                )
            })
    }
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The page's files, from the binary.
const FILES: &[(&str, &str, &str)] = &[
    (
        "",
        "text/html; charset=utf-8",
        include_str!("page/index.html"),
    ),
    (
        "page.css",
        "text/css; charset=utf-8",
        include_str!("page/page.css"),
    ),
    ("page.js", JAVASCRIPT, include_str!("page/page.js")),
    ("client.js", JAVASCRIPT, include_str!("page/client.js")),
    ("link.js", JAVASCRIPT, include_str!("page/link.js")),
    ("worker.js", JAVASCRIPT, include_str!("page/worker.js")),
    ("list.js", JAVASCRIPT, include_str!("page/list.js")),
    ("chart.js", JAVASCRIPT, include_str!("page/chart.js")),
    ("words.js", JAVASCRIPT, include_str!("page/words.js")),
    (
        "openapi.json",
        "application/json",
        include_str!("openapi.json"),
    ),
];

/// Scripts, styles and connections of our own origin and nothing else, so that a message can never become code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The addresses, without `/socket.io/`, which the layer around them answers.
fn routes(app: Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let app = warp::any().map(move || app.clone());
    let asked = || {
        warp::query::<Asked>()
            .and(warp::header::headers_cloned())
            .and(warp::ext::get::<Permit>())
    };
    let connection = || warp::ext::optional::<Arc<Connection>>();

    let events = warp::path!("events")
        .and(warp::get())
        .and(app.clone())
        .and(asked())
        .and(connection())
        .map(
            |app: Arc<App>, asked: Asked, headers: HeaderMap, permit, connection| {
                sse::answer(&app, &asked, &headers, permit, connection)
            },
        );
    let ws = warp::path!("ws")
        .and(warp::get())
        .and(app.clone())
        .and(asked())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(connection())
        .and(warp::ext::optional::<TurnedAway>())
        .map(
            |app: Arc<App>,
             asked: Asked,
             headers: HeaderMap,
             permit,
             upgrade,
             connection,
             away: Option<TurnedAway>| {
                websocket::answer(
                    &app,
                    &asked,
                    &headers,
                    permit,
                    upgrade,
                    connection,
                    away.map(|away| away.0),
                )
            },
        );
    let messages = warp::path!("messages")
        .and(warp::get())
        .and(app.clone())
        .and(warp::query::<history::Asked>())
        .then(|app: Arc<App>, asked| async move { history::answer(&app, asked).await });
    let config = warp::path!("config")
        .and(warp::get())
        .and(app)
        .map(|app: Arc<App>| config(&app));
    let files = warp::path::tail()
        .and(warp::get().or(warp::head()).unify())
        .and_then(async |tail: warp::path::Tail| file(tail.as_str()));

    events
        .or(ws)
        .unify()
        .or(messages)
        .unify()
        .or(config)
        .unify()
        .or(files)
        .unify()
        .recover(explain)
        .unify()
}

fn config(app: &App) -> Response {
    let topics: Vec<&str> = app.topics.iter().map(|topic| topic.name.as_str()).collect();
    let config = json!({
        "topic": topics[0],
        "topics": topics,
        "header": app.custom_header,
        "environment": herald_runtime::environment_name(topics[0]),
    });
    warp::reply::with_header(warp::reply::json(&config), CACHE_CONTROL, "no-store").into_response()
}

fn file(path: &str) -> Result<Response, Rejection> {
    let &(_, kind, text) = FILES
        .iter()
        .find(|(name, ..)| *name == path)
        .ok_or_else(warp::reject::not_found)?;
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    // The files change with the binary, and nothing in their names would tell.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// What no address answers, in one sentence.
async fn explain(rejection: Rejection) -> Result<Response, Infallible> {
    Ok(if rejection.is_not_found() {
        failure(
            StatusCode::NOT_FOUND,
            "there is nothing at this address; /openapi.json lists what there is",
        )
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        let sentence = "this address is only read (GET)";
        let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, sentence);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        response
    } else if rejection.find::<warp::reject::InvalidQuery>().is_some() {
        failure(
            StatusCode::BAD_REQUEST,
            "the query cannot be read; give each parameter once, percent-encoded",
        )
    } else {
        tracing::error!(?rejection, "a request was not understood");
        failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this should not have happened; the log says more",
        )
    })
}

/// `{"error": "<sentence>"}` with a status.
pub fn failure(status: StatusCode, sentence: &str) -> Response {
    warp::reply::with_status(warp::reply::json(&json!({ "error": sentence })), status)
        .into_response()
}

/// Set on a request that is to hear why it is not served.
#[derive(Clone)]
struct TurnedAway(End);

/// All doors: the addresses, and Socket.IO around them.
pub fn doors(
    app: Arc<App>,
) -> impl Service<
    Request<Incoming>,
    Response = HttpResponse<impl Body<Data = Bytes, Error: Into<BoxError>>>,
    Error = Infallible,
    Future: Send,
> + Clone {
    socketio::layer(app.clone()).layer(warp::service(routes(app)))
}

/// Answers a request: first whether this page may read at all, then whether there is room, then the door.
pub async fn answer<S, B>(
    app: Arc<App>,
    doors: S,
    mut request: Request<Incoming>,
) -> Result<HttpResponse<impl Body<Data = Bytes, Error: Into<BoxError>>>, Infallible>
where
    S: Service<Request<Incoming>, Response = HttpResponse<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let allow = app.origins.allow_header(request.headers());
    let mut response = match app.origins.may_read(request.headers()) {
        Err(sentence) => failure(StatusCode::FORBIDDEN, &sentence).map(Either::Right),
        Ok(_) if request.method() == Method::OPTIONS => preflight().map(Either::Right),
        Ok(permit) => {
            request.extensions_mut().insert(permit);
            match turn_away(&app, &mut request) {
                Some(response) => response.map(Either::Right),
                None => {
                    let sid = session(&request);
                    let polls = is_poll(&request);
                    let connection = request.extensions().get::<Arc<Connection>>().cloned();
                    if is_socketio(request.uri().path()) {
                        detach(&mut request);
                    }
                    let over = async {
                        match &sid {
                            Some(sid) if polls => app.sessions.poll_is_over(sid).await,
                            _ => std::future::pending().await,
                        }
                    };
                    let response = tokio::select! {
                        biased;
                        response = doors.oneshot(request) => response?.map(Either::Left),
                        () = over => unknown_session().map(Either::Right),
                    };
                    match (sid, connection) {
                        (Some(sid), Some(connection))
                            if response.status() == StatusCode::SWITCHING_PROTOCOLS =>
                        {
                            app.sessions.upgraded(&sid, &connection);
                        }
                        (Some(sid), _) if polls => app.sessions.polled(&sid),
                        _ => {}
                    }
                    response
                }
            }
        }
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.append(VARY, HeaderValue::from_static("origin"));
    if let Some(allow) = allow {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allow);
    }
    Ok(response)
}

/// Copies the head of a request. Socket.IO keeps it with the session, and as hyper gives it, it holds the buffer it was read into.
fn detach(request: &mut Request<Incoming>) {
    let mut headers = HeaderMap::with_capacity(request.headers().len());
    for (name, value) in request.headers() {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).expect("it was one");
        headers.append(
            name,
            HeaderValue::from_bytes(value.as_bytes()).expect("it was one"),
        );
    }
    *request.headers_mut() = headers;
    let uri = request.uri().to_string();
    *request.uri_mut() = uri.parse().expect("it was one");
}

/// Whether a request of Socket.IO asks for what there is, rather than brings something or goes on as a WebSocket.
fn is_poll(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET && !request.headers().contains_key(UPGRADE)
}

/// Engine.IO's own answer to a session it does not know; the client then opens a new one.
fn unknown_session() -> Response {
    warp::reply::with_status(
        warp::reply::json(&json!({ "code": 1, "message": "Session ID unknown" })),
        StatusCode::BAD_REQUEST,
    )
    .into_response()
}

/// The answer to a request that no door is to take. An `EventSource` and a WebSocket hear the reason from their own door.
fn turn_away(app: &App, request: &mut Request<Incoming>) -> Option<Response> {
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let path = request.uri().path();
    let overload = connection
        .as_ref()
        .is_some_and(|connection| connection.overload);
    let end = if overload {
        Some(End::Overload)
    } else if app.drain.is_refusing() {
        Some(End::Drain)
    } else {
        None
    };
    if is_socketio(path) {
        return match (session(request), end) {
            // A poll may still carry the `bye`.
            (Some(sid), _) if !is_poll(request) && app.sessions.has_ended(&sid) => {
                Some(unknown_session())
            }
            (Some(_), _) => None,
            (None, end) => end.map(|end| refusal(app, &end)),
        };
    }
    let end = end?;
    match path {
        "/events" => {
            app.metrics.refused(end.reason());
            Some(sse::turn_away(&end))
        }
        "/ws" => {
            app.metrics.refused(end.reason());
            request.extensions_mut().insert(TurnedAway(end));
            None
        }
        // While it leaves, a replica still answers what it can answer at once.
        _ if end == End::Drain => None,
        _ => Some(refusal(app, &end)),
    }
}

fn is_socketio(path: &str) -> bool {
    path.strip_prefix(socketio::PATH)
        .is_some_and(|rest| rest.is_empty() || rest == "/")
}

/// The Engine.IO session that a request belongs to.
fn session(request: &Request<Incoming>) -> Option<String> {
    let query = request
        .uri()
        .query()
        .filter(|_| is_socketio(request.uri().path()))?;
    let query: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
    query
        .into_iter()
        .find(|(name, _)| name == "sid")
        .map(|(_, sid)| sid)
}

fn refusal(app: &App, end: &End) -> Response {
    app.metrics.refused(end.reason());
    let sentence = match end {
        End::Overload => "this replica is full; come back in a moment",
        _ => "this replica is leaving; come back in a moment",
    };
    let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, sentence);
    response.headers_mut().insert(RETRY_AFTER, 2.into());
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn preflight() -> Response {
    let mut response =
        warp::reply::with_status(warp::reply(), StatusCode::NO_CONTENT).into_response();
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST"),
    );
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("last-event-id, authorization, content-type"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
    response
}
