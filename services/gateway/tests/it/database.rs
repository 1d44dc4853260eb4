//! An empty database for one test.

use std::path::PathBuf;

use herald_testing::random_topic;
use store::Name;

/// A file of SQLite, or a schema of PostgreSQL.
pub struct Database {
    /// Deleted at the end.
    folder: Option<PathBuf>,
    pub address: String,
    pub schema: Name,
}

impl Database {
    pub fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(random_topic("herald-gateway"));
        std::fs::create_dir(&folder).unwrap();
        Self {
            address: format!("sqlite://{}/herald.db", folder.display()),
            folder: Some(folder),
            schema: Name::default(),
        }
    }

    pub fn postgres() -> Option<Self> {
        Some(Self::of(herald_testing::postgres()?))
    }

    /// A new schema.
    pub fn of(postgres: &herald_testing::Postgres) -> Self {
        Self {
            folder: None,
            address: postgres.url(),
            schema: random_topic("herald").parse().unwrap(),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            _ = std::fs::remove_dir_all(folder);
        }
    }
}
