//! An empty database for one test.

use std::path::PathBuf;

use herald_testing::random_topic;
use store::{DatabaseUrl, Name, Reader, Writer};

/// A file of SQLite, or a schema of PostgreSQL.
pub struct Database {
    /// Deleted at the end.
    folder: Option<PathBuf>,
    pub url: DatabaseUrl,
    pub schema: Name,
}

impl Database {
    pub fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(random_topic("herald-store"));
        std::fs::create_dir(&folder).unwrap();
        let url = format!("sqlite://{}/herald.db", folder.display());
        Self {
            folder: Some(folder),
            url: url.parse().unwrap(),
            schema: Name::default(),
        }
    }

    pub fn postgres() -> Option<Self> {
        Some(Self {
            folder: None,
            url: herald_testing::postgres()?.url().parse().unwrap(),
            schema: random_topic("herald").parse().unwrap(),
        })
    }

    /// One of each kind that is available.
    pub fn all() -> impl Iterator<Item = Self> {
        [Some(Self::sqlite()), Self::postgres()]
            .into_iter()
            .flatten()
    }

    pub async fn writer(&self) -> Writer {
        Writer::open(&self.url, &self.schema, None).await.unwrap()
    }

    pub fn reader(&self) -> Reader {
        Reader::new(&self.url, &self.schema)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            _ = std::fs::remove_dir_all(folder);
        }
    }
}
