//! Every address on one screen: what each listener serves, and the checks that every request passes first.

use std::convert::Infallible;
use std::str::Utf8Error;
use std::sync::Arc;

use herald_events::SessionId;
use herald_runtime::http::{
    Access, Action, Caller, Connection, Principal, Refusal, RequestId, Resource, cors, failure,
    method_not_allowed, unavailable,
};
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
use crate::{counts, data, likes, messages, page, publish, sse, websocket, windows};

/// What a listener serves, and to whose pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything, to pages of the configured origins.
    All,
    /// The likes, to pages of any origin; with their windows and page, to those of the configured origins.
    Likes,
    /// The counts, to pages of any origin: they name no person, and the response never has cookies.
    Counts,
}

impl Scope {
    fn serves(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::All => true,
            Self::Likes => match endpoint {
                Endpoint::Like(_)
                | Endpoint::Videos
                | Endpoint::Windows
                | Endpoint::Messages(_)
                | Endpoint::Tickets
                | Endpoint::Other => true,
                Endpoint::File(path) => page::is_of_likes(path),
                _ => false,
            },
            Self::Counts => matches!(
                endpoint,
                Endpoint::Counts | Endpoint::CountsStream | Endpoint::Tickets | Endpoint::Other
            ),
        }
    }

    /// Whether pages of any origin may use this endpoint, under whatever name of the host. Those of windows return records of
    /// Kafka with their headers.
    fn is_open(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::All => false,
            Self::Likes => matches!(endpoint, Endpoint::Like(_) | Endpoint::Videos),
            Self::Counts => true,
        }
    }
}

