//! The results of windows, read from Kafka while any client watches: by one reader for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use herald_events::{WindowSize, Windows};
use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::table::Table;
use crate::kafka::log::{Log, Record};
use crate::sse;

/// The most videos that all clients together may watch.
const MAX_VIDEOS: usize = 10_000;

/// Reads the results of windows while any client watches.
pub struct Feed {
    pub(super) log: Log,
    pub(super) windows: Windows,
    pub(super) sizes: Vec<WindowSize>,
    shared: Mutex<Shared>,
    /// Wakes the clients.
    pub(super) versions: watch::Sender<u64>,
    pub(super) failed: CancellationToken,
}

#[derive(Default)]
pub(super) struct Shared {
    /// The videos that are watched: by how many clients, and the generation with which its history is known.
    pub(super) videos: HashMap<String, (usize, u64)>,
    /// Increases when the history must be read again, because of a new video.
    pub(super) generation: u64,
    /// The latest generation whose history was read.
    pub(super) caught_up: u64,
    table: Table,
    /// Whether a topic of interim counts exists.
    pub(super) has_interim: bool,
    problem: Option<String>,
    pub(super) is_read: bool,
}

impl Feed {
    /// `failed` is cancelled when the reader panics.
    pub fn new(log: Log, windows: Windows, failed: CancellationToken) -> Self {
        Self {
            log,
            sizes: windows.iter().map(|(size, _)| size).collect(),
            windows,
            shared: Mutex::default(),
            versions: watch::Sender::new(0),
            failed,
        }
    }

    /// Changes when a client may have something to take.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.versions.subscribe()
    }

    /// A client of these videos; `None` if there are too many.
    pub fn watch(self: Arc<Self>, videos: &[&str]) -> Option<Client> {
        let mut videos: Vec<String> = videos.iter().map(|&video| video.to_owned()).collect();
        videos.sort();
        videos.dedup();
        let mut shared = self.lock();
        let new = |video: &&String| !shared.videos.contains_key(*video);
        let new = videos.iter().filter(new).count();
        if shared.videos.len() + new > MAX_VIDEOS {
            return None;
        }
        shared.generation += u64::from(new > 0);
        let mut generation = 0;
        for video in &videos {
            let newest = shared.generation;
            let (clients, since) = shared.videos.entry(video.clone()).or_insert((0, newest));
            *clients += 1;
            generation = generation.max(*since);
            shared.table.add(video, self.sizes.len());
        }
        if !std::mem::replace(&mut shared.is_read, true) {
            let feed = self.clone();
            tokio::task::spawn_blocking(move || feed.read());
        }
        drop(shared);
        Some(Client {
            feed: self,
            videos,
            generation,
            has_interim: None,
            sent: None,
            status: sse::Status::default(),
        })
    }

    /// Keeps the result in a record, if it is one of a video that is watched.
    pub(super) fn take(&self, record: &Record) {
        let Ok(video) = std::str::from_utf8(record.key) else {
            return;
        };
        let mut shared = self.lock();
        if !shared.table.has(video) {
            return;
        }
        // Others may publish to these topics too.
        let Ok(counted) = serde_json::from_slice(record.value) else {
            tracing::debug!(
                topic = record.topic,
                offset = record.offset,
                "not the result of a window"
            );
            return;
        };
        for (size, (_, topic)) in self.windows.iter().enumerate() {
            let (time, offset) = (record.timestamp, record.offset);
            if record.topic == topic {
                shared.table.take_final(video, size, &counted);
            } else if record.topic == Windows::live_topic(topic) {
                let table = &mut shared.table;
                table.take_interim(video, size, &counted, time, offset);
            }
        }
    }

    /// What a stream contains: `{"windows":[{"seconds":60,"type":"1min"}],"interim":true}`.
    fn about(&self, has_interim: bool) -> String {
        let sizes = self.sizes.iter();
        let windows: Vec<_> = sizes
            .map(|size| json!({"type": size.label(), "seconds": size.millis() / 1000}))
            .collect();
        json!({"windows": windows, "interim": has_interim}).to_string()
    }

    /// Wakes the clients if there is something new for them.
    pub(super) fn report(&self, problem: Option<&str>) {
        let mut shared = self.lock();
        let is_new = shared.problem.as_deref() != problem;
        if is_new {
            shared.problem = problem.map(str::to_owned);
        }
        let version = shared.table.version() + shared.caught_up;
        drop(shared);
        self.versions.send_if_modified(|known| {
            let changed = is_new || *known != version;
            *known = version;
            changed
        });
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client of some videos.
pub struct Client {
    feed: Arc<Feed>,
    videos: Vec<String>,
    /// With which the history of all of them is known.
    generation: u64,
    /// Whether there are interim counts, as it was sent.
    has_interim: Option<bool>,
    /// The version of the table that it was sent.
    sent: Option<u64>,
    status: sse::Status,
}

impl Client {
    /// The events since the last call.
    pub fn take(&mut self) -> Option<Bytes> {
        let shared = self.feed.lock();
        let status = self.status.event(shared.problem.as_deref());
        let mut text = status.unwrap_or_default();
        if shared.caught_up >= self.generation {
            if self.has_interim != Some(shared.has_interim) {
                self.has_interim = Some(shared.has_interim);
                text += &sse::event("start", None, &self.feed.about(shared.has_interim));
            }
            let rows = |version| shared.table.after(version, &self.videos, &self.feed.sizes);
            let event = match self.sent {
                None => Some(("snapshot", rows(0).unwrap_or_else(|| "[]".to_owned()))),
                Some(version) => rows(version).map(|rows| ("change", rows)),
            };
            self.sent = Some(shared.table.version());
            if let Some((name, rows)) = event {
                text += &sse::event(name, None, &rows);
            }
        }
        (!text.is_empty()).then(|| text.into())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut shared = self.feed.lock();
        for video in &self.videos {
            if let Some((clients, _)) = shared.videos.get_mut(video) {
                *clients -= 1;
                if *clients == 0 {
                    shared.videos.remove(video);
                    shared.table.remove(video);
                }
            }
        }
    }
}
