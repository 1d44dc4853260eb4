//! A topic that is served: its feed, its log, and whether it can be read.

use std::sync::Arc;

use herald_runtime::kafka::Source;
use tokio::sync::{Notify, watch};

use super::Log;
use crate::feed::Feed;
use crate::latest::Latest;

pub struct Topic {
    pub name: String,
    pub feed: Arc<Feed>,
    pub log: Arc<Log>,
    pub latest: Latest,
    /// It need not exist. Until it does, it is not served.
    pub optional: bool,
    pub source: watch::Receiver<Source>,
    /// Makes the supervisor check whether the log is still the same.
    pub recheck: Arc<Notify>,
}

impl Topic {
    /// Why the topic is currently unreadable, if it is known to be.
    pub fn problem(&self) -> Option<&'static str> {
        match *self.source.borrow() {
            Source::Down { reason, .. } => Some(reason),
            Source::Unknown | Source::Up => None,
        }
    }

    /// Whether clients may read it.
    pub fn is_served(&self) -> bool {
        !self.optional || self.feed.is_filled()
    }

    /// Whether the topic is known to be unreadable now.
    pub fn is_down(&self) -> bool {
        self.problem().is_some()
    }
}
