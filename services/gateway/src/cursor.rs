//! The position of a published frame, as clients see it.

use std::fmt;

/// The position of a record of one topic. Its text is opaque to clients: they send it back, to the same topic's gateways. The
/// record's time distinguishes it from the one at the same offset of a topic that was recreated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    topic: u32,
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds since 1970.
    pub time: i64,
}

impl Cursor {
    pub fn new(topic: &str, partition: i32, offset: i64, time: i64) -> Self {
        Self {
            topic: crc32fast::hash(topic.as_bytes()),
            partition,
            offset,
            time: time.max(0),
        }
    }

    /// # Errors
    ///
    /// If the text is not a cursor, or that of another topic; the error is for the client.
    pub fn parse(text: &str, topic: &str) -> Result<Self, &'static str> {
        let cursor = Self::fields(text).filter(|cursor| cursor.to_string() == text);
        let cursor = cursor.ok_or("after is not the cursor of an acknowledged frame")?;
        if cursor.topic != crc32fast::hash(topic.as_bytes()) {
            return Err("after is the cursor of a frame in another topic");
        }
        Ok(cursor)
    }

    fn fields(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let mut field = || fields.next();
        Some(Self {
            topic: u32::from_str_radix(field()?, 16).ok()?,
            partition: i32::from_str_radix(field()?, 16).ok()?,
            offset: i64::from_str_radix(field()?, 16).ok()?,
            time: i64::from_str_radix(field()?, 16).ok()?,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            partition,
            offset,
            time,
            ..
        } = self;
        write!(f, "{:08x}-{partition:x}-{offset:x}-{time:x}", self.topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_for_its_own_topic_only() {
        let cursor = Cursor::new("events", 11, i64::MAX, 1_569_972_082_000);
        let text = cursor.to_string();
        assert_eq!(Cursor::parse(&text, "events"), Ok(cursor));
        let error = Cursor::parse(&text, "dev.events").unwrap_err();
        assert_eq!(error, "after is the cursor of a frame in another topic");
    }

    #[test]
    fn other_texts_are_rejected() {
        let good = Cursor::new("events", 0, 7, 1).to_string();
        let upper = good.to_uppercase();
        let longer = format!("{good}-0");
        for bad in [
            "",
            "7",
            "0-7",
            "--",
            &good[1..],
            &longer,
            &upper,
            "ä",
            "00000000-+1-2-3",
            "00000000-1-2",
        ] {
            assert!(Cursor::parse(bad, "events").is_err(), "{bad}");
        }
    }
}
