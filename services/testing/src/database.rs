//! An empty database for one test.

use std::path::PathBuf;

use crate::{Postgres, postgres, random_topic};

/// A file of SQLite, or a schema of PostgreSQL.
pub struct Database {
    /// Deleted at the end.
    folder: Option<PathBuf>,
    /// For `--database-url`.
    pub address: String,
    /// For `--database-schema`.
    pub schema: String,
}

impl Database {
    pub fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(random_topic("herald-database"));
        std::fs::create_dir(&folder).expect("a folder can be created");
        Self {
            address: format!("sqlite://{}/herald.db", folder.display()),
            folder: Some(folder),
            schema: "herald".to_owned(),
        }
    }

    /// In the PostgreSQL that the tests of this process share; without one, the test is skipped as in [`postgres()`].
    pub fn postgres() -> Option<Self> {
        Some(Self::of(postgres()?))
    }

    /// A new schema.
    pub fn of(postgres: &Postgres) -> Self {
        Self {
            folder: None,
            address: postgres.url(),
            schema: random_topic("herald"),
        }
    }

    /// One of each kind that is available.
    pub fn all() -> impl Iterator<Item = Self> {
        [Some(Self::sqlite()), Self::postgres()]
            .into_iter()
            .flatten()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            _ = std::fs::remove_dir_all(folder);
        }
    }
}
