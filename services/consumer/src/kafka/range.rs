//! Ranges of partitions, and how they are merged into a page. Pure, so that it can be tested without Kafka.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cursor::{Position, Vector};
use crate::page::{Limit, Page};
use crate::record::{Event, GapReason};

/// The range that is read from one partition for one page.
pub struct Range {
    pub partition: usize,
    pub from: Position,
    pub until: Position,
    /// The record before `from` must be compared with its fingerprint.
    pub verify: bool,
    /// Where reading began, and the first offset of the log: for reading backward.
    pub start: i64,
    pub low: i64,
    /// When full, drops the oldest events instead of stopping.
    pub keep_newest: bool,
    /// How far the partition was read.
    pub position: Position,
    pub found: VecDeque<Found>,
    pub bytes: usize,
    pub done: bool,
    /// There are more events between `from` and `until` than `found` holds.
    pub trimmed: bool,
}

/// An event with its time for merging, in ms since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub time: i64,
    pub event: Event,
}

/// The result of adding a record.
#[derive(Debug, PartialEq)]
pub enum Taken {
    Yes,
    /// The record before the range does not match the fingerprint.
    OtherLog,
}

impl Range {
    pub fn new(partition: usize, from: Position, until: Position, verify: bool) -> Self {
        Self {
            partition,
            from,
            until,
            verify,
            start: from.offset,
            low: 0,
            keep_newest: false,
            position: from,
            found: VecDeque::new(),
            bytes: 0,
            done: false,
            trimmed: false,
        }
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.position.offset >= self.until.offset && !self.verify
    }

    pub fn next_fetch(&self) -> i64 {
        self.position.offset - i64::from(self.verify)
    }

    /// Adds a record, up to this many events and bytes.
    pub fn take(&mut self, event: Event, time: i64, events: usize, bytes: usize) -> Taken {
        let offset = event.next.offset - 1;
        if std::mem::take(&mut self.verify) && offset < self.from.offset {
            if !self.from.agrees(event.next) {
                return Taken::OtherLog;
            }
            self.done = self.from.offset >= self.until.offset;
            return Taken::Yes;
        }
        if offset < self.position.offset {
            return Taken::Yes;
        }
        if offset >= self.until.offset {
            self.done = true;
            return Taken::Yes;
        }
        self.bytes += event.weight();
        self.position = event.next;
        self.found.push_back(Found { time, event });
        self.done = offset + 1 >= self.until.offset;
        let full = |range: &Self| {
            range.found.len() > events || (range.bytes > bytes && range.found.len() > 1)
        };
        if self.keep_newest {
            while full(self) {
                let dropped = self.found.pop_front().expect("a full range is not empty");
                self.bytes -= dropped.event.weight();
                self.trimmed = true;
            }
        } else if !self.done && full(self) {
            self.done = true;
            self.trimmed = true;
        }
        Taken::Yes
    }

    /// Inserts an older window, which was read later, in front.
    pub fn prepend(&mut self, mut older: Self) {
        self.start = older.start;
        self.trimmed |= older.trimmed;
        self.bytes += older.bytes;
        older.found.append(&mut self.found);
        self.found = older.found;
    }

    /// The gap to announce if the log that is read backward is not the one that the page's cursor belongs to; `high` is the end
    /// of the log.
    pub fn other_log(&self, high: i64, until: Position) -> Option<Event> {
        let last = self.found.back().map(|found| found.event.next);
        let last = last.filter(|next| next.offset == until.offset);
        let other = until.offset > high || last.is_some_and(|next| !until.agrees(next));
        other.then(|| {
            Event::gap(
                GapReason::Recreated,
                self.partition,
                until.offset,
                None,
                until,
            )
        })
    }

    /// Continues at another position, after a gap.
    pub fn jump(&mut self, reason: GapReason, from: i64, to: Option<i64>, next: Position) {
        self.position = next;
        // The gap sorts before the events that follow it, so that it is announced early, but stays in its partition's order.
        let time = self.found.back().map_or(i64::MIN, |found| found.time);
        let event = Event::gap(reason, self.partition, from, to, next);
        self.found.push_back(Found { time, event });
    }
}

/// Repeatedly takes the oldest event of all partitions, as long as it is certain which one that is.
pub fn merge_forward(from: Vector, mut ranges: Vec<Range>, limit: Limit) -> Page {
    let mut page = Page {
        after: from.clone(),
        before: from,
        ..Page::default()
    };
    let mut bytes = 0;
    while page.events.len() < limit.events && bytes < limit.bytes {
        if ranges
            .iter()
            .any(|range| range.trimmed && range.found.is_empty())
        {
            break;
        }
        let oldest = ranges
            .iter_mut()
            .filter(|range| !range.found.is_empty())
            .min_by_key(|range| (range.found[0].time, range.partition));
        let Some(Found { event, .. }) = oldest.and_then(|range| range.found.pop_front()) else {
            break;
        };
        bytes += event.weight();
        page.after.set(event.partition, event.next);
        page.events.push(Arc::new(event));
    }
    page.complete = ranges
        .iter()
        .all(|range| range.found.is_empty() && !range.trimmed);
    for range in ranges
        .iter()
        .filter(|range| range.found.is_empty() && !range.trimmed)
    {
        // Nothing deliverable remains before the end: what lies between is compacted, aborted or a marker.
        if page.after.get(range.partition).offset < range.until.offset {
            page.after.set(range.partition, range.until);
        }
    }
    page
}