/// Every address.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    /// `/tickets`.
    Tickets,
    /// `/websocket`.
    Frames,
    /// `/data`.
    Document,
    /// `/topics/<topic>/messages`.
    Topic(&'a str),
    /// `/videos/<identifier>/likes`; the identifier as it is in the path.
    Like(&'a str),
    /// `/videos/metadata`.
    Videos,
    /// `/aggregated`.
    Counts,
    /// `/aggregated/stream`.
    CountsStream,
    /// `/windows/stream`.
    Windows,
    /// `/windows/<window>/<start>/<identifier>/messages`; the segments as they are in the path.
    Messages([&'a str; 3]),
    /// A file of a page.
    File(&'a str),
    /// Nothing.
    Other,
}

impl<'a> Endpoint<'a> {
    fn of(path: &'a str) -> Self {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments[..] {
            ["tickets"] => Self::Tickets,
            ["websocket"] => Self::Frames,
            ["data"] => Self::Document,
            ["topics", topic, "messages"] if !topic.is_empty() => Self::Topic(topic),
            // The original's API was at /dev.
            ["videos", "metadata"] | ["dev", "videos", "metadata"] => Self::Videos,
            ["videos", id, "likes"] | ["dev", "videos", id, "likes"] => Self::Like(id),
            ["aggregated"] => Self::Counts,
            ["aggregated", "stream"] => Self::CountsStream,
            ["windows", "stream"] => Self::Windows,
            ["windows", window, start, id, "messages"] => Self::Messages([window, start, id]),
            _ if page::exists(path) => Self::File(path),
            _ => Self::Other,
        }
    }

    /// Whether anyone may see it: the pages, which show nothing without what else is here.
    fn is_public(&self) -> bool {
        matches!(self, Self::File(_) | Self::Other)
    }

    /// Whether the response is a stream of server-sent events. A browser does not reconnect after a status other than 200.
    fn is_stream(&self) -> bool {
        matches!(self, Self::CountsStream | Self::Windows)
    }
}

/// Answers one request, with its id. Every log line of it has the id, and that of its session.
pub async fn answer(
    app: Arc<App>,
    scope: Scope,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
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
        let response = respond(app, scope, request, query, id).await;
        let status = response.status().as_u16();
        tracing::debug!(%method, path, status, "request");
        response
    };
    Ok(answered.instrument(span).await)
}

async fn respond(
    app: Arc<App>,
    scope: Scope,
    mut request: Request<Incoming>,
    query: Result<Query, Utf8Error>,
    id: RequestId,
) -> Response {
    let outside = match scope {
        Scope::All => app.config.path_prefix.strip(&mut request),
        // The systems that Herald replaces are at the root.
        Scope::Likes | Scope::Counts => None,
    };
    let path = request.uri().path().to_owned();
    let endpoint = Endpoint::of(&path);
    let endpoint = if scope.serves(&endpoint) {
        endpoint
    } else {
        Endpoint::Other
    };
    let (hosts, origins, access) = match scope.is_open(&endpoint) {
        true => (&app.any_host, &app.any_origin, &app.access_without_cookie),
        false => {
            let config = &app.config;
            (&config.allowed_hosts, &config.allowed_origins, &app.access)
        }
    };
    let allow = origins.allow(request.headers());
    let proxies = app.rates.proxies();
    let caller = Caller::of(&request, &id, proxies, &app.server_metrics);
    let client = app.rates.client(&request, caller.address());
    let kind = match endpoint {
        Endpoint::Frames => Kind::Connections,
        _ => Kind::Requests,
    };
    let rejected = cors::reject(hosts, origins, &caller, &request)
        .or(outside)
        .or_else(|| full(&app, &request, &endpoint))
        .or_else(|| app.rates.reject(&client, kind, 1));
    if rejected.is_none() {
        access.redeem(&mut request);
    }
    let mut response = match (rejected, query) {
        (Some(response), _) => response,
        (None, Err(_)) => text(StatusCode::BAD_REQUEST, "the query is not UTF-8".to_owned()),
        (None, Ok(_)) if endpoint == Endpoint::Tickets => access.ticket(&caller, &request),
        (None, Ok(query)) => match principal(access, &caller, &endpoint, &request) {
            Ok(principal) => route(&app, endpoint, request, &query, client, &id, &principal).await,
            Err(refusal) => refusal.response(),
        },
    };
    let exposed = "date, etag, retry-after, x-request-id";
    cors::add_headers(response.headers_mut(), id, allow, exposed);
    response
}

/// The response while this replica is full, or shutting down.
fn full(app: &App, request: &Request<Incoming>, endpoint: &Endpoint) -> Option<Response> {
    let connection = request.extensions().get::<Arc<Connection>>();
    let overload = connection.is_some_and(|connection| connection.overload);
    let (reason, sentence) = if overload {
        ("overload", "this replica is full; try again in a moment")
    } else if app.drain.is_rejecting() {
        let sentence = "this replica is shutting down; try again in a moment";
        ("drain", sentence)
    } else {
        return None;
    };
    app.server_metrics.rejected(reason);
    Some(if endpoint.is_stream() {
        sse::reject(reason)
    } else {
        unavailable(sentence, 2)
    })
}

/// The client, which need not be known for what is public.
fn principal(
    access: &Access,
    caller: &Caller,
    endpoint: &Endpoint,
    request: &Request<Incoming>,
) -> Result<Principal, Refusal> {
    match endpoint.is_public() {
        true => Ok(Principal::anyone(caller)),
        false => access.principal(caller, request.headers(), None),
    }
}

/// Each endpoint asks the principal for the permission that its answer needs, once it knows what the request is about.
async fn route(
    app: &Arc<App>,
    endpoint: Endpoint<'_>,
    mut request: Request<Incoming>,
    query: &Query,
    client: Client,
    id: &RequestId,
    principal: &Principal,
) -> Response {
    let (method, headers) = (request.method(), request.headers());
    match endpoint {
        Endpoint::Frames => frames(app, &mut request, query, client, id, principal),
        Endpoint::Document => data::answer(app, method, query, headers, principal).await,
        Endpoint::Topic(topic) => {
            publish::answer(app, topic, request, &client, id, principal).await
        }
        Endpoint::Like(segment) => likes::like(app, segment, method, headers, id, principal).await,
        Endpoint::Videos => likes::videos(app, method, principal),
        Endpoint::Counts => counts::answer(app, method, query, principal).await,
        Endpoint::CountsStream => counts::stream(app, method, principal),
        Endpoint::Windows => windows::stream(app, method, query, principal),
        Endpoint::Messages(segments) => {
            messages::answer(app, segments, method, &client, principal).await
        }
        Endpoint::File(path) => page::file(method, path, &app.config.frame_ancestors),
        Endpoint::Tickets | Endpoint::Other => {
            let prefix = &app.config.path_prefix;
            let sentence = format!(
                "there is nothing at this address; {prefix}/openapi.json at the main address lists the endpoints"
            );
            failure(StatusCode::NOT_FOUND, &sentence)
        }
    }
}

fn frames(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
    query: &Query,
    client: Client,
    id: &RequestId,
    principal: &Principal,
) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed("GET");
    }
    let session = match query.session() {
        Ok(session) => session,
        Err(sentence) => return text(StatusCode::BAD_REQUEST, sentence),
    };
    let permit = match principal.may(Action::Write, Resource::Session(session.as_str())) {
        Ok(permit) => permit,
        Err(refusal) => return refusal.response(),
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
    websocket::answer(app, origin, client, permit, ack, key, upgrade)
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

    /// All values of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_endpoint() {
        assert_eq!(Endpoint::of("/topics/a/messages"), Endpoint::Topic("a"));
        assert_eq!(Endpoint::of("/videos/a/likes"), Endpoint::Like("a"));
        assert_eq!(
            Endpoint::of("/dev/videos/a%2F/likes"),
            Endpoint::Like("a%2F")
        );
        assert_eq!(Endpoint::of("/dev/videos/metadata"), Endpoint::Videos);
        let messages = Endpoint::Messages(["1min", "0", "a"]);
        assert_eq!(Endpoint::of("/windows/1min/0/a/messages"), messages);
        for other in [
            "/topics//messages",
            "/topics/a/b/messages",
            "/topics/a",
            "/topics",
            "/videos/a/b/likes",
            "/dev/aggregated",
            "/aggregated/",
            "",
        ] {
            assert_eq!(Endpoint::of(other), Endpoint::Other, "{other}");
        }
    }

    #[test]
    fn the_listeners_of_likes_and_counts_serve_nothing_else() {
        for path in [
            "/data",
            "/websocket",
            "/topics/a/messages",
            "/",
            "/aggregated",
        ] {
            assert!(!Scope::Likes.serves(&Endpoint::of(path)), "{path}");
        }
        for path in ["/likes", "/page.css", "/videos/a/likes", "/windows/stream"] {
            assert!(Scope::Likes.serves(&Endpoint::of(path)), "{path}");
            assert!(!Scope::Counts.serves(&Endpoint::of(path)), "{path}");
        }
        assert!(Scope::Counts.serves(&Endpoint::of("/aggregated")));
        for path in ["/likes", "/windows/stream", "/windows/1min/0/a/messages"] {
            assert!(!Scope::Likes.is_open(&Endpoint::of(path)), "{path}");
        }
    }
}
