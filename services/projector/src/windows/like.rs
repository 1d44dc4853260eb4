//! A like: the identifier that a record of the topic of likes consists of.

use std::fmt;

use crate::record::Record;

/// The longest identifier, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 256;

/// How far a record's timestamp may be ahead of the clock, in milliseconds.
const MAX_AHEAD: i64 = 24 * 3600 * 1000;

/// The identifier that is liked, and when, in milliseconds since 1970. `now` is the clock.
///
/// # Errors
///
/// If the record is not a like, or cannot be one: it is more than a day ahead of the clock.
pub fn accept(record: &Record, now: i64) -> Result<(&str, i64), Malformed> {
    let (id, timestamp) = read(record)?;
    if timestamp > now.saturating_add(MAX_AHEAD) {
        return Err(Malformed::Future);
    }
    Ok((id, timestamp))
}

/// The same without a clock, for likes that were accepted before.
///
/// # Errors
///
/// If the record is not a like.
pub fn read(record: &Record) -> Result<(&str, i64), Malformed> {
    let value = record.value.as_deref().ok_or(Malformed::NoValue)?;
    if value.is_empty() {
        return Err(Malformed::Empty);
    }
    if value.len() > MAX_ID_BYTES {
        return Err(Malformed::TooLong);
    }
    let id = std::str::from_utf8(value).map_err(|_| Malformed::NotUtf8)?;
    if id.contains('\0') {
        return Err(Malformed::Nul);
    }
    let timestamp = record.timestamp.filter(|timestamp| *timestamp >= 0);
    Ok((id, timestamp.ok_or(Malformed::NoTimestamp)?))
}

/// Why a record is not a like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    NoValue,
    Empty,
    TooLong,
    NotUtf8,
    Nul,
    NoTimestamp,
    Future,
    /// Kafka does not take it in the topic of partitioned likes.
    Rejected,
}

impl Malformed {
    /// A label for metrics, of a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoValue => "no-value",
            Self::Empty => "empty",
            Self::TooLong => "too-long",
            Self::NotUtf8 => "not-utf8",
            Self::Nul => "nul",
            Self::NoTimestamp => "no-timestamp",
            Self::Future => "future",
            Self::Rejected => "rejected",
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue => f.write_str("the record has no value"),
            Self::Empty => f.write_str("the identifier must not be empty"),
            Self::TooLong => write!(f, "an identifier has at most {MAX_ID_BYTES} bytes"),
            Self::NotUtf8 => f.write_str("the identifier is not UTF-8"),
            Self::Nul => f.write_str("an identifier must not contain NUL"),
            Self::NoTimestamp => f.write_str("the record has no timestamp"),
            Self::Future => f.write_str("the timestamp is more than 24 hours ahead of the clock"),
            Self::Rejected => {
                f.write_str("the topic of partitioned likes rejects it: timestamp or size")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    fn record(value: &[u8], timestamp: i64) -> Record {
        Record {
            value: Some(value.to_vec()),
            timestamp: Some(timestamp),
            ..Record::default()
        }
    }

    #[test]
    fn a_like_is_a_bare_identifier() {
        let like = record("ä-1".as_bytes(), NOW);
        assert_eq!(accept(&like, NOW), Ok(("ä-1", NOW)));
        assert!(accept(&record(&[b'a'; 256], NOW), NOW).is_ok());
        assert!(accept(&record(b"a", NOW + MAX_AHEAD), NOW).is_ok());
        assert!(accept(&record(b"a", 0), NOW).is_ok());
    }

    #[test]
    fn what_is_not_a_like_has_a_reason() {
        let reason = |record: &Record| accept(record, NOW).unwrap_err();
        let none = Record {
            timestamp: Some(NOW),
            ..Record::default()
        };
        assert_eq!(reason(&none), Malformed::NoValue);
        assert_eq!(reason(&record(b"", NOW)), Malformed::Empty);
        assert_eq!(reason(&record(&[b'a'; 257], NOW)), Malformed::TooLong);
        assert_eq!(reason(&record(b"\xff", NOW)), Malformed::NotUtf8);
        assert_eq!(reason(&record(b"a\0", NOW)), Malformed::Nul);
        assert_eq!(
            reason(&record(b"a", NOW + MAX_AHEAD + 1)),
            Malformed::Future
        );
        assert_eq!(reason(&record(b"a", -5)), Malformed::NoTimestamp);
        let undated = Record {
            value: Some(b"a".to_vec()),
            ..Record::default()
        };
        assert_eq!(reason(&undated), Malformed::NoTimestamp);
    }
}