/// Repeatedly takes the newest event of all partitions, as long as it is certain which one that is.
pub fn merge_backward(before: Vector, mut ranges: Vec<Range>, limit: Limit) -> Page {
    let mut page = Page {
        before: before.clone(),
        after: before,
        ..Page::default()
    };
    for range in &ranges {
        let last = range.found.back();
        let seen = last.map_or(Position::at(range.start), |found| found.event.next);
        page.before.set(range.partition, seen);
    }
    let mut bytes = 0;
    while page.events.len() < limit.events && bytes < limit.bytes {
        if ranges
            .iter()
            .any(|range| range.found.is_empty() && (range.trimmed || range.start > range.low))
        {
            break;
        }
        let newest = ranges
            .iter_mut()
            .filter(|range| !range.found.is_empty())
            .max_by_key(|range| {
                let last = range.found.back();
                (last.map(|found| found.time), range.partition)
            });
        let Some((range, event)) = newest.and_then(|range| {
            let found = range.found.pop_back()?;
            Some((range, found.event))
        }) else {
            break;
        };
        bytes += event.weight();
        let previous = match (range.found.back(), event.first_offset()) {
            (Some(found), _) => found.event.next,
            (None, first) => Position::at(first),
        };
        page.before.set(event.partition, previous);
        page.events.push(Arc::new(event));
    }
    page.events.reverse();
    page.from_start = ranges
        .iter()
        .all(|range| range.found.is_empty() && !range.trimmed && range.start <= range.low);
    page
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Message, Payload, Value};

    /// The records of each partition: the hole before each record, and its time.
    type Topic = Vec<Vec<(i64, i64)>>;

    fn topic() -> impl Strategy<Value = Topic> {
        let records = proptest::collection::vec((0..3i64, 0..20i64), 0..25);
        proptest::collection::vec(records, 1..5)
    }

    /// The records of a partition with their times for merging.
    fn records(partition: usize, holes: &[(i64, i64)]) -> Vec<(i64, Event)> {
        let mut offset = -1;
        let record = |&(hole, time): &(i64, i64)| {
            offset += 1 + hole;
            let message = Message {
                offset,
                timestamp: Some(time),
                key: None,
                headers: vec![],
                value: Value::Null,
            };
            let next = Position::after(offset, Some(time), None);
            let payload = Payload::Message(message);
            (
                time,
                Event {
                    partition,
                    next,
                    payload,
                },
            )
        };
        holes.iter().map(record).collect()
    }

    fn ends(topic: &Topic) -> Vector {
        let end = |(partition, holes): (usize, &Vec<_>)| {
            let last = records(partition, holes).pop();
            last.map_or(Position::default(), |(_, event)| event.next)
        };
        Vector::new(topic.iter().enumerate().map(end).collect())
    }

    /// Reads a range as from Kafka, until it is full.
    fn read(mut range: Range, topic: &Topic, limit: Limit) -> Range {
        range.done = range.from.offset >= range.until.offset && !range.verify;
        for (time, event) in records(range.partition, &topic[range.partition]) {
            if !range.done && event.next.offset > range.next_fetch() {
                assert_eq!(
                    range.take(event, time, limit.events, limit.bytes),
                    Taken::Yes
                );
            }
        }
        range
    }

    fn forward(from: &Vector, topic: &Topic, limit: Limit) -> Page {
        let range = |(partition, until): (usize, &Position)| {
            let from = from.get(partition);
            read(
                Range::new(partition, from, *until, from.fingerprint.is_some()),
                topic,
                limit,
            )
        };
        let ranges = ends(topic)
            .positions
            .iter()
            .enumerate()
            .map(range)
            .collect();
        merge_forward(from.clone(), ranges, limit)
    }

    fn backward(before: &Vector, topic: &Topic, limit: Limit) -> Page {
        let range = |(partition, until): (usize, &Position)| {
            let range = Range::new(partition, Position::at(0), *until, false);
            read(
                Range {
                    keep_newest: true,
                    ..range
                },
                topic,
                limit,
            )
        };
        let ranges = before.positions.iter().enumerate().map(range).collect();
        merge_backward(before.clone(), ranges, limit)
    }

    fn positions<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<(usize, i64)> {
        let position = |event: &Event| (event.partition, event.next.offset);
        events.into_iter().map(position).collect()
    }

    /// The positions of a page's events.
    fn page_positions(page: &Page) -> Vec<(usize, i64)> {
        positions(page.events.iter().map(|event| &**event))
    }

    /// Checks that each record of each partition was seen once, in the partition's order.
    fn check_complete(seen: &[(usize, i64)], topic: &Topic) -> Result<(), TestCaseError> {
        for (partition, holes) in topic.iter().enumerate() {
            let events: Vec<_> = records(partition, holes)
                .into_iter()
                .map(|(_, event)| event)
                .collect();
            let of: Vec<_> = seen
                .iter()
                .copied()
                .filter(|(of, _)| *of == partition)
                .collect();
            prop_assert_eq!(of, positions(&events));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn forward_pages_have_no_hole_no_overlap_and_keep_each_partitions_order(topic in topic(), events in 1..10usize) {
            let limit = Limit { events, bytes: usize::MAX };
            let mut from = Vector::new(vec![Position::default(); topic.len()]);
            let mut seen = Vec::new();
            loop {
                let page = forward(&from, &topic, limit);
                prop_assert!(page.events.len() <= events);
                prop_assert!(page.complete || page.after != from, "every page makes progress");
                seen.extend(page_positions(&page));
                from = page.after;
                if page.complete {
                    break;
                }
            }
            check_complete(&seen, &topic)?;
        }

        #[test]
        fn backward_pages_reach_the_start_without_hole_or_overlap(topic in topic(), events in 1..10usize) {
            let limit = Limit { events, bytes: usize::MAX };
            let mut before = ends(&topic);
            let mut seen = Vec::new();
            loop {
                let page = backward(&before, &topic, limit);
                prop_assert!(page.from_start || page.before != before, "every page makes progress");
                prop_assert_eq!(&page.after, &before);
                seen.splice(0..0, page_positions(&page));
                before = page.before;
                if page.from_start {
                    break;
                }
            }
            check_complete(&seen, &topic)?;
        }

        #[test]
        fn if_times_ascend_a_page_is_sorted_by_time_then_partition(mut topic in topic()) {
            topic.iter_mut().for_each(|records| records.sort_by_key(|(_, time)| *time));
            let limit = Limit { events: 1000, bytes: usize::MAX };
            let times = |page: &Page| page.events.iter().map(|event| match &event.payload {
                Payload::Message(message) => (message.timestamp, event.partition),
                Payload::Gap(_) => unreachable!("nothing is missing"),
            }).collect::<Vec<_>>();
            let from = Vector::new(vec![Position::default(); topic.len()]);
            let ahead = times(&forward(&from, &topic, limit));
            prop_assert!(ahead.is_sorted());
            prop_assert_eq!(times(&backward(&ends(&topic), &topic, limit)), ahead);
        }
    }

    #[test]
    fn an_older_window_is_inserted_before_a_newer_one() {
        let limit = Limit {
            events: 10,
            bytes: usize::MAX,
        };
        let window = |start: i64, until: i64| {
            let range = Range::new(0, Position::at(start), Position::at(until), false);
            let keep_newest = true;
            read(
                Range {
                    keep_newest,
                    ..range
                },
                &vec![vec![(0, 1); 9]],
                limit,
            )
        };
        let mut newest = window(6, 9);
        newest.prepend(window(2, 6));
        assert_eq!((newest.start, newest.found.len()), (2, 7));
        let offsets: Vec<_> = newest
            .found
            .iter()
            .map(|found| found.event.next.offset - 1)
            .collect();
        assert_eq!(offsets, [2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_gap_in_the_middle_keeps_its_partitions_order() {
        let limit = Limit {
            events: 10,
            bytes: usize::MAX,
        };
        let [first, second] = <[_; 2]>::try_from(records(0, &[(0, 5), (3, 6)])).unwrap();
        let mut range = Range::new(0, Position::at(0), Position::at(5), false);
        range.take(first.1, first.0, 10, usize::MAX);
        range.jump(GapReason::Unreadable, 1, Some(4), Position::at(4));
        range.take(second.1, second.0, 10, usize::MAX);
        let page = merge_forward(Vector::new(vec![Position::at(0)]), vec![range], limit);
        assert_eq!(page_positions(&page), [(0, 1), (0, 4), (0, 5)]);
    }

    #[test]
    fn a_record_that_does_not_match_the_cursor_is_of_another_log() {
        let [(time, event)] = &records(0, &[(4, 7)])[..] else {
            unreachable!()
        };
        let from = Position::after(4, Some(8), None);
        let mut range = Range::new(0, from, Position::at(9), true);
        assert_eq!(range.take(event.clone(), *time, 10, 1000), Taken::OtherLog);
        let mut range = Range::new(0, event.next, Position::at(9), true);
        assert_eq!(range.take(event.clone(), *time, 10, 1000), Taken::Yes);
        assert!(range.found.is_empty(), "it was delivered before");
    }
}
