//! The cursor: a client's position in every partition, as one short token that every transport and every replica understands.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The largest number of partitions of a topic that Herald serves: a cursor contains all of them.
pub const MAX_PARTITIONS: usize = 256;

/// The first byte of every token. A token of an unknown version is treated as malformed.
const VERSION: u8 = 2;

/// Tokens of this version do not contain the topic's id. They are still accepted.
const WITHOUT_TOPIC_ID: u8 = 1;

/// Where reading of one partition continues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The next offset to deliver, 0 or more.
    pub offset: i64,
    /// The fingerprint of the record at `offset - 1`, if known.
    pub fingerprint: Option<u16>,
}

impl Position {
    /// A position with a known offset only.
    pub fn at(offset: i64) -> Self {
        Self {
            offset,
            fingerprint: None,
        }
    }

    /// The position after the record at `offset` with these contents.
    pub fn after(offset: i64, timestamp: Option<i64>, value: Option<&[u8]>) -> Self {
        Self {
            offset: offset + 1,
            fingerprint: Some(fingerprint(timestamp, value)),
        }
    }

    /// Whether both may come from the same log: false only when both fingerprints are known and differ.
    pub fn agrees(self, other: Self) -> bool {
        self.fingerprint.is_none()
            || other.fingerprint.is_none()
            || self.fingerprint == other.fingerprint
    }
}

/// Two bytes that distinguish a record from the one at the same offset of a topic that was recreated under the same name.
pub fn fingerprint(timestamp: Option<i64>, value: Option<&[u8]>) -> u16 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&timestamp.unwrap_or(-1).to_le_bytes());
    hasher.update(value.unwrap_or_default());
    let sum = hasher.finalize();
    (sum >> 16) as u16 ^ sum as u16
}

/// A two-byte hash of the id that Kafka gave a topic, to detect a recreated topic; 0 is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicId(u16);

impl TopicId {
    /// From the id as Kafka clients format it.
    pub fn new(id: &str) -> Self {
        let sum = crc32fast::hash(id.as_bytes());
        Self(((sum >> 16) as u16 ^ sum as u16).max(1))
    }

    /// Whether both are known and equal.
    pub fn is(self, other: Self) -> bool {
        self.0 != 0 && self == other
    }

    /// Whether both are known and differ.
    pub fn differs(self, other: Self) -> bool {
        self.0 != 0 && other.0 != 0 && self != other
    }
}

/// One position per partition, from partition 0 upwards, in the topic with this id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vector {
    pub positions: Vec<Position>,
    pub topic_id: TopicId,
}

impl Vector {
    /// A vector in a topic whose id is not known.
    pub fn new(positions: Vec<Position>) -> Self {
        Self {
            positions,
            topic_id: TopicId::default(),
        }
    }

    /// The number of partitions.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is no partition.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The position of a partition; an absent one is read from its start.
    pub fn get(&self, partition: usize) -> Position {
        self.positions.get(partition).copied().unwrap_or_default()
    }

    /// Sets the position of a partition, and adds those before it if absent.
    pub fn set(&mut self, partition: usize, position: Position) {
        if self.positions.len() <= partition {
            self.positions.resize(partition + 1, Position::default());
        }
        self.positions[partition] = position;
    }

