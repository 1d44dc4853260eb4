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

use crate::kafka::log::{Client, Limit};
use crate::kafka::murmur2;
use crate::likes::identifier;

/// The time within which a result must be found.
const FIND: Duration = Duration::from_secs(10);

/// How much later than another partition of likes one may be counted, in milliseconds: a day. A result is looked for behind those of
/// later windows up to this.
const LAG: i64 = 24 * 3600 * 1000;

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

/// Finds the result of a window, which was counted from this topic of likes: in the partition of its key, or else in the others.
pub fn find(client: &Client, window: &Window, likes: &str) -> Result<Found, Failure> {
    let begun = Instant::now();
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
    let all: Vec<i32> = (0..count).collect();
    let mut starts = client.since(topic, &all, window.end())?;
    starts.sort_by_key(|(partition, _)| *partition != own);
    let counted_from = match client.partitions(likes)? {
        0 => None,
        count => Some(murmur2::partition(id.as_bytes(), count)),
    };
    // Each by itself, because in one of them the results of later windows may be few, and in another one many.
    for start in starts {
        let mut json = None;
        let limit = Limit::Total(FIND.saturating_sub(begun.elapsed()));
        client.read(topic, &[start], limit, |record| {
            match position(record.key, record.value, window, counted_from) {
                Position::Here => json = Some(record.value.to_vec()),
                Position::Before => {}
                Position::Unknown => return ControlFlow::Continue(()),
            }
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

/// Where a result is, seen from a record in its partition.
#[derive(Debug, PartialEq, Eq)]
enum Position {
    Here,
    /// It would be before this record.
    Before,
    Unknown,
}

/// `counted_from` is the partition of likes that the identifier is in. The results of one such partition are published in the order
/// of their windows; those of another one may be ahead of them.
fn position(key: &[u8], value: &[u8], window: &Window, counted_from: Option<i32>) -> Position {
    #[derive(Deserialize)]
    struct Of {
        start: i64,
        video_uid: String,
        partition: Option<i32>,
    }
    let Ok(of) = serde_json::from_slice::<Of>(value) else {
        return Position::Unknown;
    };
    let is_same = key == window.id.as_bytes() && of.video_uid == window.id;
    if is_same && of.start == window.start {
        return Position::Here;
    }
    let is_ordered = of.partition.is_some() && of.partition == counted_from;
    let lag = if is_ordered { 0 } else { LAG };
    match of.start.saturating_sub(lag) > window.start {
        true => Position::Before,
        false => Position::Unknown,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_not_looked_for_behind_later_ones_of_its_partition_of_likes() {
        let window = Window {
            size: "1m".parse().unwrap(),
            topic: "results".to_owned(),
            start: 600_000,
            id: "a".to_owned(),
        };
        let seen = |id: &str, start: i64, partition: i32| {
            let value =
                format!(r#"{{"video_uid":"{id}","start":{start},"partition":{partition}}}"#);
            position(id.as_bytes(), value.as_bytes(), &window, Some(2))
        };
        assert_eq!(seen("a", 600_000, 2), Position::Here);
        assert_eq!(seen("b", 600_000, 2), Position::Unknown);
        assert_eq!(seen("b", 540_000, 2), Position::Unknown);
        assert_eq!(seen("b", 660_000, 2), Position::Before);
        // Another partition of likes may be ahead.
        assert_eq!(seen("b", 660_000, 1), Position::Unknown);
        assert_eq!(seen("b", 660_000 + LAG, 1), Position::Before);
        let foreign = br#"{"video_uid":"b","count":1}"#;
        let foreign = position(b"b", foreign, &window, Some(2));
        assert_eq!(foreign, Position::Unknown);
    }
}
