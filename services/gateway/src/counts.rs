//! `/aggregated`: how often each food came, as the projector has committed it; and the stream of changes.

mod feed;

use std::fmt::Write as _;

use herald_runtime::http::{Action, Principal, Resource, failure, method_not_allowed, unavailable};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::json;
use store::Count;
use warp::Reply as _;
use warp::reply::Response;

use crate::App;
use crate::http::Query;
use crate::sse;

pub use feed::Feed;

/// The most rows that a client may limit its response to.
const MAX_LIMIT: usize = 1000;

/// Answers `GET` and `POST /aggregated` with every row, in the order in which the foods first came. A body is ignored.
pub async fn answer(app: &App, method: &Method, query: &Query, principal: &Principal) -> Response {
    if ![Method::GET, Method::HEAD, Method::POST].contains(method) {
        return method_not_allowed("GET, HEAD, POST");
    }
    let view = match View::parse(query) {
        Ok(view) => view,
        Err(sentence) => return failure(StatusCode::BAD_REQUEST, &sentence),
    };
    if let Err(refusal) = principal.may(Action::Read, Resource::Counts) {
        return refusal.response();
    }
    let Some(reader) = &app.reader else {
        return no_database();
    };
    match reader.counts_after(0).await {
        Ok(rows) => {
            let mut response = rows_json(&view.of(rows)).into_response();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "cannot answer with the counts");
            unavailable(&error, 5)
        }
    }
}

/// Answers `GET /aggregated/stream`: a snapshot of all rows, then the rows that have changed. A client that reconnects receives a
/// snapshot too: the database may be another one by then.
pub fn stream(app: &App, method: &Method, principal: &Principal) -> Response {
    if method != Method::GET {
        return method_not_allowed("GET");
    }
    let permit = match principal.may(Action::Read, Resource::Counts) {
        Ok(permit) => permit,
        Err(refusal) => return refusal.response(),
    };
    let Some(feed) = &app.counts else {
        return no_database();
    };
    let mut client = feed::Client::default();
    sse::answer(app, "aggregated", permit, feed.watch(), move |state| {
        client.take(state)
    })
}

fn no_database() -> Response {
    let sentence = "this gateway has no database; set --database-url";
    failure(StatusCode::NOT_IMPLEMENTED, sentence)
}

/// `[{"count":36,"food":"pie"}]`.
fn rows_json<'a>(rows: impl IntoIterator<Item = &'a Count>) -> String {
    let mut text = String::from("[");
    for Count { food, count, .. } in rows {
        let comma = if text.len() > 1 { "," } else { "" };
        // Writing into a string does not fail.
        _ = write!(text, r#"{comma}{{"count":{count},"food":{}}}"#, json!(food));
    }
    text.push(']');
    text
}

/// Which rows a client receives, and in which order.
#[derive(Debug, Default, PartialEq, Eq)]
struct View {
    largest_first: bool,
    limit: Option<usize>,
}

impl View {
    fn parse(query: &Query) -> Result<Self, String> {
        let largest_first = match query.get("order") {
            None => false,
            Some("count") => true,
            Some(other) => return Err(format!("order is {other:?}; it can only be count")),
        };
        let limit = query.get("limit").map(|text| {
            let number = text.parse().ok();
            number
                .filter(|limit| (1..=MAX_LIMIT).contains(limit))
                .ok_or_else(|| {
                    format!("limit is {text:?}; it must be a number from 1 to {MAX_LIMIT}")
                })
        });
        Ok(Self {
            largest_first,
            limit: limit.transpose()?,
        })
    }

    fn of(&self, mut rows: Vec<Count>) -> Vec<Count> {
        if self.largest_first {
            rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.food.cmp(&b.food)));
        }
        rows.truncate(self.limit.unwrap_or(usize::MAX));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(food: &str, count: i64) -> Count {
        Count {
            food: food.to_owned(),
            count,
            changed: 1,
        }
    }

    #[test]
    fn rows_have_the_format_of_the_original() {
        assert_eq!(rows_json([]), "[]");
        let rows = [count("pie", 36), count("a \"b\"", 1)];
        let text = r#"[{"count":36,"food":"pie"},{"count":1,"food":"a \"b\""}]"#;
        assert_eq!(rows_json(&rows), text);
    }

    #[test]
    fn the_largest_come_first_and_equal_ones_by_name() {
        let rows = || vec![count("b", 1), count("c", 2), count("a", 1)];
        let view = View {
            largest_first: true,
            limit: Some(2),
        };
        let foods = |rows: Vec<Count>| rows.into_iter().map(|row| row.food).collect::<Vec<_>>();
        assert_eq!(foods(view.of(rows())), ["c", "a"]);
        assert_eq!(foods(View::default().of(rows())), ["b", "c", "a"]);
    }
}
