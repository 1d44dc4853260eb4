//! Commits a batch: its dead letters to Kafka, then its results and positions to the store.

use std::time::Instant;

use anyhow::anyhow;
use store::{Advance, Applied, Batch};
use tracing::{debug, warn};

use super::{Projector, RETRY_PAUSE, State, TIMEOUT};
use crate::Config;
use crate::kafka::DeadLetter;

/// About the most bytes of a batch: it is in memory twice.
const BATCH_BYTES: usize = 8 << 20;

/// Records that are not committed yet.
#[derive(Default)]
pub(super) struct Pending {
    pub batch: Batch,
    pub dead_letters: Vec<DeadLetter>,
    pub records: usize,
    pub bytes: usize,
    pub since: Option<Instant>,
}

impl Pending {
    pub fn is_due(&self, config: &Config) -> bool {
        self.records >= config.batch_records as usize
            || self.bytes >= BATCH_BYTES
            || self
                .since
                .is_some_and(|since| since.elapsed() >= config.batch_interval)
    }
}

impl Projector {
    /// Commits the pending batch, or drops it and looks up the positions again.
    pub(super) fn commit(&mut self, state: &mut State) {
        if state.pending.records == 0 {
            return;
        }
        let mut pending = std::mem::take(&mut state.pending);
        let moved = state
            .owned
            .iter()
            .filter(|(_, owned)| owned.current != owned.stored);
        pending.batch.advances = moved
            .map(|(&partition, owned)| Advance {
                partition,
                from: owned.stored,
                to: owned.current,
            })
            .collect();
        let began = Instant::now();
        let (topic, projection) = (&self.topic, self.projection);
        let (target, dead_letters) = (&self.target, &mut self.dead_letters);
        let committed = self.runtime.block_on(async {
            let sent = dead_letters.send(&pending.dead_letters);
            tokio::time::timeout(TIMEOUT, sent).await.map_err(|_| {
                anyhow!("the dead letters were not acknowledged within {TIMEOUT:?}")
            })??;
            let applied = target.apply(projection, topic, &pending.batch);
            tokio::time::timeout(TIMEOUT, applied)
                .await
                .map_err(|_| anyhow!("the database did not commit a batch within {TIMEOUT:?}"))?
        });
        match committed {
            Ok(Applied::Committed(summary)) => {
                let took = began.elapsed();
                let foods = pending.batch.counts.total();
                self.metrics
                    .committed(pending.records, foods, summary, took);
                for letter in &pending.dead_letters {
                    let labels = [letter.reason.label()];
                    self.metrics.dead_letters.with_label_values(&labels).inc();
                }
                if summary.extra_bounds > 0 {
                    debug!(
                        count = summary.extra_bounds,
                        "sessions had a start or an end already"
                    );
                }
                let steps = pending.batch.advances.iter();
                let offsets: Vec<_> = steps.map(|step| (step.partition, step.to.next)).collect();
                self.group.publish(&offsets);
                if state.problem.is_none() {
                    state.logged = None;
                }
                for step in pending.batch.advances {
                    if let Some(owned) = state.owned.get_mut(&step.partition) {
                        owned.stored = step.to;
                    }
                }
            }
            Ok(Applied::Superseded(partitions)) => {
                warn!(
                    ?partitions,
                    "another projector has moved the position; the batch is dropped"
                );
                self.metrics.superseded.inc();
                self.pause(state, RETRY_PAUSE);
            }
            Err(error) => {
                self.metrics.failures.inc();
                self.fail(state, &error);
            }
        }
    }
}
