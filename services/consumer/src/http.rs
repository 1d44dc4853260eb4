//! The routes, and the checks that every request passes first.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use herald_runtime::http::{Caller, Connection, PathPrefix, RequestId, TICKETS, cors, failure};
use http_body_util::Either;
use hyper::body::{Body, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue,
};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Request, Response as HttpResponse, StatusCode};
use serde_json::json;
use tower::{BoxError, Layer as _, Service, ServiceExt as _};
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::app::App;
use crate::query::{StreamQuery, UNREADABLE_QUERY};
use crate::stream::End;
use crate::transports::{history, socketio, sse, websocket};

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The page's files, embedded in the binary.
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

/// Scripts, styles and connections of our own origin and nothing else, so that a message can never become code; and the script in
/// index.html, by its hash.
const POLICY: &str = "default-src 'none'; script-src 'self' 'sha256-aeYx85mVCNrXH5e4wvlGrh2WclmPOJlfFHEvtnE/2ls='; \
                      style-src 'self'; connect-src 'self'; img-src 'self' data:; worker-src 'self'; base-uri 'none'; form-action 'none'";

/// The routes, without `/socket.io/`, which the layer around them serves.
fn routes(app: Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let prefix = app.path_prefix.clone();
    let app = warp::any().map(move || app.clone());
    // A HEAD is answered like a GET; hyper omits the body.
    let read = || warp::get().or(warp::head()).unify();
    let headers = warp::header::headers_cloned;
    let caller = || warp::ext::get::<Caller>();
    let connection = || warp::ext::optional::<Arc<Connection>>();

    let query = || warp::query::raw().or(warp::any().map(String::new)).unify();

    let events = warp::path!("events")
        .and(read())
        .and(app.clone())
        .and(query())
        .and(headers())
        .and(caller())
        .and(connection())
        .map(
            |app: Arc<App>, query: String, headers, caller, connection| match StreamQuery::parse(
                &query,
            ) {
                Some(query) => sse::answer(&app, &query, &headers, &caller, connection),
                None => failure(StatusCode::BAD_REQUEST, UNREADABLE_QUERY),
            },
        );
    // An invalid query is reported over the socket: browsers hide the status of a failed handshake from the page.
    let ws = warp::path!("ws")
        .and(warp::get())
        .and(app.clone())
        .and(query())
        .and(headers())
        .and(caller())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(connection())
        .and(warp::ext::optional::<Rejected>())
        .map(
            |app: Arc<App>,
             query: String,
             headers: HeaderMap,
             caller: Caller,
             upgrade,
             connection,
             rejected: Option<Rejected>| {
                let query = StreamQuery::parse(&query);
                let invalid = query
                    .is_none()
                    .then(|| End::Invalid(UNREADABLE_QUERY.to_owned()));
                let rejected = rejected.map(|rejected| rejected.0).or(invalid);
                let query = query.unwrap_or_default();
                websocket::answer(
                    &app, &query, &headers, &caller, upgrade, connection, rejected,
                )
            },
        );
    let messages = warp::path!("messages")
        .and(read())
        .and(app.clone())
        .and(query())
        .and(headers())
        .and(caller())
        .then(
            |app: Arc<App>, query: String, headers: HeaderMap, caller: Caller| async move {
                match history::PageQuery::parse(&query) {
                    Some(query) => history::answer(&app, query, &headers, &caller).await,
                    None => failure(StatusCode::BAD_REQUEST, UNREADABLE_QUERY),
                }
            },
        );
    let config = warp::path!("config")
        .and(read())
        .and(app.clone())
        .and(headers())
        .and(caller())
        .map(|app: Arc<App>, headers: HeaderMap, caller: Caller| config(&app, &headers, &caller));
    // The path before the method: an unknown path is a 404, whatever the method.
    let files = warp::path::tail()
        .and(app)
        .and_then(async |tail: warp::path::Tail, app: Arc<App>| file(&app, tail.as_str()))
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
        .recover(move |rejection| explain(rejection, prefix.clone()))
        .unify()
}

