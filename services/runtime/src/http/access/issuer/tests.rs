use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::http::access::keys::Keys;
use crate::http::access::token::verify;

const PACE: Pace = Pace {
    every: Duration::from_secs(600),
    pause: Duration::from_millis(200),
    first: Duration::from_millis(20),
    timeout: Duration::from_millis(400),
};

/// A key pair, by its name.
struct Pair {
    name: &'static str,
    key: EncodingKey,
}

impl Pair {
    fn new(name: &'static str) -> Self {
        let pem = KeyPair::generate().unwrap().serialize_pem();
        let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
        Self { name, key }
    }

    fn public(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.name.to_owned());
        jwk
    }

    fn header(&self) -> Header {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.name.to_owned());
        header
    }

    fn token(&self, header: &Header) -> String {
        let claims = json!({"aud": "herald", "exp": 4_000_000_000_u64});
        encode(header, &claims, &self.key).unwrap()
    }
}

fn published(pairs: &[&Pair]) -> String {
    let keys: Vec<Jwk> = pairs.iter().map(|pair| pair.public()).collect();
    response("200 OK", &json!({ "keys": keys }).to_string())
}

fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// An issuer that answers each request with the bytes that it has at that moment, and leaves the connection open.
struct Server {
    at: SocketAddr,
    answer: watch::Sender<String>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    async fn new(answer: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (answer, answers) = watch::channel(answer.to_owned());
        let server = Self {
            at: listener.local_addr().unwrap(),
            answer,
            requests: Arc::default(),
        };
        let requests = server.requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, requests, tls) = (answers.clone(), requests.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => respond(stream, &answers, &requests).await,
                        Some(tls) => {
                            // A client that does not trust it ends the handshake.
                            let stream = TlsAcceptor::from(tls).accept(stream).await?;
                            respond(stream, &answers, &requests).await
                        }
                    }
                });
            }
        });
        server
    }

    fn watch(&self, readiness: &Readiness) -> Watched {
        let address = format!("http://{}/keys.json", self.at);
        Watched::new(&address, None, readiness)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn respond(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: &watch::Receiver<String>,
    requests: &AtomicUsize,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    assert!(request.starts_with(b"GET /keys.json HTTP/1.1\r\n"));
    requests.fetch_add(1, Ordering::SeqCst);
    let answer = answers.borrow().clone();
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    // Until the client closes.
    stream.read_u8().await.map(drop)
}

struct Watched {
    keys: Keys,
    _shutdown: tokio_util::sync::DropGuard,
}

impl Watched {
    fn new(address: &str, ca: Option<&Path>, readiness: &Readiness) -> Self {
        let (address, shutdown) = (address.parse().unwrap(), CancellationToken::new());
        let (current, refresh) = watch_at(PACE, &address, ca, readiness, &shutdown).unwrap();
        let refresh = Some(refresh);
        Self {
            keys: Keys { current, refresh },
            _shutdown: shutdown.drop_guard(),
        }
    }

    /// `None` if the token is valid.
    fn refusal(&self, token: &str) -> Option<&'static str> {
        verify(token, &self.keys, "herald", None)
            .err()
            .map(|invalid| invalid.sentence())
    }

    fn accepts(&self, token: &str) -> bool {
        self.refusal(token).is_none()
    }
}

/// Waits until this is true.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = timeout(Duration::from_secs(10), waiting).await;
    waited.unwrap_or_else(|_| panic!("not within 10 s: {what}"));
}

fn started() -> Readiness {
    let readiness = Readiness::new();
    readiness.ready();
    readiness
}

