//! Which events of the ring have which key. Pure: without locks or I/O.
//!
//! The index holds the newest event of each key, and each entry of the ring the one before it with the same key. So an event
//! costs the same however many keys there are, and a client finds the events of its keys without looking at any others.

use std::collections::{BinaryHeap, HashMap, VecDeque};

use crate::keys::Keys;
use crate::record::{Event, Payload};

/// Approximate bytes of one key on the heap, besides the key itself.
const KEY_OVERHEAD: usize = 56;

/// Events by key; each is given by its number in the ring.
#[derive(Default)]
pub struct Index {
    newest: HashMap<Box<[u8]>, u64>,
    /// Gaps: they concern every key.
    gaps: VecDeque<u64>,
}

impl Index {
    /// Adds the newest event. Returns the number of the event before it with the same key, 0 if there is none, and the bytes
    /// that the index has grown by.
    pub fn push(&mut self, event: &Event, number: u64) -> (u64, usize) {
        let message = match &event.payload {
            Payload::Gap(_) => {
                self.gaps.push_back(number);
                return (0, 0);
            }
            Payload::Message(message) => message,
        };
        let Some(key) = &message.key else {
            return (0, 0);
        };
        if let Some(newest) = self.newest.get_mut(key.as_slice()) {
            return (std::mem::replace(newest, number), 0);
        }
        self.newest.insert(key.as_slice().into(), number);
        (0, key.len() + KEY_OVERHEAD)
    }

    /// Removes the oldest event. Returns the bytes that the index has shrunk by.
    pub fn evict(&mut self, event: &Event, number: u64) -> usize {
        let message = match &event.payload {
            Payload::Gap(_) => {
                self.gaps.pop_front();
                return 0;
            }
            Payload::Message(message) => message,
        };
        let Some(key) = &message.key else { return 0 };
        if self.newest.get(key.as_slice()) != Some(&number) {
            return 0;
        }
        self.newest.remove(key.as_slice());
        key.len() + KEY_OVERHEAD
    }

    /// The numbers of the events from `from` on that concern these keys, ascending. `previous` returns what `push` did.
    pub fn numbers(&self, keys: &Keys, from: u64, previous: impl Fn(u64) -> u64) -> Vec<u64> {
        let gaps = self.gaps.partition_point(|&number| number < from);
        let mut numbers: Vec<u64> = self.gaps.range(gaps..).copied().collect();
        for key in keys.iter() {
            let mut next = self.newest.get(key).copied().unwrap_or(0);
            while next >= from && next > 0 {
                numbers.push(next);
                next = previous(next);
            }
        }
        numbers.sort_unstable();
        numbers
    }

    /// The numbers of the events from `from` on that concern these keys, newest first. `previous` returns what `push` did. Each
    /// costs the same, however many events have other keys.
    pub fn newest_first(
        &self,
        keys: &Keys,
        from: u64,
        previous: impl Fn(u64) -> u64,
    ) -> impl Iterator<Item = u64> {
        let exists = move |number: &u64| *number > 0 && *number >= from;
        let newest = keys.iter().filter_map(|key| self.newest.get(key).copied());
        let mut messages: BinaryHeap<u64> = newest.filter(exists).collect();
        let mut gaps = self
            .gaps
            .iter()
            .rev()
            .copied()
            .take_while(exists)
            .peekable();
        std::iter::from_fn(move || {
            if let Some(gap) =
                gaps.next_if(|gap| messages.peek().is_none_or(|message| gap > message))
            {
                return Some(gap);
            }
            let number = messages.pop()?;
            messages.extend(Some(previous(number)).filter(exists));
            Some(number)
        })
    }
}
