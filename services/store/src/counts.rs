//! How often each food came.

use std::collections::{BTreeMap, HashMap};

use sqlx::Row as _;
use sqlx::any::AnyRow;

/// Occurrences by food, in the order in which the foods first came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    rows: Vec<(String, i64)>,
    by_food: HashMap<String, usize>,
}

impl Counts {
    /// Counts one more.
    pub fn add(&mut self, food: &str) {
        match self.by_food.get(food) {
            Some(&index) => self.rows[index].1 += 1,
            None => {
                self.by_food.insert(food.to_owned(), self.rows.len());
                self.rows.push((food.to_owned(), 1));
            }
        }
    }

    /// The foods and how often each came.
    pub fn rows(&self) -> &[(String, i64)] {
        &self.rows
    }

    /// The number of all occurrences.
    pub fn total(&self) -> i64 {
        self.rows.iter().map(|(_, count)| count).sum()
    }
}

/// All counts, and the positions that they were computed from: one state of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountsState {
    /// The foods and how often each came.
    pub counts: Vec<(String, i64)>,
    /// By partition: what was counted.
    pub counted: BTreeMap<i32, Counted>,
}

/// The records of a partition that were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The first offset, where it is known.
    pub from: i64,
    /// The offset after the last.
    pub to: i64,
    /// Whether other records were counted before: those of a topic that was recreated, or of another program.
    pub others: bool,
}

/// A stored count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    pub food: String,
    pub count: i64,
    /// The version of the latest commit that changed it; versions ascend from 1.
    pub changed: i64,
}

impl Count {
    pub(crate) fn of(row: &AnyRow) -> sqlx::Result<Self> {
        Ok(Self {
            food: row.try_get("food")?,
            count: row.try_get("count")?,
            changed: row.try_get("changed")?,
        })
    }
}
