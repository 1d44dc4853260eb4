use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const ALL: usize = usize::MAX;

fn sizes() -> Vec<WindowSize> {
    ["2s", "5s"].map(|size| size.parse().unwrap()).to_vec()
}

fn fresh() -> Counters {
    Counters::new(sizes(), 0, &Mark::default())
}

#[test]
fn a_like_is_counted_once_in_a_window_of_each_size() {
    let mut counters = fresh();
    counters.add(0, 1_000, "a");
    counters.add(2, 1_999, "a");
    counters.add(5, 2_000, "a");
    counters.add(6, 500, "b");
    assert_eq!(counters.close(1_999, ALL), []);
    let closed = counters.close(2_000, ALL);
    let counts: BTreeSet<_> = closed
        .iter()
        .map(|count| (count.id.as_str(), count.count, count.from, count.to))
        .collect();
    assert_eq!(counts, BTreeSet::from([("a", 2, 0, 3), ("b", 1, 6, 7)]));
    assert_eq!(counters.close(3_999, ALL), []);
    let rest = counters.close(5_000, ALL);
    let counts: Vec<_> = rest
        .iter()
        .map(|count| (count.window, count.start, count.count))
        .collect();
    assert!(counts.contains(&(0, 2_000, 1)) && counts.contains(&(1, 0, 3)));
    assert_eq!((counters.open(), counters.ids.len()), (0, 0));
}

#[test]
fn a_like_after_its_window_was_closed_is_late_for_this_size_alone() {
    let mut counters = fresh();
    counters.add(0, 1_000, "a");
    counters.close(2_000, ALL);
    counters.add(1, 1_500, "a");
    assert_eq!(counters.late(), [1, 0]);
    let interim = counters.interim(6_000, ALL);
    let of = |window| {
        let counts = interim.iter().filter(|count| count.window == window);
        counts
            .map(|count| (count.start, count.count, count.late))
            .collect::<Vec<_>>()
    };
    // There is no open window of 2 s, so the late like is reported for the current one.
    assert_eq!(of(0), [(6_000, 0, Some(1))]);
    assert_eq!(of(1), [(0, 2, Some(0))]);
    assert_eq!(
        (counters.has_late(), counters.interim(0, ALL)),
        (false, vec![])
    );
}

#[test]
fn late_likes_are_reported_with_the_latest_open_window() {
    let mut counters = fresh();
    counters.close(2_000, ALL);
    counters.add(0, 3_000, "a");
    counters.add(1, 7_000, "a");
    counters.interim(0, ALL);
    counters.add(2, 1_000, "a");
    let interim = counters.interim(0, ALL);
    let small: Vec<_> = interim.iter().filter(|count| count.window == 0).collect();
    assert_eq!(small.len(), 1);
    assert_eq!((small[0].start, small[0].late), (6_000, Some(1)));
}

#[test]
fn interim_counts_beyond_the_limit_are_left_to_the_next_call() {
    let mut counters = fresh();
    counters.close(2_000, ALL);
    for (offset, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
        counters.add(offset as i64, 3_000, id);
    }
    // It is late for the window of 2 s, and counted in that of 5 s.
    counters.add(4, 1_000, "a");
    let mut seen = BTreeSet::new();
    let mut late = 0;
    let first = counters.interim(3_000, 2);
    assert!(first.iter().any(|count| count.late == Some(1)), "{first:?}");
    // The late like does not wait, whatever the limit.
    assert_eq!(first.len(), 3, "{first:?}");
    assert!(!counters.has_late() && counters.has_changed());
    for counts in [
        first,
        counters.interim(3_000, 2),
        counters.interim(3_000, 2),
        counters.interim(3_000, 2),
    ] {
        for count in counts {
            late += count.late.unwrap();
            assert!(seen.insert((count.window, count.id)));
        }
    }
    assert_eq!((seen.len(), late, counters.has_changed()), (8, 1, false));
}

#[test]
fn counters_that_are_rebuilt_wait_for_the_likes_of_open_windows() {
    let mut counters = fresh();
    counters.add(0, 1_000, "a");
    counters.add(1, 4_500, "a");
    counters.close(2_000, ALL);
    let mark = counters.mark();
    assert_eq!((mark.closed, mark.rebuild), (Some(2_000), 0));
    counters.close(5_000, ALL);
    assert_eq!(counters.mark().rebuild, 1);
    counters.close(6_000, ALL);
    counters.advance(9);
    assert_eq!(counters.mark().rebuild, 9);
}

