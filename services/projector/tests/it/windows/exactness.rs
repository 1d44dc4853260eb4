//! Every like is counted exactly once, whatever happens meanwhile.

use std::time::Duration;

use rand::RngExt as _;

use super::Setup;
use super::model::{check, likes};

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
    for _ in 0..times {
        let process = setup.process("a");
        let pause = rand::rng().random_range(600..1800);
        let parts = 10;
        for _ in 0..parts {
            setup.like(&likes(count / parts, PARTITIONS)).await;
            tokio::time::sleep(Duration::from_millis(pause / parts as u64)).await;
        }
        process.kill();
    }
    let _process = setup.process("a");
    setup.all_counted((count * times) as u64).await;
    check(&setup).await;
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
}
