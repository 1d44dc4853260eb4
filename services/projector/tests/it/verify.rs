//! The command that computes results again from Kafka and compares them.

use std::process::Command;

use herald_testing::{Database, Record, create_topic, eventually, produce, random_topic, read_all};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Executor as _};

use crate::{DEADLINE, Running, reader_of};

#[tokio::test(flavor = "multi_thread")]
async fn results_are_verified_and_what_differs_is_named() {
    let Some(kafka) = herald_testing::kafka_with("admin requests") else {
        return;
    };
    let database = Database::sqlite();
    let name = random_topic("verify");
    let topic = |kind: &str| format!("{name}.{kind}");
    for kind in ["foods", "likes", "partitioned", "results", "results.live"] {
        create_topic(&kafka, &topic(kind), 2, &[]).await;
    }
    let (foods, likes, partitioned) = (topic("foods"), topic("likes"), topic("partitioned"));
    let windows = format!("1s={}", topic("results"));
    let options = [
        ["--kafka-bootstrap-servers", &kafka],
        ["--group-prefix", &name],
        ["--projections", "counts,windows"],
        ["--counts-topic", &foods],
        ["--likes-topic", &likes],
        ["--partitioned-likes-topic", &partitioned],
        ["--windows", &windows],
        ["--window-grace", "1s"],
        ["--database-url", &database.address],
    ];
    let options: Vec<String> = options
        .as_flattened()
        .iter()
        .map(|&option| option.to_owned())
        .collect();
    let food = |food: &str| Record::new(0, format!("{{\"food\": \"{food}\"}}"));
    let occurrences = [food("pie"), food("beer"), food("pie"), Record::new(1, "{}")];
    produce(&kafka, &foods, &occurrences).await;
    // In windows that are over by now.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_millis() as i64;
    let like = |number: i64| Record {
        timestamp: Some(now - 10_000 + number % 3 * 1000),
        ..Record::new((number % 2) as i32, format!("video {}", number % 5))
    };
    let all: Vec<Record> = (0..300).map(like).collect();
    produce(&kafka, &likes, &all).await;
    let projector = Running::with(&options);
    let counted = async || {
        let results = read_all(&kafka, &topic("results")).await;
        let foods = reader_of(&database)
            .counts_after(0)
            .await
            .unwrap_or_default();
        results.len() == 15 && foods.len() == 2
    };
    eventually(DEADLINE, "all results", counted).await;

    let verify = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_projector"));
        let output = command.args(&options).arg("verify").output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let said = format!("{}{}", text(output.stdout), text(output.stderr));
        (output.status.code(), said)
    };
    let (code, said) = verify();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("  equal\n").count(), 2, "{said}");
    assert!(
        said.contains("4 records, 1 of them malformed, 2 foods"),
        "{said}"
    );
    assert!(said.contains("15 results of 300 likes, 0 late"), "{said}");

    let file = database.address.strip_prefix("sqlite://").unwrap();
    let mut other = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(file))
        .await
        .unwrap();
    other
        .execute("UPDATE food_counts SET count = 3 WHERE food = 'pie'")
        .await
        .unwrap();
    let results = read_all(&kafka, &topic("results")).await;
    let wrong = results[0].text().replace("\"count\":20", "\"count\":21");
    produce(
        &kafka,
        &topic("results"),
        &[Record::new(results[0].partition, wrong)],
    )
    .await;
    let (code, said) = verify();
    assert_eq!(code, Some(1), "{said}");
    for sentence in [
        "\"pie\" is 3, and 2 in Kafka",
        "there are two results",
        "the result is 21, and 20 in Kafka",
    ] {
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
    projector.end().await;
}
