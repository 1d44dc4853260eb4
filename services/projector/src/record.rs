//! A record of a topic, as it is read.

use store::Position;

/// A record of the topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds since 1970.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The id of the request that the record came with, for the log.
    pub fn request_id(&self) -> &str {
        let is_id = |(name, _): &&(String, _)| name.eq_ignore_ascii_case("x-request-id");
        let header = self.headers.iter().find(is_id);
        let value = header.and_then(|(_, value)| value.as_deref());
        std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default()
    }

    /// About the memory that its texts take.
    pub fn bytes(&self) -> usize {
        let length = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| name.len() + length(value));
        length(&self.key) + length(&self.value) + headers.sum::<usize>()
    }

    /// Two bytes that distinguish the record from the one at the same offset of a topic that was recreated.
    pub fn fingerprint(&self) -> u16 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.timestamp.unwrap_or(-1).to_le_bytes());
        hasher.update(self.value.as_deref().unwrap_or_default());
        let sum = hasher.finalize();
        (sum >> 16) as u16 ^ sum as u16
    }

    /// The position after the record, which was read at `position`.
    pub fn after(&self, position: Position) -> Position {
        let time = self.timestamp.unwrap_or(position.record_time);
        Position {
            next: self.offset + 1,
            fingerprint: Some(self.fingerprint()),
            record_time: position.record_time.max(time),
            epoch: position.epoch,
        }
    }
}
