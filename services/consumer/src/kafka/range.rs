//! Ranges of partitions, and how they become one page: pure, so that it is tested without Kafka.

use std::collections::VecDeque;

use crate::cursor::{Position, Vector};
use crate::record::{Change, Gap, Reason, What};

/// The bounds of one page.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub events: usize,
    pub bytes: usize,
}

/// A piece of the log, merged by timestamp, then partition, each partition's order kept.
#[derive(Debug, Default)]
pub struct Page {
    pub changes: Vec<Change>,
    /// The vector before the first change.
    pub before: Vector,
    /// The vector after the last one.
    pub after: Vector,
    /// Nothing is left between `after` and what was read towards.
    pub complete: bool,
    /// Nothing is left before `before`.
    pub from_start: bool,
}

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
    pub(super) found: VecDeque<(i64, Change)>,
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

    pub(super) fn take(
        &mut self,
        change: &Change,
        time: i64,
        events: usize,
        bytes: usize,
    ) -> Taken {
        let offset = change.next.offset - 1;
        if std::mem::take(&mut self.verify) && offset < self.from.offset {
            if !self.from.agrees(change.next) {
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
        self.bytes += change.weight();
        self.position = change.next;
        self.found.push_back((time, change.clone()));
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
    pub(super) fn other_log(&self, &(_, high, until): &(i64, i64, Position)) -> Option<Change> {
        let last = self
            .found
            .back()
            .filter(|(_, change)| change.next.offset == until.offset);
        let other =
            until.offset > high || last.is_some_and(|(_, change)| !until.agrees(change.next));
        let gap = Gap::of(Reason::Recreated, self.partition, until.offset, None);
        other.then_some(Change {
            partition: self.partition,
            next: until,
            what: What::Gap(gap),
        })
    }

    pub(super) fn jump(&mut self, gap: Gap, to: Position) {
        self.position = to;
        // Before whatever follows it: a gap is told as soon as it is known.
        self.found.push_back((
            i64::MIN,
            Change {
                partition: self.partition,
                next: to,
                what: What::Gap(gap),
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
    while page.changes.len() < limit.events && bytes < limit.bytes {
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
        let Some((_, change)) = oldest.and_then(|range| range.found.pop_front()) else {
            break;
        };
        bytes += change.weight();
        page.after.set(change.partition, change.next);
        page.changes.push(change);
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
            .map_or(Position::at(range.start), |(_, change)| change.next);
        page.before.set(range.partition, seen);
    }
    let mut bytes = 0;
    while page.changes.len() < limit.events && bytes < limit.bytes {
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
        let Some((range, (_, change))) =
            newest.and_then(|range| range.found.pop_back().map(|change| (range, change)))
        else {
            break;
        };
        bytes += change.weight();
        let previous = range
            .found
            .back()
            .map_or(Position::at(change.next.offset - 1), |(_, change)| {
                change.next
            });
        page.before.set(change.partition, previous);
        page.changes.push(change);
    }
    page.changes.reverse();
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
    fn records(partition: usize, holes: &[(i64, i64)]) -> Vec<(i64, Change)> {
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
            let what = What::Message(message);
            (
                time,
                Change {
                    partition,
                    next,
                    what,
                },
            )
        };
        holes.iter().map(record).collect()
    }

    fn ends(topic: &Topic) -> Vector {
        let end = |(partition, holes): (usize, &Vec<_>)| {
            let last = records(partition, holes).pop();
            last.map_or(Position::default(), |(_, change)| change.next)
        };
        Vector(topic.iter().enumerate().map(end).collect())
    }

    /// What Kafka hands out for a range, until the range has enough.
    fn read(mut range: Range, topic: &Topic, limit: Limit) -> Range {
        range.done = range.from.offset >= range.until.offset && !range.verify;
        for (time, change) in records(range.partition, &topic[range.partition]) {
            if !range.done && change.next.offset > range.next_fetch() {
                assert_eq!(
                    range.take(&change, time, limit.events, limit.bytes),
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

    fn places(changes: &[Change]) -> Vec<(usize, i64)> {
        changes
            .iter()
            .map(|change| (change.partition, change.next.offset))
            .collect()
    }

    /// Whether each record of each partition was seen once, in the order of the partition.
    fn is_whole(seen: &[(usize, i64)], topic: &Topic) -> Result<(), TestCaseError> {
        for (partition, holes) in topic.iter().enumerate() {
            let changes: Vec<_> = records(partition, holes)
                .into_iter()
                .map(|(_, change)| change)
                .collect();
            let of: Vec<_> = seen
                .iter()
                .copied()
                .filter(|(of, _)| *of == partition)
                .collect();
            prop_assert_eq!(of, places(&changes));
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
                prop_assert!(page.changes.len() <= events);
                prop_assert!(page.complete || page.after != from, "every page gets on");
                seen.extend(places(&page.changes));
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
                seen.splice(0..0, places(&page.changes));
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
            let times = |page: &Page| page.changes.iter().map(|change| match &change.what {
                What::Message(message) => (message.timestamp, change.partition),
                What::Gap(_) => unreachable!("nothing is missing"),
            }).collect::<Vec<_>>();
            let from = Vector(vec![Position::default(); topic.len()]);
            let ahead = times(&forward(&from, &topic, limit));
            prop_assert!(ahead.is_sorted());
            prop_assert_eq!(times(&backward(&ends(&topic), &topic, limit)), ahead);
        }
    }

    #[test]
    fn a_record_that_is_not_the_one_of_the_cursor_is_of_another_log() {
        let [(time, change)] = &records(0, &[(4, 7)])[..] else {
            unreachable!()
        };
        let from = Position::after(4, Some(8), None);
        let mut range = Range::new(0, from, Position::at(9), true);
        assert_eq!(range.take(change, *time, 10, 1000), Taken::OtherLog);
        let mut range = Range::new(0, change.next, Position::at(9), true);
        assert_eq!(range.take(change, *time, 10, 1000), Taken::Yes);
        assert!(range.found.is_empty(), "it was delivered before");
    }
}
