//! Every document equals the one of a straightforward model, whatever happens meanwhile.

use std::time::Duration;

use herald_testing::{Broker, Database, create_topic, eventually, produce, random_topic};
use rand::RngExt as _;

use crate::model::Script;
use crate::process::Process;
use crate::{DEADLINE, Running, document, projected, reader_of};

const PARTITIONS: usize = 3;

async fn check(script: &Script, database: &Database) {
    let reader = reader_of(database);
    for session in &script.sessions {
        let expected = script.document(session);
        assert_eq!(document(&reader, session).await, Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_exact_when_the_projector_is_killed() {
    for database in Database::all() {
        kill(&database, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: --long"]
async fn documents_are_exact_when_the_projector_is_killed_often() {
    for database in Database::all() {
        kill(&database, 50).await;
    }
}

/// Kills the projector this many times, at random points.
async fn kill(database: &Database, times: usize) {
    let Some(kafka) = herald_testing::kafka_with("static members of groups") else {
        return;
    };
    let topic = random_topic("killed");
    create_topic(&kafka, &topic, PARTITIONS as i32, &[]).await;
    let script = Script::random(40 * times, PARTITIONS);
    let records = script.records();
    for part in records.chunks(records.len().div_ceil(times)) {
        let process = Process::start(&kafka, &topic, database, "a");
        produce(&kafka, &topic, part).await;
        let pause = rand::rng().random_range(400..1500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        process.kill();
    }
    let _process = Process::start(&kafka, &topic, database, "a");
    projected(&kafka, &topic, PARTITIONS as i32, &reader_of(database)).await;
    check(&script, database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_exact_while_projectors_come_and_go_and_after_a_rebuild() {
    let Some(kafka) = herald_testing::kafka_with("consumer groups") else {
        return;
    };
    for database in Database::all() {
        let topic = random_topic("rebalanced");
        create_topic(&kafka, &topic, PARTITIONS as i32, &[]).await;
        let script = Script::random(200, PARTITIONS);
        let records = script.records();
        let options = ["--batch-records", "7"];
        let one = Running::start(&kafka, &topic, &database, &options);
        for (round, part) in records.chunks(records.len() / 3 + 1).enumerate() {
            produce(&kafka, &topic, &part[..part.len() / 2]).await;
            let two = Running::start(&kafka, &topic, &database, &options);
            produce(&kafka, &topic, &part[part.len() / 2..]).await;
            two.becomes_ready().await;
            if round == 0 {
                // In the middle of its work.
                two.shutdown.cancel();
            }
            two.end().await;
        }
        projected(&kafka, &topic, PARTITIONS as i32, &reader_of(&database)).await;
        check(&script, &database).await;
        one.end().await;

        // An empty database, and other batches.
        let rebuilt = Database::sqlite();
        let projector = Running::start(&kafka, &topic, &rebuilt, &["--batch-records", "3"]);
        projected(&kafka, &topic, PARTITIONS as i32, &reader_of(&rebuilt)).await;
        check(&script, &rebuilt).await;
        projector.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_exact_when_the_broker_is_killed() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let kafka = broker.address().to_owned();
    let database = Database::sqlite();
    create_topic(&kafka, "events", PARTITIONS as i32, &[]).await;
    let script = Script::random(100, PARTITIONS);
    let records = script.records();
    let (first, second) = records.split_at(records.len() / 2);
    produce(&kafka, "events", first).await;
    let projector = Running::start(&kafka, "events", &database, &["--batch-records", "2"]);
    let begun = async || projector.metric("herald_projector_records_total").await > 0.0;
    eventually(DEADLINE, "the first batch", begun).await;
    broker.kill().await;
    broker.start_again().await;
    produce(&kafka, "events", second).await;
    projected(&kafka, "events", PARTITIONS as i32, &reader_of(&database)).await;
    check(&script, &database).await;
    projector.end().await;
}