/// Waits until `/readyz` contains this.
async fn reported(readiness: &Readiness, text: &str) {
    let answer = || readiness.answer().1;
    let waiting = async {
        while !answer().contains(text) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = timeout(Duration::from_secs(10), waiting).await;
    waited.unwrap_or_else(|_| panic!("not within 10 s: {text}, but {}", answer()));
}

#[tokio::test]
async fn a_rotated_key_is_fetched_once_however_many_tokens_name_it() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    let server = Server::new(&published(&[&old]), None).await;
    let watched = server.watch(&started());
    let (of_old, of_new) = (old.token(&old.header()), new.token(&new.header()));
    until("the first key", || watched.accepts(&of_old)).await;
    server.answer.send_replace(published(&[&new]));
    for _ in 0..100 {
        let refusal = watched.refusal(&of_new).unwrap();
        assert!(refusal.contains("being fetched again"), "{refusal}");
    }
    until("the new key", || watched.accepts(&of_new)).await;
    assert!(!watched.accepts(&of_old));
    sleep(2 * PACE.pause).await;
    // That last refusal, of a key that is gone, was the reason of another one.
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn tokens_of_keys_that_nobody_has_make_one_fetch_per_pause() {
    let (known, forged) = (Pair::new("known"), Pair::new("forged"));
    let server = Server::new(&published(&[&known]), None).await;
    let watched = server.watch(&started());
    let (of_known, of_forged) = (known.token(&known.header()), forged.token(&forged.header()));
    until("the key", || watched.accepts(&of_known)).await;
    let begun = Instant::now();
    while begun.elapsed() < 4 * PACE.pause {
        assert!(!watched.accepts(&of_forged));
        sleep(Duration::from_millis(1)).await;
    }
    let requests = server.requests();
    assert!((3..=6).contains(&requests), "{requests}");
    assert!(watched.accepts(&of_known));
}

#[tokio::test]
async fn a_wrong_signature_of_a_known_key_fetches_nothing() {
    let (known, forged) = (Pair::new("known"), Pair::new("forged"));
    let server = Server::new(&published(&[&known]), None).await;
    let watched = server.watch(&started());
    until("the key", || watched.accepts(&known.token(&known.header()))).await;
    let refusal = watched.refusal(&forged.token(&known.header())).unwrap();
    assert!(refusal.contains("not signed with a key"), "{refusal}");
    sleep(2 * PACE.pause).await;
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn keys_in_the_header_of_a_token_are_ignored() {
    let (known, forged) = (Pair::new("known"), Pair::new("forged"));
    let server = Server::new(&published(&[&known]), None).await;
    let other = Server::new(&published(&[&forged]), None).await;
    let watched = server.watch(&started());
    until("the key", || watched.accepts(&known.token(&known.header()))).await;
    for name in [None, Some("known"), Some("forged")] {
        let mut header = forged.header();
        header.kid = name.map(str::to_owned);
        header.jku = Some(format!("http://{}/keys.json", other.at));
        header.x5u = header.jku.clone();
        header.jwk = Some(forged.public());
        assert!(!watched.accepts(&forged.token(&header)), "{name:?}");
        // Nor do they harm.
        header.kid = Some("known".to_owned());
        assert!(watched.accepts(&known.token(&header)));
    }
    until("the fetch for the unknown name", || server.requests() == 2).await;
    assert_eq!(other.requests(), 0);
}

/// Each is a sentence in `/readyz`, before and after there are keys.
#[tokio::test]
async fn an_issuer_that_fails_lets_nobody_in_and_takes_no_key_away() {
    let (pair, other) = (Pair::new("a"), Pair::new("b"));
    let elsewhere = Server::new(&published(&[&other]), None).await;
    let location = format!("302 Found\r\nlocation: http://{}/keys.json", elsewhere.at);
    let slow = published(&[&pair]).replace("length: ", "length: 1");
    let failures = [
        (response("500 Internal Server Error", ""), "it answered 500"),
        (response(&location, ""), "it answered 302"),
        (response("204 No Content", ""), "it answered 204"),
        (slow, "it did not answer completely within 0.4 s"),
        (String::new(), "it did not answer completely within 0.4 s"),
        (response("200 OK", &" ".repeat(MAX_BYTES + 1)), "256 KiB"),
        (response("200 OK", "<html>"), "it is not a JWKS"),
        (response("200 OK", r#"{"keys":[]}"#), "it contains no key"),
        ("SSH-2.0\r\n\r\n".to_owned(), "invalid HTTP version"),
    ];
    for (failure, sentence) in failures {
        let server = Server::new(&failure, None).await;
        let readiness = started();
        let watched = server.watch(&readiness);
        let token = pair.token(&pair.header());
        reported(&readiness, sentence).await;
        assert!(!readiness.is_ready(), "{sentence}");
        assert!(watched.keys.current().is_empty(), "{sentence}");
        server.answer.send_replace(published(&[&pair]));
        until("the keys", || watched.accepts(&token)).await;
        until("readiness", || readiness.answer().1 == "ok\n").await;
        server.answer.send_replace(failure);
        watched.keys.fetches_again();
        reported(&readiness, sentence).await;
        assert!(readiness.is_ready(), "{sentence}");
        assert!(watched.accepts(&token), "{sentence}");
        server.answer.send_replace(published(&[&pair]));
        until("the end of the problem", || readiness.answer().1 == "ok\n").await;
    }
    assert_eq!(elsewhere.requests(), 0);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_reached_is_tried_again() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/keys.json", gone.local_addr().unwrap());
    drop(gone);
    let readiness = started();
    let _watched = Watched::new(&address, None, &readiness);
    reported(&readiness, "Connection refused").await;
    assert!(!readiness.is_ready());
}

/// A CA of this name, and the configuration of a server whose certificate it has signed for localhost.
fn authority(ca: &str) -> (String, Arc<ServerConfig>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, ca);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (ca.pem(), Arc::new(config))
}

#[tokio::test]
async fn the_certificate_of_the_issuer_must_be_of_a_trusted_ca_and_for_its_name() {
    let pair = Pair::new("a");
    let (ca, tls) = authority("ours");
    let (other_ca, _) = authority("another");
    let server = Server::new(&published(&[&pair]), Some(tls)).await;
    let file = |name: &str, text: &str| {
        let file = std::env::temp_dir().join(format!("herald-{name}-{}", std::process::id()));
        fs::write(&file, text).unwrap();
        file
    };
    let (ca, other_ca) = (
        file("ca", &format!("{other_ca}{ca}")),
        file("other-ca", &other_ca),
    );
    let by_name = format!("https://localhost:{}/keys.json", server.at.port());
    let by_ip = format!("https://{}/keys.json", server.at);
    for (address, ca, problem) in [
        (&by_name, None, "UnknownIssuer"),
        (&by_name, Some(&*other_ca), "UnknownIssuer"),
        (&by_ip, Some(&*ca), "not valid for name"),
    ] {
        let readiness = started();
        let watched = Watched::new(address, ca, &readiness);
        reported(&readiness, problem).await;
        assert!(watched.keys.current().is_empty());
    }
    assert_eq!(server.requests(), 0);
    let watched = Watched::new(&by_name, Some(&ca), &started());
    let token = pair.token(&pair.header());
    until("the key", || watched.accepts(&token)).await;
    fs::remove_file(ca).unwrap();
    fs::remove_file(other_ca).unwrap();
}

#[tokio::test]
async fn a_file_without_a_ca_is_an_error_at_start() {
    let none = std::env::temp_dir().join(format!("herald-no-ca-{}", std::process::id()));
    let address = "https://localhost/".parse().unwrap();
    let error = |readiness: &Readiness| {
        let watched = watch_address(&address, Some(&none), readiness, &CancellationToken::new());
        format!("{:#}", watched.unwrap_err())
    };
    let readiness = started();
    assert!(error(&readiness).contains("cannot read"));
    for (content, sentence) in [
        ("", "it contains no certificate in PEM"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "cannot use",
        ),
    ] {
        fs::write(&none, content).unwrap();
        let error = error(&readiness);
        assert!(error.contains(sentence), "{error}");
    }
    fs::remove_file(none).unwrap();
}

#[test]
fn the_issuer_says_how_long_its_keys_are_current_within_bounds() {
    let default = Duration::from_secs(300);
    for (value, seconds) in [
        ("", 300),
        ("no-cache", 300),
        ("max-age=600", 600),
        ("public, max-age=900, must-revalidate", 900),
        ("max-age=0", 60),
        ("max-age=86400", 3600),
        ("max-age=soon", 300),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("cache-control", value.parse().unwrap());
        let lifetime = lifetime(&headers, default);
        assert_eq!(lifetime, Duration::from_secs(seconds), "{value}");
    }
    assert_eq!(lifetime(&HeaderMap::new(), default), default);
}

#[test]
fn keys_are_in_a_file_or_at_an_address_that_nobody_can_change() {
    for file in ["/etc/keys", "keys.json", "https", "./http://a"] {
        assert_eq!(file.parse(), Ok(KeysFrom::File(file.into())));
    }
    for address in [
        "https://issuer.example/.well-known/jwks.json",
        "HTTPS://issuer.example:8443/keys?tenant=a",
        "http://localhost:8080/keys",
        "http://127.0.0.2/keys",
        "http://[::1]:8080/keys",
    ] {
        let parsed = address.parse().unwrap();
        assert!(matches!(parsed, KeysFrom::Address(_)), "{address}");
    }
    for (wrong, sentence) in [
        ("", "it is empty"),
        ("http://issuer.example/keys", "use https://"),
        ("HTTP://issuer.example/keys", "use https://"),
        ("http://localhost.example/keys", "use https://"),
        ("http://10.0.0.1/keys", "use https://"),
        ("http://[::2]/keys", "use https://"),
        ("https://user:secret@issuer.example/keys", "leave it out"),
        ("http://localhost@issuer.example/keys", "leave it out"),
        ("https://", "it is not an address"),
        ("https://a b/", "it is not an address"),
        ("https://:443/", "host"),
    ] {
        let error = wrong.parse::<KeysFrom>().unwrap_err();
        assert!(error.contains(sentence), "{wrong}: {error}");
    }
}
