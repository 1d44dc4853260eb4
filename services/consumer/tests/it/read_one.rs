//! The client that tests of an installation run.

use std::fs;
use std::time::Duration;

use consumer::{ReadOne, ServerUrl, read_one};
use herald_testing::{Record, create_topic, eventually, kafka, produce, random_topic};

use crate::replica::Replica;

#[tokio::test(flavor = "multi_thread")]
async fn the_next_live_message_is_read_and_none_from_before() {
    let Some(kafka) = kafka() else { return };
    let topic = random_topic("one");
    create_topic(&kafka, &topic, 1, &[]).await;
    produce(&kafka, &topic, &[Record::new(0, "before")]).await;
    let replica = Replica::start(&kafka, &topic, &[]).await;
    let server: ServerUrl = replica.public.to_string().parse().unwrap();
    let reading = tokio::spawn(async move { read_one(&server, &ReadOne::default()).await });
    eventually(Duration::from_secs(30), "it to listen", async || {
        replica.metric("herald_streams{transport=\"sse\"}").await > 0.0
    })
    .await;
    produce(&kafka, &topic, &[Record::new(0, "two\nlines")]).await;
    assert_eq!(reading.await.unwrap().unwrap(), "two\nlines");
}

/// As the chart's test does, with the certificate that the consumer shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_read_by_tls() {
    let Some(kafka) = kafka() else { return };
    let folder = std::env::temp_dir().join(random_topic("read-one"));
    fs::create_dir(&folder).unwrap();
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let made = rcgen::generate_simple_self_signed(["herald.example".to_owned()]).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();

    let topic = random_topic("one-by-tls");
    create_topic(&kafka, &topic, 1, &[]).await;
    let (cert_option, key_option) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let tls = ["--tls-cert", cert_option, "--tls-key", key_option];
    let allowed = ["--allowed-hosts", "herald.example"];
    let replica = Replica::start(&kafka, &topic, &[tls.as_slice(), &allowed].concat()).await;
    let port = replica.public.port();
    let options = ReadOne {
        read_one_ca: Some(certificate.clone()),
        ..ReadOne::default()
    };
    let reading = tokio::spawn(async move {
        let server = format!("https://127.0.0.1:{port}").parse().unwrap();
        read_one(&server, &options).await
    });
    eventually(Duration::from_secs(30), "it to listen", async || {
        replica.metric("herald_streams{transport=\"sse\"}").await > 0.0
    })
    .await;
    produce(&kafka, &topic, &[Record::new(0, "by TLS")]).await;
    assert_eq!(reading.await.unwrap().unwrap(), "by TLS");
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let server: ServerUrl = nobody.parse().unwrap();
    let error = read_one(&server, &ReadOne::default()).await.unwrap_err();
    assert!(
        format!("{error:#}").starts_with(&format!("cannot connect to {nobody}")),
        "{error:#}"
    );
}
