//! Reads results, and cannot write.

use futures_util::TryFutureExt as _;
use herald_events::SessionId;
use sqlx::{AnyPool, Executor as _, Row as _};

use crate::connect::{Access, Name, explain_read, pool};
use crate::document::{Session, timestamp};
use crate::url::Backend;
use crate::{COUNTS, Count, Counted, CountsState, DatabaseUrl};

/// A pool of connections that only read, for the gateway. A file of SQLite is opened read-only; with PostgreSQL, give it a role
/// that was granted the views alone.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(crate) pool: AnyPool,
    pub(crate) url: DatabaseUrl,
}

impl Reader {
    /// Connects when it is first used, and again after a failure: the database may come later than the reader. Call it within a
    /// tokio runtime. `schema` is for PostgreSQL.
    pub fn new(url: &DatabaseUrl, schema: &Name) -> Self {
        Self {
            pool: pool(url, schema, Access::Read),
            url: url.clone(),
        }
    }

    /// The session, if it has an event.
    ///
    /// # Errors
    ///
    /// If the database does not answer, or the projector has not created its tables yet; the message is for the client.
    pub async fn session(&self, id: &SessionId) -> anyhow::Result<Option<Session>> {
        let found = sqlx::query(
            "SELECT number, incarnation, version, start_event, end_event FROM session_documents WHERE id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .map_err(|error| explain_read(error, "read a session", &self.url))
        .await?;
        let Some(row) = found else { return Ok(None) };
        let bound = |column| -> anyhow::Result<Option<String>> {
            let event: Option<String> = row.try_get(column)?;
            Ok(event.as_deref().map(timestamp))
        };
        Ok(Some(Session {
            id: id.clone(),
            start: bound("start_event")?,
            end: bound("end_event")?,
            number: row.try_get("number")?,
            incarnation: row.try_get("incarnation")?,
            version: row.try_get("version")?,
            reader: self.clone(),
        }))
    }

    /// Whether `projection` has committed the results of the record at `offset`, so that [`session`](Self::session) shows it.
    /// `time` is the record's timestamp, in milliseconds since 1970: a position that has not reached it is one in an earlier topic
    /// of the same name, whose offsets are not comparable.
    ///
    /// # Errors
    ///
    /// As those of [`session`](Self::session).
    pub async fn has_passed(
        &self,
        projection: &str,
        topic: &str,
        partition: i32,
        offset: i64,
        time: i64,
    ) -> anyhow::Result<bool> {
        let found = sqlx::query(
            "SELECT next, record_time FROM projected_positions WHERE projection = $1 AND topic = $2 AND partition = $3",
        )
        .bind(projection)
        .bind(topic)
        .bind(i64::from(partition))
        .fetch_optional(&self.pool)
        .map_err(|error| explain_read(error, "read a position", &self.url))
        .await?;
        match found {
            Some(row) => {
                let (next, latest): (i64, i64) =
                    (row.try_get("next")?, row.try_get("record_time")?);
                Ok(next > offset && latest >= time)
            }
            None => Ok(false),
        }
    }

    /// The counts that commits after `version` have changed, in the order in which the foods first came; 0 gives all.
    ///
    /// # Errors
    ///
    /// As those of [`session`](Self::session).
    pub async fn counts_after(&self, version: i64) -> anyhow::Result<Vec<Count>> {
        let rows = sqlx::query(
            "SELECT food, count, changed FROM aggregated WHERE changed > $1 ORDER BY number",
        )
        .bind(version)
        .fetch_all(&self.pool)
        .map_err(|error| explain_read(error, "read the counts", &self.url))
        .await?;
        Ok(rows.iter().map(Count::of).collect::<sqlx::Result<_>>()?)
    }

    /// All counts with the positions in this topic that they were computed from.
    ///
    /// # Errors
    ///
    /// As those of [`session`](Self::session).
    pub async fn counts_state(&self, topic: &str) -> anyhow::Result<CountsState> {
        let read = async {
            let mut transaction = self.pool.begin().await?;
            if self.url.backend == Backend::Postgres {
                let level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ";
                transaction.execute(level).await?;
            }
            let select = "SELECT food, count FROM aggregated ORDER BY number";
            let counts = sqlx::query(select).fetch_all(&mut *transaction).await?;
            let select = "SELECT partition, next, epoch FROM projected_positions WHERE projection = $1 AND topic = $2";
            let positions = sqlx::query(select)
                .bind(COUNTS)
                .bind(topic)
                .fetch_all(&mut *transaction)
                .await?;
            let mut state = CountsState::default();
            for row in counts {
                state
                    .counts
                    .push((row.try_get("food")?, row.try_get("count")?));
            }
            for row in positions {
                let partition: i64 = row.try_get("partition")?;
                let counted = Counted {
                    from: 0,
                    to: row.try_get("next")?,
                    others: row.try_get::<i64, _>("epoch")? > 0,
                };
                state.counted.insert(partition as i32, counted);
            }
            sqlx::Result::Ok(state)
        };
        read.await
            .map_err(|error| explain_read(error, "read the counts", &self.url))
    }

    /// Whether the database answers and has its tables; for readiness.
    ///
    /// # Errors
    ///
    /// As those of [`session`](Self::session).
    pub async fn check(&self) -> anyhow::Result<()> {
        sqlx::query("SELECT next FROM projected_positions LIMIT 1")
            .fetch_optional(&self.pool)
            .map_err(|error| explain_read(error, "read the positions", &self.url))
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;

    #[tokio::test]
    async fn a_file_of_sqlite_cannot_be_written() {
        let name = herald_testing::random_topic("herald-store");
        let file = std::env::temp_dir().join(format!("{name}.db"));
        let url: DatabaseUrl = format!("sqlite://{}", file.display()).parse().unwrap();
        let writer = Writer::open(&url, &Name::default(), None).await.unwrap();
        let reader = Reader::new(&url, &Name::default());
        let attempted = reader.pool.execute("DELETE FROM sessions").await;
        let error = attempted.unwrap_err().to_string();
        assert!(error.contains("readonly database"), "{error}");
        reader.check().await.unwrap();
        writer.close().await;
        for suffix in ["", "-wal", "-shm"] {
            _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
    }
}
