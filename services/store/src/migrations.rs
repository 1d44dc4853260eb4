//! The tables, which the writer creates.

use std::borrow::Cow;

use anyhow::Context as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AnyPool, AssertSqlSafe, Executor, SqlSafeStr};

use crate::DatabaseUrl;
use crate::connect::{Name, explain};
use crate::url::Backend;

/// The views that readers may see.
const VIEWS: &str = "session_documents, session_children, projected_positions, aggregated";

/// By version, from 1: the statements for SQLite, and those for PostgreSQL.
const MIGRATIONS: [(&str, &str, &str); 3] = [
    (
        "sessions",
        include_str!("migrations/sqlite/0001_sessions.sql"),
        include_str!("migrations/postgres/0001_sessions.sql"),
    ),
    (
        "position times",
        include_str!("migrations/sqlite/0002_position_times.sql"),
        include_str!("migrations/postgres/0002_position_times.sql"),
    ),
    (
        "counts",
        include_str!("migrations/sqlite/0003_counts.sql"),
        include_str!("migrations/postgres/0003_counts.sql"),
    ),
];

/// Brings the tables up to date. Several processes may do so at the same time: PostgreSQL has a lock for it, and with SQLite
/// the one that comes second fails and may try again.
pub async fn run(pool: &AnyPool, url: &DatabaseUrl, schema: &Name) -> anyhow::Result<()> {
    if url.backend == Backend::Postgres {
        create_schema(pool, schema)
            .await
            .map_err(|error| explain(error, &format!("create schema {schema}"), url))?;
    }
    let migrations = (1..)
        .zip(MIGRATIONS)
        .map(|(version, (name, sqlite, postgres))| {
            let statements = match url.backend {
                Backend::Sqlite => sqlite,
                Backend::Postgres => postgres,
            };
            let (name, kind) = (Cow::Borrowed(name), MigrationType::Simple);
            Migration::new(version, name, kind, statements.into_sql_str(), false)
        });
    let mut connection = pool
        .acquire()
        .await
        .map_err(|error| explain(error, "create the tables", url))?;
    let migrated = Migrator::with_migrations(migrations.collect())
        .run_direct(None, &mut *connection, false)
        .await;
    if migrated.is_err() {
        // It may hold the lock.
        _ = connection.close().await;
    }
    migrated.with_context(|| format!("cannot create the tables in {url}"))
}

/// Only if it is missing: creating it needs a right that a role may lack where an administrator created it.
async fn create_schema(pool: &AnyPool, schema: &Name) -> sqlx::Result<()> {
    let found = sqlx::query("SELECT 1::bigint FROM pg_namespace WHERE nspname = $1")
        .bind(schema.as_str())
        .fetch_optional(pool)
        .await?;
    if found.is_none() {
        let create = format!("CREATE SCHEMA IF NOT EXISTS {}", schema.quoted());
        pool.execute(AssertSqlSafe(create)).await?;
    }
    Ok(())
}

/// Lets a role of PostgreSQL read the views, and nothing else. SQLite has no roles.
pub async fn grant(
    pool: &AnyPool,
    url: &DatabaseUrl,
    schema: &Name,
    reader: &Name,
) -> anyhow::Result<()> {
    if url.backend == Backend::Sqlite {
        return Ok(());
    }
    let (schema, role) = (schema.quoted(), reader.quoted());
    // Two replicas that grant at the same time would disturb each other.
    let statements = format!(
        "SELECT pg_advisory_xact_lock(7308600923);
         GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT SELECT ON {VIEWS} TO {role}"
    );
    let granted = async {
        let mut transaction = pool.begin().await?;
        transaction.execute(AssertSqlSafe(statements)).await?;
        transaction.commit().await
    };
    granted
        .await
        .map_err(|error| explain(error, &format!("grant the views to role {reader}"), url))
}
