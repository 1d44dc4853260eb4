//! Several projectors that write to the same sessions.

use herald_testing::Database;
use store::{Applied, Batch, Position, Writer};

use crate::{TOPIC, batch, document, reader_of, writer_of};

const SESSIONS: usize = 10;
const BATCHES: i64 = 20;

/// One event for each session, from one record of this partition.
fn events(partition: i32, offset: i64) -> Batch {
    let mut whole = Batch::default();
    for session in 0..SESSIONS {
        let timestamp = offset * 2 + i64::from(partition);
        let frame = format!(r#"[{{"timestamp":{timestamp},"type":"EVENT"}}]"#);
        let mut own = batch(&format!("s{session}"), offset, &frame);
        own.advances[0].partition = partition;
        for changes in own.sessions.values_mut() {
            for event in changes.events.values_mut() {
                event.arrival.partition = partition;
            }
        }
        whole.advances = own.advances;
        whole.sessions.append(&mut own.sessions);
    }
    whole
}

async fn project(writer: Writer, partition: i32) {
    let begin = Position::default();
    let began = writer.begin(store::SESSIONS, TOPIC, partition, begin);
    began.await.unwrap();
    for offset in 0..BATCHES {
        let batch = events(partition, offset);
        let applied = writer.apply(store::SESSIONS, TOPIC, &batch).await.unwrap();
        let Applied::Committed(summary) = applied else {
            panic!("{applied:?}");
        };
        assert_eq!(summary.events, SESSIONS as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_whose_events_come_from_two_partitions_at_once_are_whole() {
    for database in Database::all() {
        let (one, two) = (writer_of(&database).await, writer_of(&database).await);
        let one = tokio::spawn(project(one, 0));
        let two = tokio::spawn(project(two, 1));
        one.await.unwrap();
        two.await.unwrap();
        let children: Vec<String> = (0..BATCHES * 2)
            .map(|timestamp| format!(r#"{{"timestamp":{timestamp},"type":"EVENT"}}"#))
            .collect();
        let children = format!(r#""children":[{}]}}"#, children.join(","));
        let reader = reader_of(&database);
        for session in 0..SESSIONS {
            let document = document(&reader, &format!("s{session}")).await.unwrap();
            assert!(document.ends_with(&children), "{document}");
        }
    }
}
