//! A PostgreSQL that demands TLS, whose certificate a private CA has signed.

use std::fs;
use std::path::Path;

use herald_testing::{Authority, Certificate, Postgres, random_topic};
use store::{DatabaseUrl, Name, Reader, Writer};

use crate::{apply, document};

const FRAME: &str = r#"[{"timestamp":1,"type":"EVENT"}]"#;

struct Secured {
    postgres: Postgres,
    ca: Authority,
    clients: Authority,
    schema: Name,
}

impl Secured {
    /// Its certificate is for `localhost`, not for 127.0.0.1, and valid for `days`.
    fn start(days: i32) -> Option<Self> {
        let (ca, clients) = (Authority::new("server-ca")?, Authority::new("client-ca")?);
        let postgres = Postgres::start()?;
        postgres
            .sql(
                "CREATE ROLE writer LOGIN PASSWORD 'the-writers-secret';
                 CREATE ROLE reader LOGIN PASSWORD 'the-readers-secret';
                 CREATE ROLE by_certificate LOGIN;
                 GRANT CREATE ON DATABASE postgres TO writer, by_certificate;",
            )
            .unwrap();
        let own = ca.sign("server", &["DNS:localhost"], days);
        postgres.demand_tls(&own, &clients).unwrap();
        let schema = random_topic("herald").parse().unwrap();
        Some(Self {
            postgres,
            ca,
            clients,
            schema,
        })
    }

    fn address(&self, login: &str, host: &str, parameters: &str) -> String {
        let port = self.postgres.port();
        format!("postgres://{login}@{host}:{port}/postgres?{parameters}")
    }

    /// Connects as projector and gateway do; both report the same sentence, which follows the server's address
    /// (but where the alert about a client certificate may be lost).
    async fn refusal(&self, login: &str, host: &str, parameters: &str) -> String {
        let url = self.address(login, host, parameters).parse().unwrap();
        let written = Writer::open(&url, &self.schema, None).await.map(drop);
        let read = Reader::new(&url, &self.schema).check().await;
        let [written, read] = [written, read].map(|result| {
            let sentence = format!("{:#}", result.unwrap_err());
            assert!(!sentence.contains("secret"), "{sentence}");
            let (_, why) = sentence.split_once("/postgres: ").expect(&sentence);
            why.to_owned()
        });
        if !parameters.contains("sslcert") {
            assert_eq!(written, read);
        }
        written
    }
}

fn verified(ca: &Path) -> String {
    format!("sslmode=verify-full&sslrootcert={}", ca.display())
}

fn with_certificate(own: &Certificate) -> String {
    let (certificate, key) = (own.certificate.display(), own.key.display());
    format!("&sslcert={certificate}&sslkey={key}")
}

#[tokio::test]
async fn everything_works_over_verified_tls() {
    let Some(secured) = Secured::start(1) else {
        return;
    };
    let parameters = verified(&secured.ca.certificate);
    let address = |login| secured.address(login, "localhost", &parameters);
    let url: DatabaseUrl = address("writer:the-writers-secret").parse().unwrap();
    let role: Name = "reader".parse().unwrap();
    let writer = Writer::open(&url, &secured.schema, Some(&role))
        .await
        .unwrap();
    apply(&writer, "s", &[FRAME]).await;
    let url = address("reader:the-readers-secret").parse().unwrap();
    let reader = Reader::new(&url, &secured.schema);
    reader.check().await.unwrap();
    assert!(document(&reader, "s").await.is_some());
    let encrypted = "SELECT bool_and(ssl), count(*) >= 2 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE usename IN ('writer', 'reader')";
    assert_eq!(secured.postgres.sql(encrypted).unwrap(), "t|t");
}

#[tokio::test]
async fn a_client_certificate_replaces_the_password() {
    let Some(secured) = Secured::start(1) else {
        return;
    };
    let parameters = |own| verified(&secured.ca.certificate) + &with_certificate(own);
    let own = secured.clients.sign("by_certificate", &[], 1);
    let address = secured.address("by_certificate", "localhost", &parameters(&own));
    let writer = Writer::open(&address.parse().unwrap(), &secured.schema, None).await;
    apply(&writer.unwrap(), "s", &[FRAME]).await;

    let expired = secured.clients.sign("by_certificate", &[], -1);
    let foreign = secured.ca.sign("by_certificate", &[], 1);
    let another = secured.clients.sign("another", &[], 1);
    for (own, why) in [
        (
            &expired,
            "it rejects the client certificate of sslcert, which has expired; renew it",
        ),
        (
            &foreign,
            "it rejects the client certificate of sslcert; it must be signed by a CA of its ssl_ca_file",
        ),
        (
            &another,
            "the client certificate of sslcert is not for this user; give one with its name",
        ),
    ] {
        let parameters = parameters(own);
        let refusal = secured
            .refusal("by_certificate", "localhost", &parameters)
            .await;
        // Where the server's alert is lost.
        let closed = "it closed the connection, as it does when it rejects a client certificate;";
        assert!(refusal == why || refusal.starts_with(closed), "{refusal}");
    }
    let without = verified(&secured.ca.certificate);
    assert_eq!(
        secured
            .refusal("by_certificate", "localhost", &without)
            .await,
        "it demands a client certificate; add sslcert=FILE&sslkey=FILE to the address, signed by a CA of its ssl_ca_file"
    );
}

