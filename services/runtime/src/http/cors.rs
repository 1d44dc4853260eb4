//! The checks that every request of a browser passes first, and the headers that let a page read the response.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, HOST, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Method, Request, StatusCode};
use warp::Reply;
use warp::reply::Response;

use super::{Allow, Caller, Hosts, Origins, REQUEST_ID, RequestId, failure};

/// The response to a request that must not reach an endpoint because of its host name or its origin, and to a CORS preflight.
pub fn reject<B>(
    hosts: &Hosts,
    origins: &Origins,
    caller: &Caller,
    request: &Request<B>,
) -> Option<Response> {
    let path = Some(request.uri().path());
    if !hosts.contain(request.headers().get(HOST)) {
        caller.refused("host", None, path);
        let sentence = "this server does not answer to this host name; add it to --allowed-hosts";
        return Some(failure(StatusCode::MISDIRECTED_REQUEST, sentence));
    }
    if let Err(sentence) = origins.check(request.headers()) {
        caller.refused("origin", None, path);
        return Some(failure(StatusCode::FORBIDDEN, &sentence));
    }
    (request.method() == Method::OPTIONS).then(|| preflight(request.headers()))
}

/// Adds the headers of every response: the id of its request, and what lets a page of the origin `allow` read it and the headers
/// in `exposed`.
pub fn add_headers(
    headers: &mut HeaderMap,
    id: RequestId,
    allow: Option<Allow>,
    exposed: &'static str,
) {
    headers.insert(REQUEST_ID, id.0);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.append(VARY, HeaderValue::from_static("origin"));
    if let Some(allow) = allow {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allow.origin);
        if allow.credentials {
            let credentials = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
        }
        let exposed = HeaderValue::from_static(exposed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// The response to a CORS preflight: a page of a listed origin may send any header.
fn preflight(request: &HeaderMap) -> Response {
    let mut response =
        warp::reply::with_status(warp::reply(), StatusCode::NO_CONTENT).into_response();
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, POST"),
    );
    if let Some(requested) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
    headers.append(
        VARY,
        HeaderValue::from_static("access-control-request-headers"),
    );
    response
}
