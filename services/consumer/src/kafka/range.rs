//! Ranges of partitions, and how they become one page: pure, so that it is tested without Kafka.

use std::collections::VecDeque;

use crate::cursor::{Position, Vector};
use crate::page::{Limit, Page};
use crate::record::{Event, Gap, GapReason, Payload};

/// What is read of one partition for one page.
pub(super) struct Range {
    pub(super) partition: usize,
    pub(super) from: Position,
    pub(super) until: Position,
    /// The record before `from` is to be compared with its fingerprint.
    pub(super) verify: bool,
    /// Where reading began, and the first offset of the log: for reading backward.
    pub(super) start: i64,
    pub(super) low: i64,
    /// Full means that the oldest are dropped, not that reading stops.
    pub(super) keep_newest: bool,
    /// How far the partition was read.
    pub(super) position: Position,
    /// Events with the time that they are merged by.
    pub(super) found: VecDeque<(i64, Event)>,
    pub(super) bytes: usize,
    pub(super) done: bool,
    /// There is more between `from` and `until` than `found` holds.
    pub(super) trimmed: bool,
}

#[derive(Debug, PartialEq)]
pub(super) enum Taken {
    Yes,
    OtherLog,
}

impl Range {
    pub(super) fn new(partition: usize, from: Position, until: Position, verify: bool) -> Self {
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

    pub(super) fn next_fetch(&self) -> i64 {
        self.position.offset - i64::from(self.verify)
    }

    pub(super) fn take(&mut self, event: &Event, time: i64, events: usize, bytes: usize) -> Taken {
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
        self.found.push_back((time, event.clone()));
        self.done = offset + 1 >= self.until.offset;
        let full = |range: &Self| {
            range.found.len() > events || (range.bytes > bytes && range.found.len() > 1)
        };
        if self.keep_newest {
            while full(self) {
                let (_, dropped) = self.found.pop_front().expect("a full range is not empty");
                self.bytes -= dropped.weight();
                self.trimmed = true;
            }
        } else if !self.done && full(self) {
            self.done = true;
            self.trimmed = true;
        }
        Taken::Yes
    }

    /// The gap to tell when the log that is read backward is not the one of which the page's cursor speaks.
    pub(super) fn other_log(&self, &(_, high, until): &(i64, i64, Position)) -> Option<Event> {
        let last = self
            .found
            .back()
            .filter(|(_, event)| event.next.offset == until.offset);
        let other = until.offset > high || last.is_some_and(|(_, event)| !until.agrees(event.next));
        let gap = Gap::of(GapReason::Recreated, self.partition, until.offset, None);
        other.then_some(Event {
            partition: self.partition,
            next: until,
            payload: Payload::Gap(gap),
        })
    }

    pub(super) fn jump(&mut self, gap: Gap, to: Position) {
        self.position = to;
        // Before whatever follows it: a gap is told as soon as it is known.
        self.found.push_back((
            i64::MIN,
            Event {
                partition: self.partition,
                next: to,
                payload: Payload::Gap(gap),
            },
        ));
    }
}

/// Takes the oldest event of all partitions, again and again, as long as it is certain which one that is.
pub(super) fn merge_forward(from: Vector, mut ranges: Vec<Range>, limit: Limit) -> Page {
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
            .min_by_key(|range| (range.found[0].0, range.partition));
        let Some((_, event)) = oldest.and_then(|range| range.found.pop_front()) else {
            break;
        };
        bytes += event.weight();
        page.after.set(event.partition, event.next);
        page.events.push(event);
    }
    page.complete = ranges
        .iter()
        .all(|range| range.found.is_empty() && !range.trimmed);
    for range in ranges
        .iter()
        .filter(|range| range.found.is_empty() && !range.trimmed)
    {
        // Nothing deliverable is left before the end: what lies between is compacted, aborted or a marker.
        if page.after.get(range.partition).offset < range.until.offset {
            page.after.set(range.partition, range.until);
        }
    }
    page
}

