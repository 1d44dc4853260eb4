//! The latest results of the videos that are watched. Pure, so that it can be tested without Kafka.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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
#[derive(Debug)]
pub struct Table {
    /// Increases with each change.
    version: u64,
    /// The label of each size of windows.
    labels: Vec<String>,
    videos: HashMap<String, Tracks>,
}

/// The results of one video.
#[derive(Debug, Default)]
struct Tracks {
    /// The version of the table in which any of them changed last.
    changed: u64,
    /// For each size of windows.
    sizes: Vec<Track>,
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
    /// For the clients: an object of JSON.
    json: Arc<str>,
    /// The version of the table in which it changed last.
    changed: u64,
}

impl Table {
    /// For windows of these sizes.
    pub fn new(sizes: &[WindowSize]) -> Self {
        Self {
            version: 0,
            labels: sizes.iter().map(|size| size.label()).collect(),
            videos: HashMap::new(),
        }
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// Keeps the results of this video.
    pub fn add(&mut self, video: &str) {
        let sizes = self.labels.len();
        let tracks = self.videos.entry(video.to_owned()).or_default();
        tracks.sizes.resize_with(sizes, Track::default);
    }

    pub fn remove(&mut self, video: &str) {
        self.videos.remove(video);
    }

    pub fn has(&self, video: &str) -> bool {
        self.videos.contains_key(video)
    }

    /// Takes a final result of the size with this index. One that is known changes nothing.
    pub fn take_final(&mut self, video: &str, size: usize, counted: &Counted) {
        let tracks = self.videos.get_mut(video);
        let Some((tracks, label)) = tracks.zip(self.labels.get(size)) else {
            return;
        };
        let finals = &mut tracks.sizes[size].finals;
        if finals.contains_key(&counted.start) {
            return;
        }
        self.version += 1;
        tracks.changed = self.version;
        let row = Row::new(video, label, counted, true, self.version);
        finals.insert(counted.start, row);
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
        let tracks = self.videos.get_mut(video);
        let Some((tracks, label)) = tracks.zip(self.labels.get(size)) else {
            return;
        };
        let interim = &mut tracks.sizes[size].interim;
        let order = (counted.start, time, offset);
        if interim.as_ref().is_some_and(|(known, _)| *known >= order) {
            return;
        }
        self.version += 1;
        tracks.changed = self.version;
        let row = Row::new(video, label, counted, false, self.version);
        *interim = Some((order, row));
    }

    /// The results of these videos that changed after `version`, each as an object of JSON. An interim count is there only while
    /// its window has no final result.
    pub fn after(&self, version: u64, videos: &[String]) -> Vec<Arc<str>> {
        let mut found = Vec::new();
        let videos = videos.iter().filter_map(|video| self.videos.get(video));
        for tracks in videos.filter(|tracks| tracks.changed > version) {
            for Track { finals, interim } in &tracks.sizes {
                let interim = interim.as_ref().map(|(_, row)| row);
                let interim = interim.filter(|row| !finals.contains_key(&row.start));
                let rows = finals.values().chain(interim);
                let rows = rows.filter(|row| row.changed > version);
                found.extend(rows.map(|row| row.json.clone()));
            }
        }
        found
    }
}

impl Row {
    fn new(video: &str, label: &str, counted: &Counted, is_final: bool, changed: u64) -> Self {
        let &Counted { count, start, end } = counted;
        let video = json!(video);
        let json = format!(
            r#"{{"type":"{label}","video_uid":{video},"count":{count},"start":{start},"end":{end},"final":{is_final}}}"#
        );
        Self {
            start,
            json: json.into(),
            changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> (Table, Vec<String>) {
        let mut table = Table::new(&["1m", "5m"].map(|size| size.parse().unwrap()));
        table.add("a");
        (table, vec!["a".to_owned(), "b".to_owned()])
    }

    fn counted(start: i64, count: u64) -> Counted {
        let end = start + 60_000;
        Counted { count, start, end }
    }

    fn after(table: &Table, version: u64, videos: &[String]) -> String {
        table.after(version, videos).join(",")
    }

    #[test]
    fn what_changed_after_a_version_is_there_once_and_only_of_these_videos() {
        let (mut table, videos) = table();
        assert_eq!(after(&table, 0, &videos), "");
        table.take_final("a", 1, &counted(0, 3));
        table.take_final("b", 1, &counted(0, 9));
        let version = table.version();
        let three =
            r#"{"type":"5min","video_uid":"a","count":3,"start":0,"end":60000,"final":true}"#;
        assert_eq!(after(&table, 0, &videos), three);
        // The same record, read again.
        table.take_final("a", 1, &counted(0, 3));
        assert_eq!(after(&table, version, &videos), "");
        assert_eq!(after(&table, 0, &videos[1..]), "");
        table.take_final("a", 0, &counted(0, 1));
        assert_eq!(table.after(version, &videos).len(), 1);
    }

    #[test]
    fn an_interim_count_is_replaced_by_newer_ones_and_by_the_final_result() {
        let (mut table, videos) = table();
        let now = |table: &Table| after(table, 0, &videos);
        table.take_interim("a", 0, &counted(60_000, 2), 70_000, 5);
        table.take_interim("a", 0, &counted(60_000, 1), 65_000, 4);
        assert!(now(&table).contains(r#""count":2,"start":60000"#));
        let version = table.version();
        table.take_interim("a", 0, &counted(60_000, 4), 70_000, 6);
        assert!(after(&table, version, &videos).contains(r#""count":4"#));
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
        let (mut table, videos) = table();
        for start in (0..20).rev() {
            table.take_final("a", 0, &counted(start * 60_000, 1));
        }
        let rows = table.after(0, &videos).into_iter();
        let starts = rows.map(|row| {
            let row: serde_json::Value = serde_json::from_str(&row).unwrap();
            row["start"].as_i64().unwrap() / 60_000
        });
        assert_eq!(starts.collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
    }
}
