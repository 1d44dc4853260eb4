//! Pages of older messages, as far back as Kafka retains them.

use herald_runtime::http::{Caller, failure, unavailable};
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use warp::Reply;
use warp::reply::Response;

use crate::app::App;
use crate::cursor::{Position, Vector};
use crate::encode::{self, Encoding, Format, Kind};
use crate::kafka::{Purpose, Topic};
use crate::keys::Keys;
use crate::page::{Limit, MAX_PAGE, Page};
use crate::query::{Start, StreamQuery, cursor_of, number, parse, start_from};
use crate::record::{Gap, GapReason, Payload};

#[derive(Debug, Default, Deserialize)]
pub struct PageQuery {
    /// Every `key`.
    #[serde(skip)]
    key: Vec<String>,
    topic: Option<String>,
    after: Option<String>,
    before: Option<String>,
    from: Option<String>,
    limit: Option<String>,
    binary: Option<String>,
    #[serde(flatten)]
    other: HashMap<String, String>,
}

/// Where a page starts.
enum PageStart {
    Newest,
    After(String),
    Before(String),
    From(Start),
}

/// Answers `GET /messages`.
pub async fn answer(app: &App, query: PageQuery, headers: &HeaderMap, caller: &Caller) -> Response {
    let principal = app.principal(caller, headers);
    let found = principal.and_then(|principal| app.topic(query.topic.as_deref(), &principal));
    let topic = match found {
        Ok((topic, _)) => topic,
        Err(error) => return error.response(),
    };
    let keys = Keys::parse(&query.key);
    let read = || Ok::<_, String>((query.read()?, keys?));
    let ((start, limit, binary), keys) = match read() {
        Ok(read) => read,
        Err(sentence) => return failure(StatusCode::BAD_REQUEST, &sentence),
    };
    if !topic.feed.is_filled() {
        return unavailable("the consumer has not read the topic yet", 1);
    }
    // Waiting for Kafka would only delay the same error.
    let unreachable = "Kafka does not answer; older messages will be available again when it does";
    if topic.is_down() && !matches!(start, PageStart::Newest | PageStart::After(_)) {
        return unavailable(unreachable, 1);
    }
    let mut gaps = Vec::new();
    match page(&topic, start, keys.as_ref(), limit, &mut gaps).await {
        Ok(page) => reply(&topic.name, page, gaps, binary),
        Err(error) => {
            tracing::warn!(
                topic = topic.name,
                error = format!("{error:#}"),
                "cannot read a page of history"
            );
            unavailable(unreachable, 1)
        }
    }
}

impl PageQuery {
    /// Parses the query of a URL; `None` if it cannot be read.
    pub fn parse(query: &str) -> Option<Self> {
        let (key, others) = parse::<Self>(query)?;
        Some(Self { key, ..others })
    }

    fn read(self) -> Result<(PageStart, Limit, bool), String> {
        let given = |value: Option<String>| value.filter(|value| !value.is_empty());
        if self.other.contains_key("last") {
            return Err(
                "last is not a parameter here; set the number of messages with limit".into(),
            );
        }
        let named = cursor_of(&self.other)?.map(str::to_owned);
        let after = given(named).or_else(|| given(self.after));
        let start = match (after, given(self.before), given(self.from)) {
            (None, None, None) => PageStart::Newest,
            (Some(cursor), None, None) => PageStart::After(cursor),
            (None, Some(cursor), None) => PageStart::Before(cursor),
            (None, None, Some(from)) => PageStart::From(start_from(&from)?),
            _ => {
                return Err(
                    "after, before and from exclude each other; give at most one of them".into(),
                );
            }
        };
        let events = given(self.limit).map_or(Ok(50), |limit| number("limit", &limit, 1))?;
        let binary = StreamQuery {
            binary: self.binary,
            ..Default::default()
        }
        .binary()?;
        Ok((start, Limit { events, ..MAX_PAGE }, binary))
    }
}

async fn page(
    topic: &Topic,
    start: PageStart,
    keys: Option<&Keys>,
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
                reason: GapReason::UnknownCursor,
                ranges: vec![],
            });
        }
        vector
    };
    match start {
        PageStart::After(token) => match cursor(&token) {
            // From memory if that is enough: a client that only checks for missed messages then causes no read from Kafka.
            Some(vector) => match feed.page_after(&vector, limit, keys) {
                Some(page) => Ok(page),
                None => {
                    log.forward_of(keys, vector, head, limit, Purpose::Page)
                        .await
                }
            },
            // As on a stream: the gap is reported, and the client continues live from here.
            None => Ok(Page {
                before: head.clone(),
                after: head,
                ..Page::default()
            }),
        },
        PageStart::From(Start::Time(time)) => {
            let from = log.at_time(time, head.clone(), Purpose::Page).await?;
            log.forward_of(keys, from, head, limit, Purpose::Page).await
        }
        PageStart::From(_) => {
            let starts = log
                .ends(head.len(), Purpose::Page)
                .await?
                .into_iter()
                .map(|(low, _)| Position::at(low))
                .collect();
            let page = log
                .forward_of(keys, Vector::new(starts), head, limit, Purpose::Page)
                .await?;
            Ok(Page {
                from_start: true,
                ..page
            })
        }
        PageStart::Before(token) => match cursor(&token) {
            Some(vector) => log.backward_of(keys, vector, limit, Purpose::Page).await,
            None => newest(topic, keys, limit).await,
        },
        PageStart::Newest => newest(topic, keys, limit).await,
    }
}

/// The newest page, from the ring if it holds enough: that works even while Kafka is unavailable.
async fn newest(topic: &Topic, keys: Option<&Keys>, limit: Limit) -> anyhow::Result<Page> {
    let (page, whole) = topic.feed.newest_page(limit, keys);
    if whole || topic.is_down() {
        return Ok(page);
    }
    let head = topic.feed.head();
    let older = topic.log.backward_of(keys, head, limit, Purpose::Page);
    match older.await {
        // While Kafka is unavailable, fewer messages than requested are better than none; `before` leads to the rest.
        Err(_) if !page.events.is_empty() => Ok(page),
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
    let encoding = Encoding {
        format: Format::Json,
        binary,
    };
    let mut messages: Vec<Box<RawValue>> = Vec::with_capacity(page.events.len());
    page.walk(|event, vector| {
        let frame = encode::event(event, &vector.encode(topic), encoding);
        if frame.kind == Kind::Message {
            let text = String::from_utf8(frame.bytes.to_vec()).expect("JSON is UTF-8");
            let message = RawValue::from_string(text);
            messages.push(message.expect("a frame of this format is one JSON value"));
        } else if let Payload::Gap(gap) = encode::payload_for(event, binary).as_ref() {
            gaps.push(gap.clone());
        }
    });
    let (before, after) = (page.before.encode(topic), page.after.encode(topic));
    let body = Body {
        messages,
        gaps,
        before: (!page.from_start).then_some(&before),
        after: &after,
    };
    let mut response = warp::reply::json(&body).into_response();
    // The newest page changes with every message, and every other page when its log is recreated.
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