#[test]
fn an_unknown_mark_of_another_size_begins_with_no_late_likes() {
    let mark = Mark {
        late: BTreeMap::from([("5s".to_owned(), 3), ("7s".to_owned(), 4)]),
        ..Mark::default()
    };
    assert_eq!(Counters::new(sizes(), 0, &mark).late(), [0, 3]);
}

/// What happens to a partition.
#[derive(Clone, Debug)]
enum Step {
    Like {
        time: i64,
        id: u8,
    },
    /// A marker of a transaction, which takes an offset.
    Marker,
    Close {
        time: i64,
    },
    Interim,
    Commit,
    /// The process is killed: what was not committed is lost.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0i64..20_000, 0u8..4).prop_map(|(time, id)| Step::Like { time, id }),
        1 => Just(Step::Marker),
        1 => (0i64..20_000).prop_map(|time| Step::Close { time }),
        1 => Just(Step::Interim),
        1 => Just(Step::Commit),
        1 => Just(Step::Kill),
    ]
}

/// The log, what is published, and what is committed, as Kafka keeps them.
#[derive(Default)]
struct Kafka {
    log: Vec<Option<(i64, String)>>,
    published: Vec<WindowCount>,
    interim: Vec<WindowCount>,
    position: i64,
    mark: Mark,
}

impl Kafka {
    fn commit(&mut self, counters: &mut Counters, out: &mut Vec<WindowCount>, now: i64) {
        if counters.has_late() {
            out.extend(counters.interim(now, ALL));
        }
        let (interim, finals) = out.drain(..).partition(|count| count.late.is_some());
        self.interim.extend::<Vec<_>>(interim);
        self.published.extend::<Vec<_>>(finals);
        self.position = counters.position();
        let mark = Mark::parse(&counters.mark().to_json());
        self.mark = mark.expect("a mark can be parsed");
    }

    /// New counters after all that was committed, which have read everything again.
    fn restart(&self) -> Counters {
        let mut counters = Counters::new(sizes(), self.position, &self.mark);
        let rebuild = usize::try_from(self.mark.rebuild).unwrap();
        for (offset, like) in self.log.iter().enumerate().skip(rebuild) {
            if let Some((time, id)) = like {
                counters.add(offset as i64, *time, id);
            }
        }
        counters.advance(self.log.len() as i64);
        counters
    }
}

proptest! {
    /// Every like is in one window of each size or late, and each count is that of its range of offsets, whatever happens.
    #[test]
    fn counted_and_late_are_all_likes(steps in prop::collection::vec(step(), 0..200), limit in 1usize..9) {
        let mut kafka = Kafka::default();
        let mut counters = fresh();
        let mut out = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Like { time, id } => {
                    let (offset, id) = (kafka.log.len() as i64, format!("id-{id}"));
                    counters.add(offset, time, &id);
                    kafka.log.push(Some((time, id)));
                }
                Step::Marker => {
                    kafka.log.push(None);
                    counters.advance(kafka.log.len() as i64);
                }
                // The results of a time are committed with it.
                Step::Close { time } => {
                    now = now.max(time);
                    out.extend(counters.close(now, limit));
                    kafka.commit(&mut counters, &mut out, now);
                }
                Step::Interim => {
                    out.extend(counters.interim(now, limit));
                    kafka.commit(&mut counters, &mut out, now);
                }
                Step::Commit => {
                    kafka.commit(&mut counters, &mut out, now);
                }
                Step::Kill => {
                    out.clear();
                    counters = kafka.restart();
                    now = kafka.mark.closed.unwrap_or(0);
                }
            }
        }
        out.extend(counters.interim(now, ALL));
        out.extend(counters.close(i64::MAX, ALL));
        kafka.commit(&mut counters, &mut out, now);

        let likes = kafka.log.iter().flatten().count() as u64;
        for (index, size) in sizes().into_iter().enumerate() {
            let results: Vec<_> = kafka.published.iter().filter(|count| count.window == index).collect();
            let counted: u64 = results.iter().map(|count| count.count).sum();
            let late = counters.late()[index];
            prop_assert_eq!(counted + late, likes);
            let reported = kafka.interim.iter().filter(|count| count.window == index);
            prop_assert_eq!(late, reported.filter_map(|count| count.late).sum::<u64>());
            let distinct: BTreeSet<_> = results.iter().map(|count| (count.start, &count.id)).collect();
            prop_assert_eq!(distinct.len(), results.len());
            for result in results {
                let range = result.from as usize..result.to as usize;
                let end = size.end_of(result.start);
                let within = kafka.log[range].iter().flatten().filter(|(time, id)| {
                    *id == result.id && (result.start..end).contains(time)
                });
                prop_assert_eq!(result.count, within.count() as u64);
            }
        }
    }
}
