//! Over TLS, with either version of HTTP.

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::http::tls::tests::Files;

pub fn tls(files: &Files) -> Option<Tls> {
    Tls::new(&files.args(), &CancellationToken::new()).unwrap()
}

/// Connects as a client that trusts this certificate alone, and offers this protocol.
pub async fn connect(
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

async fn greet(request: Request<Incoming>) -> Result<Response, Infallible> {
    Ok(format!("{:?}", request.version()).into_response())
}

#[tokio::test]
async fn a_client_that_knows_only_http_1_is_served() {
    let files = Files::new();
    let server = serve(limits(), tls(&files), greet).await;
    let connected = connect(server.address, files.certificate(), b"http/1.1").await;
    let mut stream = connected.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\nHTTP/1.1"), "{response}");
}

#[tokio::test]
async fn a_client_without_tls_is_told_to_use_it() {
    let server = serve(limits(), tls(&Files::new()), greet).await;
    let mut stream = request(server.address).await;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(
        response.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{response}"
    );
    assert!(response.contains("use https://"), "{response}");
    drop(stream);
    while server.open.get() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.rejected("tls"), 1);
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut() {
    let limits = Limits {
        header: Duration::from_secs(1),
        ..limits()
    };
    let server = serve(limits, tls(&Files::new()), greet).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    for mut stream in [silent, half] {
        let read = timeout(Duration::from_secs(5), stream.read(&mut [0; 100])).await;
        assert_eq!(read.expect("it is cut").unwrap_or(0), 0);
    }
    while server.open.get() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((server.rejected("header"), server.rejected("tls")), (2, 0));
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_to_the_next_client_and_ends_no_connection() {
    let files = Files::new();
    let server = serve(limits(), tls(&files), greet).await;
    let before = files.certificate();
    let mut old = connect(server.address, before.clone(), b"http/1.1")
        .await
        .unwrap();
    let after = files.replace();
    let began = Instant::now();
    let mut new = loop {
        match connect(server.address, after.clone(), b"http/1.1").await {
            Ok(stream) => break stream,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(10), "{error}"),
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert!(connect(server.address, before, b"http/1.1").await.is_err());
    for stream in [&mut old, &mut new] {
        let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut response = [0; 12];
        stream.read_exact(&mut response).await.unwrap();
        assert_eq!(&response, b"HTTP/1.1 200");
    }
}
