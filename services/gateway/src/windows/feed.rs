//! The results of windows, read from Kafka while any client watches: by one reader for all of them.

use std::collections::{HashMap, HashSet};
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
pub(super) const MAX_VIDEOS: usize = 10_000;

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

pub(super) struct Shared {
    /// The videos that are watched: by how many clients, and the generation with which its history is known.
    videos: HashMap<String, (usize, u64)>,
    /// Increases with each client that adds a video, whose history must then be read.
    generation: u64,
    /// The latest generation whose history was read.
    caught_up: u64,
    table: Table,
    /// Whether a topic of interim counts exists.
    has_interim: bool,
    problem: Option<String>,
    /// Why the history of new videos cannot be read.
    history_problem: Option<String>,
    /// Increases with each change of the three above.
    reports: u64,
    /// Whether the reader runs, and whether that of the history of new videos does.
    is_read: bool,
    is_history_read: bool,
}

impl Feed {
    /// `failed` is cancelled when a reader panics.
    pub fn new(log: Log, windows: Windows, failed: CancellationToken) -> Self {
        let sizes: Vec<WindowSize> = windows.iter().map(|(size, _)| size).collect();
        Self {
            log,
            shared: Mutex::new(Shared {
                videos: HashMap::new(),
                generation: 0,
                caught_up: 0,
                table: Table::new(&sizes),
                has_interim: false,
                problem: None,
                history_problem: None,
                reports: 0,
                is_read: false,
                is_history_read: false,
            }),
            sizes,
            windows,
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
            shared.table.add(video);
        }
        let feed = self.clone();
        if !std::mem::replace(&mut shared.is_read, true) {
            tokio::task::spawn_blocking(move || feed.read());
        } else if new > 0 && !std::mem::replace(&mut shared.is_history_read, true) {
            tokio::task::spawn_blocking(move || feed.read_history());
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
        if !self.lock().table.has(video) {
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
        let mut shared = self.lock();
        let table = &mut shared.table;
        for (size, (_, topic)) in self.windows.iter().enumerate() {
            let (time, offset) = (record.timestamp, record.offset);
            if record.topic == topic {
                table.take_final(video, size, &counted);
            } else if record.topic == Windows::live_topic(topic) {
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

    /// Notes why nothing can be read at present, if so, and wakes the clients if there is something new for them.
    pub(super) fn report(&self, problem: Option<&str>) {
        let mut shared = self.lock();
        if shared.problem.as_deref() != problem {
            shared.problem = problem.map(str::to_owned);
            shared.reports += 1;
        }
        drop(shared);
        self.wake();
    }

    /// Notes whether a topic of interim counts exists.
    pub(super) fn report_interim(&self, has_interim: bool) {
        let mut shared = self.lock();
        if shared.has_interim != has_interim {
            shared.has_interim = has_interim;
            shared.reports += 1;
        }
    }

    /// Notes that the history of the videos up to this generation was read, or why it cannot be.
    pub(super) fn report_history(&self, read: Result<u64, String>) {
        let mut shared = self.lock();
        let problem = match read {
            Ok(generation) => {
                shared.caught_up = shared.caught_up.max(generation);
                None
            }
            Err(problem) => Some(problem),
        };
        if shared.history_problem != problem {
            shared.history_problem = problem;
            shared.reports += 1;
        }
        drop(shared);
        self.wake();
    }

    /// Wakes the clients if there is something new for them.
    pub(super) fn wake(&self) {
        let shared = self.lock();
        let version = shared.table.version() + shared.caught_up + shared.reports;
        drop(shared);
        self.versions
            .send_if_modified(|known| std::mem::replace(known, version) != version);
    }

    /// The newest generation of videos; `None`, and the reader is no longer noted as running, if there are none.
    pub(super) fn generation(&self) -> Option<u64> {
        let mut shared = self.lock();
        shared.is_read = !shared.videos.is_empty();
        shared.is_read.then_some(shared.generation)
    }

    /// The videos whose history is not known, with their newest generation; `None`, and their reader is no longer noted as running,
    /// if there are none.
    pub(super) fn pending(&self) -> Option<(HashSet<String>, u64)> {
        let mut shared = self.lock();
        let caught_up = shared.caught_up;
        let videos = shared.videos.iter();
        let pending = videos.filter(|(_, (_, generation))| *generation > caught_up);
        let pending: HashSet<String> = pending.map(|(video, _)| video.clone()).collect();
        shared.is_history_read = !pending.is_empty();
        let generation = shared.generation;
        shared.is_history_read.then_some((pending, generation))
    }

    pub(super) fn is_watched(&self) -> bool {
        !self.lock().videos.is_empty()
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
        let is_known = shared.caught_up >= self.generation;
        let history_problem = shared.history_problem.as_deref().filter(|_| !is_known);
        let problem = shared.problem.as_deref().or(history_problem);
        let mut text = self.status.event(problem).unwrap_or_default();
        if is_known {
            let has_interim = shared.has_interim;
            let rows = shared.table.after(self.sent.unwrap_or(0), &self.videos);
            let sent = self.sent.replace(shared.table.version());
            // The other clients need not wait while the events are written.
            drop(shared);
            if self.has_interim.replace(has_interim) != Some(has_interim) {
                text += &sse::event("start", &self.feed.about(has_interim));
            }
            let name = if sent.is_none() { "snapshot" } else { "change" };
            if sent.is_none() || !rows.is_empty() {
                text += &sse::event(name, &format!("[{}]", rows.join(",")));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A feed that no reader reads, because one is noted as running.
    fn feed() -> Arc<Feed> {
        let args = ["gateway", "--kafka-bootstrap-servers", "127.0.0.1:1"];
        let config: crate::Config = herald_runtime::config::parse_from(&args).unwrap();
        let log = Log::new(&config).unwrap();
        let feed = Feed::new(log, config.windows, CancellationToken::new());
        let mut shared = feed.lock();
        (shared.is_read, shared.is_history_read) = (true, true);
        drop(shared);
        Arc::new(feed)
    }

    fn take(client: &mut Client) -> String {
        let taken = client.take().unwrap_or_default();
        String::from_utf8(taken.to_vec()).unwrap()
    }

    #[test]
    fn a_client_whose_history_is_not_known_waits_and_the_others_do_not() {
        let feed = feed();
        let mut first = feed.clone().watch(&["a"]).unwrap();
        feed.report_history(Ok(1));
        assert!(take(&mut first).contains("event: snapshot\ndata: []\n"));
        let mut second = feed.clone().watch(&["b", "a"]).unwrap();
        let counted = serde_json::from_str(r#"{"count":1,"start":0,"end":60000}"#).unwrap();
        feed.lock().table.take_final("a", 0, &counted);
        assert!(take(&mut first).starts_with("event: change\n"));
        assert_eq!(take(&mut second), "");
        feed.report_history(Err("it is away".to_owned()));
        assert_eq!(take(&mut first), "");
        assert!(take(&mut second).contains("it is away"));
        let (pending, generation) = feed.pending().unwrap();
        assert_eq!(pending, HashSet::from(["b".to_owned()]));
        feed.report_history(Ok(generation));
        let events = take(&mut second);
        assert!(events.contains(r#"{"source":"up"}"#), "{events}");
        assert!(events.contains("event: snapshot\n"), "{events}");
        assert!(feed.pending().is_none());
        drop((first, second));
        assert!(feed.generation().is_none());
    }

    #[test]
    fn the_number_of_videos_that_all_clients_together_watch_is_bounded() {
        let feed = feed();
        let many: Vec<String> = (0..MAX_VIDEOS).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let all = feed.clone().watch(&many).unwrap();
        assert!(feed.clone().watch(&["another"]).is_none());
        let known = feed.clone().watch(&["0"]);
        assert!(known.is_some());
        drop(all);
        assert!(feed.watch(&["another"]).is_some());
    }
}
