//! The counters of one partition: likes into tumbling windows, without Kafka and without a clock.
//!
//! Every like is counted in exactly one window of each size, or is late for it: a window that is closed stays as it is. The open
//! windows are not stored: after a restart, the likes from [`Mark::rebuild`] on are counted again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use herald_events::WindowSize;

use super::mark::Mark;
use super::result::WindowCount;

/// The state of a partition.
#[derive(Debug)]
pub struct Counters {
    sizes: Vec<WindowSize>,
    /// The identifiers in use, each in memory once.
    ids: HashSet<Arc<str>>,
    open: BTreeMap<Window, Likes>,
    /// Every window that ends then or earlier is closed.
    closed: Option<i64>,
    /// The offset of the first like that these counters have not seen, not even before a restart.
    position: i64,
    /// Likes that were late, by size: since the beginning, and of each identifier since its latest interim count.
    late: Vec<u64>,
    late_ids: BTreeMap<(usize, Arc<str>), u64>,
}

/// A window, in the order in which windows close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    end: i64,
    /// The index of its size.
    size: usize,
}

/// The likes of an open window.
#[derive(Debug)]
struct Likes {
    /// The offset of the first one.
    first: i64,
    ids: HashMap<Arc<str>, Tally>,
    /// The identifiers whose count is another one than when it was last published.
    changed: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
struct Tally {
    count: u64,
    first: i64,
    last: i64,
    /// Whether it is in [`Likes::changed`].
    changed: bool,
}

impl Counters {
    /// Goes on after a position and the mark that was committed with it. The likes from [`Mark::rebuild`] on must be added again.
    pub fn new(sizes: Vec<WindowSize>, position: i64, mark: &Mark) -> Self {
        let late = |size: &WindowSize| mark.late.get(&size.label()).copied().unwrap_or(0);
        Self {
            late: sizes.iter().map(late).collect(),
            sizes,
            ids: HashSet::new(),
            open: BTreeMap::new(),
            closed: mark.closed,
            position,
            late_ids: BTreeMap::new(),
        }
    }

    /// Counts a like. `timestamp` is in milliseconds since 1970; offsets ascend.
    pub fn add(&mut self, offset: i64, timestamp: i64, id: &str) {
        let is_new = offset >= self.position;
        let id = self.intern(id);
        for (index, size) in self.sizes.iter().enumerate() {
            let end = size.end_of(size.start_of(timestamp));
            if self.closed.is_some_and(|closed| end <= closed) {
                // An earlier one is in the published count, or was late already.
                if is_new {
                    self.late[index] += 1;
                    *self.late_ids.entry((index, id.clone())).or_default() += 1;
                }
                continue;
            }
            let likes = self
                .open
                .entry(Window { end, size: index })
                .or_insert_with(|| Likes {
                    first: offset,
                    ids: HashMap::new(),
                    changed: Vec::new(),
                });
            likes.add(offset, &id);
        }
        self.advance(offset + 1);
    }

    /// There is no like between the position and this offset: markers of transactions, say.
    pub fn advance(&mut self, position: i64) {
        self.position = self.position.max(position);
    }

    /// Closes the windows that end at this time or earlier, and returns their counts. After `limit` counts it stops at the end of
    /// a window; then [`closed`](Self::closed) is before the time.
    pub fn close(&mut self, time: i64, limit: usize) -> Vec<WindowCount> {
        let mut counts = Vec::new();
        let mut closed = i64::MIN;
        while let Some(entry) = self.open.first_entry() {
            let window = *entry.key();
            if window.end > time {
                break;
            }
            // All windows with the same end are closed together.
            if counts.len() >= limit && window.end > closed {
                break;
            }
            let likes = entry.remove();
            let ids = likes.ids.iter();
            counts.extend(ids.map(|(id, tally)| count(&self.sizes, window, id, *tally)));
            closed = window.end;
        }
        let all = self.open.keys().next().is_none_or(|next| next.end > time);
        self.closed = self.closed.max(Some(if all { time } else { closed }));
        self.ids.retain(|id| Arc::strong_count(id) > 1);
        counts
    }

