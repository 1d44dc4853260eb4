//! The statements that add events to sessions, many rows at a time.

use std::collections::{BTreeMap, HashSet};

use herald_events::{Kind, SessionId};
use sqlx::any::AnyRow;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row as _};

use super::{ROWS, Summary, placeholders, values};
use crate::{NewEvent, SessionChanges};

/// Adds the events of a batch that are not stored yet.
pub async fn add(
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
        let list = placeholders(connection, 1, sessions.len());
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
        values(connection, sessions.len(), 4)
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
        values(connection, rows.len(), 7)
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
            placeholders(connection, 1, sessions.len())
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