/// Takes the newest event of all partitions, again and again, as long as it is certain which one that is.
pub(super) fn merge_backward(before: Vector, mut ranges: Vec<Range>, limit: Limit) -> Page {
    let mut page = Page {
        before: before.clone(),
        after: before,
        ..Page::default()
    };
    for range in &ranges {
        let seen = range
            .found
            .back()
            .map_or(Position::at(range.start), |(_, event)| event.next);
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
            .max_by_key(|range| (range.found.back().map(|(time, _)| *time), range.partition));
        let Some((range, (_, event))) =
            newest.and_then(|range| range.found.pop_back().map(|event| (range, event)))
        else {
            break;
        };
        bytes += event.weight();
        let previous = range
            .found
            .back()
            .map_or(Position::at(event.next.offset - 1), |(_, event)| event.next);
        page.before.set(event.partition, previous);
        page.events.push(event);
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
    use crate::record::{Message, Value};

    /// Partitions of records: the hole before each one, and its time.
    type Topic = Vec<Vec<(i64, i64)>>;

    fn topic() -> impl Strategy<Value = Topic> {
        let records = proptest::collection::vec((0..3i64, 0..20i64), 0..25);
        proptest::collection::vec(records, 1..5)
    }

    /// The records of a partition with the times that they are merged by.
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
        Vector(topic.iter().enumerate().map(end).collect())
    }

    /// What Kafka hands out for a range, until the range has enough.
    fn read(mut range: Range, topic: &Topic, limit: Limit) -> Range {
        range.done = range.from.offset >= range.until.offset && !range.verify;
        for (time, event) in records(range.partition, &topic[range.partition]) {
            if !range.done && event.next.offset > range.next_fetch() {
                assert_eq!(
                    range.take(&event, time, limit.events, limit.bytes),
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
        let ranges = ends(topic).0.iter().enumerate().map(range).collect();
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
        let ranges = before.0.iter().enumerate().map(range).collect();
        merge_backward(before.clone(), ranges, limit)
    }

    fn places(events: &[Event]) -> Vec<(usize, i64)> {
        events
            .iter()
            .map(|event| (event.partition, event.next.offset))
            .collect()
    }

    /// Whether each record of each partition was seen once, in the order of the partition.
    fn is_whole(seen: &[(usize, i64)], topic: &Topic) -> Result<(), TestCaseError> {
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
            prop_assert_eq!(of, places(&events));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn pages_forward_have_no_hole_no_overlap_and_keep_each_partitions_order(topic in topic(), events in 1..10usize) {
            let limit = Limit { events, bytes: usize::MAX };
            let mut from = Vector(vec![Position::default(); topic.len()]);
            let mut seen = Vec::new();
            loop {
                let page = forward(&from, &topic, limit);
                prop_assert!(page.events.len() <= events);
                prop_assert!(page.complete || page.after != from, "every page gets on");
                seen.extend(places(&page.events));
                from = page.after;
                if page.complete {
                    break;
                }
            }
            is_whole(&seen, &topic)?;
        }

        #[test]
        fn pages_backward_meet_the_start_without_hole_or_overlap(topic in topic(), events in 1..10usize) {
            let limit = Limit { events, bytes: usize::MAX };
            let mut before = ends(&topic);
            let mut seen = Vec::new();
            loop {
                let page = backward(&before, &topic, limit);
                prop_assert!(page.from_start || page.before != before, "every page gets on");
                prop_assert_eq!(&page.after, &before);
                seen.splice(0..0, places(&page.events));
                before = page.before;
                if page.from_start {
                    break;
                }
            }
            is_whole(&seen, &topic)?;
        }

        #[test]
        fn where_time_ascends_a_page_is_sorted_by_time_then_partition(mut topic in topic()) {
            topic.iter_mut().for_each(|records| records.sort_by_key(|(_, time)| *time));
            let limit = Limit { events: 1000, bytes: usize::MAX };
            let times = |page: &Page| page.events.iter().map(|event| match &event.payload {
                Payload::Message(message) => (message.timestamp, event.partition),
                Payload::Gap(_) => unreachable!("nothing is missing"),
            }).collect::<Vec<_>>();
            let from = Vector(vec![Position::default(); topic.len()]);
            let ahead = times(&forward(&from, &topic, limit));
            prop_assert!(ahead.is_sorted());
            prop_assert_eq!(times(&backward(&ends(&topic), &topic, limit)), ahead);
        }
    }

    #[test]
    fn a_record_that_is_not_the_one_of_the_cursor_is_of_another_log() {
        let [(time, event)] = &records(0, &[(4, 7)])[..] else {
            unreachable!()
        };
        let from = Position::after(4, Some(8), None);
        let mut range = Range::new(0, from, Position::at(9), true);
        assert_eq!(range.take(event, *time, 10, 1000), Taken::OtherLog);
        let mut range = Range::new(0, event.next, Position::at(9), true);
        assert_eq!(range.take(event, *time, 10, 1000), Taken::Yes);
        assert!(range.found.is_empty(), "it was delivered before");
    }
}
