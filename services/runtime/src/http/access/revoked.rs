//! The tokens that are no longer valid.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::watch::watch_file;

pub type Ids = Arc<HashSet<String>>;

/// The ids of revoked tokens.
#[derive(Clone, Debug)]
pub struct Revoked(watch::Receiver<Ids>);

impl Revoked {
    /// Those in a file, one per line, and again when it changes; none without one.
    pub fn watch(file: Option<&Path>, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let Some(file) = file else {
            return Ok(Self(watch::Sender::new(Ids::default()).subscribe()));
        };
        let watched = watch_file(file, shutdown, |bytes| {
            let text = std::str::from_utf8(bytes).context("it is not UTF-8")?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            Ok(Arc::new(lines.map(str::to_owned).collect()))
        })?;
        Ok(Self(watched))
    }

    pub fn contains(&self, id: &str) -> bool {
        self.0.borrow().contains(id)
    }

    pub fn subscribe(&self) -> watch::Receiver<Ids> {
        self.0.clone()
    }
}
