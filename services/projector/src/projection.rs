//! The projections that are kept in a database: what each makes of a record.

use std::fmt;

use herald_events::{FrameError, KeyError, KeyFormat, SessionId};
use store::{Batch, COUNTS, Position, SESSIONS};

use crate::counts::{self, FoodError};
use crate::record::Record;
use crate::sessions;

/// What is computed from a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// A document of each session. The keys of the records have this format.
    Sessions(KeyFormat),
    /// How often each food came.
    Counts,
}

impl Projection {
    /// Its name in the store, in consumer groups and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sessions(_) => SESSIONS,
            Self::Counts => COUNTS,
        }
    }

    /// Adds the changes of a record to those of its batch, and returns its session, if it has one. `after` is the position after
    /// the record.
    ///
    /// # Errors
    ///
    /// If the record is malformed; then nothing is changed.
    pub fn add(
        self,
        batch: &mut Batch,
        record: &Record,
        after: Position,
    ) -> Result<Option<SessionId>, Malformed> {
        match self {
            Self::Sessions(key) => sessions::add(&mut batch.sessions, record, after, key).map(Some),
            Self::Counts => {
                let value = record.value.as_deref().ok_or(Malformed::NoValue)?;
                let food = counts::food(value).map_err(Malformed::Food)?;
                batch.counts.add(&food);
                Ok(None)
            }
        }
    }
}

/// Why a record cannot be projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    NoValue,
    Key(KeyError),
    Frame(FrameError),
    Food(FoodError),
}

impl Malformed {
    /// A label for metrics, of a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoValue => "no-value",
            Self::Key(_) => "key",
            Self::Frame(error) => error.rule.label(),
            Self::Food(error) => error.label(),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue => f.write_str("the record has no value"),
            Self::Key(error) => write!(f, "{error}"),
            Self::Frame(error) => write!(f, "{error}"),
            Self::Food(error) => write!(f, "{error}"),
        }
    }
}
