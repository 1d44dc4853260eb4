//! The statements that add to counts, many rows at a time.

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use super::{ROWS, values};
use crate::Counts;

/// Adds the counts of a batch. Its commits are numbered, so that readers find what has changed since the last one that they saw.
pub async fn add(connection: &mut AnyConnection, counts: &Counts) -> sqlx::Result<()> {
    if counts.rows().is_empty() {
        return Ok(());
    }
    // It also locks the row until the transaction ends: a later version is never visible before an earlier one.
    let next = "UPDATE food_counts_version SET version = version + 1 RETURNING version";
    let version: i64 = sqlx::query(next)
        .fetch_one(&mut *connection)
        .await?
        .try_get("version")?;
    for rows in counts.rows().chunks(ROWS) {
        let sql = format!(
            "INSERT INTO food_counts (food, count, changed) VALUES {} \
             ON CONFLICT (food) DO UPDATE SET count = food_counts.count + excluded.count, changed = excluded.changed",
            values(connection, rows.len(), 3)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(rows.len() == ROWS);
        for (food, count) in rows {
            query = query.bind(food.as_str()).bind(*count).bind(version);
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}
