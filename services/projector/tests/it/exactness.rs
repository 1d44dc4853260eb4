//! Every document equals the one of a straightforward model, whatever happens meanwhile.

use std::time::Duration;

use herald_testing::{create_topic, produce, random_topic};
use rand::RngExt as _;

use crate::database::Database;
use crate::model::Script;
use crate::process::Process;
use crate::{Running, document, projected};

const PARTITIONS: usize = 3;

async fn check(script: &Script, database: &Database) {
    let reader = database.reader();
    for session in &script.sessions {
        let expected = script.document(session);
        assert_eq!(document(&reader, session).await, Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_exact_when_the_projector_is_killed() {
    let Some(kafka) = herald_testing::kafka_with("static members") else {
        return;
    };
    for database in Database::all() {
        let topic = random_topic("killed");
        create_topic(&kafka, &topic, PARTITIONS as i32, &[]).await;
        let script = Script::random(200, PARTITIONS);
        let records = script.records();
        for part in records.chunks(records.len() / 5 + 1) {
            let process = Process::start(&kafka, &topic, &database, "a");
            produce(&kafka, &topic, part).await;
            let pause = rand::rng().random_range(400..1500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            process.kill();
        }
        let _process = Process::start(&kafka, &topic, &database, "a");
        projected(&kafka, &topic, PARTITIONS as i32, &database.reader()).await;
        check(&script, &database).await;
    }
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
        projected(&kafka, &topic, PARTITIONS as i32, &database.reader()).await;
        check(&script, &database).await;
        one.end().await;

        // An empty database, and other batches.
        let rebuilt = Database::sqlite();
        let projector = Running::start(&kafka, &topic, &rebuilt, &["--batch-records", "3"]);
        projected(&kafka, &topic, PARTITIONS as i32, &rebuilt.reader()).await;
        check(&script, &rebuilt).await;
        projector.end().await;
    }
}
