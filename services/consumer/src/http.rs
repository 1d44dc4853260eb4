//! Every address on one screen, and what every request passes first.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use herald_runtime::http::{Connection, REQUEST_ID, RequestId, failure};
use http_body_util::Either;
use hyper::body::{Body, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ALLOW,
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response as HttpResponse, StatusCode};
use serde_json::json;
use tower::{BoxError, Layer as _, Service, ServiceExt as _};
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::app::App;
use crate::query::StreamQuery;
use crate::stream::End;
use crate::transports::{history, socketio, sse, websocket};

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

const UNREADABLE_QUERY: &str =
    "the query cannot be read; give each parameter once, percent-encoded";

/// The addresses, without `/socket.io/`, which the layer around them answers.
fn routes(app: Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let app = warp::any().map(move || app.clone());
    // A HEAD is answered as a GET, and hyper leaves the body out.
    let read = || warp::get().or(warp::head()).unify();
    let headers = warp::header::headers_cloned;
    let connection = || warp::ext::optional::<Arc<Connection>>();

    let events = warp::path!("events")
        .and(read())
        .and(app.clone())
        .and(warp::query::<StreamQuery>())
        .and(headers())
        .and(connection())
        .map(
            |app: Arc<App>, query: StreamQuery, headers: HeaderMap, connection| {
                sse::answer(&app, &query, &headers, connection)
            },
        );
    // What is wrong with the query is said over the socket: a browser shows no page the status of a handshake.
    let raw_query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let ws = warp::path!("ws")
        .and(warp::get())
        .and(app.clone())
        .and(raw_query)
        .and(headers())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(connection())
        .and(warp::ext::optional::<Rejected>())
        .map(
            |app: Arc<App>,
             query: String,
             headers: HeaderMap,
             upgrade,
             connection,
             rejected: Option<Rejected>| {
                let query = serde_urlencoded::from_str::<StreamQuery>(&query);
                let invalid = query
                    .is_err()
                    .then(|| End::Invalid(UNREADABLE_QUERY.to_owned()));
                let rejected = rejected.map(|rejected| rejected.0).or(invalid);
                let query = query.unwrap_or_default();
                websocket::answer(&app, &query, &headers, upgrade, connection, rejected)
            },
        );
    let messages = warp::path!("messages")
        .and(read())
        .and(app.clone())
        .and(warp::query::<history::PageQuery>())
        .and(headers())
        .then(|app: Arc<App>, query, headers: HeaderMap| async move {
            history::answer(&app, query, &headers).await
        });
    let config = warp::path!("config")
        .and(read())
        .and(app)
        .and(headers())
        .map(|app: Arc<App>, headers: HeaderMap| config(&app, &headers));
    // The address first: an unknown one is not found, whatever the method.
    let files = warp::path::tail()
        .and_then(async |tail: warp::path::Tail| file(tail.as_str()))
        .and(read())
        .map(|response: Response| response);

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

fn config(app: &App, headers: &HeaderMap) -> Response {
    let topics: Vec<&str> = app
        .readable(headers)
        .map(|topic| topic.name.as_str())
        .collect();
    let config = json!({
        "topic": topics.first(),
        "topics": topics,
        "header": app.custom_header,
        "environment": topics.first().map(|topic| herald_runtime::environment_name(topic)),
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
        let sentence = "this endpoint only supports GET";
        let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, sentence);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    } else if rejection.find::<warp::reject::InvalidQuery>().is_some() {
        failure(StatusCode::BAD_REQUEST, UNREADABLE_QUERY)
    } else {
        tracing::error!(?rejection, "a request was not understood");
        failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this should not have happened; the log says more",
        )
    })
}

/// Set on a request that its transport rejects.
#[derive(Clone)]
struct Rejected(End);

/// Everything that is served: the addresses, and Socket.IO around them.
pub fn service(
    app: Arc<App>,
) -> impl Service<
    Request<Incoming>,
    Response = HttpResponse<impl Body<Data = Bytes, Error: Into<BoxError>>>,
    Error = Infallible,
    Future: Send,
> + Clone {
    socketio::layer(app.clone()).layer(warp::service(routes(app)))
}

/// Answers a request: first whether this page may ask at all, then whether there is room, then the endpoint.
pub async fn answer<S, B>(
    app: Arc<App>,
    service: S,
    mut request: Request<Incoming>,
) -> Result<HttpResponse<impl Body<Data = Bytes, Error: Into<BoxError>>>, Infallible>
where
    S: Service<Request<Incoming>, Response = HttpResponse<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let allow = app.origins.allow_header(request.headers());
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let is_socketio = socketio::is_path(&path);
    let in_session = is_socketio && socketio::session(&request).is_some();
    let mut response = match reject(&app, &mut request) {
        Some(response) => response.map(Either::Right),
        None if is_socketio => match socketio::answer(&app, service, request).await? {
            Ok(response) => response.map(Either::Left),
            Err(response) => response.map(Either::Right),
        },
        None => service.oneshot(request).await?.map(Either::Left),
    };
    let status = response.status();
    let goes_on =
        status == StatusCode::SWITCHING_PROTOCOLS || in_session && status == StatusCode::OK;
    let (request_id, status) = (id.as_str(), status.as_u16());
    tracing::debug!(request_id, %method, path, status, "request");
    let headers = response.headers_mut();
    // A client that is asked to connect again before the connection ends loses no request. (A session that polls ends with its
    // `bye`, over the connection that it has.)
    if app.drain.is_refusing() && !goes_on {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(REQUEST_ID, id.0);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.append(VARY, HeaderValue::from_static("origin"));
    if let Some(allow) = allow {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allow);
        let exposed = HeaderValue::from_static("date, retry-after, x-request-id");
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    Ok(response)
}

/// The answer to a request that no endpoint is to take. An `EventSource` and a WebSocket are rejected by their own transport.
fn reject(app: &App, request: &mut Request<Incoming>) -> Option<Response> {
    if !app.hosts.contain(request.headers().get(HOST)) {
        let sentence =
            "this server does not answer to this name; --allowed-hosts names those that it does";
        return Some(failure(StatusCode::MISDIRECTED_REQUEST, sentence));
    }
    if let Err(sentence) = app.origins.check(request.headers()) {
        return Some(failure(StatusCode::FORBIDDEN, &sentence));
    }
    if request.method() == Method::OPTIONS {
        return Some(preflight(request.headers()));
    }
    let connection = request.extensions().get::<Arc<Connection>>();
    let overload = connection.is_some_and(|connection| connection.overload);
    let end = if overload {
        Some(End::Overload)
    } else if app.drain.is_refusing() {
        Some(End::Drain)
    } else {
        None
    };
    let path = request.uri().path();
    if socketio::is_path(path) {
        return socketio::reject(app, request, end);
    }
    let end = end?;
    match path {
        "/events" => {
            app.server_metrics.rejected(end.reason());
            Some(sse::reject(&end))
        }
        "/ws" => {
            app.server_metrics.rejected(end.reason());
            request.extensions_mut().insert(Rejected(end));
            None
        }
        // While it drains, a replica still answers what it can answer at once.
        _ if end == End::Drain => None,
        _ => Some(app.refusal(&end)),
    }
}

/// The browser asks before a page of a listed origin sends headers of its own: all of them are allowed.
fn preflight(request: &HeaderMap) -> Response {
    let mut response =
        warp::reply::with_status(warp::reply(), StatusCode::NO_CONTENT).into_response();
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, POST"),
    );
    if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
    headers.append(
        VARY,
        HeaderValue::from_static("access-control-request-headers"),
    );
    response
}
