//! The folder of the SQLite databases.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use herald_runtime::config::invalid;

use crate::Environment;

/// What SQLite adds to the name of a database for its other files.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// The folder, which no other process uses until this value is dropped.
pub struct Data {
    folder: PathBuf,
    _lock: File,
}

impl Data {
    /// Creates the folder if it does not exist. Errors are for the user: it cannot be written, or another process uses it.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let name = folder.display();
        let open = || {
            fs::create_dir_all(folder)?;
            let folder = folder.canonicalize()?;
            let lock = File::create(folder.join("lock"))?;
            io::Result::Ok((folder, lock))
        };
        let (folder, lock) = open().map_err(|error| {
            invalid(format!(
                "cannot write to --data-dir {name}: {error}; choose another folder"
            ))
        })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                folder,
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(invalid(format!(
                "another process uses --data-dir {name}; end it, or choose another folder"
            ))),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {name}"))
            }
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The address of an environment's database.
    pub fn url(&self, environment: &Environment) -> String {
        let file = self.file(environment).display().to_string();
        let file = file.replace('%', "%25").replace('?', "%3f");
        format!("sqlite://{}", file.replace('#', "%23"))
    }

    /// Deletes the databases of these environments.
    pub fn delete(&self, environments: &[Environment]) -> anyhow::Result<()> {
        for environment in environments {
            for suffix in SUFFIXES {
                let file = format!("{}{suffix}", self.file(environment).display());
                match fs::remove_file(&file) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("cannot delete {file}"));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn file(&self, environment: &Environment) -> PathBuf {
        self.folder.join(format!("{}.db", environment.name))
    }
}

#[cfg(test)]
mod tests {
    use herald_runtime::config::is_invalid;

    use super::*;
    use crate::environments;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("herald-data-{}-{name}", std::process::id()))
    }

    #[test]
    fn only_one_process_uses_the_folder() {
        let folder = folder("lock");
        let first = Data::open(&folder).unwrap();
        let error = Data::open(&folder).map(drop).unwrap_err();
        assert!(is_invalid(&error), "{error:#}");
        assert!(
            error.to_string().contains("another process uses"),
            "{error}"
        );
        drop(first);
        Data::open(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_reported_in_one_sentence() {
        let error = Data::open(Path::new("/dev/null/data"))
            .map(drop)
            .unwrap_err();
        assert!(is_invalid(&error), "{error:#}");
        assert!(error.to_string().contains("/dev/null/data"), "{error}");
    }

    #[test]
    fn only_the_databases_of_the_chosen_environments_are_deleted() {
        let folder = folder("delete");
        let data = Data::open(&folder).unwrap();
        for name in ["dev.db", "dev.db-wal", "prod.db", "notes.txt"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let mut environments = environments();
        environments.retain(|environment| environment.name == "dev");
        data.delete(&environments).unwrap();
        let left = |name: &str| folder.join(name).exists();
        assert!(!left("dev.db") && !left("dev.db-wal"));
        assert!(left("prod.db") && left("notes.txt"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn any_name_of_a_folder_is_a_valid_address() {
        let folder = folder("a b?c#d%20e");
        let data = Data::open(&folder).unwrap();
        let url = data.url(&environments()[0]);
        assert!(
            url.ends_with("/default.db") && !url.contains(['?', '#']),
            "{url}"
        );
        fs::remove_dir_all(&folder).unwrap();
    }
}
