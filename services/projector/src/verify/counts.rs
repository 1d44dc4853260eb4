//! The counts of foods, computed again.

use std::collections::BTreeMap;

use anyhow::ensure;
use herald_runtime::config::invalid;
use store::{CountsFile, CountsState, Reader};

use super::Report;
use super::log::Log;
use crate::Config;
use crate::counts::food;

/// What is stored now.
pub async fn stored(config: &Config) -> anyhow::Result<CountsState> {
    if let Some(path) = &config.counts_database {
        return CountsFile::read(path, &config.counts_topic).await;
    }
    let url = config.database_url.as_ref();
    let url = url.ok_or_else(|| invalid("--database-url is not set"))?;
    let reader = Reader::new(url, &config.database_schema);
    reader.counts_state(&config.counts_topic).await
}

/// Counts the same records again.
pub fn compare(config: &Config, log: &Log, state: &CountsState) -> anyhow::Result<Report> {
    let topic = &config.counts_topic;
    ensure!(
        !state.counted.is_empty(),
        "nothing of topic {topic:?} was counted yet"
    );
    let ends = log.ends(topic)?;
    let (mut counts, mut records, mut malformed) = (BTreeMap::<String, i64>::new(), 0, 0);
    let mut report = Report::default();
    let mut is_whole = true;
    for (&partition, counted) in &state.counted {
        let Some(&(low, high)) = ends.get(&partition) else {
            report
                .differences
                .push(format!("partition {partition} no longer exists"));
            continue;
        };
        if counted.to > high {
            let sentence = format!(
                "partition {partition} was counted up to offset {}, but ends at {high}: the topic was recreated or cleared",
                counted.to
            );
            report.differences.push(sentence);
            continue;
        }
        let from = counted.from.max(low);
        is_whole &= from == 0 && !counted.others;
        report.compared.push(format!(
            "counts: topic {topic}, partition {partition}, from offset {from} to {}",
            counted.to
        ));
        log.read(topic, partition, (from, counted.to), |record| {
            records += 1;
            match record.value.as_deref().map(food) {
                Some(Ok(food)) => *counts.entry(food).or_default() += 1,
                _ => malformed += 1,
            }
        })?;
    }
    for (partition, (low, high)) in &ends {
        if low < high && !state.counted.contains_key(partition) {
            let sentence = format!("partition {partition} has records, and none was counted");
            report.differences.push(sentence);
        }
    }
    report.compared.push(format!(
        "counts: {records} records, {malformed} of them malformed, {} foods",
        counts.len()
    ));
    if !is_whole {
        report.compared.push(
            "counts: earlier records are no longer in Kafka, or another program counted them; each count must be at least what Kafka has".to_owned(),
        );
    }
    let stored: BTreeMap<&str, i64> = state
        .counts
        .iter()
        .map(|(food, count)| (food.as_str(), *count))
        .collect();
    for (food, &computed) in &counts {
        let stored = stored.get(food.as_str()).copied().unwrap_or_default();
        if stored < computed || (is_whole && stored > computed) {
            report
                .differences
                .push(format!("{food:?} is {stored}, and {computed} in Kafka"));
        }
    }
    for (food, stored) in stored {
        if is_whole && !counts.contains_key(food) {
            report
                .differences
                .push(format!("{food:?} is {stored}, and not in Kafka"));
        }
    }
    Ok(report)
}
