//! Writes results together with the positions that they were computed from.

mod counts;
mod events;

use anyhow::Context as _;
use herald_events::SessionId;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AnyPool, Connection as _, Row as _};

use crate::connect::{Access, Name, explain, pool};
use crate::{Advance, Batch, DatabaseUrl, Position, migrations};

/// The connection of a projector.
#[derive(Clone, Debug)]
pub struct Writer {
    pool: AnyPool,
    url: DatabaseUrl,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    Committed(Summary),
    /// Nothing was written: another projector has moved the positions of these partitions.
    Superseded(Vec<i32>),
}

/// What a batch has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events that were stored.
    pub events: u64,
    /// Events that were stored before.
    pub duplicates: u64,
    /// Starts and ends of sessions that had one already; they are stored, and the first start and the last end count.
    pub extra_bounds: u64,
}

impl Writer {
    /// Opens the database, and creates the tables (and the file of SQLite, or the schema of PostgreSQL) if they are missing. A
    /// role of PostgreSQL, `reader`, is granted the views that a [`Reader`](crate::Reader) needs.
    ///
    /// # Errors
    ///
    /// If the database does not answer or rejects it.
    pub async fn open(
        url: &DatabaseUrl,
        schema: &Name,
        reader: Option<&Name>,
    ) -> anyhow::Result<Self> {
        let pool = pool(url, schema, Access::Write);
        migrations::run(&pool, url, schema).await?;
        if let Some(reader) = reader {
            migrations::grant(&pool, url, schema, reader).await?;
        }
        let url = url.clone();
        Ok(Self { pool, url })
    }

