//! Reads the topics of results into the rooms.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Number;

use super::Rooms;
use crate::follower::Follower;
use crate::kafka::Topic;
use crate::record::{Event, GapReason, Message, Payload, Value};

/// What one record says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Result {
        room: String,
        count: i128,
    },
    /// A tombstone: the room has no result any more.
    Removed {
        room: String,
    },
    /// It is no result.
    Nothing,
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
        let mut skipped = 0;
        let mut last_skipped = None;
        for event in &events {
            match &event.payload {
                Payload::Gap(gap) => match gap.reason {
                    GapReason::Recreated => rooms.forget(window, event.partition, 0),
                    GapReason::Truncated => {
                        rooms.forget(window, event.partition, event.first_offset());
                    }
                    _ => {}
                },
                Payload::Message(message) => match read(message) {
                    Said::Result { room, count } => {
                        let place = (event.partition, message.offset);
                        rooms.publish(window, &room, count, place);
                    }
                    Said::Removed { room } => rooms.remove(window, &room),
                    Said::Nothing => {
                        skipped += 1;
                        last_skipped = Some(place_of(event));
                    }
                },
            }
        }
        if let Some((partition, offset)) = last_skipped {
            rooms.skipped(&name, skipped);
            tracing::warn!(
                topic = name,
                records = skipped,
                partition,
                offset,
                "skipped records that are not {{\"video_uid\": string, \"count\": number}}; the last is named"
            );
        }
        if follower.has_caught_up() {
            rooms.caught_up(window);
        }
    }
}

fn place_of(event: &Event) -> (usize, i64) {
    (event.partition, event.first_offset())
}

/// Reads a record. Its room is its key; that of a record without a key, of others' making, its `video_uid`.
pub fn read(message: &Message) -> Said {
    let key = match message.key.as_deref().map(std::str::from_utf8) {
        None => None,
        Some(Ok(key)) => Some(key),
        Some(Err(_)) => return Said::Nothing,
    };
    let text = match (&message.value, key) {
        (Value::Text(text), _) => text,
        (Value::Null, Some(key)) => {
            let room = key.to_owned();
            return Said::Removed { room };
        }
        _ => return Said::Nothing,
    };
    let Ok(body) = serde_json::from_str::<Body>(text) else {
        return Said::Nothing;
    };
    let Some(count) = whole(&body.count) else {
        return Said::Nothing;
    };
    let room = key.map_or(body.video_uid, str::to_owned);
    Said::Result { room, count }
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

    fn said(key: Option<&[u8]>, value: Option<&str>) -> Said {
        read(&Message {
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
        let result = |room: &str, count| Said::Result {
            room: room.to_owned(),
            count,
        };
        assert_eq!(said(Some(b"a"), Some(value)), result("a", 3));
        assert_eq!(said(None, Some(value)), result("b", 3));
        let float = r#"{"video_uid":"b","count":3.0}"#;
        assert_eq!(said(None, Some(float)), result("b", 3));
        let room = "a".to_owned();
        assert_eq!(said(Some(b"a"), None), Said::Removed { room });
    }

    #[test]
    fn what_is_no_result_says_nothing() {
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
            assert_eq!(said(Some(b"a"), Some(value)), Said::Nothing, "{value}");
        }
        let value = r#"{"video_uid":"a","count":3}"#;
        assert_eq!(said(Some(b"\xff"), Some(value)), Said::Nothing);
        assert_eq!(said(None, None), Said::Nothing);
    }
}
