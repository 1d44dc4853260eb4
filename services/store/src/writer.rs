//! Writes results together with the positions that they were computed from.

use std::collections::{BTreeMap, HashSet};

use anyhow::Context as _;
use herald_events::{Kind, SessionId};
use sqlx::any::AnyRow;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Row as _};

use crate::connect::{Access, Name, explain, pool};
use crate::{Advance, Batch, DatabaseUrl, NewEvent, Position, SessionChanges, migrations};

/// Rows per statement: SQLite allows 32,766 values in one.
const ROWS: usize = 500;

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
            let mut transaction = self.pool.begin().await?;
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
            let summary = add_events(&mut transaction, &batch.sessions).await?;
            transaction.commit().await?;
            Ok(Applied::Committed(summary))
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

async fn add_events(
    connection: &mut AnyConnection,
    sessions: &BTreeMap<SessionId, SessionChanges>,
) -> sqlx::Result<Summary> {
    let mut rows = Vec::new();
    let all: Vec<_> = sessions.iter().collect();
    for sessions in all.chunks(ROWS) {
        let stored = touch(connection, sessions).await?;
        for (id, changes) in sessions {
            let &(session, version) = stored
                .get(id.as_str())
                .ok_or_else(|| sqlx::Error::Protocol("an upsert returned no row".to_owned()))?;
            let events = changes.events.iter();
            rows.extend(events.map(|(identity, event)| EventRow {
                session,
                added: version + 1,
                identity,
                event,
            }));
        }
    }
    let mut summary = Summary::default();
    let mut changed = HashSet::new();
    let mut bounds = BTreeMap::new();
    for rows in rows.chunks(ROWS) {
        for (session, kind) in insert(connection, rows).await? {
            summary.events += 1;
            changed.insert(session);
            if kind != code(Kind::Event) {
                *bounds.entry((session, kind)).or_insert(0u64) += 1;
            }
        }
    }
    summary.duplicates = rows.len() as u64 - summary.events;
    let mut changed: Vec<i64> = changed.into_iter().collect();
    changed.sort_unstable();
    for sessions in changed.chunks(ROWS) {
        let list = placeholders(1, sessions.len());
        let sql = format!("UPDATE sessions SET version = version + 1 WHERE number IN {list}");
        bind_all(&sql, sessions).execute(&mut *connection).await?;
    }
    summary.extra_bounds = extra_bounds(connection, &bounds).await?;
    Ok(summary)
}

/// Creates the sessions that are missing, and locks all until the transaction ends: an event's `added` must be later than every
/// version that was read without it. Returns the number and the version of each.
async fn touch(
    connection: &mut AnyConnection,
    sessions: &[(&SessionId, &SessionChanges)],
) -> sqlx::Result<BTreeMap<String, (i64, i64)>> {
    let sql = format!(
        "INSERT INTO sessions (id, incarnation, version, touched) VALUES {} \
         ON CONFLICT (id) DO UPDATE SET touched = \
         CASE WHEN excluded.touched > sessions.touched THEN excluded.touched ELSE sessions.touched END \
         RETURNING id, number, version",
        values(sessions.len(), 4)
    );
    // Without the cache of prepared statements, as these differ in their lengths.
    let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(sessions.len() == ROWS);
    for (id, changes) in sessions {
        query = query
            .bind(id.as_str())
            .bind(rand::random::<i64>())
            .bind(0i64)
            .bind(changes.touched);
    }
    let rows = query.fetch_all(connection).await?;
    let entry = |row: &AnyRow| {
        let value = (row.try_get("number")?, row.try_get("version")?);
        Ok((row.try_get("id")?, value))
    };
    rows.iter().map(entry).collect()
}

struct EventRow<'a> {
    session: i64,
    added: i64,
    identity: &'a [u8; 16],
    event: &'a NewEvent,
}

/// Returns the session and the kind of each row that was not stored before. The same event with an earlier arrival, which may
/// come from another partition, takes the place of the stored one: so the result does not depend on the order of batches.
async fn insert(
    connection: &mut AnyConnection,
    rows: &[EventRow<'_>],
) -> sqlx::Result<Vec<(i64, i64)>> {
    let sql = format!(
        "INSERT INTO session_events (session, identity, kind, timestamp, arrival, added, body) VALUES {} \
         ON CONFLICT (session, identity) DO UPDATE SET \
         timestamp = excluded.timestamp, arrival = excluded.arrival, added = excluded.added, body = excluded.body \
         WHERE excluded.arrival < session_events.arrival \
         RETURNING session, kind",
        values(rows.len(), 7)
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(rows.len() == ROWS);
    for row in rows {
        query = query
            .bind(row.session)
            .bind(row.identity.to_vec())
            .bind(code(row.event.kind))
            .bind(row.event.timestamp)
            .bind(row.event.arrival.to_bytes())
            .bind(row.added)
            .bind(row.event.json.as_str());
    }
    let rows = query.fetch_all(connection).await?;
    let entry = |row: &AnyRow| Ok((row.try_get("session")?, row.try_get("kind")?));
    rows.iter().map(entry).collect()
}

/// How many of the new starts and ends are not the only one of their session.
async fn extra_bounds(
    connection: &mut AnyConnection,
    new: &BTreeMap<(i64, i64), u64>,
) -> sqlx::Result<u64> {
    let mut sessions: Vec<i64> = new.keys().map(|&(session, _)| session).collect();
    sessions.dedup();
    let mut extra = 0;
    for sessions in sessions.chunks(ROWS) {
        let sql = format!(
            "SELECT session, kind, COUNT(*) AS stored FROM session_events \
             WHERE kind <> 1 AND session IN {} GROUP BY session, kind HAVING COUNT(*) > 1",
            placeholders(1, sessions.len())
        );
        for row in bind_all(&sql, sessions).fetch_all(&mut *connection).await? {
            let added = new.get(&(row.try_get("session")?, row.try_get("kind")?));
            let stored = u64::try_from(row.try_get::<i64, _>("stored")?).unwrap_or_default();
            extra += added.map_or(0, |&added| added.min(stored - 1));
        }
    }
    Ok(extra)
}

fn bind_all(sql: &str, numbers: &[i64]) -> Query<'static, Any, sqlx::any::AnyArguments> {
    let query = sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false);
    numbers
        .iter()
        .fold(query, |query, number| query.bind(*number))
}

/// As the column `kind` has it.
fn code(kind: Kind) -> i64 {
    match kind {
        Kind::Start => 0,
        Kind::Event => 1,
        Kind::End => 2,
    }
}

/// `($1, $2), ($3, $4)` for two rows of two columns.
fn values(rows: usize, columns: usize) -> String {
    let row = |row| placeholders(1 + row * columns, columns);
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

fn placeholders(first: usize, count: usize) -> String {
    let numbers: Vec<String> = (first..first + count).map(|n| format!("${n}")).collect();
    format!("({})", numbers.join(", "))
}
