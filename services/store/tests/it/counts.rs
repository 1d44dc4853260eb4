//! Counts in the product's own database.

use herald_testing::Database;
use store::{Advance, Applied, Batch, COUNTS, Count, Counts, Position, Reader, Writer};

use crate::{reader_of, writer_of};

const TOPIC: &str = "message";

/// A batch that counts these foods and moves the position of a partition by one.
pub fn batch(partition: i32, offset: i64, foods: &[&str]) -> Batch {
    let at = |next| Position {
        next,
        ..Position::default()
    };
    let mut counts = Counts::default();
    foods.iter().for_each(|food| counts.add(food));
    let advance = Advance {
        partition,
        from: at(offset),
        to: at(offset + 1),
    };
    Batch {
        advances: vec![advance],
        counts,
        ..Batch::default()
    }
}

async fn begin(writer: &Writer, partition: i32) {
    let begin = Position::default();
    writer.begin(COUNTS, TOPIC, partition, begin).await.unwrap();
}

async fn apply(writer: &Writer, batch: &Batch) {
    let applied = writer.apply(COUNTS, TOPIC, batch).await.unwrap();
    assert!(matches!(applied, Applied::Committed(_)), "{applied:?}");
}

async fn rows(reader: &Reader, version: i64) -> Vec<(String, i64, i64)> {
    let rows = reader.counts_after(version).await.unwrap();
    let row = |Count {
                   food,
                   count,
                   changed,
               }| (food, count, changed);
    rows.into_iter().map(row).collect()
}

#[tokio::test]
async fn foods_keep_the_order_in_which_they_came_and_changes_can_be_read() {
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        assert!(rows(&reader, 0).await.is_empty());
        begin(&writer, 0).await;
        apply(
            &writer,
            &batch(0, 0, &["pie", "beer", "pie", "Apfel \u{1f34e}'"]),
        )
        .await;
        apply(&writer, &batch(0, 1, &["beer"])).await;
        apply(&writer, &batch(0, 2, &[])).await;
        let row = |food: &str, count, changed| (food.to_owned(), count, changed);
        let beer = row("beer", 2, 2);
        let all = [
            row("pie", 2, 1),
            beer.clone(),
            row("Apfel \u{1f34e}'", 1, 1),
        ];
        assert_eq!(rows(&reader, 0).await, all);
        assert_eq!(rows(&reader, 1).await, [beer]);
        let state = reader.counts_state(TOPIC).await.unwrap();
        assert_eq!(state.counts[0], ("pie".to_owned(), 2));
        assert_eq!(state.counted[&0].to, 3);
        assert!(rows(&reader, 2).await.is_empty());
    }
}

#[tokio::test]
async fn a_batch_of_another_projector_counts_nothing() {
    for database in Database::all() {
        let (writer, reader) = (writer_of(&database).await, reader_of(&database));
        begin(&writer, 0).await;
        apply(&writer, &batch(0, 0, &["pie"])).await;
        let again = writer.apply(COUNTS, TOPIC, &batch(0, 0, &["pie"])).await;
        assert_eq!(again.unwrap(), Applied::Superseded(vec![0]));
        assert_eq!(rows(&reader, 0).await, [("pie".to_owned(), 1, 1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn projectors_of_two_partitions_count_together_and_no_change_is_missed() {
    const BATCHES: i64 = 50;
    for database in Database::all() {
        let count = |partition, writer: Writer| async move {
            begin(&writer, partition).await;
            for offset in 0..BATCHES {
                apply(&writer, &batch(partition, offset, &["pie", "beer"])).await;
            }
        };
        let (one, two) = (writer_of(&database).await, writer_of(&database).await);
        let one = tokio::spawn(count(0, one));
        let two = tokio::spawn(count(1, two));
        let reader = reader_of(&database);
        let (mut version, mut seen) = (0, 0);
        while seen < 2 * BATCHES {
            for (food, count, changed) in rows(&reader, version).await {
                version = version.max(changed);
                if food == "pie" {
                    assert!(count > seen, "{count} after {seen}");
                    seen = count;
                }
            }
        }
        one.await.unwrap();
        two.await.unwrap();
        let all = rows(&reader, 0).await;
        assert!(
            all.iter().all(|(_, count, _)| *count == 2 * BATCHES),
            "{all:?}"
        );
    }
}
