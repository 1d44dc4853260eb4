//! The routes, and the checks that every request passes first.

use std::convert::Infallible;
use std::str::Utf8Error;
use std::sync::Arc;

use herald_events::SessionId;
use herald_runtime::http::{Connection, RequestId, cors, failure, unavailable};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use tracing::Instrument as _;
use warp::Reply as _;
use warp::reply::Response;

use crate::App;
use crate::kafka::{Origin, traceparent};
use crate::rates::{Client, Kind};
use crate::{data, page, publish, websocket};

/// Answers one request, with its id. Every log line of it has the id, and that of its session.
pub async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response, Infallible> {
    let id = RequestId::of(request.headers());
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let session = query.as_ref().ok().and_then(|query| query.session().ok());
    // At the level of errors, so that it is there whichever lines are logged.
    let span = tracing::error_span!(
        "request",
        request_id = id.as_str(),
        session_id = session.as_ref().map(SessionId::as_str),
    );
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answered = async {
        let response = respond(app, request, query, id).await;
        let status = response.status().as_u16();
        tracing::debug!(%method, path, status, "request");
        response
    };
    Ok(answered.instrument(span).await)
}

async fn respond(
    app: Arc<App>,
    mut request: Request<Incoming>,
    query: Result<Query, Utf8Error>,
    id: RequestId,
) -> Response {
    let path = request.uri().path().to_owned();
    let allow = app.config.allowed_origins.allow_header(request.headers());
    let client = app.rates.client(&request);
    let kind = match path.as_str() {
        "/websocket" => Kind::Connections,
        _ => Kind::Requests,
    };
    let rejected = reject(&app, &request).or_else(|| app.rates.reject(&client, kind, 1));
    let mut response = match (rejected, query) {
        (Some(response), _) => response,
        (None, Err(_)) => text(StatusCode::BAD_REQUEST, "the query is not UTF-8".to_owned()),
        (None, Ok(query)) => match publish::topic(&path) {
            Some(topic) => publish::answer(&app, topic, request, &client, &id).await,
            None => route(&app, &mut request, &query, client, &id).await,
        },
    };
    let exposed = "date, etag, retry-after, x-request-id";
    cors::add_headers(response.headers_mut(), id, allow, exposed);
    response
}

/// The response to a request that must not reach an endpoint.
fn reject(app: &App, request: &Request<Incoming>) -> Option<Response> {
    if let Some(response) = cors::reject(
        &app.config.allowed_hosts,
        &app.config.allowed_origins,
        request,
    ) {
        return Some(response);
    }
    let connection = request.extensions().get::<Arc<Connection>>();
    if connection.is_some_and(|connection| connection.overload) {
        app.server_metrics.rejected("overload");
        return Some(unavailable(
            "this replica is full; try again in a moment",
            2,
        ));
    }
    if app.drain.is_rejecting() {
        app.server_metrics.rejected("drain");
        return Some(unavailable(
            "this replica is shutting down; try again in a moment",
            2,
        ));
    }
    None
}

async fn route(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
    query: &Query,
    client: Client,
    id: &RequestId,
) -> Response {
    if let Some(response) = page::file(request.method(), request.uri().path()) {
        return response;
    }
    if request.uri().path() == "/data" {
        let (method, headers) = (request.method(), request.headers());
        return data::answer(app, method, query, headers).await;
    }
    if request.uri().path() != "/websocket" {
        return failure(
            StatusCode::NOT_FOUND,
            "there is nothing at this address; /openapi.json lists the endpoints",
        );
    }
    if request.method() != Method::GET {
        return failure(StatusCode::METHOD_NOT_ALLOWED, "connect with GET");
    }
    let session = match query.session() {
        Ok(session) => session,
        Err(sentence) => return text(StatusCode::BAD_REQUEST, sentence),
    };
    let ack = query.get("ack").is_some_and(|value| value == "1");
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).cloned().filter(|_| {
        headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13")
    });
    let trace = headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    let origin = Origin {
        session,
        request_id: id.as_str().to_owned(),
        traceparent: trace.and_then(traceparent),
    };
    let upgrade = request.extensions_mut().remove();
    websocket::answer(app, origin, client, ack, key, upgrade)
}

/// The parameters of a request.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// # Errors
    ///
    /// If the query is not UTF-8: two different texts could then become the same.
    fn parse(text: &str) -> Result<Self, Utf8Error> {
        percent_decode_str(text).decode_utf8()?;
        Ok(Self(serde_urlencoded::from_str(text).unwrap_or_default()))
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut named = self.0.iter().filter(|(key, _)| key == name);
        named.next().map(|(_, value)| value.as_str())
    }

    /// # Errors
    ///
    /// If there is no valid `session_id`; the error is for the client.
    pub fn session(&self) -> Result<SessionId, String> {
        match self.get("session_id") {
            None | Some("") => Err("query is missing session_id".to_owned()),
            Some(id) => SessionId::new(id).map_err(|error| error.to_string()),
        }
    }
}

/// A text response, as the contract has it.
pub fn text(status: StatusCode, sentence: String) -> Response {
    let mut response = warp::reply::with_status(sentence, status).into_response();
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
