//! The address of a database.

use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::any::AnyConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::tls;

/// `sqlite:///path/to/file.db` or `postgres://user:password@host:5432/database`. Its text never contains the password.
#[derive(Clone)]
pub struct DatabaseUrl {
    pub(crate) backend: Backend,
    pub(crate) options: AnyConnectOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

impl DatabaseUrl {
    /// Options for connecting; a file of SQLite is opened in this `mode`: `ro`, or `rwc` to create it if it is missing.
    pub(crate) fn connect_options(&self, mode: &str) -> AnyConnectOptions {
        // A statement of a batch is longer than any log should have.
        let mut options = self.options.clone().disable_statement_logging();
        if self.backend == Backend::Sqlite {
            options
                .database_url
                .set_query(Some(&format!("mode={mode}")));
        }
        options
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "give sqlite:///path/to/file.db or postgres://user:password@host:5432/database";
        let options: AnyConnectOptions = text.parse().map_err(|_| EXPECTED.to_owned())?;
        let url = &options.database_url;
        let backend = match url.scheme() {
            "sqlite" => Backend::Sqlite,
            "postgres" | "postgresql" => Backend::Postgres,
            _ => return Err(EXPECTED.to_owned()),
        };
        match backend {
            Backend::Sqlite => {
                if url.query().is_some() {
                    return Err("the address of an SQLite file takes no parameters".to_owned());
                }
                // Without a file, every connection would have a database of its own.
                let path = &text["sqlite:".len()..];
                if path.trim_matches('/').is_empty() || path.contains(":memory:") {
                    return Err(EXPECTED.to_owned());
                }
            }
            Backend::Postgres => {
                tls::check(&options)?;
                PgConnectOptions::from_url(url).map_err(|error| error.to_string())?;
            }
        }
        Ok(Self { backend, options })
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.options.database_url;
        match (self.backend, url.host_str()) {
            (Backend::Sqlite, _) => write!(f, "{}", url.as_str()),
            // Neither the user's name nor the parameters, of which one may be a password.
            (Backend::Postgres, host) => {
                write!(f, "postgres://{}", host.unwrap_or_default())?;
                if let Some(port) = url.port() {
                    write!(f, ":{port}")?;
                }
                write!(f, "{}", url.path())
            }
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_are_recognized() {
        for (text, backend) in [
            ("sqlite:///data/herald.db", Backend::Sqlite),
            ("sqlite://herald.db", Backend::Sqlite),
            ("postgres://a:b@c:5433/d?sslmode=require", Backend::Postgres),
            ("postgresql://c/d", Backend::Postgres),
        ] {
            assert_eq!(text.parse::<DatabaseUrl>().unwrap().backend, backend);
        }
    }

    #[test]
    fn other_addresses_are_rejected() {
        for text in [
            "",
            "herald.db",
            "/data/herald.db",
            "mysql://a/b",
            "sqlite://",
            "sqlite::memory:",
            "sqlite:///a.db?mode=ro",
            "postgres://a/b?sslmode=perhaps",
        ] {
            let error = text.parse::<DatabaseUrl>().unwrap_err();
            assert!(!error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let url = "postgres://me:secret@db:5433/herald?password=secret";
        let url: DatabaseUrl = url.parse().unwrap();
        assert_eq!(format!("{url}"), "postgres://db:5433/herald");
        assert_eq!(format!("{url:?}"), "postgres://db:5433/herald");
        let bad = "postgres://me:secret@db:port/herald".parse::<DatabaseUrl>();
        assert!(!bad.unwrap_err().contains("secret"));
    }
}