#[tokio::test]
async fn a_connection_that_fails_says_what_to_do() {
    let Some(secured) = Secured::start(1) else {
        return;
    };
    let (own, foreign) = (&secured.ca.certificate, &secured.clients.certificate);
    let bundle = foreign.with_file_name("bundle.crt");
    let pem = |file| fs::read_to_string(file).unwrap();
    fs::write(&bundle, pem(foreign) + &pem(own)).unwrap();
    let good = "writer:the-writers-secret";
    for (login, host, parameters, why) in [
        (
            good,
            "localhost",
            verified(foreign),
            format!(
                "its certificate is not signed by the CA in {}; put its CA certificate there",
                foreign.display()
            ),
        ),
        (
            good,
            "localhost",
            verified(&bundle),
            format!(
                "its certificate is not signed by the CA in {}; put its CA certificate there, before all others, because only the \
                 first one in it counts",
                bundle.display()
            ),
        ),
        (
            good,
            "localhost",
            "sslmode=verify-full".to_owned(),
            "no known CA has signed its certificate; add sslrootcert=FILE to the address, with its CA certificate".to_owned(),
        ),
        (
            good,
            "127.0.0.1",
            verified(own),
            "its certificate is not for \"127.0.0.1\"; connect by a name in the certificate, or add this one to it".to_owned(),
        ),
        (
            good,
            "127.0.0.1",
            "sslmode=disable".to_owned(),
            "it admits this user only over TLS, if at all; add sslmode=verify-full&sslrootcert=FILE to the address, with its CA \
             certificate"
                .to_owned(),
        ),
        (
            "writer:another-secret",
            "localhost",
            verified(own),
            "it rejects the user or the password; correct them in the address, with special characters encoded as in a URL"
                .to_owned(),
        ),
    ] {
        assert_eq!(secured.refusal(login, host, &parameters).await, why);
    }
    // The host name is not compared, but the CA is.
    let unnamed = verified(own).replace("verify-full", "verify-ca");
    let url = secured
        .address(good, "127.0.0.1", &unnamed)
        .parse()
        .unwrap();
    Writer::open(&url, &secured.schema, None).await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_and_a_server_without_tls_are_named() {
    let Some(secured) = Secured::start(-1) else {
        return;
    };
    let parameters = verified(&secured.ca.certificate);
    let login = "writer:the-writers-secret";
    assert_eq!(
        secured.refusal(login, "localhost", &parameters).await,
        "its certificate, or that of its CA, has expired; renew it"
    );
    let plain = herald_testing::postgres().unwrap();
    let plain = format!("127.0.0.1:{}", plain.port());
    let url = format!("postgres://herald@{plain}/postgres?{parameters}");
    let reader = Reader::new(&url.parse().unwrap(), &secured.schema);
    let error = reader.check().await.unwrap_err().to_string();
    assert!(
        error.ends_with(": it does not offer TLS; set ssl = on in its configuration"),
        "{error}"
    );
}

#[test]
fn an_address_that_cannot_work_is_rejected_at_start() {
    let Some(ca) = Authority::new("ca") else {
        return;
    };
    let own = ca.sign("own", &[], 1);
    let pkcs1 = ca.certificate.with_file_name("pkcs1.key");
    fs::write(&pkcs1, "-----BEGIN RSA PRIVATE KEY-----\n").unwrap();
    let (ca, certificate, key) = (
        ca.certificate.display().to_string(),
        own.certificate.display().to_string(),
        own.key.display().to_string(),
    );
    let pkcs1 = pkcs1.display();
    let parse = |parameters: &str| {
        let url = format!("postgres://me:secret@db/herald?{parameters}");
        url.parse::<DatabaseUrl>().map(drop)
    };
    let pair = format!("sslcert={certificate}&sslkey={key}");
    for good in [
        format!("sslmode=verify-full&sslrootcert={ca}&{pair}"),
        format!("sslmode=verify-ca&ssl-ca={ca}"),
        format!("sslmode=require&{pair}"),
    ] {
        parse(&good).unwrap();
    }
    let unverified = "sslrootcert needs sslmode=verify-full (or verify-ca), or the server's certificate is not verified";
    let pkcs8 = "must contain a key in PKCS#8 PEM without a password, as `openssl pkcs8 -topk8 -nocrypt` writes it";
    for (bad, why) in [
        (format!("sslrootcert={ca}"), unverified.to_owned()),
        (
            format!("sslmode=require&sslrootcert={ca}"),
            unverified.to_owned(),
        ),
        (
            "sslmode=verify-full&sslrootcert=/no/such/ca.crt".to_owned(),
            "sslrootcert: /no/such/ca.crt: No such file or directory (os error 2)".to_owned(),
        ),
        (
            format!("sslmode=verify-full&sslrootcert={key}"),
            format!("sslrootcert: {key} must contain the CA certificate of the server, in PEM"),
        ),
        (
            format!("sslcert={certificate}&sslkey={pkcs1}"),
            format!("sslkey: {pkcs1} {pkcs8}"),
        ),
        (
            format!("sslcert={certificate}"),
            "give both sslcert and sslkey, or neither".to_owned(),
        ),
        (
            format!("{pair}&sslpassword=secret"),
            "the address has no parameter \"sslpassword\"".to_owned(),
        ),
    ] {
        assert_eq!(parse(&bad), Err(why));
    }
}
