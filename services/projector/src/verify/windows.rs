//! The windows of likes, computed again.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use herald_events::WindowSize;
use serde::Deserialize;

use super::Report;
use super::log::Log;
use crate::Config;
use crate::windows::{Mark, like};

/// A result, as it was published.
#[derive(Deserialize)]
struct Published {
    video_uid: String,
    count: u64,
    start: i64,
    partition: i32,
    from: i64,
    to: i64,
}

/// What was found of one identifier in one window.
struct Found {
    published: Published,
    /// Its likes, counted again.
    again: u64,
}

/// The results of one size of windows.
struct Results {
    size: WindowSize,
    label: String,
    by_window: HashMap<(i64, String), Found>,
    /// Windows that begin earlier are not compared: Kafka has deleted results.
    since: i64,
    /// Likes that are in no result although their window was closed before they came, by partition.
    late: BTreeMap<i32, u64>,
}

/// Recomputes each result from the likes that it was counted from, and looks for likes that are in none.
pub fn compare(config: &Config, log: &Log) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let topic = &config.likes.partitioned_likes_topic;
    let ends = log.ends(topic)?;
    // Before the results: each one that these positions cover is in the topics by now.
    let group = format!("{}-windows", config.group_prefix);
    let positions = log.positions(&group, topic, ends.keys().copied())?;
    let mut all = Vec::new();
    for (size, topic) in config.likes.windows.iter() {
        all.push(results(log, size, topic, &mut report)?);
    }
    for (&partition, &(low, high)) in &ends {
        let Some((position, metadata)) = positions.get(&partition) else {
            if low < high {
                let sentence = format!(
                    "partition {partition} has likes, and group {group:?} has no position in it"
                );
                report.differences.push(sentence);
                continue;
            }
            let sentence =
                format!("windows: topic {topic}, partition {partition}: nothing was counted yet");
            report.compared.push(sentence);
            continue;
        };
        let mark = Mark::parse(metadata)
            .with_context(|| format!("group {group:?} has a position in partition {partition} that no projector committed"))?;
        let closed = mark.closed.unwrap_or(i64::MIN);
        report.compared.push(format!(
            "windows: topic {topic}, partition {partition}, from offset {low} to {position}, closed up to {}",
            time(closed)
        ));
        log.read(topic, partition, (low, *position), |record| {
            let Ok((id, timestamp)) = like::read(record) else {
                return;
            };
            for results in &mut all {
                results.take(id, timestamp, (partition, record.offset), closed);
            }
        })?;
        for results in &mut all {
            let stored = mark.late.get(&results.label).copied().unwrap_or_default();
            let computed = results.late.get(&partition).copied().unwrap_or_default();
            let is_whole = low == 0 && results.since == i64::MIN;
            if computed > stored || (is_whole && computed < stored) {
                report.differences.push(format!(
                    "{}, partition {partition}: {computed} likes are in no result, and {stored} were counted as late",
                    results.label
                ));
            }
        }
    }
    for results in all {
        let mut likes = 0;
        for ((start, id), found) in &results.by_window {
            let Found { published, again } = found;
            let low = ends.get(&published.partition).map_or(0, |&(low, _)| low);
            let read = positions
                .get(&published.partition)
                .map_or(0, |&(position, _)| position);
            // Deleted by retention, or published after the positions were looked up.
            if published.from < low || published.to > read {
                continue;
            }
            likes += again;
            if *again != published.count {
                report.differences.push(format!(
                    "{} from {}, {id:?}: the result is {}, and {again} in Kafka",
                    results.label,
                    time(*start),
                    published.count
                ));
            }
        }
        report.compared.push(format!(
            "windows: {}: {} results of {likes} likes, {} late",
            results.label,
            results.by_window.len(),
            results.late.values().sum::<u64>()
        ));
    }
    Ok(report)
}

/// All results of a topic.
fn results(
    log: &Log,
    size: WindowSize,
    topic: &str,
    report: &mut Report,
) -> anyhow::Result<Results> {
    let label = size.label();
    let (mut by_window, mut since) = (HashMap::new(), i64::MIN);
    for (partition, (low, high)) in log.ends(topic)? {
        let mut first = None;
        log.read(topic, partition, (low, high), |record| {
            first.get_or_insert(record.timestamp.unwrap_or_default());
            let value = record.value.as_deref().unwrap_or_default();
            let Ok(published) = serde_json::from_slice::<Published>(value) else {
                return;
            };
            let key = (published.start, published.video_uid.clone());
            let found = Found {
                published,
                again: 0,
            };
            if let Some(before) = by_window.insert(key, found) {
                let Published {
                    start, video_uid, ..
                } = before.published;
                let sentence = format!(
                    "{label} from {}, {video_uid:?}: there are two results",
                    time(start)
                );
                report.differences.push(sentence);
            }
        })?;
        if low > 0 {
            since = since.max(first.unwrap_or(i64::MAX));
        }
    }
    if since > i64::MIN {
        let sentence = format!(
            "windows: {label}: Kafka has deleted earlier results; compared from {}",
            time(since)
        );
        report.compared.push(sentence);
    }
    Ok(Results {
        size,
        label,
        by_window,
        since,
        late: BTreeMap::new(),
    })
}

impl Results {
    /// Counts a like again, which is in a partition at an offset. Every window that ends up to `closed` is closed.
    fn take(&mut self, id: &str, timestamp: i64, (partition, offset): (i32, i64), closed: i64) {
        let start = self.size.start_of(timestamp);
        if start < self.since {
            return;
        }
        let found = self.by_window.get_mut(&(start, id.to_owned()));
        let counted = found.filter(|found| {
            let Published {
                partition: own,
                from,
                to,
                ..
            } = found.published;
            own == partition && (from..to).contains(&offset)
        });
        match counted {
            Some(found) => found.again += 1,
            None if self.size.end_of(start) <= closed => {
                *self.late.entry(partition).or_default() += 1
            }
            None => {}
        }
    }
}

/// In RFC 3339; milliseconds since 1970 where there is none.
fn time(millis: i64) -> String {
    match jiff::Timestamp::from_millisecond(millis) {
        Ok(time) => time.to_string(),
        Err(_) => "never".to_owned(),
    }
}