    /// The position of a partition, if the projection has read it before.
    ///
    /// # Errors
    ///
    /// If the database fails, as all below.
    pub async fn position(
        &self,
        projection: &str,
        topic: &str,
        partition: i32,
    ) -> anyhow::Result<Option<Position>> {
        let row = sqlx::query(
            "SELECT next, fingerprint, record_time, epoch FROM positions \
             WHERE projection = $1 AND topic = $2 AND partition = $3",
        )
        .bind(projection)
        .bind(topic)
        .bind(i64::from(partition))
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| self.explain(error, "read a position"))?;
        row.as_ref().map(position).transpose()
    }

    /// Stores the position of a partition that the projection has not read before, unless another projector did so first.
    pub async fn begin(
        &self,
        projection: &str,
        topic: &str,
        partition: i32,
        position: Position,
    ) -> anyhow::Result<()> {
        sqlx::query(
            "INSERT INTO positions (projection, topic, partition, next, fingerprint, record_time, epoch) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        )
        .bind(projection)
        .bind(topic)
        .bind(i64::from(partition))
        .bind(position.next)
        .bind(position.fingerprint.map(i64::from))
        .bind(position.record_time)
        .bind(i64::from(position.epoch))
        .execute(&self.pool)
        .await
        .map_err(|error| self.explain(error, "store a position"))?;
        Ok(())
    }

    /// Commits a batch as a whole, or nothing of it.
    pub async fn apply(
        &self,
        projection: &str,
        topic: &str,
        batch: &Batch,
    ) -> anyhow::Result<Applied> {
        let applied = async {
            let mut connection = self.pool.acquire().await?;
            let applied = apply(&mut connection, projection, topic, batch).await;
            if applied.is_err() {
                // After some errors, such as a full disk, SQLite has ended the transaction by itself. The driver does not notice, and
                // would take the next transaction for a part of this one, which nothing commits.
                _ = connection.close().await;
            }
            applied
        };
        applied
            .await
            .map_err(|error| self.explain(error, "store a batch"))
    }

    /// Deletes a session with its events; `false` if there is none. Events that come later begin a new session.
    pub async fn delete_session(&self, id: &SessionId) -> anyhow::Result<bool> {
        let deleted = sqlx::query("DELETE FROM sessions WHERE id = $1")
            .bind(id.as_str())
            .execute(&self.pool)
            .await
            .map_err(|error| self.explain(error, "delete a session"))?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Deletes at most `limit` sessions whose latest record was written before `time`, in milliseconds since 1970. Returns how
    /// many.
    pub async fn delete_older(&self, time: i64, limit: u32) -> anyhow::Result<u64> {
        // The age is checked again where another projector has just added to the session.
        let deleted = sqlx::query(
            "DELETE FROM sessions WHERE touched < $1 \
             AND number IN (SELECT number FROM sessions WHERE touched < $1 ORDER BY touched LIMIT $2)",
        )
        .bind(time)
        .bind(i64::from(limit))
        .execute(&self.pool)
        .await
        .map_err(|error| self.explain(error, "delete old sessions"))?;
        Ok(deleted.rows_affected())
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn explain(&self, error: sqlx::Error, attempted: &str) -> anyhow::Error {
        explain(error, attempted, &self.url)
    }
}

async fn apply(
    connection: &mut AnyConnection,
    projection: &str,
    topic: &str,
    batch: &Batch,
) -> sqlx::Result<Applied> {
    let mut transaction = connection.begin().await?;
    let mut superseded = Vec::new();
    for step in &batch.advances {
        if !advance(&mut transaction, projection, topic, step).await? {
            superseded.push(step.partition);
        }
    }
    if !superseded.is_empty() {
        transaction.rollback().await?;
        return Ok(Applied::Superseded(superseded));
    }
    let summary = events::add(&mut transaction, &batch.sessions).await?;
    counts::add(&mut transaction, &batch.counts).await?;
    transaction.commit().await?;
    Ok(Applied::Committed(summary))
}

/// Rows per statement: SQLite allows 32,766 values in one.
const ROWS: usize = 500;

/// `($1, $2), ($3, $4)` for two rows of two columns.
fn values(connection: &AnyConnection, rows: usize, columns: usize) -> String {
    let row = |row| placeholders(connection, 1 + row * columns, columns);
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// `($3, $4)`, or `(?, ?)` for SQLite, which searches all names of a statement for each name.
fn placeholders(connection: &AnyConnection, first: usize, count: usize) -> String {
    let is_sqlite = connection.backend_name() == "SQLite";
    let placeholder = |number| match is_sqlite {
        true => "?".to_owned(),
        false => format!("${number}"),
    };
    let all: Vec<String> = (first..first + count).map(placeholder).collect();
    format!("({})", all.join(", "))
}

fn position(row: &AnyRow) -> anyhow::Result<Position> {
    let fingerprint: Option<i64> = row.try_get("fingerprint")?;
    Ok(Position {
        next: row.try_get("next")?,
        fingerprint: fingerprint.map(u16::try_from).transpose()?,
        record_time: row.try_get("record_time")?,
        epoch: u32::try_from(row.try_get::<i64, _>("epoch")?).context("the epoch is wrong")?,
    })
}

/// `false` if the position is not the expected one.
async fn advance(
    connection: &mut AnyConnection,
    projection: &str,
    topic: &str,
    step: &Advance,
) -> sqlx::Result<bool> {
    let moved = sqlx::query(
        "UPDATE positions SET next = $1, fingerprint = $2, record_time = $3, epoch = $4 \
         WHERE projection = $5 AND topic = $6 AND partition = $7 AND next = $8 AND epoch = $9",
    )
    .bind(step.to.next)
    .bind(step.to.fingerprint.map(i64::from))
    .bind(step.to.record_time)
    .bind(i64::from(step.to.epoch))
    .bind(projection)
    .bind(topic)
    .bind(i64::from(step.partition))
    .bind(step.from.next)
    .bind(i64::from(step.from.epoch))
    .execute(connection)
    .await?;
    Ok(moved.rows_affected() > 0)
}

#[cfg(test)]
mod tests {
    use herald_testing::Database;
    use sqlx::{AssertSqlSafe, Executor as _};

    use super::*;
    use crate::{Arrival, NewEvent, Reader, SESSIONS, SessionChanges};

    #[tokio::test]
    async fn after_a_full_disk_a_batch_is_committed_as_soon_as_there_is_room() {
        let database = Database::sqlite();
        let url: DatabaseUrl = database.address.parse().unwrap();
        let writer = Writer::open(&url, &Name::default(), None).await.unwrap();
        let from = Position::default();
        writer.begin(SESSIONS, "topic", 0, from).await.unwrap();
        let to = Position { next: 1, ..from };
        let (arrival, json) = (
            Arrival {
                record_time: 0,
                epoch: 0,
                partition: 0,
                offset: 0,
                index: 0,
            },
            format!("{{\"x\":\"{}\"}}", "x".repeat(100)),
        );
        let (kind, timestamp) = (herald_events::Kind::Event, 1.0);
        let event = NewEvent {
            kind,
            timestamp,
            arrival,
            json,
        };
        let changes = SessionChanges {
            touched: 0,
            events: [([0; 16], event)].into(),
        };
        let batch = Batch {
            advances: vec![Advance {
                partition: 0,
                from,
                to,
            }],
            sessions: [(SessionId::new("a").unwrap(), changes)].into(),
            ..Batch::default()
        };
        // When the disk is full, SQLite ends the transaction itself, or only undoes the statement.
        for action in ["ROLLBACK", "ABORT"] {
            let trigger = format!(
                "CREATE TRIGGER full BEFORE INSERT ON session_events \
                 BEGIN SELECT RAISE({action}, 'the disk is full'); END"
            );
            writer.pool.execute(AssertSqlSafe(trigger)).await.unwrap();
            let error = writer.apply(SESSIONS, "topic", &batch).await.unwrap_err();
            assert!(format!("{error:#}").contains("full"), "{error:#}");
            writer.pool.execute("DROP TRIGGER full").await.unwrap();
        }
        _ = writer.apply(SESSIONS, "topic", &batch).await.unwrap();
        let reader = Reader::new(&url, &Name::default());
        let passed = reader.has_passed(SESSIONS, "topic", 0, 0, 0).await.unwrap();
        assert!(passed, "the batch is committed");
    }
}
