//! An empty database for one test.

use std::path::PathBuf;

use store::{DatabaseUrl, Name, Reader, Writer};

/// A file of SQLite, deleted at the end.
pub struct Database {
    folder: PathBuf,
    pub url: DatabaseUrl,
}

impl Database {
    pub fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(herald_testing::random_topic("herald-store"));
        std::fs::create_dir(&folder).unwrap();
        let url = format!("sqlite://{}/herald.db", folder.display());
        Self {
            folder,
            url: url.parse().unwrap(),
        }
    }

    pub async fn writer(&self) -> Writer {
        let schema = Name::default();
        Writer::open(&self.url, &schema, None).await.unwrap()
    }

    pub fn reader(&self) -> Reader {
        Reader::new(&self.url, &Name::default())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.folder);
    }
}
