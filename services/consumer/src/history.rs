//! Pages of what is older, as far back as Kafka keeps.

use hyper::StatusCode;
use hyper::header::RETRY_AFTER;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use warp::Reply;
use warp::reply::Response;

use crate::cursor::{Position, Vector};
use crate::encode::{self, Door, Form, Kind};
use crate::http::{App, failure};
use crate::kafka::{Limit, Page};
use crate::record::{Gap, Reason, What};
use crate::start::{MOST, Start, number, start_from};
use crate::stream::Topic;

/// The bounds of any page.
pub const PAGE: Limit = Limit {
    events: MOST,
    bytes: 1 << 20,
};

#[derive(Debug, Default, Deserialize)]
pub struct Asked {
    topic: Option<String>,
    after: Option<String>,
    before: Option<String>,
    from: Option<String>,
    limit: Option<String>,
    binary: Option<String>,
}

/// Where a page lies.
enum Where {
    Newest,
    After(String),
    Before(String),
    From(Start),
}

/// Answers `GET /messages`.
pub async fn answer(app: &App, asked: Asked) -> Response {
    let topic = match app.topic(asked.topic.as_deref()) {
        Ok(topic) => topic,
        Err(sentence) => return failure(StatusCode::NOT_FOUND, &sentence),
    };
    let (place, limit, binary) = match asked.read() {
        Ok(read) => read,
        Err(sentence) => return failure(StatusCode::BAD_REQUEST, &sentence),
    };
    if *topic.feed.watch().borrow() == 0 {
        return unavailable("the consumer has not read the topic yet");
    }
    // Waiting for Kafka would take the browser's patience, and end the same.
    let away = "Kafka does not answer; older messages are to be had again when it does";
    if topic.is_down() && !matches!(place, Where::Newest) {
        return unavailable(away);
    }
    let mut gaps = Vec::new();
    match read(&topic, place, limit, &mut gaps).await {
        Ok(page) => reply(&topic.name, page, gaps, binary),
        Err(error) => {
            tracing::warn!(
                topic = topic.name,
                error = format!("{error:#}"),
                "cannot read a page of history"
            );
            unavailable(away)
        }
    }
}

impl Asked {
    fn read(self) -> Result<(Where, Limit, bool), String> {
        let given = |value: Option<String>| value.filter(|value| !value.is_empty());
        let place = match (given(self.after), given(self.before), given(self.from)) {
            (None, None, None) => Where::Newest,
            (Some(cursor), None, None) => Where::After(cursor),
            (None, Some(cursor), None) => Where::Before(cursor),
            (None, None, Some(from)) => Where::From(start_from(&from)?),
            _ => {
                return Err(
                    "after, before and from exclude each other; give at most one of them".into(),
                );
            }
        };
        let events = given(self.limit).map_or(Ok(50), |limit| number("limit", &limit, 1))?;
        let binary = crate::start::Asked {
            binary: self.binary,
            ..Default::default()
        }
        .binary()?;
        Ok((place, Limit { events, ..PAGE }, binary))
    }
}

async fn read(
    topic: &Topic,
    place: Where,
    limit: Limit,
    gaps: &mut Vec<Gap>,
) -> anyhow::Result<Page> {
    let Topic {
        name, feed, log, ..
    } = topic;
    let head = feed.head();
    let mut cursor = |token: &str| {
        let vector = Vector::decode(token, name);
        if vector.is_none() {
            gaps.push(Gap {
                reason: Reason::UnknownCursor,
                ranges: vec![],
            });
        }
        vector
    };
    match place {
        Where::After(token) => match cursor(&token) {
            Some(vector) => log.forward(vector, head, limit).await,
            // As on a stream: what is said is said, and from here it goes on live.
            None => Ok(Page {
                before: head.clone(),
                after: head,
                ..Page::default()
            }),
        },
        Where::From(Start::Time(time)) => {
            log.forward(log.at_time(time, head.clone()).await?, head, limit)
                .await
        }
        Where::From(_) => {
            let starts = log
                .ends(head.0.len())
                .await?
                .into_iter()
                .map(|(low, _)| Position::at(low))
                .collect();
            let page = log.forward(Vector(starts), head, limit).await?;
            Ok(Page {
                from_start: true,
                ..page
            })
        }
        Where::Before(token) => match cursor(&token) {
            Some(vector) => log.backward(vector, limit).await,
            None => newest(topic, limit).await,
        },
        Where::Newest => newest(topic, limit).await,
    }
}

/// The newest page, from the ring where it holds enough: it is there even while Kafka is away.
async fn newest(topic: &Topic, limit: Limit) -> anyhow::Result<Page> {
    let (page, whole) = topic.feed.newest_page(limit);
    if whole || topic.is_down() {
        return Ok(page);
    }
    match topic.log.backward(topic.feed.head(), limit).await {
        // While Kafka is away, less than was asked for is better than nothing; `before` asks for the rest.
        Err(_) if !page.changes.is_empty() => Ok(page),
        result => result,
    }
}

#[derive(Serialize)]
struct Body<'a> {
    messages: Vec<Box<RawValue>>,
    gaps: Vec<Gap>,
    before: Option<&'a str>,
    after: &'a str,
}

fn reply(topic: &str, page: Page, mut gaps: Vec<Gap>, binary: bool) -> Response {
    let form = Form {
        door: Door::Json,
        binary,
    };
    let mut vector = page.before.clone();
    let mut messages: Vec<Box<RawValue>> = Vec::with_capacity(page.changes.len());
    for change in &page.changes {
        vector.set(change.partition, change.next);
        let frame = encode::change(change, &vector.encode(topic), form);
        if frame.kind == Kind::Message {
            let text = String::from_utf8(frame.bytes.to_vec()).expect("JSON is UTF-8");
            messages
                .push(RawValue::from_string(text).expect("a frame of this door is one JSON value"));
        } else if let What::Gap(gap) = encode::seen(change, binary).as_ref() {
            gaps.push(gap.clone());
        }
    }
    let (before, after) = (page.before.encode(topic), page.after.encode(topic));
    let body = Body {
        messages,
        gaps,
        before: (!page.from_start).then_some(&before),
        after: &after,
    };
    warp::reply::json(&body).into_response()
}

fn unavailable(sentence: &str) -> Response {
    let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, sentence);
    response.headers_mut().insert(RETRY_AFTER, 1.into());
    response
}
