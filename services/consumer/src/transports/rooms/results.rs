//! Reads the topics of results into the rooms.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Number;

use super::Rooms;
use crate::follower::Follower;
use crate::kafka::Topic;
use crate::record::{Event, GapReason, Message, Payload, Value};

/// How many events are published before the clients' tasks run: a client that reads is sent each result.
const CHUNK: usize = 100;

/// A record of a topic of results.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    Result {
        room: String,
        count: i128,
    },
    /// A tombstone: the room has no result any more.
    Removed {
        room: String,
    },
    NotAResult,
}

/// The value of a result; other fields are ignored.
#[derive(Deserialize)]
struct Body {
    video_uid: String,
    count: Number,
}

/// Reads one topic for ever: the results of a window.
pub async fn run(rooms: Arc<Rooms>, window: usize, topic: Arc<Topic>) {
    let name = topic.name.clone();
    let mut follower = Follower::new(topic);
    loop {
        let events = follower.next().await;
        rooms.set_problem(window, follower.problem());
        for events in events.chunks(CHUNK) {
            publish(&rooms, window, &name, events);
            tokio::task::yield_now().await;
        }
        if follower.has_caught_up() {
            rooms.caught_up(window);
        }
    }
}

fn publish(rooms: &Rooms, window: usize, topic: &str, events: &[Arc<Event>]) {
    let mut skipped = 0;
    let mut last_skipped = None;
    for event in events {
        let partition = event.partition;
        match &event.payload {
            Payload::Gap(gap) => {
                match gap.reason {
                    GapReason::Recreated => rooms.forget(window, partition, 0),
                    GapReason::Truncated => rooms.forget(window, partition, event.first_offset()),
                    _ => {}
                }
                let reason = gap.reason.name();
                rooms.skipped(topic, reason, 1);
                let from = event.first_offset();
                let to = gap.ranges.first().and_then(|range| range.to);
                tracing::warn!(
                    topic,
                    reason,
                    partition,
                    from,
                    to,
                    "a gap in the results; those in it are not sent"
                );
            }
            Payload::Message(message) => match parse(message) {
                Parsed::Result { room, count } => {
                    rooms.publish(window, &room, count, (partition, message.offset));
                }
                Parsed::Removed { room } => rooms.remove(window, &room),
                Parsed::NotAResult => {
                    skipped += 1;
                    last_skipped = Some((partition, message.offset));
                }
            },
        }
    }
    if let Some((partition, offset)) = last_skipped {
        rooms.skipped(topic, "not-a-result", skipped);
        tracing::warn!(
            topic,
            records = skipped,
            partition,
            offset,
            "skipped records that are not {{\"video_uid\": string, \"count\": number}}; the last is named"
        );
    }
}

/// Parses a record. Its room is its key; without a key, which other producers may omit, its `video_uid`.
pub fn parse(message: &Message) -> Parsed {
    let key = match message.key.as_deref().map(std::str::from_utf8) {
        None => None,
        Some(Ok(key)) => Some(key),
        Some(Err(_)) => return Parsed::NotAResult,
    };
    let text = match (&message.value, key) {
        (Value::Text(text), _) => text,
        (Value::Null, Some(key)) => {
            let room = key.to_owned();
            return Parsed::Removed { room };
        }
        _ => return Parsed::NotAResult,
    };
    let Ok(body) = serde_json::from_str::<Body>(text) else {
        return Parsed::NotAResult;
    };
    let Some(count) = whole(&body.count) else {
        return Parsed::NotAResult;
    };
    let room = key.map_or(body.video_uid, str::to_owned);
    Parsed::Result { room, count }
}

/// A number without a fraction: clients receive an integer.
fn whole(number: &Number) -> Option<i128> {
    if let Some(number) = number.as_i128() {
        return Some(number);
    }
    // Integers up to this size are exact in JSON's usual representation, and beyond it in no client.
    let float = number.as_f64()?;
    (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::Position;

    fn parsed(key: Option<&[u8]>, value: Option<&str>) -> Parsed {
        parse(&Message {
            offset: 0,
            timestamp: None,
            key: key.map(<[u8]>::to_vec),
            headers: vec![],
            value: Value::new(value.map(str::as_bytes)),
        })
    }

    #[test]
    fn a_record_belongs_to_the_room_of_its_key_and_without_one_to_that_of_its_video_uid() {
        let value = r#"{"type":"1min","video_uid":"b","count":3,"start":0,"__faust":{}}"#;
        let result = |room: &str, count| Parsed::Result {
            room: room.to_owned(),
            count,
        };
        assert_eq!(parsed(Some(b"a"), Some(value)), result("a", 3));
        assert_eq!(parsed(None, Some(value)), result("b", 3));
        let float = r#"{"video_uid":"b","count":3.0}"#;
        assert_eq!(parsed(None, Some(float)), result("b", 3));
        let room = "a".to_owned();
        assert_eq!(parsed(Some(b"a"), None), Parsed::Removed { room });
    }

    #[test]
    fn a_record_of_another_shape_is_not_a_result() {
        for value in [
            "",
            "x",
            "3",
            "{}",
            r#"{"video_uid":"a"}"#,
            r#"{"video_uid":1,"count":3}"#,
            r#"{"video_uid":"a","count":"3"}"#,
            r#"{"video_uid":"a","count":1.5}"#,
            r#"{"video_uid":"a","count":3},"#,
        ] {
            assert_eq!(
                parsed(Some(b"a"), Some(value)),
                Parsed::NotAResult,
                "{value}"
            );
        }
        let value = r#"{"video_uid":"a","count":3}"#;
        assert_eq!(parsed(Some(b"\xff"), Some(value)), Parsed::NotAResult);
        assert_eq!(parsed(None, None), Parsed::NotAResult);
    }

    #[test]
    fn gaps_and_records_that_are_not_results_are_counted_by_reason() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        let rooms = Rooms::new(["one", "five", "ten"], usize::MAX, metrics.clone());
        let next = Position::at(5);
        let gap = Event::gap(GapReason::Retention, 0, 2, Some(5), next);
        let message = Message {
            offset: 5,
            timestamp: None,
            key: None,
            headers: vec![],
            value: Value::Null,
        };
        let record = Event {
            partition: 0,
            next: Position::at(6),
            payload: Payload::Message(message),
        };
        publish(&rooms, 0, "results", &[Arc::new(gap), Arc::new(record)]);
        for reason in ["retention", "not-a-result"] {
            let counted = metrics.registry.gather();
            let skipped = counted
                .iter()
                .find(|family| family.name() == "herald_results_skipped_total");
            let counted = skipped.unwrap().get_metric().iter().filter(|metric| {
                metric
                    .get_label()
                    .iter()
                    .any(|label| label.value() == reason)
            });
            let counted: f64 = counted.map(|metric| metric.get_counter().get_value()).sum();
            assert_eq!(counted, 1.0, "{reason}");
        }
    }
}
