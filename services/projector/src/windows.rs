//! The projection of likes: windowed counts of each identifier, computed from Kafka and published to Kafka.
//!
//! A like passes through the modules in this order: `partitioner` copies it to the partitioned topic, keyed by its identifier, and
//! `counting` has `counters` count it there, and publishes the counts of windows that `horizon` allows to be closed. Both stages run
//! in the loop of `stage`, and commit their results together with their position in a transaction of Kafka.

mod config;
mod counters;
mod counting;
mod horizon;
mod kafka;
mod last_record;
pub mod like;
mod mark;
mod metrics;
mod partitioner;
mod result;
mod stage;
mod start;
mod steady_clock;

use anyhow::Context as _;
use prometheus::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::WindowArgs;
pub use mark::Mark;

use crate::Config;
use crate::kafka::Group;
use crate::readiness::Parts;
use counting::Counting;
use horizon::{Finder, Latest};
use kafka::Observer;
use metrics::Metrics;
use partitioner::Partitioner;
use stage::Stage;

/// The projection, not started yet.
pub struct WindowsProjection {
    partitioning: Stage<Partitioner>,
    counting: Stage<Counting>,
    finder: Finder,
}

impl WindowsProjection {
    /// # Errors
    ///
    /// For the user: properties that librdkafka rejects, and topics that are the same. An unreachable Kafka is not an error.
    pub fn new(config: &Config, registry: &Registry, parts: &Parts) -> anyhow::Result<Self> {
        let options = &config.likes;
        options.check()?;
        let metrics = Metrics::new(registry, &options.windows);
        let latest = Latest::default();
        let likes_group = format!("{}-likes", config.group_prefix);
        let windows_group = format!("{}-windows", config.group_prefix);
        let (likes, windows) = (metrics.stage("likes"), metrics.stage("windows"));
        Ok(Self {
            partitioning: Stage {
                topic: options.likes_topic.clone(),
                group: Group::subscribe(config, &options.likes_topic, &likes_group)?,
                work: Partitioner::new(
                    config.clone(),
                    options.clone(),
                    metrics.clone(),
                    likes.clone(),
                ),
                metrics: likes,
                part: parts.part("likes"),
            },
            counting: Stage {
                topic: options.partitioned_likes_topic.clone(),
                group: Group::subscribe(config, &options.partitioned_likes_topic, &windows_group)?,
                work: Counting::new(
                    config.clone(),
                    options.clone(),
                    latest.clone(),
                    metrics.clone(),
                    windows.clone(),
                ),
                metrics: windows,
                part: parts.part("windows"),
            },
            finder: Finder {
                observer: Observer::new(config, &likes_group)?,
                options: options.clone(),
                latest,
                part: parts.part("closing windows"),
            },
        })
    }

    /// Returns after the shutdown, or with an error that only a new process can get over.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            partitioning,
            counting,
            finder,
        } = self;
        // librdkafka is polled on threads of their own.
        let mut threads = JoinSet::new();
        let stop = shutdown.child_token();
        let [one, two, three] = [(); 3].map(|()| stop.clone());
        threads.spawn_blocking(move || partitioning.run(&one));
        threads.spawn_blocking(move || counting.run(&two));
        threads.spawn_blocking(move || {
            finder.run(&three);
            Ok(())
        });
        let mut result = Ok(());
        while let Some(ended) = threads.join_next().await {
            // If one ends on its own, all end.
            stop.cancel();
            result = result.and(ended.context("the projection of likes panicked").flatten());
        }
        result
    }
}
