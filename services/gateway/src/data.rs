//! `GET /data`: the document of a session, as the projector has committed it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use herald_events::SessionId;
use herald_runtime::Readiness;
use herald_runtime::http::{
    Action, Principal, Refusal, Resource, failure, method_not_allowed, unavailable,
};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{HeaderMap, Method, StatusCode};
use store::{Reader, SESSIONS};
use sync_wrapper::SyncStream;
use tokio::time::{Instant, sleep_until};
use tracing::Span;
use warp::Reply as _;
use warp::reply::Response;

use crate::App;
use crate::cursor::Cursor;
use crate::http::{Query, text};

/// The pause between two reads of the projector's position: the first one, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How often the database is checked, for readiness.
const CHECK: Duration = Duration::from_secs(2);

/// Answers with the document, or with a text.
pub async fn answer(
    app: &Arc<App>,
    method: &Method,
    query: &Query,
    headers: &HeaderMap,
    principal: &Principal,
) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return method_not_allowed("GET, HEAD");
    }
    let request = query.session().and_then(|id| {
        let after = After::parse(query, &app.config.events_topic, app.config.max_wait)?;
        Ok((id, after))
    });
    let (id, after) = match request {
        Ok(request) => request,
        Err(sentence) => return text(StatusCode::BAD_REQUEST, sentence),
    };
    let permit = match principal.may(Action::Read, Resource::Session(id.as_str())) {
        Ok(permit) => permit,
        Err(refusal) => return refusal.response(),
    };
    let Some(reader) = &app.reader else {
        let sentence = "this gateway has no database; set --database-url";
        return failure(StatusCode::NOT_IMPLEMENTED, sentence);
    };
    let answer = async {
        if let Some(after) = after
            && !after.is_passed(reader, &app.config.events_topic).await?
        {
            return Ok(text(StatusCode::GATEWAY_TIMEOUT, after.sentence()));
        }
        document(reader, &id, headers).await
    };
    // A client that waits is sent to another replica.
    let answer = tokio::select! {
        answer = answer => answer,
        () = permit.expired() => {
            let refusal = Refusal::Unauthenticated("the token has expired".to_owned());
            return refusal.response();
        }
        () = app.drain.deadline() => {
            return unavailable("this replica is shutting down; try again in a moment", 2);
        }
    };
    answer.unwrap_or_else(|error: anyhow::Error| {
        let error = format!("{error:#}");
        tracing::warn!(error, "cannot answer with a document");
        text(StatusCode::INTERNAL_SERVER_ERROR, error)
    })
}

async fn document(
    reader: &Reader,
    id: &SessionId,
    headers: &HeaderMap,
) -> anyhow::Result<Response> {
    let Some(session) = reader.session(id).await? else {
        let sentence = format!("no data found for session_id {id}");
        return Ok(text(StatusCode::NOT_FOUND, sentence));
    };
    let etag = format!("\"{}\"", session.version());
    let mut response = if is_known(headers, &etag) {
        warp::reply::with_status(warp::reply(), StatusCode::NOT_MODIFIED).into_response()
    } else {
        let span = Span::current();
        let document = session.into_document().inspect_err(move |error| {
            let error = format!("{error:#}");
            span.in_scope(|| tracing::warn!(error, "a document is incomplete"));
        });
        let mut response = warp::reply::stream(SyncStream::new(document)).into_response();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, etag.parse()?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Whether the client has the document of this `ETag`.
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let sent = headers.get_all(IF_NONE_MATCH).into_iter();
    let tags = sent
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tags.map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// A frame that the document must contain, and how long to wait until it does.
struct After {
    cursor: Cursor,
    wait: Duration,
}

impl After {
    fn parse(query: &Query, topic: &str, max: Duration) -> Result<Option<Self>, String> {
        let wait = match query.get("wait") {
            Some(wait) => wait.parse().ok().filter(|&wait| wait <= max.as_millis()),
            None => Some(0),
        };
        let wait = wait
            .ok_or_else(|| format!("wait is a number of milliseconds up to {}", max.as_millis()))?;
        let Some(after) = query.get("after") else {
            return Ok(None);
        };
        Ok(Some(Self {
            cursor: Cursor::parse(after, topic)?,
            wait: Duration::from_millis(u64::try_from(wait).unwrap_or(u64::MAX)),
        }))
    }

    /// Waits until the projector has committed the frame; `false` if it has not in time.
    async fn is_passed(&self, reader: &Reader, topic: &str) -> anyhow::Result<bool> {
        let Cursor {
            partition,
            offset,
            time,
            ..
        } = self.cursor;
        let end = Instant::now() + self.wait;
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let passed = reader
                .has_passed(SESSIONS, topic, partition, offset, time)
                .await;
            // The database may come back, or the projector create its tables, in time.
            if begun >= end || passed.as_ref().is_ok_and(|&passed| passed) {
                return passed;
            }
            sleep_until((Instant::now() + pause).min(end)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn sentence(&self) -> String {
        let wait = self.wait.as_millis();
        format!("the document does not contain this frame yet, after {wait} ms; try again")
    }
}

/// Notes in the readiness while the database does not answer. Frames are published all the same.
pub async fn watch(reader: Option<Reader>, readiness: Readiness) {
    let Some(reader) = reader else {
        return std::future::pending().await;
    };
    let mut logged = None;
    loop {
        let problem = reader.check().await.err().map(|error| format!("{error:#}"));
        readiness.note("database", problem.as_deref());
        if problem != logged {
            match &problem {
                Some(error) => tracing::warn!(error, "documents cannot be read"),
                None => tracing::info!("documents can be read again"),
            }
            logged = problem;
        }
        tokio::time::sleep(CHECK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_found_in_a_list_and_as_a_weak_one() {
        let known = |value: &'static str| {
            let headers = [(IF_NONE_MATCH, HeaderValue::from_static(value))];
            is_known(&HeaderMap::from_iter(headers), "\"a-1\"")
        };
        for value in ["\"a-1\"", "W/\"a-1\"", "\"b\", \"a-1\"", "*"] {
            assert!(known(value), "{value}");
        }
        for value in ["", "a-1", "\"a-2\""] {
            assert!(!known(value), "{value}");
        }
    }
}