    /// The token of this vector for a topic. `docs/protocol.md` describes the format.
    pub fn encode(&self, topic: &str) -> String {
        let mut bytes = Vec::with_capacity(5 + self.positions.len() * 6);
        bytes.push(VERSION);
        bytes.extend(topic_tag(topic));
        bytes.extend(self.topic_id.0.to_le_bytes());
        for position in &self.positions {
            write_varint(
                &mut bytes,
                (position.offset as u64) << 1 | u64::from(position.fingerprint.is_some()),
            );
            if let Some(fingerprint) = position.fingerprint {
                bytes.extend(fingerprint.to_le_bytes());
            }
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Parses a token; `None` if it is malformed, or of another topic or version.
    pub fn decode(token: &str, topic: &str) -> Option<Self> {
        // A varint of 63 bits is at most 9 bytes, a fingerprint 2: longer tokens are not ours, so they are not decoded.
        if token.len() > (5 + MAX_PARTITIONS * 11).div_ceil(3) * 4 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (&version, rest) = bytes.split_first()?;
        let mut rest = rest.strip_prefix(&topic_tag(topic))?;
        let topic_id = match version {
            WITHOUT_TOPIC_ID => TopicId::default(),
            VERSION => {
                let (id, after) = rest.split_first_chunk::<2>()?;
                rest = after;
                TopicId(u16::from_le_bytes(*id))
            }
            _ => return None,
        };
        let mut positions = Vec::new();
        while !rest.is_empty() {
            let number = read_varint(&mut rest)?;
            let fingerprint = match number & 1 {
                0 => None,
                _ => {
                    let (bytes, after) = rest.split_first_chunk::<2>()?;
                    rest = after;
                    Some(u16::from_le_bytes(*bytes))
                }
            };
            positions.push(Position {
                offset: (number >> 1) as i64,
                fingerprint,
            });
        }
        (positions.len() <= MAX_PARTITIONS).then_some(Self {
            positions,
            topic_id,
        })
    }
}

/// Two bytes to detect a cursor of another topic.
fn topic_tag(topic: &str) -> [u8; 2] {
    (crc32fast::hash(topic.as_bytes()) as u16).to_le_bytes()
}

/// LEB128: seven bits per byte, lowest first.
fn write_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads one varint and advances `rest` past it; `None` if it is cut short or not in its shortest form.
fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return (shift == 0 || byte != 0).then_some(number);
        }
    }
    // The tenth byte would carry only the 64th bit, which is the sign of the offset.
    let (&byte, after) = rest.split_first()?;
    *rest = after;
    (byte == 1).then_some(number | 1 << 63)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn positions() -> impl Strategy<Value = Vec<Position>> {
        let position =
            (0..i64::MAX, any::<Option<u16>>()).prop_map(|(offset, fingerprint)| Position {
                offset,
                fingerprint,
            });
        proptest::collection::vec(position, 0..MAX_PARTITIONS)
    }

    proptest! {
        #[test]
        fn decoding_an_encoded_vector_returns_it(positions in positions(), id in any::<u16>(), topic in "[a-z.-]{1,20}") {
            let vector = Vector { positions, topic_id: TopicId(id) };
            prop_assert_eq!(Vector::decode(&vector.encode(&topic), &topic), Some(vector));
        }

        #[test]
        fn a_token_is_safe_in_a_url_and_a_header(positions in positions()) {
            let token = Vector::new(positions).encode("my-topic");
            prop_assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
        }

        #[test]
        fn garbage_never_panics_and_an_accepted_token_encodes_to_itself(token in "[ -~]{0,40}") {
            // A token of the first version is encoded as one of the current version.
            if let Some(vector) = Vector::decode(&token, "my-topic")
                && token.starts_with("Ag")
            {
                prop_assert_eq!(vector.encode("my-topic"), token);
            }
        }
    }

    #[test]
    fn a_cursor_of_another_topic_is_rejected() {
        let token = Vector::new(vec![Position::at(7)]).encode("my-topic");
        assert_eq!(Vector::decode(&token, "dev-topic"), None);
    }

    #[test]
    fn a_token_of_the_first_version_is_still_accepted() {
        // Topic "my-topic", partition 0, next offset 7, no fingerprint.
        let mut bytes = vec![1];
        bytes.extend(topic_tag("my-topic"));
        bytes.push(14);
        let vector = Vector::decode(&URL_SAFE_NO_PAD.encode(bytes), "my-topic");
        assert_eq!(vector, Some(Vector::new(vec![Position::at(7)])));
    }

    #[test]
    fn unknown_ids_neither_agree_nor_differ() {
        let (a, b, unknown) = (TopicId::new("a"), TopicId::new("b"), TopicId::default());
        assert!(a.is(a) && !a.is(b) && a.differs(b));
        for id in [a, unknown] {
            assert!(!id.is(unknown) && !id.differs(unknown) && !unknown.differs(id));
        }
    }

    #[test]
    fn a_truncated_token_is_rejected() {
        let token = Vector::new(vec![Position::after(7, Some(1), Some(b"x"))]).encode("my-topic");
        assert_eq!(Vector::decode(&token[..token.len() - 1], "my-topic"), None);
    }

    #[test]
    fn one_partition_takes_14_characters() {
        let vector = Vector::new(vec![Position::after(1_000_000, Some(1), Some(b"x"))]);
        assert!(vector.encode("my-topic").len() <= 14);
    }

    #[test]
    fn another_timestamp_or_value_changes_the_fingerprint() {
        assert_ne!(
            fingerprint(Some(1), Some(b"x")),
            fingerprint(Some(2), Some(b"x"))
        );
        assert_ne!(
            fingerprint(Some(1), Some(b"x")),
            fingerprint(Some(1), Some(b"y"))
        );
    }
}
