//! Converts Kafka's records into events.

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::cursor::Position;
use crate::record::{Event, Gap, GapReason, Message, Payload, Value};

/// A record as an event; a record larger than `max_bytes` (value, key and headers together) becomes a gap.
pub fn event(message: &BorrowedMessage<'_>, max_bytes: usize) -> Event {
    let partition = message.partition() as usize;
    let offset = message.offset();
    let timestamp = message.timestamp().to_millis();
    let (key, value) = (message.key(), message.payload());
    let next = Position::after(offset, timestamp, value);
    let headers = herald_headers::of(message);
    let size = value.map_or(0, <[u8]>::len)
        + key.map_or(0, <[u8]>::len)
        + headers
            .iter()
            .map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len))
            .sum::<usize>();
    let payload = if size > max_bytes {
        let to = Some(offset + 1);
        Payload::Gap(Gap::of(GapReason::TooLarge, partition, offset, to))
    } else {
        Payload::Message(Message {
            offset,
            timestamp,
            key: key.map(<[u8]>::to_vec),
            headers: headers
                .into_iter()
                .map(|(name, value)| {
                    let name = String::from_utf8_lossy(name).into_owned();
                    (name, value.map(<[u8]>::to_vec))
                })
                .collect(),
            value: Value::new(value),
        })
    };
    Event {
        partition,
        next,
        payload,
    }
}

/// The gap of a recreated topic, whose new log begins at `low`.
pub fn recreated(partition: usize, position: Position, low: i64) -> Event {
    let next = Position::at(low);
    Event::gap(GapReason::Recreated, partition, position.offset, None, next)
}
