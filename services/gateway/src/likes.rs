//! Likes: `POST /videos/<identifier>/likes` publishes the bare identifier, and `GET /videos/metadata` lists the videos to like.

use std::fmt;
use std::str::FromStr;

use herald_runtime::http::{Action, Principal, RequestId, Resource, failure, method_not_allowed};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;
use rdkafka::producer::FutureRecord;
use serde_json::json;
use warp::Reply as _;
use warp::reply::Response;

use crate::App;
use crate::kafka::{cloud_event, traceparent};
use crate::publish::failed;

/// Maximum bytes of an identifier.
const LONGEST: usize = 256;

/// A video that can be liked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Video {
    identifier: String,
    title: String,
}

/// The videos that clients receive in the list. Others can be liked too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Videos(Vec<Video>);

impl Default for Videos {
    fn default() -> Self {
        let video = |identifier: &str, title: &str| Video {
            identifier: identifier.to_owned(),
            title: title.to_owned(),
        };
        Self(vec![
            video("93f98662-8907-4f43-bb4c-280501481046", "Example video 1"),
            video("69e7266c-753e-4ed3-b7fc-9035133a293f", "Example video 2"),
        ])
    }
}

impl FromStr for Videos {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let entries = list.split(',').map(str::trim);
        let video = |entry: &str| {
            let sentence = || format!("{entry:?} is not identifier=title");
            let (identifier, title) = entry.split_once('=').ok_or_else(sentence)?;
            Ok(Video {
                identifier: check(identifier.trim())?.to_owned(),
                title: title.trim().to_owned(),
            })
        };
        let entries = entries.filter(|entry| !entry.is_empty());
        Ok(Self(entries.map(video).collect::<Result<_, String>>()?))
    }
}

impl fmt::Display for Videos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Video { identifier, title }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{identifier}={title}")?;
        }
        Ok(())
    }
}

/// Answers `GET /videos/metadata` with those whose results the client may read.
pub fn videos(app: &App, method: &Method, principal: &Principal) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return method_not_allowed("GET, HEAD");
    }
    if app.config.likes_topic.is_empty() {
        return off();
    }
    let is_readable =
        |video: &&Video| principal.allows(Action::Read, Resource::Room(&video.identifier));
    let videos = app.config.videos.0.iter().filter(is_readable);
    let list: Vec<_> = videos
        .map(|video| json!({"unique_identifier": video.identifier, "title": video.title}))
        .collect();
    let response = warp::reply::json(&list);
    warp::reply::with_header(response, CACHE_CONTROL, "no-cache").into_response()
}

/// Answers `POST /videos/<segment>/likes` after Kafka has acknowledged the like. A body is ignored.
pub async fn like(
    app: &App,
    segment: &str,
    method: &Method,
    headers: &HeaderMap,
    id: &RequestId,
    principal: &Principal,
) -> Response {
    if method != Method::POST {
        return method_not_allowed("POST");
    }
    let topic = app.config.likes_topic.as_str();
    if topic.is_empty() {
        return off();
    }
    let video = match identifier(segment) {
        Ok(video) => video,
        Err(sentence) => return failure(StatusCode::BAD_REQUEST, &sentence),
    };
    if let Err(refusal) = principal.may(Action::Write, Resource::Room(&video)) {
        return refusal.response();
    }
    let trace = headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    let event = cloud_event(
        "herald.like",
        Some("text/plain"),
        id.as_str(),
        trace.and_then(traceparent).as_deref(),
    );
    let record = FutureRecord::to(topic)
        .payload(video.as_bytes())
        .headers(event);
    if let Err(code) = app.publisher.deliver(record).await {
        return failed(&app.metrics.likes_failed, topic, id, code);
    }
    app.metrics.likes.inc();
    // The original's, with a space after the colon.
    let body = format!(r#"{{"new video": {}}}"#, json!(video));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The identifier in a segment of a path, or the sentence for the client.
pub fn identifier(segment: &str) -> Result<String, String> {
    let decoded = percent_decode_str(segment).decode_utf8();
    let text = decoded.map_err(|_| "the identifier is not UTF-8".to_owned())?;
    check(&text).map(str::to_owned)
}

/// # Errors
///
/// A sentence for the client, or for the user of `--videos`.
pub fn check(identifier: &str) -> Result<&str, String> {
    match identifier {
        "" => Err("an identifier must not be empty".to_owned()),
        long if long.len() > LONGEST => Err(format!(
            "an identifier has at most {LONGEST} bytes, and this one has {}",
            long.len()
        )),
        text if text.contains('\0') => Err("an identifier must not contain NUL".to_owned()),
        text => Ok(text),
    }
}

fn off() -> Response {
    let sentence = "this gateway takes no likes; set --likes-topic";
    failure(StatusCode::NOT_FOUND, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_decoded_and_checked() {
        assert_eq!(identifier("a%20b+%2F").as_deref(), Ok("a b+/"));
        assert_eq!(
            identifier(&"%C3%A4".repeat(128)).as_deref(),
            Ok(&*"ä".repeat(128))
        );
        for bad in ["", "%FF", "a%00b", &"a".repeat(257)] {
            assert!(identifier(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn videos_are_read_back_as_they_are_printed() {
        let default = Videos::default();
        assert_eq!(default.to_string().parse(), Ok(default));
        let two: Videos = "a=One = 1, b=".parse().unwrap();
        assert_eq!(two.to_string(), "a=One = 1,b=");
        assert_eq!("".parse(), Ok(Videos(vec![])));
        assert!("a".parse::<Videos>().unwrap_err().contains("\"a\""));
        assert!("=a".parse::<Videos>().is_err());
    }
}
