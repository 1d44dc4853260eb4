//! Error responses as JSON: one sentence with a remedy.

use hyper::StatusCode;
use hyper::header::{ALLOW, CACHE_CONTROL, HeaderValue, RETRY_AFTER};
use serde_json::json;
use warp::Reply;
use warp::reply::Response;

/// `{"error": "<sentence>"}` with a status. It must not be cached.
pub fn failure(status: StatusCode, sentence: &str) -> Response {
    let body = warp::reply::json(&json!({ "error": sentence }));
    let mut response = warp::reply::with_status(body, status).into_response();
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 503 with `Retry-After`, in seconds.
pub fn unavailable(sentence: &str, retry_after: u32) -> Response {
    let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, sentence);
    response
        .headers_mut()
        .insert(RETRY_AFTER, retry_after.into());
    response
}

/// 405 with the methods of the endpoint.
pub fn method_not_allowed(methods: &'static str) -> Response {
    let sentence = format!("this endpoint only supports {methods}");
    let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, &sentence);
    let allow = HeaderValue::from_static(methods);
    response.headers_mut().insert(ALLOW, allow);
    response
}
