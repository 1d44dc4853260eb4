use std::time::Duration;

use herald_testing::{Broker, Record, create_topic, eventually, produce, random_topic, read_all};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_broker_keeps_its_address_and_its_data_over_a_stop_and_a_kill() {
    let Some(mut broker) = Broker::start().await else {
        return;
    };
    let address = broker.address().to_owned();
    let topic = random_topic("testing");
    create_topic(&address, &topic, 1, &[]).await;
    produce(&address, &topic, &[Record::new(0, "before")]).await;

    broker.stop().await;
    assert!(TcpStream::connect(&address).await.is_err());
    broker.start_again().await;
    assert_eq!(broker.address(), address);
    produce(&address, &topic, &[Record::new(0, "between")]).await;

    broker.kill().await;
    assert!(TcpStream::connect(&address).await.is_err());
    broker.start_again().await;
    let texts: Vec<String> = read_all(&address, &topic)
        .await
        .iter()
        .map(|record| record.text())
        .collect();
    assert_eq!(texts, ["before", "between"]);

    drop(broker);
    eventually(
        Duration::from_secs(10),
        "the broker to be gone",
        async || TcpStream::connect(&address).await.is_err(),
    )
    .await;
}
