//! Records that are not likes.

use herald_testing::{Record, eventually};

use super::{Setup, like, now};
use crate::DEADLINE;

/// The beginning of the year 2100.
const YEAR_2100: i64 = 4_102_444_800_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_like_becomes_a_dead_letter_and_time_does_not_jump() {
    let Some(kafka) = herald_testing::kafka_with("admin requests") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let long = "x".repeat(300);
    let time = now();
    let records = [
        like(0, "a", time),
        like(0, "a", YEAR_2100),
        like(0, "", time),
        like(0, &long, time),
        like(0, "a\0b", time),
        Record {
            value: Some(b"\xff".to_vec()),
            ..like(0, "", time)
        },
        Record {
            value: None,
            headers: vec![("x-request-id".to_owned(), Some(b"r1".to_vec()))],
            ..like(0, "", time)
        },
        like(0, "a", time),
    ];
    setup.like(&records).await;
    let projector = setup.start();
    setup.all_counted(2).await;
    let letters = setup.read(&format!("{}.dlq", setup.likes_topic())).await;
    let reasons = [
        "the timestamp is more than 24 hours ahead of the clock",
        "the identifier must not be empty",
        "an identifier has at most 256 bytes",
        "an identifier must not contain NUL",
        "the identifier is not UTF-8",
        "the record has no value",
    ];
    assert_eq!(letters.len(), reasons.len());
    for (((letter, record), reason), offset) in
        letters.iter().zip(&records[1..]).zip(reasons).zip(1..)
    {
        let header = |name: &str| {
            let found = letter.headers.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| String::from_utf8(value.clone().unwrap_or_default()).unwrap())
        };
        let topic = setup.likes_topic();
        assert_eq!(letter.key, Some(format!("{topic}/0/{offset}").into_bytes()));
        assert_eq!(letter.value, record.value);
        assert_eq!(header("reason").as_deref(), Some(reason));
        assert_eq!(header("origin-topic"), Some(topic));
        assert_eq!(header("origin-offset"), Some(offset.to_string()));
        let timestamp = record.timestamp.unwrap().to_string();
        assert_eq!(header("origin-timestamp"), Some(timestamp));
        let request = (offset == 6).then(|| "r1".to_owned());
        assert_eq!(header("x-request-id"), request);
    }
    // Later likes are not late.
    setup.like(&[like(0, "a", now())]).await;
    setup.all_counted(3).await;
    assert_eq!(setup.late("1s").await, 0);
    let counted = async || {
        let letters = projector.metric("herald_windows_dead_letters_total").await;
        letters == reasons.len() as f64
    };
    eventually(DEADLINE, "the dead letters to be counted", counted).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_that_the_partitioned_topic_rejects_becomes_a_dead_letter() {
    let Some(kafka) = herald_testing::kafka_with("checks of timestamps") else {
        return;
    };
    let limit = [("message.timestamp.after.max.ms", "3600000")];
    let setup = Setup::with(&kafka, 1, &limit).await;
    let ahead = now() + 2 * 3_600_000;
    setup
        .like(&[
            like(0, "a", now()),
            like(0, "a", ahead),
            like(0, "a", now()),
        ])
        .await;
    let projector = setup.start();
    setup.all_counted(2).await;
    let letters = setup.read(&format!("{}.dlq", setup.likes_topic())).await;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].key.as_deref().unwrap().ends_with(b"/0/1"));
    projector.becomes_ready().await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_like_does_not_hold_back_those_of_other_partitions() {
    let Some(kafka) = herald_testing::kafka_with("checks of timestamps") else {
        return;
    };
    let limit = [("message.timestamp.after.max.ms", "3600000")];
    let setup = Setup::with(&kafka, 3, &limit).await;
    let time = now();
    let mut likes: Vec<_> = (0..60)
        .map(|index| like(0, &format!("v{index}"), time))
        .collect();
    likes[30] = like(0, "v30", time + 2 * 3_600_000);
    setup.like(&likes).await;
    let projector = setup.start();
    setup.all_counted(59).await;
    let letters = setup.read(&format!("{}.dlq", setup.likes_topic())).await;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].key.as_deref().unwrap().ends_with(b"/0/30"));
    // The batch, and the record by itself: none is tried again without progress.
    let failures = projector.metric("herald_windows_failures_total").await;
    assert!((1.0..4.0).contains(&failures), "{failures} failures");
    projector.becomes_ready().await;
    projector.end().await;
}
