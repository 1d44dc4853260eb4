//! The result of a window: which one a client wants, where it is in Kafka, and whether its messages are still there.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use herald_events::WindowSize;
use herald_runtime::http::{failure, unavailable};
use hyper::StatusCode;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;
use warp::reply::Response;

use crate::kafka::log::{Client, Record};
use crate::kafka::murmur2;
use crate::likes::identifier;

/// The time within which a result must be found.
const FIND: Duration = Duration::from_secs(10);

/// Why there are no messages.
pub enum Failure {
    /// 404.
    Unknown(String),
    /// 410.
    Gone(String),
    Kafka(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Kafka(error)
    }
}

impl Failure {
    pub fn response(self) -> Response {
        match self {
            Self::Unknown(sentence) => failure(StatusCode::NOT_FOUND, &sentence),
            Self::Gone(sentence) => failure(StatusCode::GONE, &sentence),
            Self::Kafka(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "cannot find the result of a window");
                unavailable(&format!("the result cannot be read: {error}"), 5)
            }
        }
    }
}

/// The window of an identifier.
pub struct Window {
    pub size: WindowSize,
    /// Of the results.
    pub topic: String,
    /// Milliseconds since 1970.
    pub start: i64,
    pub id: String,
}

impl Window {
    /// # Errors
    ///
    /// One sentence for the client.
    pub fn parse(config: &crate::Config, [label, start, id]: [&str; 3]) -> Result<Self, String> {
        let decode = |segment| percent_decode_str(segment).decode_utf8_lossy();
        let (label, start) = (decode(label), decode(start));
        let found = config
            .windows
            .iter()
            .find(|(size, _)| size.label() == label);
        let Some((size, topic)) = found else {
            let labels: Vec<String> = config
                .windows
                .iter()
                .map(|(size, _)| size.label())
                .collect();
            let labels = labels.join(", ");
            return Err(format!(
                "the window is {label:?}; it must be one of {labels}"
            ));
        };
        let number = start.parse::<i64>().ok();
        let time = number.or_else(|| Some(start.parse::<Timestamp>().ok()?.as_millisecond()));
        let time = time.ok_or_else(|| {
            format!("the start is {start:?}; it must be a time such as 2026-01-31T12:00:00Z, or milliseconds since 1970")
        })?;
        let aligned = size.start_of(time);
        if aligned != time {
            let start = rfc3339(aligned);
            return Err(format!(
                "no window of {label} starts then; this time is in the one that starts at {start} ({aligned})"
            ));
        }
        Ok(Self {
            size,
            topic: topic.to_owned(),
            start: time,
            id: identifier(id)?,
        })
    }

    pub fn end(&self) -> i64 {
        self.size.end_of(self.start)
    }
}

/// A time in milliseconds since 1970 as text.
pub fn rfc3339(time: i64) -> String {
    Timestamp::from_millisecond(time).map_or_else(|_| time.to_string(), |time| time.to_string())
}

/// A final result.
pub struct Found {
    pub range: Range,
    /// The record's value.
    pub json: Box<RawValue>,
}

/// The likes that a result was counted from, in the topic of partitioned likes.
#[derive(Deserialize)]
pub struct Range {
    pub partition: i32,
    pub from: i64,
    /// Exclusive.
    pub to: i64,
}

/// Finds the result of a window: in the partition of its key, or else in the others.
pub fn find(client: &Client, window: &Window) -> Result<Found, Failure> {
    let deadline = Instant::now() + FIND;
    let Window { topic, id, .. } = window;
    let count = client.partitions(topic)?;
    let missing = || {
        let (label, start) = (window.size.label(), rfc3339(window.start));
        let sentence = format!("there is no result of {id:?} for the {label} from {start}");
        Failure::Unknown(sentence)
    };
    if count == 0 {
        return Err(missing());
    }
    let own = murmur2::partition(id.as_bytes(), count);
    let others: Vec<i32> = (0..count).filter(|partition| *partition != own).collect();
    for partitions in [vec![own], others] {
        let starts = client.since(topic, &partitions, window.end())?;
        let mut json = None;
        client.read(topic, &starts, deadline, |record| {
            if !is_result(record, window) {
                return ControlFlow::Continue(());
            }
            json = Some(record.value.to_vec());
            ControlFlow::Break(())
        })?;
        let Some(json) = json else { continue };
        let range = serde_json::from_slice(&json);
        let json = serde_json::from_slice(&json);
        let (Ok(range), Ok(json)) = (range, json) else {
            let sentence = "this result does not name its messages; Herald did not publish it";
            return Err(Failure::Gone(sentence.to_owned()));
        };
        return Ok(Found { range, json });
    }
    Err(missing())
}

fn is_result(record: &Record, window: &Window) -> bool {
    #[derive(Deserialize)]
    struct Of {
        start: i64,
        video_uid: String,
    }
    record.key == window.id.as_bytes()
        && serde_json::from_slice::<Of>(record.value)
            .is_ok_and(|of| of.start == window.start && of.video_uid == window.id)
}

/// Whether Kafka still has all messages of a result.
pub fn check(client: &Client, likes: &str, found: &Found) -> Result<(), Failure> {
    let Range {
        partition,
        from,
        to,
    } = found.range;
    let gone = |why: String| Failure::Gone(format!("kafka no longer has these messages: {why}"));
    if !(0..client.partitions(likes)?).contains(&partition) {
        let why = format!("topic {likes:?} has no partition {partition}");
        return Err(gone(why));
    }
    let (low, high) = client.watermarks(likes, partition)?;
    if from < low {
        let why = format!("partition {partition} begins at offset {low}, and they at {from}");
        return Err(gone(why));
    }
    if to > high {
        let why = format!("partition {partition} ends at offset {high}, and they at {to}");
        return Err(gone(why));
    }
    Ok(())
}
