//! The record before the position of the topic of likes, by which a topic that was recreated is noticed.

use serde_json::Value;

use crate::kafka::Group;
use crate::record::Record;

/// The last record that was copied. It is committed to Kafka beside the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRecord {
    offset: i64,
    fingerprint: u16,
}

impl LastRecord {
    pub fn of(record: &Record) -> Self {
        Self {
            offset: record.offset,
            fingerprint: record.fingerprint(),
        }
    }

    /// As JSON, such as `{"version":1,"offset":120,"fingerprint":4711}`.
    pub fn to_json(self) -> String {
        let Self {
            offset,
            fingerprint,
        } = self;
        format!(r#"{{"version":1,"offset":{offset},"fingerprint":{fingerprint}}}"#)
    }

    /// `None` if no projector has committed it: an operator has set the position, say.
    pub fn parse(json: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(json).ok()?;
        if value.get("version")?.as_i64()? != 1 {
            return None;
        }
        Some(Self {
            offset: value.get("offset")?.as_i64()?,
            fingerprint: value.get("fingerprint")?.as_u64()?.try_into().ok()?,
        })
    }

    /// Whether Kafka has another record at its offset. Nothing may be assigned.
    pub fn is_replaced(self, group: &Group, partition: i32) -> anyhow::Result<bool> {
        let (low, high) = group.watermarks(partition)?;
        if !(low..high).contains(&self.offset) {
            return Ok(false);
        }
        let found = group.first_record(partition, self.offset)?;
        Ok(found.is_some_and(|record| Self::of(&record) != self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_record_is_parsed_as_it_was_written() {
        let record = Record {
            offset: i64::MAX,
            value: Some(b"a".to_vec()),
            ..Record::default()
        };
        let last = LastRecord::of(&record);
        assert_eq!(LastRecord::parse(&last.to_json()), Some(last));
        for other in ["", "{}", r#"{"version":1,"offset":1,"fingerprint":65536}"#] {
            assert_eq!(LastRecord::parse(other), None, "{other}");
        }
    }
}