fn config(app: &App, headers: &HeaderMap, caller: &Caller) -> Response {
    let principal = match app.principal(caller, headers) {
        Ok(principal) => principal,
        Err(error) => return error.response(),
    };
    let topics: Vec<&str> = app
        .readable(&principal)
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

fn file(app: &App, path: &str) -> Result<Response, Rejection> {
    let &(_, kind, text) = FILES
        .iter()
        .find(|(name, ..)| *name == path)
        .ok_or_else(warp::reject::not_found)?;
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_SECURITY_POLICY, app.frame_ancestors.policy(POLICY));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    // The files change with the binary, but their names stay the same.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// The error response of a request that no route answers.
async fn explain(rejection: Rejection, prefix: PathPrefix) -> Result<Response, Infallible> {
    Ok(if rejection.is_not_found() {
        let sentence =
            format!("there is nothing at this address; {prefix}/openapi.json lists the endpoints");
        failure(StatusCode::NOT_FOUND, &sentence)
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        let sentence = "this endpoint only supports GET";
        let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, sentence);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    } else {
        tracing::error!(?rejection, "unhandled rejection of a request");
        failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal error; see the server's log",
        )
    })
}

/// Set on a request that its transport rejects.
#[derive(Clone)]
struct Rejected(End);

/// Everything that is served: the routes, with the Socket.IO layer around them.
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

/// What is served at an address that has nothing but rooms.
pub fn rooms_service(
    app: Arc<App>,
) -> impl Service<
    Request<Incoming>,
    Response = HttpResponse<impl Body<Data = Bytes, Error: Into<BoxError>>>,
    Error = Infallible,
    Future: Send,
> + Clone {
    let nothing = warp::any().map(|| {
        let sentence = "there is nothing at this address; Socket.IO is at /socket.io/";
        failure(StatusCode::NOT_FOUND, sentence)
    });
    socketio::rooms_layer(app).layer(warp::service(nothing))
}

/// Answers a request: checks the origin, then the capacity, then calls the endpoint.
pub async fn answer<S, B>(
    app: Arc<App>,
    service: S,
    mut request: Request<Incoming>,
) -> Result<HttpResponse<impl Body<Data = Bytes, Error: Into<BoxError>>>, Infallible>
where
    S: Service<Request<Incoming>, Response = HttpResponse<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let allow = app.origins.allow(request.headers());
    let id = RequestId::of(request.headers());
    let caller = Caller::of(&request, &id, &app.trusted_proxies, &app.server_metrics);
    let extensions = request.extensions_mut();
    extensions.insert(id.clone());
    extensions.insert(caller.clone());
    let rejected = reject(&app, &caller, &mut request);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let is_socketio = socketio::is_path(&path);
    let in_session = is_socketio && socketio::session(&request).is_some();
    let mut response = match rejected {
        Some(response) => response.map(Either::Right),
        None if path == TICKETS => app.access.ticket(&caller, &request).map(Either::Right),
        None if is_socketio => match socketio::answer(&app, service, request).await? {
            Ok(response) => response.map(Either::Left),
            Err(response) => response.map(Either::Right),
        },
        None => service.oneshot(request).await?.map(Either::Left),
    };
    let status = response.status();
    let keeps_open =
        status == StatusCode::SWITCHING_PROTOCOLS || in_session && status == StatusCode::OK;
    let (request_id, status) = (id.as_str(), status.as_u16());
    tracing::debug!(request_id, %method, path, status, "request");
    let headers = response.headers_mut();
    // A client that must reconnect before its next request loses none. (A polling session ends with its `bye`, over its current
    // connection.)
    if app.drain.is_rejecting() && !keeps_open {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    cors::add_headers(headers, id, allow, "date, retry-after, x-request-id");
    Ok(response)
}

/// The response to a request that must not reach an endpoint. An `EventSource` and a WebSocket are rejected by their own
/// transport.
fn reject(app: &App, caller: &Caller, request: &mut Request<Incoming>) -> Option<Response> {
    if let Some(response) = cors::reject(&app.hosts, &app.origins, caller, request) {
        return Some(response);
    }
    if let Some(response) = app.path_prefix.strip(request) {
        return Some(response);
    }
    app.access.redeem(request);
    let connection = request.extensions().get::<Arc<Connection>>();
    let overload = connection.is_some_and(|connection| connection.overload);
    let end = if overload {
        Some(End::Overload)
    } else if app.drain.is_rejecting() {
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
        // While it drains, a replica still answers requests that take no time.
        _ if end == End::Drain => None,
        _ => Some(app.rejection(&end)),
    }
}
