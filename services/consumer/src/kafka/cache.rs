//! A cache of pages recently read for streams: after a rollout, a thousand clients miss nearly the same messages, which are
//! then read from Kafka only once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cursor::Vector;
use crate::page::Page;
use crate::record::Event;

/// Maximum bytes of all pages together.
const BYTES: usize = 16 << 20;

/// The lifetime of a page: long enough for a thundering herd, and no longer than a changed log may go unnoticed.
const AGE: Duration = Duration::from_secs(10);

/// Recent pages of all topics.
#[derive(Default)]
pub struct PageCache(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    newest_last: VecDeque<Cached>,
    bytes: usize,
    being_read: Vec<BeingRead>,
    /// The number of the next [`Reading`].
    next: u64,
}

/// A page that a client is reading from Kafka.
struct BeingRead {
    number: u64,
    topic: Arc<str>,
    before: Vector,
    ended: watch::Receiver<()>,
}

/// What the cache has for a client.
pub enum Lookup {
    /// A page that continues it; it is never `complete`, because the log has grown since.
    Page(Page),
    /// Another client is reading a page that will most likely continue this one too: look it up again after that.
    BeingRead(watch::Receiver<()>),
    /// Nothing: the caller reads the page, and holds this until it has cached it.
    Absent(Reading),
}

/// While it exists, other clients wait for the page that is being read.
pub struct Reading {
    pages: Arc<Mutex<Pages>>,
    number: u64,
    _ended: watch::Sender<()>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut pages = lock(&self.pages);
        pages
            .being_read
            .retain(|being_read| being_read.number != self.number);
    }
}

struct Cached {
    topic: Arc<str>,
    page: Page,
    bytes: usize,
    read: Instant,
}

impl PageCache {
    /// Looks up a page of this topic that continues `from`; pages have up to `events` events.
    pub fn look_up(&self, topic: &Arc<str>, from: &Vector, events: usize) -> Lookup {
        let mut pages = lock(&self.0);
        pages.expire();
        if let Some(page) = pages.get(topic, from) {
            return Lookup::Page(page);
        }
        let continues = |being_read: &&BeingRead| {
            being_read.topic == *topic && is_near(&being_read.before, from, events)
        };
        if let Some(being_read) = pages.being_read.iter().find(continues) {
            return Lookup::BeingRead(being_read.ended.clone());
        }
        let (ending, ended) = watch::channel(());
        let number = pages.next;
        pages.next += 1;
        pages.being_read.push(BeingRead {
            number,
            topic: topic.clone(),
            before: from.clone(),
            ended,
        });
        Lookup::Absent(Reading {
            pages: self.0.clone(),
            number,
            _ended: ending,
        })
    }

    /// Caches a page for the next clients.
    pub fn put(&self, topic: &Arc<str>, page: &Page) {
        // After a reset, offsets of different logs would have to be distinguished.
        if page.events.is_empty() || page.events.iter().any(|event| event.resets()) {
            return;
        }
        let bytes = page.events.iter().map(|event| event.weight()).sum();
        let page = Page {
            events: page.events.clone(),
            before: page.before.clone(),
            after: page.after.clone(),
            complete: false,
            from_start: false,
        };
        let mut pages = lock(&self.0);
        pages.bytes += bytes;
        pages.newest_last.push_back(Cached {
            topic: topic.clone(),
            page,
            bytes,
            read: Instant::now(),
        });
        pages.expire();
    }

    /// Removes all pages of a topic, because its log has changed.
    pub fn invalidate(&self, topic: &str) {
        let mut pages = lock(&self.0);
        pages.newest_last.retain(|cached| &*cached.topic != topic);
        pages.bytes = pages.newest_last.iter().map(|cached| cached.bytes).sum();
    }
}

fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pages {
    fn get(&self, topic: &str, from: &Vector) -> Option<Page> {
        let of_topic = |cached: &&Cached| &*cached.topic == topic;
        let found = self.newest_last.iter().rev().filter(of_topic);
        let pages = found.filter_map(|cached| rest(&cached.page, from));
        pages.max_by_key(|page| page.events.len())
    }

    fn expire(&mut self) {
        let too_old = |cached: &Cached| cached.read.elapsed() > AGE;
        while self.bytes > BYTES || self.newest_last.front().is_some_and(too_old) {
            let Some(oldest) = self.newest_last.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes;
        }
    }
}

/// Whether a page of this many events after `before` most likely contains the events after `from`.
fn is_near(before: &Vector, from: &Vector, events: usize) -> bool {
    if before.topic_id != from.topic_id || before.len() != from.len() {
        return false;
    }
    let mut distance = 0;
    for (before, from) in before.positions.iter().zip(&from.positions) {
        if from.offset < before.offset {
            return false;
        }
        distance += from.offset - before.offset;
    }
    distance < events as i64
}

