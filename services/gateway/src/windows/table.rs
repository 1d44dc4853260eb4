//! The latest results of the videos that are watched. Pure, so that it can be tested without Kafka.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use herald_events::WindowSize;
use serde::Deserialize;
use serde_json::json;

/// Final results that are kept of each video and window.
pub const HISTORY: usize = 10;

/// What is used of a result. The original's have no `start` and `end`.
#[derive(Debug, Deserialize)]
pub struct Counted {
    count: u64,
    start: i64,
    end: i64,
}

/// The results of each video that is watched.
#[derive(Debug, Default)]
pub struct Table {
    /// Increases with each change.
    version: u64,
    videos: HashMap<String, Vec<Track>>,
}

/// The results of one video in windows of one size.
#[derive(Debug, Default)]
struct Track {
    /// The newest final results, by the start of their window.
    finals: BTreeMap<i64, Row>,
    /// The newest interim count.
    interim: Option<(Order, Row)>,
}

/// Of two interim counts, the one that is greater is newer: the start of the window, the record's time and its offset.
type Order = (i64, i64, i64);

#[derive(Debug)]
struct Row {
    start: i64,
    end: i64,
    count: u64,
    /// The version of the table in which it changed last.
    changed: u64,
}

impl Table {
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Keeps the results of this video, in windows of so many sizes.
    pub fn add(&mut self, video: &str, sizes: usize) {
        let tracks = || (0..sizes).map(|_| Track::default()).collect();
        self.videos.entry(video.to_owned()).or_insert_with(tracks);
    }

    pub fn remove(&mut self, video: &str) {
        self.videos.remove(video);
    }

    pub fn has(&self, video: &str) -> bool {
        self.videos.contains_key(video)
    }

    /// Takes a final result of the size with this index. One that is known changes nothing.
    pub fn take_final(&mut self, video: &str, size: usize, counted: &Counted) {
        let Some(track) = track(&mut self.videos, video, size) else {
            return;
        };
        let &Counted { count, start, end } = counted;
        let finals = &mut track.finals;
        if finals.contains_key(&start) {
            return;
        }
        self.version += 1;
        let changed = self.version;
        finals.insert(
            start,
            Row {
                start,
                end,
                count,
                changed,
            },
        );
        if finals.len() > HISTORY {
            finals.pop_first();
        }
    }

    /// Takes an interim count of the size with this index, from a record with this time and offset. One that is older than another
    /// changes nothing.
    pub fn take_interim(
        &mut self,
        video: &str,
        size: usize,
        counted: &Counted,
        time: i64,
        offset: i64,
    ) {
        let Some(track) = track(&mut self.videos, video, size) else {
            return;
        };
        let &Counted { count, start, end } = counted;
        let order = (start, time, offset);
        if track
            .interim
            .as_ref()
            .is_some_and(|(known, _)| *known >= order)
        {
            return;
        }
        self.version += 1;
        let changed = self.version;
        let row = Row {
            start,
            end,
            count,
            changed,
        };
        track.interim = Some((order, row));
    }

    /// The results of these videos that changed after `version`, as a JSON array; `None` if there are none. An interim count is
    /// there only while its window has no final result.
    pub fn after(&self, version: u64, videos: &[String], sizes: &[WindowSize]) -> Option<String> {
        let mut text = String::from("[");
        for video in videos {
            for (track, size) in self.videos.get(video).into_iter().flatten().zip(sizes) {
                let finals = track.finals.values().map(|row| (row, true));
                let interim = track.interim.as_ref().map(|(_, row)| (row, false));
                let interim = interim.filter(|(row, _)| !track.finals.contains_key(&row.start));
                let rows = finals.chain(interim);
                for (row, is_final) in rows.filter(|(row, _)| row.changed > version) {
                    let comma = if text.len() > 1 { "," } else { "" };
                    let Row {
                        start, end, count, ..
                    } = row;
                    // Writing into a string does not fail.
                    _ = write!(
                        text,
                        r#"{comma}{{"type":"{}","video_uid":{},"count":{count},"start":{start},"end":{end},"final":{is_final}}}"#,
                        size.label(),
                        json!(video),
                    );
                }
            }
        }
        text.push(']');
        (text.len() > 2).then_some(text)
    }
}

fn track<'a>(
    videos: &'a mut HashMap<String, Vec<Track>>,
    video: &str,
    size: usize,
) -> Option<&'a mut Track> {
    videos.get_mut(video)?.get_mut(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> (Table, Vec<String>, [WindowSize; 2]) {
        let mut table = Table::default();
        let sizes = ["1m", "5m"].map(|size| size.parse().unwrap());
        table.add("a", sizes.len());
        (table, vec!["a".to_owned(), "b".to_owned()], sizes)
    }

    fn counted(start: i64, count: u64) -> Counted {
        let end = start + 60_000;
        Counted { count, start, end }
    }

    #[test]
    fn what_changed_after_a_version_is_there_once_and_only_of_these_videos() {
        let (mut table, videos, sizes) = table();
        assert_eq!(table.after(0, &videos, &sizes), None);
        table.take_final("a", 1, &counted(0, 3));
        table.take_final("b", 1, &counted(0, 9));
        let version = table.version();
        let three =
            r#"[{"type":"5min","video_uid":"a","count":3,"start":0,"end":60000,"final":true}]"#;
        assert_eq!(table.after(0, &videos, &sizes).as_deref(), Some(three));
        // The same record, read again.
        table.take_final("a", 1, &counted(0, 3));
        assert_eq!(table.after(version, &videos, &sizes), None);
        assert_eq!(table.after(0, &videos[1..], &sizes), None);
    }

    #[test]
    fn an_interim_count_is_replaced_by_newer_ones_and_by_the_final_result() {
        let (mut table, videos, sizes) = table();
        let now = |table: &Table| table.after(0, &videos, &sizes).unwrap();
        table.take_interim("a", 0, &counted(60_000, 2), 70_000, 5);
        table.take_interim("a", 0, &counted(60_000, 1), 65_000, 4);
        assert!(now(&table).contains(r#""count":2,"start":60000"#));
        let version = table.version();
        table.take_interim("a", 0, &counted(60_000, 4), 70_000, 6);
        assert!(
            table
                .after(version, &videos, &sizes)
                .unwrap()
                .contains(r#""count":4"#)
        );
        // An older window that is still open, after a downtime.
        table.take_interim("a", 0, &counted(0, 8), 71_000, 7);
        assert!(now(&table).contains(r#""count":4"#));
        table.take_final("a", 0, &counted(60_000, 5));
        let all = now(&table);
        assert!(
            all.contains(r#""count":5"#) && !all.contains("false"),
            "{all}"
        );
    }

    #[test]
    fn the_newest_final_results_are_kept() {
        let (mut table, videos, sizes) = table();
        for start in (0..20).rev() {
            table.take_final("a", 0, &counted(start * 60_000, 1));
        }
        let all = table.after(0, &videos, &sizes).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&all).unwrap();
        let starts = rows
            .iter()
            .map(|row| row["start"].as_i64().unwrap() / 60_000);
        assert_eq!(starts.collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
    }
}
