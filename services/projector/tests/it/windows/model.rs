//! Published counts, and what they must be according to the likes.

use std::collections::{BTreeMap, BTreeSet};

use herald_testing::{Record, Stored};
use rand::RngExt as _;
use serde_json::Value;

use super::{GRACE, LABELS, SIZES, Setup, like, now};

/// A published count.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    pub label: String,
    pub id: String,
    pub count: u64,
    pub start: i64,
    pub end: i64,
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    pub late: Option<u64>,
}

impl Counted {
    /// From a record, whose key must be the identifier.
    pub fn of(record: &Stored) -> Self {
        let value: Value = serde_json::from_str(&record.text()).unwrap();
        let number = |name: &str| value[name].as_i64().unwrap();
        let id = value["video_uid"].as_str().unwrap().to_owned();
        assert_eq!(record.key.as_deref(), Some(id.as_bytes()));
        Self {
            label: value["type"].as_str().unwrap().to_owned(),
            id,
            count: value["count"].as_u64().unwrap(),
            start: number("start"),
            end: number("end"),
            partition: number("partition") as i32,
            from: number("from"),
            to: number("to"),
            late: value.get("late").map(|late| late.as_u64().unwrap()),
        }
    }
}

/// Likes of a few identifiers, some up to 4 s old and some ahead of the clock.
pub fn likes(count: usize, partitions: i32) -> Vec<Record> {
    let mut rng = rand::rng();
    let likes = (0..count).map(|_| {
        let age = match rng.random_range(0..10) {
            0 => rng.random_range(1_000..4_000),
            1 => -rng.random_range(0..2_000),
            _ => rng.random_range(0..500),
        };
        let (partition, id) = (rng.random_range(0..partitions), rng.random_range(0..7));
        like(partition, &format!("video-{id}"), now() - age)
    });
    likes.collect()
}

/// Checks that every like was partitioned once, and is counted in exactly one window of each size or late.
pub async fn check(setup: &Setup) {
    let likes = setup.read(&setup.likes_topic()).await;
    let partitioned = setup.read(&setup.partitioned_topic()).await;
    let sorted = |records: &[Stored]| {
        let mut records: Vec<_> = records
            .iter()
            .map(|record| (record.text(), record.timestamp))
            .collect();
        records.sort();
        records
    };
    assert_eq!(sorted(&partitioned), sorted(&likes));
    check_distinct(setup).await;
    for label in LABELS {
        let results = setup.results(label).await;
        for result in &results {
            let within = partitioned.iter().filter(|record| {
                record.partition == result.partition
                    && (result.from..result.to).contains(&record.offset)
                    && (result.start..result.end).contains(&record.timestamp.unwrap())
                    && record.value.as_deref() == Some(result.id.as_bytes())
            });
            assert_eq!(within.count() as u64, result.count, "{result:?}");
            assert!(result.count > 0);
        }
        let counted: u64 = results.iter().map(|count| count.count).sum();
        let late = setup.late(label).await;
        assert_eq!(counted + late, likes.len() as u64, "{late} are late");
    }
}

/// Checks that no like is late that was in Kafka by the end of its window and the grace.
pub async fn check_late(setup: &Setup) {
    for (label, size) in LABELS.into_iter().zip(SIZES) {
        let mut possible: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for sent in setup.sent.lock().unwrap().iter() {
            let end = sent.timestamp - sent.timestamp % size + size;
            if sent.by >= end + GRACE {
                *possible.entry(sent.id.clone()).or_default() += 1;
            }
        }
        let mut late: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for count in setup.interim(label).await {
            *late.entry(count.id.into_bytes()).or_default() += count.late.unwrap_or_default();
        }
        for (id, late) in late {
            let possible = possible.get(&id).copied().unwrap_or_default();
            assert!(
                late <= possible,
                "{label}: {late} late likes, {possible} may be"
            );
        }
    }
}

/// Checks that no window of an identifier has two results.
pub async fn check_distinct(setup: &Setup) {
    for label in LABELS {
        let results = setup.results(label).await;
        let windows = results.iter().map(|count| (count.start, count.id.as_str()));
        let distinct: BTreeSet<_> = windows.collect();
        assert_eq!(distinct.len(), results.len(), "{label}: {results:?}");
    }
}
