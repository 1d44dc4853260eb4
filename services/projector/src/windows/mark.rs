//! What is committed to Kafka beside the position of a partition: all that its counters need to go on.

use std::collections::BTreeMap;

use serde_json::Value;

/// The largest metadata of an offset that Kafka stores by default (`offset.metadata.max.bytes`).
#[cfg(test)]
const MAX_BYTES: usize = 4096;

/// The state of a partition's counters, except for the open windows, which are counted again from `rebuild` on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Every window that ends then or earlier is closed; in milliseconds since 1970. `None`: none is.
    pub closed: Option<i64>,
    /// The offset of the first like of the open windows; the position if there are none.
    pub rebuild: i64,
    /// Likes that came after their window was closed, since the beginning, by the label of the window's size.
    pub late: BTreeMap<String, u64>,
}

impl Mark {
    /// As JSON, such as `{"version":1,"closed":1700000040000,"rebuild":120,"late":{"1min":0}}`.
    pub fn to_json(&self) -> String {
        let closed = self
            .closed
            .map_or("null".to_owned(), |time| time.to_string());
        let late: Vec<String> = self
            .late
            .iter()
            .map(|(label, count)| format!("\"{label}\":{count}"))
            .collect();
        let (rebuild, late) = (self.rebuild, late.join(","));
        format!(r#"{{"version":1,"closed":{closed},"rebuild":{rebuild},"late":{{{late}}}}}"#)
    }

    /// `None` if it is not the metadata of a position that counters have committed: an operator has set the position, say.
    pub fn parse(json: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(json).ok()?;
        if value.get("version")?.as_i64()? != 1 {
            return None;
        }
        let closed = match value.get("closed")? {
            Value::Null => None,
            time => Some(time.as_i64()?),
        };
        let late = value.get("late")?.as_object()?.iter();
        let late = late.map(|(label, count)| Some((label.clone(), count.as_u64()?)));
        Some(Self {
            closed,
            rebuild: value.get("rebuild")?.as_i64()?,
            late: late.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_parsed_as_it_was_written() {
        let mut mark = Mark {
            closed: None,
            rebuild: 7,
            late: BTreeMap::new(),
        };
        assert_eq!(Mark::parse(&mark.to_json()), Some(mark.clone()));
        mark.closed = Some(i64::MAX);
        mark.rebuild = i64::MAX;
        // The most windows, with the longest labels.
        mark.late = (0..16).map(|n| (format!("864{n:02}s"), u64::MAX)).collect();
        let json = mark.to_json();
        assert!(json.len() < MAX_BYTES / 4, "{json}");
        assert_eq!(Mark::parse(&json), Some(mark));
    }

    #[test]
    fn what_others_write_is_no_mark() {
        for other in [
            "",
            "{}",
            "null",
            r#"{"version":2,"closed":1,"rebuild":2,"late":{}}"#,
            r#"{"version":1,"closed":"1","rebuild":2,"late":{}}"#,
            r#"{"version":1,"closed":1,"rebuild":2,"late":{"1min":-1}}"#,
        ] {
            assert_eq!(Mark::parse(other), None, "{other}");
        }
    }
}
