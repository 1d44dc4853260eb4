//! The client that tests of an installation run.

use std::time::Duration;

use consumer::{ReadOne, Server, read_one};
use herald_testing::{Record, create_topic, eventually, kafka, produce, random_topic};

use crate::replica::Replica;

#[tokio::test(flavor = "multi_thread")]
async fn the_next_live_message_is_read_and_none_from_before() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("one");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &[Record::new(0, "before")]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let server: Server = replica.public.to_string().parse().unwrap();
    let reading = tokio::spawn(async move { read_one(&server, &ReadOne::default()).await });
    eventually(Duration::from_secs(30), "it to listen", async || {
        replica.metric("herald_streams{transport=\"sse\"}").await > 0.0
    })
    .await;
    produce(&kafka, &topic, &[Record::new(0, "two\nlines")]).await;
    assert_eq!(reading.await.unwrap().unwrap(), "two\nlines");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let server: Server = nobody.parse().unwrap();
    let error = read_one(&server, &ReadOne::default()).await.unwrap_err();
    assert!(
        format!("{error:#}").starts_with(&format!("cannot connect to {nobody}")),
        "{error:#}"
    );
}
