//! The count of an identifier in a window, as it is published.

use herald_events::WindowSize;

/// How often an identifier was liked in a window: finally, or so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowCount {
    /// The index of the window's size among those that are configured.
    pub window: usize,
    /// Of the window, in milliseconds since 1970.
    pub start: i64,
    pub id: String,
    pub count: u64,
    /// The likes that were counted are those of the identifier in the window from this offset of the partition to `to`, exclusive.
    pub from: i64,
    pub to: i64,
    /// Of interim counts: likes that came after their window was closed, since the interim count before.
    pub late: Option<u64>,
}

impl WindowCount {
    /// The value of its record, of which the first three fields are those of the original.
    pub fn to_json(&self, size: WindowSize, partition: i32) -> String {
        let id = serde_json::to_string(&self.id).expect("a string can be written as JSON");
        let late = match self.late {
            Some(late) => format!(",\"late\":{late}"),
            None => String::new(),
        };
        let Self {
            start,
            count,
            from,
            to,
            ..
        } = self;
        let (label, end) = (size.label(), size.end_of(*start));
        format!(
            r#"{{"type":"{label}","video_uid":{id},"count":{count},"start":{start},"end":{end},"partition":{partition},"from":{from},"to":{to}{late}}}"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_the_json_of_the_contract() {
        let size: WindowSize = "1m".parse().unwrap();
        let mut count = WindowCount {
            window: 0,
            start: 60_000,
            id: "a\"b".to_owned(),
            count: 3,
            from: 120,
            to: 171,
            late: None,
        };
        assert_eq!(
            count.to_json(size, 2),
            r#"{"type":"1min","video_uid":"a\"b","count":3,"start":60000,"end":120000,"partition":2,"from":120,"to":171}"#
        );
        count.late = Some(4);
        assert!(count.to_json(size, 2).ends_with(r#""to":171,"late":4}"#));
    }
}
