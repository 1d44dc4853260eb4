//! Cursors: those of the consumer's streams, and of the gateway's acknowledged frames.

use arbitrary::{Result, Unstructured};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::cursor::{MAX_PARTITIONS, Position, TopicId, Vector};
use crate::frame_cursor::Cursor;

const TOPIC: &str = "my-topic";

pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        decode(text);
        if let Ok(cursor) = Cursor::parse(text, TOPIC) {
            assert_eq!(cursor.to_string(), text);
            assert!(cursor.partition >= 0 && cursor.offset >= 0 && cursor.time >= 0);
        }
    }
    // The same bytes as the content of a cursor of this topic, which they hardly become by chance.
    let empty = URL_SAFE_NO_PAD.decode(Vector::default().encode(TOPIC));
    let mut bytes = empty.expect("a cursor is base64");
    bytes.truncate(3);
    bytes.extend(data);
    decode(&URL_SAFE_NO_PAD.encode(bytes));
    _ = round_trip(&mut Unstructured::new(data));
}

/// Whatever is accepted has one meaning and, in the current version, one way of writing it.
fn decode(text: &str) {
    let Some(vector) = Vector::decode(text, TOPIC) else {
        return;
    };
    assert!(vector.len() <= MAX_PARTITIONS);
    let are_offsets = vector.positions.iter().all(|position| position.offset >= 0);
    assert!(are_offsets);
    let token = vector.encode(TOPIC);
    assert_eq!(Vector::decode(&token, TOPIC).as_ref(), Some(&vector));
    // The first characters of the current version.
    if text.starts_with("Ag") {
        assert_eq!(token, text);
    }
}

fn round_trip(input: &mut Unstructured) -> Result<()> {
    let topic: &str = input.arbitrary()?;
    let mut vector = Vector::default();
    if input.arbitrary()? {
        vector.topic_id = TopicId::new(input.arbitrary()?);
    }
    let partitions = input.int_in_range(0..=MAX_PARTITIONS)?;
    while vector.len() < partitions && !input.is_empty() {
        vector.positions.push(Position {
            offset: input.int_in_range(0..=i64::MAX)?,
            fingerprint: input.arbitrary()?,
        });
    }
    let token = vector.encode(topic);
    assert_eq!(Vector::decode(&token, topic), Some(vector));

    let (partition, offset) = (
        input.int_in_range(0..=i32::MAX)?,
        input.int_in_range(0..=i64::MAX)?,
    );
    let cursor = Cursor::new(topic, partition, offset, input.arbitrary()?);
    assert_eq!(Cursor::parse(&cursor.to_string(), topic), Ok(cursor));
    Ok(())
}