/// The rest of a page for a client that has read up to `from`; `None` if the page does not continue it, or may be of another
/// log.
fn rest(page: &Page, from: &Vector) -> Option<Page> {
    let same_log = from.topic_id == page.before.topic_id || from.topic_id.is(page.after.topic_id);
    if !same_log || from.len() != page.before.len() || from.len() != page.after.len() {
        return None;
    }
    let same_topic = from.topic_id.is(page.after.topic_id);
    let mut after = page.after.clone();
    for partition in 0..from.len() {
        let (client, first) = (from.get(partition), page.before.get(partition));
        let last = page.after.get(partition);
        if client.offset < first.offset {
            return None;
        }
        if client.offset > last.offset {
            // Ahead of the page in this partition: only its topic can be compared.
            if !same_topic {
                return None;
            }
            after.set(partition, client);
            continue;
        }
        let of_partition = page
            .events
            .iter()
            .filter(|event| event.partition == partition);
        let mut ends = std::iter::once(first).chain(of_partition.map(|event| event.next));
        let known = ends.find(|next| next.offset == client.offset);
        // A client whose record is not in the page must be compared with Kafka.
        if client.fingerprint.is_some() && !known.is_some_and(|known| known.agrees(client)) {
            return None;
        }
    }
    let missing = |event: &&Arc<Event>| event.next.offset > from.get(event.partition).offset;
    let events: Vec<_> = page.events.iter().filter(missing).cloned().collect();
    (!events.is_empty()).then(|| Page {
        events,
        before: from.clone(),
        after,
        complete: false,
        from_start: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::Position;
    use crate::record::{Message, Payload, Value};

    fn record(partition: usize, offset: i64) -> Arc<Event> {
        let message = Message {
            offset,
            timestamp: Some(offset),
            key: None,
            headers: vec![],
            value: Value::Null,
        };
        Arc::new(Event {
            partition,
            next: Position::after(offset, Some(offset), None),
            payload: Payload::Message(message),
        })
    }

    fn cache() -> PageCache {
        let cache = PageCache::default();
        let events = vec![record(0, 5), record(1, 2), record(0, 6), record(1, 3)];
        let page = Page {
            before: Vector::new(vec![record(0, 4).next, record(1, 1).next]),
            after: Vector::new(vec![record(0, 6).next, record(1, 3).next]),
            events,
            ..Page::default()
        };
        cache.put(&"my-topic".into(), &page);
        cache
    }

    fn page(cache: &PageCache, topic: &str, from: &Vector) -> Option<Page> {
        match cache.look_up(&topic.into(), from, 100) {
            Lookup::Page(page) => Some(page),
            Lookup::BeingRead(_) | Lookup::Absent(_) => None,
        }
    }

    fn offsets(page: &Page) -> Vec<(usize, i64)> {
        page.events
            .iter()
            .map(|event| (event.partition, event.next.offset - 1))
            .collect()
    }

    #[test]
    fn a_client_in_the_middle_of_a_page_receives_the_rest_of_it() {
        let from = Vector::new(vec![record(0, 5).next, record(1, 1).next]);
        let page = page(&cache(), "my-topic", &from).expect("the page continues this client");
        assert_eq!(offsets(&page), [(1, 2), (0, 6), (1, 3)]);
        assert_eq!((page.before, page.after.get(1).offset), (from, 4));
    }

    #[test]
    fn a_page_does_not_serve_a_client_before_it_beyond_it_or_of_another_log() {
        let at = |first: Position, second: Position| {
            page(&cache(), "my-topic", &Vector::new(vec![first, second])).is_some()
        };
        assert!(at(Position::at(5), Position::at(2)));
        assert!(!at(Position::at(4), Position::at(2)), "before the page");
        assert!(!at(Position::at(7), Position::at(4)), "nothing is left");
        assert!(!at(Position::at(8), Position::at(2)), "beyond the page");
        assert!(
            !at(Position::after(5, Some(77), None), Position::at(2)),
            "another log"
        );
        assert!(
            page(
                &cache(),
                "another-topic",
                &Vector::new(vec![Position::at(5), Position::at(2)])
            )
            .is_none()
        );
    }

    #[tokio::test]
    async fn clients_that_a_page_will_continue_wait_for_it_and_others_do_not() {
        let (cache, topic) = (PageCache::default(), Arc::from("my-topic"));
        let at = |first, second| Vector::new(vec![Position::at(first), Position::at(second)]);
        let look_up = |from| cache.look_up(&topic, &from, 10);
        let Lookup::Absent(reading) = look_up(at(5, 2)) else {
            panic!("nobody reads it");
        };
        let Lookup::BeingRead(mut ended) = look_up(at(7, 3)) else {
            panic!("it is being read");
        };
        assert!(matches!(look_up(at(4, 3)), Lookup::Absent(_)), "before it");
        assert!(
            matches!(look_up(at(14, 4)), Lookup::Absent(_)),
            "too far away"
        );
        drop(reading);
        ended.changed().await.expect_err("its sender is gone");
        // The read may have failed: one of those that waited reads it instead.
        assert!(matches!(look_up(at(7, 3)), Lookup::Absent(_)));
    }
}
