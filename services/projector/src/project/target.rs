//! Where results go.

use store::{Applied, Batch, CountsFile, Position, Writer};

use crate::projection::Projection;

/// The database of a projection. Errors are for the log: the database fails.
pub enum Target {
    Database(Writer),
    /// The counts alone, in the file of another system.
    CountsFile(CountsFile),
}

impl Target {
    /// The position of a partition, if the projection has read it before.
    pub async fn position(
        &self,
        projection: Projection,
        topic: &str,
        partition: i32,
    ) -> anyhow::Result<Option<Position>> {
        match self {
            Self::Database(writer) => writer.position(projection.name(), topic, partition).await,
            Self::CountsFile(file) => file.position(topic, partition).await,
        }
    }

    /// Whether the results were computed up to the end of the topic by another program, which stored no position.
    pub async fn is_continued(&self, topic: &str) -> anyhow::Result<bool> {
        match self {
            Self::Database(_) => Ok(false),
            Self::CountsFile(file) => file.is_continued(topic).await,
        }
    }

    /// Stores the positions of partitions that were not read before, unless another projector did so first. In a file, all of them
    /// or none.
    pub async fn begin(
        &self,
        projection: Projection,
        topic: &str,
        positions: &[(i32, Position)],
    ) -> anyhow::Result<()> {
        match self {
            Self::Database(writer) => {
                for &(partition, position) in positions {
                    let name = projection.name();
                    writer.begin(name, topic, partition, position).await?;
                }
                Ok(())
            }
            Self::CountsFile(file) => file.begin(topic, positions).await,
        }
    }

    /// Commits a batch as a whole, or nothing of it.
    pub async fn apply(
        &self,
        projection: Projection,
        topic: &str,
        batch: &Batch,
    ) -> anyhow::Result<Applied> {
        match self {
            Self::Database(writer) => writer.apply(projection.name(), topic, batch).await,
            Self::CountsFile(file) => file.apply(topic, batch).await,
        }
    }

    /// See [`Writer::delete_older`].
    pub async fn delete_older(&self, time: i64, limit: u32) -> anyhow::Result<u64> {
        match self {
            Self::Database(writer) => writer.delete_older(time, limit).await,
            Self::CountsFile(_) => Ok(0),
        }
    }
}
