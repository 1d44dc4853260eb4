use herald_events::Kind;
use proptest::prelude::*;

use super::*;

type Sessions = BTreeMap<SessionId, SessionChanges>;

/// A log of one partition per list of records; each record has a timestamp, a session and a frame of a few events.
fn logs() -> impl Strategy<Value = Vec<Vec<Record>>> {
    // Few different ones, so that frames and ids repeat.
    let event = (0..3u8, 0..4u32, prop::option::of(0..4u8)).prop_map(|(kind, time, id)| {
        let kind = ["SESSION_START", "EVENT", "SESSION_END"][usize::from(kind)];
        let id = id.map_or(String::new(), |id| format!(r#","id":{id}"#));
        format!(r#"{{"timestamp":{time},"type":"{kind}"{id}}}"#)
    });
    let frame =
        prop::collection::vec(event, 0..4).prop_map(|events| format!("[{}]", events.join(",")));
    let record = (0..2u8, 0..50i64, frame).prop_map(|(session, time, frame)| Record {
        timestamp: Some(time),
        key: Some(format!("\"s{session}\"").into_bytes()),
        value: Some(frame.into_bytes()),
        ..Record::default()
    });
    let log = prop::collection::vec(record, 0..12);
    prop::collection::vec(log, 1..3).prop_map(|mut logs| {
        for (partition, log) in (0..).zip(&mut logs) {
            for (offset, record) in (0..).zip(log) {
                (record.partition, record.offset) = (partition, offset);
            }
        }
        logs
    })
}

/// Each record with the position after it, as a projector reads it.
fn positioned(logs: &[Vec<Record>]) -> Vec<(Record, Position)> {
    let mut all = Vec::new();
    for log in logs {
        let mut position = Position::default();
        for record in log {
            position = record.after(position);
            all.push((record.clone(), position));
        }
    }
    all
}

/// As the store merges batches.
fn merge(into: &mut Sessions, batch: Sessions) {
    for (id, changes) in batch {
        let stored = into.entry(id).or_default();
        stored.touched = stored.touched.max(changes.touched);
        for (identity, event) in changes.events {
            let earlier = stored.events.get(&identity);
            if earlier.is_none_or(|earlier| event.arrival < earlier.arrival) {
                stored.events.insert(identity, event);
            }
        }
    }
}

fn project(records: &[(Record, Position)]) -> Sessions {
    let mut sessions = Sessions::new();
    for (record, after) in records {
        _ = add(&mut sessions, record, *after, KeyFormat::Json);
    }
    sessions
}

proptest! {
    #[test]
    fn batches_repetitions_and_order_do_not_change_the_result(
        logs in logs(),
        size in 1..5usize,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let records = positioned(&logs);
        let expected = project(&records);
        // Every record once, and some again, in batches, in the opposite order.
        let mut shuffled = records.clone();
        if !records.is_empty() {
            shuffled.extend(picks.iter().map(|pick| pick.get(&records).clone()));
        }
        shuffled.reverse();
        let mut stored = Sessions::new();
        for batch in shuffled.chunks(size) {
            merge(&mut stored, project(batch));
        }
        prop_assert_eq!(stored, expected);
    }

    #[test]
    fn arrivals_ascend_within_a_partition(logs in logs()) {
        for log in &logs {
            let records = positioned(std::slice::from_ref(log));
            let ascend = records.windows(2).all(|pair| pair[0].1.record_time <= pair[1].1.record_time);
            prop_assert!(ascend);
        }
    }

    #[test]
    fn no_record_panics(key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..80))) {
        let record = Record { key, value, ..Record::default() };
        _ = add(&mut Sessions::new(), &record, record.after(Position::default()), KeyFormat::Raw);
    }
}

fn record(offset: i64, value: &str) -> Record {
    Record {
        offset,
        timestamp: Some(1000 + offset),
        key: Some(b"\"s\"".to_vec()),
        value: Some(value.as_bytes().to_vec()),
        ..Record::default()
    }
}

#[test]
fn an_equal_frame_is_counted_once_and_keeps_its_first_arrival() {
    let frame =
        r#"[{"timestamp":1,"type":"EVENT","name":"a"},{"timestamp":1,"type":"EVENT","name":"a"}]"#;
    let logs = vec![vec![record(0, frame), record(1, frame)]];
    let sessions = project(&positioned(&logs));
    let changes = &sessions[&SessionId::new("s").unwrap()];
    assert_eq!(changes.events.len(), 2);
    let kept = changes.events.values();
    assert!(
        kept.clone()
            .all(|event| event.arrival.offset == 0 && event.kind == Kind::Event)
    );
    assert_eq!(changes.touched, 1001);
}

#[test]
fn a_malformed_record_changes_nothing() {
    let mut sessions = Sessions::new();
    let after = Position::default();
    let mut malformed = |record: &Record| {
        let error = add(&mut sessions, record, after, KeyFormat::Json).unwrap_err();
        assert_eq!(sessions.len(), 0);
        (error.label(), error.to_string())
    };
    let good = record(0, r#"[{"timestamp":1,"type":"EVENT"}]"#);
    let without_key = Record {
        key: None,
        ..good.clone()
    };
    assert_eq!(
        malformed(&without_key),
        ("key", "the record has no key".to_owned())
    );
    let raw_key = Record {
        key: Some(b"s".to_vec()),
        ..good.clone()
    };
    assert_eq!(malformed(&raw_key).0, "key");
    let tombstone = Record {
        value: None,
        ..good.clone()
    };
    assert_eq!(malformed(&tombstone).0, "no-value");
    let bad = record(
        0,
        r#"[{"timestamp":1,"type":"EVENT"},{"timestamp":"1","type":"EVENT"}]"#,
    );
    let (label, text) = malformed(&bad);
    assert_eq!(label, "timestamp");
    assert!(text.starts_with("element 1: "), "{text}");
}

#[test]
fn another_time_or_value_changes_the_fingerprint() {
    let (a, b) = (record(0, "a"), record(0, "b"));
    assert_ne!(a.fingerprint(), b.fingerprint());
    let later = Record {
        timestamp: Some(1),
        ..a.clone()
    };
    assert_ne!(a.fingerprint(), later.fingerprint());
}
