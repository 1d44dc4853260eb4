use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

#[test]
fn an_address_is_a_host_with_an_optional_port() {
    let server = |url: &str| url.parse().map(|ServerUrl { address, tls }| (address, tls));
    let plain = |address: &str| Ok((address.to_owned(), false));
    assert_eq!(
        server("http://consumer-service"),
        plain("consumer-service:80")
    );
    assert_eq!(server("http://localhost:8001/"), plain("localhost:8001"));
    assert_eq!(server("[::1]"), plain("[::1]:80"));
    let tls = |address: &str| Ok((address.to_owned(), true));
    assert_eq!(server("https://a"), tls("a:443"));
    assert_eq!(server("https://[::1]:8443/"), tls("[::1]:8443"));
    for bad in ["", "http://", "https://", "ftp://a", "http://a/b", "a b"] {
        assert!(server(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_token_is_sent_without_the_line_end_of_its_file() {
    let folder = Folder::new();
    let file = folder.write("token", "a.b.c\n");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { answer(listener.accept().await.unwrap().0).await });
    let options = ReadOne {
        read_one_token: Some(file),
        ..ReadOne::default()
    };
    let server = format!("http://{address}").parse().unwrap();
    assert_eq!(read_one(&server, &options).await.unwrap(), "two\nlines");
    let request = serving.await.unwrap();
    assert!(
        request.contains("\r\nAuthorization: Bearer a.b.c\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("\r\nHost: {address}\r\n")),
        "{request}"
    );
}

#[tokio::test]
async fn a_file_that_holds_no_token_is_named() {
    let folder = Folder::new();
    let options = ReadOne {
        read_one_token: Some(folder.write("token", "a b\nX-Other: c")),
        ..ReadOne::default()
    };
    let server = "http://127.0.0.1:9".parse().unwrap();
    let error = read_one(&server, &options).await.unwrap_err().to_string();
    assert!(error.ends_with("must contain a token, and nothing else"));
}

#[tokio::test]
async fn a_server_with_a_certificate_of_the_ca_is_read() {
    let ca = Ca::new();
    let (certificate, key) = ca.sign("localhost");
    let message = read_by_tls(&certificate, &key, &ca.pem).await;
    assert_eq!(message.unwrap(), "two\nlines");
}

#[tokio::test]
async fn a_certificate_of_the_ca_for_another_host_is_rejected() {
    let ca = Ca::new();
    let (certificate, key) = ca.sign("other.example");
    let error = read_by_tls(&certificate, &key, &ca.pem).await.unwrap_err();
    assert!(
        format!("{error:#}").contains("not valid for name"),
        "{error:#}"
    );
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_rejected() {
    let (certificate, key) = Ca::new().sign("localhost");
    let error = read_by_tls(&certificate, &key, &Ca::new().pem).await;
    let error = error.unwrap_err();
    assert!(
        format!("{error:#}").starts_with("cannot connect to localhost:"),
        "{error:#}"
    );
}

/// As `openssl req -x509` makes it; and for the name by which browsers come, not that of the Service.
#[tokio::test]
async fn the_servers_own_certificate_is_enough() {
    for may_sign in [true, false] {
        let (certificate, key) = self_signed(may_sign, 2999);
        let message = read_by_tls(&certificate, &key, &certificate).await;
        assert_eq!(message.unwrap(), "two\nlines", "{may_sign}");
    }
}

#[tokio::test]
async fn the_servers_own_certificate_must_not_have_expired() {
    for may_sign in [true, false] {
        let (certificate, key) = self_signed(may_sign, 2020);
        let error = read_by_tls(&certificate, &key, &certificate).await;
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("expired"), "{error}");
    }
}

#[tokio::test]
async fn tls_needs_something_to_trust() {
    let server = "https://127.0.0.1:9".parse().unwrap();
    let error = read_one(&server, &ReadOne::default()).await.unwrap_err();
    assert!(error.to_string().contains("needs --read-one-ca"), "{error}");
}

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("herald-read-one-{:016x}", rand::random::<u64>());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// The PEM of a certificate for `name`, and of its key.
    fn sign(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn self_signed(may_sign: bool, last_year: i32) -> (String, String) {
    let mut params = CertificateParams::new(["herald.example".to_owned()]).unwrap();
    if may_sign {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.not_before = date_time_ymd(2019, 1, 1);
    params.not_after = date_time_ymd(last_year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Reads from a server on localhost that shows `certificate`, with a file of what is `trusted`.
async fn read_by_tls(certificate: &str, key: &str, trusted: &str) -> anyhow::Result<String> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        if let Ok(stream) = acceptor.accept(socket).await {
            answer(stream).await;
        }
    });
    let folder = Folder::new();
    let options = ReadOne {
        read_one_ca: Some(folder.write("tls.crt", trusted)),
        ..ReadOne::default()
    };
    let server = format!("https://localhost:{port}").parse().unwrap();
    read_one(&server, &options).await
}

/// Answers with a message, and returns the request.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut bytes = [0; 1024];
        let read = stream.read(&mut bytes).await.unwrap();
        assert!(read > 0, "the request ends in the middle");
        request.extend_from_slice(&bytes[..read]);
    }
    let response =
        "HTTP/1.1 200 OK\r\n\r\nevent: start\ndata: {}\n\ndata: two\ndata: lines\nid: 1\n\n";
    stream.write_all(response.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    String::from_utf8(request).unwrap()
}
