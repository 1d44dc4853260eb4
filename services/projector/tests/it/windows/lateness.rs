//! What is late, and what is not.

use std::time::Duration;

use herald_testing::{Outcome, eventually, produce_in_transaction};

use super::model::check;
use super::{LABELS, Setup, like, now};
use crate::DEADLINE;

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_never_late() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let setup = Setup::new(&kafka, 2).await;
    // Two minutes, while no projector runs, and not in order.
    let begin = now() - 120_000;
    let time = |index: i64| begin + (index * 7_919) % 120_000;
    let likes: Vec<_> = (0..1_000)
        .map(|index| like((index % 2) as i32, &format!("v{}", index % 5), time(index)))
        .collect();
    setup.like(&likes).await;
    let projector = setup.start();
    setup.all_counted(1_000).await;
    for label in LABELS {
        assert_eq!(setup.late(label).await, 0);
    }
    assert_eq!(projector.metric("herald_windows_late_total").await, 0.0);
    check(&setup).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_after_its_window_was_closed_is_counted_as_late() {
    let Some(kafka) = herald_testing::kafka() else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let projector = setup.start();
    projector.becomes_ready().await;
    let old = now() - 60_000;
    // Without any like, windows are closed by the clock too.
    let closed = async || {
        let closed = projector
            .metric("herald_windows_closed_timestamp_seconds")
            .await;
        closed * 1000.0 > old as f64 + 5_000.0
    };
    eventually(DEADLINE, "the windows to be closed", closed).await;
    setup.like(&[like(0, "a", old), like(0, "a", old)]).await;
    setup.all_counted(2).await;
    for label in LABELS {
        assert_eq!(setup.results(label).await, []);
        assert_eq!(setup.late(label).await, 2);
    }
    let counted = async || projector.metric("herald_windows_late_total").await == 4.0;
    eventually(DEADLINE, "the late likes to be counted", counted).await;
    projector.end().await;
    // They are reported once, also by the next projector.
    let projector = setup.start();
    setup.like(&[like(0, "a", now())]).await;
    setup.all_counted(3).await;
    check(&setup).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn likes_in_transactions_are_counted_when_they_are_committed() {
    let Some(kafka) = herald_testing::kafka_with("transactions") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let projector = setup.start();
    projector.becomes_ready().await;
    let topic = setup.likes_topic();
    let likes = [like(0, "a", now()), like(0, "b", now())];
    produce_in_transaction(&kafka, &topic, &likes, Outcome::Commit).await;
    // The log ends with what was aborted, and with markers.
    produce_in_transaction(&kafka, &topic, &likes, Outcome::Abort).await;
    setup.all_counted(2).await;
    check(&setup).await;
    let behind = async || projector.metric("herald_windows_lag_records").await == 0.0;
    eventually(Duration::from_secs(10), "no lag", behind).await;
    projector.end().await;
}
