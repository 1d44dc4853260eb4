//! Every like is counted exactly once, whatever happens meanwhile.

use std::time::Duration;

use herald_testing::{Broker, eventually};
use rand::RngExt as _;

use super::model::{check, check_late, likes};
use super::{Setup, now};
use crate::{DEADLINE, Running};

const PARTITIONS: i32 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_exact_when_the_projector_is_killed() {
    kill(5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: --long"]
async fn windows_are_exact_when_the_projector_is_killed_often() {
    kill(50).await;
}

/// Kills the projector this many times, at random points.
async fn kill(times: usize) {
    let Some(kafka) = herald_testing::kafka_with("static members of groups") else {
        return;
    };
    let setup = Setup::new(&kafka, PARTITIONS).await;
    let count = 700;
    for round in 1..=times {
        let process = setup.process("a");
        let pause = rand::rng().random_range(800..2500);
        let parts = 10;
        for _ in 0..parts {
            setup.like(&likes(count / parts, PARTITIONS)).await;
            tokio::time::sleep(Duration::from_millis(pause / parts as u64)).await;
        }
        if round == times {
            // At least once, something is committed, but not all.
            let published = async || !setup.results("1s").await.is_empty();
            eventually(DEADLINE, "the first results", published).await;
            setup.like(&likes(count, PARTITIONS)).await;
        }
        process.kill();
    }
    let likes = (count * (times + 1)) as u64;
    let results = setup.results("1s").await;
    let counted: u64 = results.iter().map(|result| result.count).sum();
    assert!(
        counted > 0 && counted < likes,
        "{counted} likes were counted"
    );
    let _process = setup.process("a");
    setup.all_counted(likes).await;
    check(&setup).await;
    check_late(&setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_exact_while_projectors_come_and_go() {
    let Some(kafka) = herald_testing::kafka_with("consumer groups") else {
        return;
    };
    let setup = Setup::new(&kafka, PARTITIONS).await;
    let one = setup.start();
    one.becomes_ready().await;
    for round in 0..3 {
        setup.like(&likes(200, PARTITIONS)).await;
        let two = setup.start();
        setup.like(&likes(200, PARTITIONS)).await;
        two.becomes_ready().await;
        setup.like(&likes(200, PARTITIONS)).await;
        if round == 1 {
            // In the middle of its work.
            two.shutdown.cancel();
        }
        two.end().await;
    }
    setup.all_counted(1800).await;
    one.end().await;
    check(&setup).await;
    check_late(&setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_exact_when_the_broker_is_killed() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let setup = Setup::new(broker.address(), PARTITIONS).await;
    let projector = setup.start();
    setup.like(&likes(300, PARTITIONS)).await;
    let begun = async || {
        let counted = projector.metric("herald_windows_likes_counted_total").await;
        counted > 0.0
    };
    eventually(DEADLINE, "the first likes to be counted", begun).await;
    setup.like(&likes(300, PARTITIONS)).await;
    broker.kill().await;
    broker.start_again().await;
    setup.like(&likes(300, PARTITIONS)).await;
    setup.all_counted(900).await;
    check(&setup).await;
    check_late(&setup).await;
    projector.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_a_new_size_is_complete() {
    let Some(kafka) = herald_testing::kafka_with("look-ups of times") else {
        return;
    };
    let setup = Setup::new(&kafka, 1).await;
    let mut one_size = setup.arguments();
    let windows = one_size.iter().position(|argument| argument == "--windows");
    one_size[windows.unwrap() + 1] = format!("1s={}", setup.topic("1s"));
    let projector = Running::with(&one_size);
    // Until a window of 3 s has begun, of which windows of 1 s are closed.
    let begin = now();
    let begun = async || {
        setup.like(&likes(5, 1)).await;
        let counted = setup.results("1s").await;
        let is_inside = |end: i64| end > begin && end % 3_000 != 0;
        counted.iter().any(|result| is_inside(result.end)) && now() - begin > 3_000
    };
    eventually(DEADLINE, "windows of 1 s to be closed", begun).await;
    projector.end().await;
    let projector = setup.start();
    let likes = setup.read(&setup.likes_topic()).await;
    let published = async || !setup.results("3s").await.is_empty();
    eventually(DEADLINE, "windows of 3 s to be closed", published).await;
    for result in setup.results("3s").await {
        let all = likes.iter().filter(|like| {
            like.value.as_deref() == Some(result.id.as_bytes())
                && (result.start..result.end).contains(&like.timestamp.unwrap())
        });
        assert_eq!(all.count() as u64, result.count, "{result:?}");
    }
    projector.end().await;
}