    /// The counts of open windows that have changed since they were last returned, and the late likes of these identifiers since
    /// then. An identifier that has late likes and no open window has a count of 0 in the window of `now`. After `limit` counts, those
    /// without late likes are left to the next call.
    pub fn interim(&mut self, now: i64, limit: usize) -> Vec<WindowCount> {
        let mut counts = Vec::new();
        let mut open = std::mem::take(&mut self.open);
        // Late likes go to the latest window of their identifier.
        for (window, likes) in open.iter_mut().rev() {
            let late = self.late_ids.keys();
            let late = late.filter(|(size, id)| *size == window.size && likes.ids.contains_key(id));
            let late: HashSet<Arc<str>> = late.map(|(_, id)| id.clone()).collect();
            if !late.is_empty() {
                likes.changed.retain(|id| !late.contains(id));
            }
            let mut ids: Vec<Arc<str>> = late.into_iter().collect();
            let room = limit.saturating_sub(counts.len() + ids.len());
            let rest = likes.changed.len().saturating_sub(room);
            ids.extend(likes.changed.drain(rest..));
            for id in ids {
                let tally = likes.ids.get_mut(&id).expect("it has changed");
                tally.changed = false;
                let mut count = count(&self.sizes, *window, &id, *tally);
                count.late = Some(self.late_ids.remove(&(window.size, id)).unwrap_or(0));
                counts.push(count);
            }
        }
        self.open = open;
        for ((index, id), late) in std::mem::take(&mut self.late_ids) {
            counts.push(WindowCount {
                window: index,
                start: self.sizes[index].start_of(now),
                id: id.as_ref().to_owned(),
                count: 0,
                from: self.position,
                to: self.position,
                late: Some(late),
            });
        }
        counts
    }

    /// Whether [`interim`](Self::interim) would return anything.
    pub fn has_changed(&self) -> bool {
        self.has_late() || self.open.values().any(|likes| !likes.changed.is_empty())
    }

    /// Whether there are late likes that no interim count has reported: the next commit must report them.
    pub fn has_late(&self) -> bool {
        !self.late_ids.is_empty()
    }

    /// The number of identifiers and window sizes with such likes.
    pub fn late_ids(&self) -> usize {
        self.late_ids.len()
    }

    /// What must be committed with the position.
    pub fn mark(&self) -> Mark {
        let first = self.open.values().map(|likes| likes.first).min();
        let labels = self.sizes.iter().map(|size| size.label());
        Mark {
            closed: self.closed,
            rebuild: first.unwrap_or(self.position),
            late: labels.zip(self.late.iter().copied()).collect(),
        }
    }

    /// The offset of the first like that was not added yet.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// The time up to which windows are closed.
    pub fn closed(&self) -> Option<i64> {
        self.closed
    }

    /// Late likes since the beginning, by size.
    pub fn late(&self) -> &[u64] {
        &self.late
    }

    /// The number of counts in open windows.
    pub fn open(&self) -> usize {
        self.open.values().map(|likes| likes.ids.len()).sum()
    }

    fn intern(&mut self, id: &str) -> Arc<str> {
        if let Some(id) = self.ids.get(id) {
            return id.clone();
        }
        let id: Arc<str> = id.into();
        self.ids.insert(id.clone());
        id
    }
}

impl Likes {
    fn add(&mut self, offset: i64, id: &Arc<str>) {
        let tally = self.ids.entry(id.clone()).or_insert(Tally {
            count: 0,
            first: offset,
            last: offset,
            changed: false,
        });
        tally.count += 1;
        tally.last = offset;
        if !std::mem::replace(&mut tally.changed, true) {
            self.changed.push(id.clone());
        }
    }
}

fn count(sizes: &[WindowSize], window: Window, id: &str, tally: Tally) -> WindowCount {
    WindowCount {
        window: window.size,
        start: window.end.saturating_sub(sizes[window.size].millis()),
        id: id.to_owned(),
        count: tally.count,
        from: tally.first,
        to: tally.last + 1,
        late: None,
    }
}

#[cfg(test)]
mod tests;
