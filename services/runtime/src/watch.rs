//! Files that are read again when they change, as those of a mounted Secret do.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often a file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// What `parse` makes of a file now, and again when it has changed, until `shutdown`. A change that cannot be read or parsed is
/// logged, and what was there before stays.
///
/// # Errors
///
/// If the file cannot be read or parsed now.
pub fn watch_file<T: Send + Sync + 'static>(
    file: &Path,
    shutdown: &CancellationToken,
    parse: impl Fn(&[u8]) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<watch::Receiver<T>> {
    watch_files([file], shutdown, move |[bytes]| parse(&bytes))
}

/// The same for files that belong together, and may change one after the other.
///
/// # Errors
///
/// If a file cannot be read, or they cannot be parsed now.
pub fn watch_files<const N: usize, T: Send + Sync + 'static>(
    files: [&Path; N],
    shutdown: &CancellationToken,
    parse: impl Fn([Vec<u8>; N]) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<watch::Receiver<T>> {
    let (files, shutdown) = (files.map(Path::to_owned), shutdown.clone());
    let mut version = files.each_ref().map(|file| version_of(file));
    let (sender, receiver) = watch::channel(read(&files, &parse)?);
    let mut reported = None;
    let mut failed = None;
    tokio::spawn(async move {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let found = files.each_ref().map(|file| version_of(file));
            if found == version {
                continue;
            }
            match read(&files, &parse) {
                Ok(value) => {
                    (version, reported, failed) = (found, None, None);
                    tracing::info!(files = names(&files), "read again, since it has changed");
                    sender.send_replace(value);
                }
                // Tried again: it may have been written, or made readable, only in part. So it is reported if it lasts.
                Err(error) => {
                    let error = Some(format!("{error:#}"));
                    if failed == error && reported != error {
                        tracing::error!(error, "what it contained before stays valid");
                        reported.clone_from(&error);
                    }
                    failed = error;
                }
            }
        }
    });
    Ok(receiver)
}

fn read<const N: usize, T>(
    files: &[PathBuf; N],
    parse: &impl Fn([Vec<u8>; N]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut contents = [const { Vec::new() }; N];
    for (file, content) in files.iter().zip(&mut contents) {
        *content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    parse(contents).with_context(|| format!("cannot use {}", names(files)))
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<_> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    names.join(" and ")
}

/// Changes with the file and with who may read it; `None` if there is none.
fn version_of(file: &Path) -> Option<[u64; 4]> {
    let metadata = fs::metadata(file).ok()?;
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    Some([
        metadata.ino(),
        metadata.len(),
        seconds.cast_unsigned(),
        nanoseconds.cast_unsigned(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_wrong_change_is_not_taken() {
        let file = std::env::temp_dir().join(format!("herald-watch-{}", std::process::id()));
        let number = |bytes: &[u8]| Ok(std::str::from_utf8(bytes)?.parse::<u32>()?);
        let shutdown = CancellationToken::new();
        assert!(watch_file(&file, &shutdown, number).is_err());
        fs::write(&file, "1").unwrap();
        let mut watched = watch_file(&file, &shutdown, number).unwrap();
        assert_eq!(*watched.borrow(), 1);
        fs::write(&file, "none").unwrap();
        tokio::time::sleep(2 * INTERVAL).await;
        assert_eq!(*watched.borrow_and_update(), 1);
        fs::write(&file, "23").unwrap();
        watched.changed().await.unwrap();
        assert_eq!(*watched.borrow(), 23);
        shutdown.cancel();
        assert!(watched.changed().await.is_err());
        fs::remove_file(&file).unwrap();
    }
}
