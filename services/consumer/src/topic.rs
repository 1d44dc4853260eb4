//! A topic that is served.

use std::sync::Arc;

use herald_runtime::kafka::Source;
use tokio::sync::{Notify, watch};

use crate::feed::Feed;
use crate::kafka::Log;

/// A topic that is served.
pub struct Topic {
    pub name: String,
    pub feed: Arc<Feed>,
    pub log: Arc<Log>,
    pub source: watch::Receiver<Source>,
    /// Asks the live reader to look whether the topic is still the same.
    pub recheck: Arc<Notify>,
}

impl Topic {
    /// Whether Kafka is known to be away.
    pub fn is_down(&self) -> bool {
        matches!(*self.source.borrow(), Source::Down { .. })
    }
}
