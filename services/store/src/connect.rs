//! Connections to the database.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, AssertSqlSafe, Executor};

use crate::url::Backend;
use crate::{DatabaseUrl, tls};

/// The schema of PostgreSQL that is used by default.
pub const DEFAULT_SCHEMA: &str = "herald";

/// How long a query waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of a schema or a role of PostgreSQL: 1 to 63 lower-case letters, digits, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// As an identifier in a statement.
    pub(crate) fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Self {
        Self(DEFAULT_SCHEMA.to_owned())
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        if (1..=63).contains(&text.len()) && text.bytes().all(legal) && !text.starts_with("pg_") {
            Ok(Self(text.to_owned()))
        } else {
            Err("give 1 to 63 lower-case letters, digits, \"_\" and \"-\"".to_owned())
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a pool's connections may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A pool whose connections are opened when they are needed.
pub(crate) fn pool(url: &DatabaseUrl, schema: &Name, access: Access) -> AnyPool {
    sqlx::any::install_default_drivers();
    let session: Vec<String> = match (url.backend, access) {
        // With NORMAL, a power failure may lose the last transactions, never a part of one: results and positions go together,
        // and what is lost is read from Kafka again.
        (Backend::Sqlite, Access::Write) => vec![
            "PRAGMA journal_mode = WAL".to_owned(),
            "PRAGMA synchronous = NORMAL".to_owned(),
        ],
        (Backend::Sqlite, Access::Read) => vec!["PRAGMA query_only = ON".to_owned()],
        (Backend::Postgres, access) => {
            let mut session = vec![format!("SET search_path TO {}", schema.quoted())];
            if access == Access::Read {
                session.push("SET default_transaction_read_only TO on".to_owned());
            }
            session
        }
    };
    let (mode, connections) = match (url.backend, access) {
        // SQLite has one writer at a time.
        (Backend::Sqlite, Access::Write) => ("rwc", 1),
        (Backend::Postgres, Access::Write) => ("", 2),
        (_, Access::Read) => ("ro", 8),
    };
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move {
                for statement in session {
                    connection.execute(AssertSqlSafe(statement)).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(url.connect_options(mode))
}

/// The error for users and logs: what was attempted on which database, and why it failed.
pub(crate) fn explain(error: sqlx::Error, attempted: &str, url: &DatabaseUrl) -> anyhow::Error {
    if matches!(error, sqlx::Error::PoolTimedOut) {
        return anyhow::anyhow!(
            "cannot {attempted} in {url}: it does not answer within {ACQUIRE_TIMEOUT:?}"
        );
    }
    match tls::explain(&error, &url.options) {
        Some(why) => anyhow::anyhow!("cannot {attempted} in {url}: {why}"),
        None => anyhow::Error::new(error).context(format!("cannot {attempted} in {url}")),
    }
}

/// The same for a reader, which may come before the writer.
pub(crate) fn explain_read(
    error: sqlx::Error,
    attempted: &str,
    url: &DatabaseUrl,
) -> anyhow::Error {
    let database = error.as_database_error();
    let code = database.and_then(|error| error.code());
    let missing = match code.as_deref() {
        // SQLite: SQLITE_CANTOPEN.
        Some("14") => Some("its file cannot be opened; the projector creates it"),
        // PostgreSQL: undefined_table, invalid_schema_name.
        Some("42P01" | "3F000") => Some("it has no tables yet; the projector creates them"),
        _ => database
            .is_some_and(|error| error.message().starts_with("no such table"))
            .then_some("it has no tables yet; the projector creates them"),
    };
    match missing {
        Some(missing) => {
            anyhow::anyhow!("cannot {attempted} in {url}: {missing}")
        }
        None => explain(error, attempted, url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_needs_no_quotes_of_its_own() {
        assert!("herald_dev".parse::<Name>().is_ok() && "herald-1".parse::<Name>().is_ok());
        for bad in ["", "a\"b", "a b", "Herald", "pg_herald", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
