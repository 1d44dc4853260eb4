//! TLS on the ports for clients, with a certificate that can be replaced while they are connected.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::finish;
use super::server::Io;
use crate::watch::watch_files;

/// The first byte of TLS: a record of the handshake.
const HANDSHAKE: u8 = 22;

/// Bytes that are encrypted ahead for a client that does not read.
const BUFFER: usize = 16 << 10;

/// The body of the response to a client without TLS.
const PLAIN: &str = r#"{"error":"this port serves TLS only; use https://"}"#;

/// The certificate that a service shows to its clients.
#[derive(clap::Args, Clone, Debug)]
pub struct TlsArgs {
    /// File with the certificate that clients are shown, in PEM, followed by those that it was signed with. With it, all addresses
    /// but that of the admin server serve TLS 1.3 only, with HTTP/2 and HTTP/1.1. It is read again when it changes.
    #[arg(long, env, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// File with the private key of that certificate, in PEM, not encrypted. It is read again when it changes.
    #[arg(long, env, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Whether the options fit each other.
    ///
    /// # Errors
    ///
    /// One sentence for the user.
    pub fn check(&self) -> Result<(), String> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => Err("--tls-cert needs --tls-key; set both, or neither".to_owned()),
            (None, Some(_)) => Err("--tls-key needs --tls-cert; set both, or neither".to_owned()),
            _ => Ok(()),
        }
    }

    /// The first part of the service's URLs.
    pub fn scheme(&self) -> &'static str {
        match self.tls_cert {
            Some(_) => "https",
            None => "http",
        }
    }
}

/// Makes TLS connections with the newest certificate.
#[derive(Clone)]
pub struct Tls(watch::Receiver<Arc<ServerConfig>>);

impl Tls {
    /// Reads the files now, and again when they change, until `shutdown`. `None` if none are set.
    ///
    /// # Errors
    ///
    /// If they cannot be used now. Later that is logged, and the certificate from before stays.
    pub fn new(args: &TlsArgs, shutdown: &CancellationToken) -> anyhow::Result<Option<Self>> {
        let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else {
            return Ok(None);
        };
        let files: [&Path; 2] = [cert, key];
        let configs = watch_files(files, shutdown, |[cert, key]| config(&cert, &key))?;
        Ok(Some(Self(configs)))
    }

    /// Performs the handshake. A client that sends HTTP without TLS receives a response that says so.
    pub(super) async fn accept(&self, mut io: Io) -> io::Result<TlsStream<Io>> {
        let mut first = [0];
        if io.socket.stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first != [HANDSHAKE] {
            let response = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{PLAIN}",
                PLAIN.len()
            );
            io.write_all(response.as_bytes()).await?;
            _ = timeout(Duration::from_secs(1), finish(&mut io)).await;
            return Err(io::Error::other("the client uses no TLS"));
        }
        let config = self.0.borrow().clone();
        let limit = |session: &mut rustls::ServerConnection| session.set_buffer_limit(Some(BUFFER));
        // Boxed, because its caller reserves its size until the connection ends.
        Box::pin(TlsAcceptor::from(config).accept_with(io, limit)).await
    }

    /// Whether the client chose HTTP/2 in the handshake.
    pub(super) fn is_http2(stream: &TlsStream<Io>) -> bool {
        stream.get_ref().1.alpn_protocol() == Some(b"h2")
    }
}

/// The certificates in a file, in PEM, and the CAs that they are.
///
/// # Errors
///
/// If the file cannot be read, or holds no certificate or one that cannot be a CA's; names the file.
pub fn trusted(file: &Path) -> anyhow::Result<(Vec<CertificateDer<'static>>, RootCertStore)> {
    let name = file.display();
    let pem = fs::read(file).with_context(|| format!("cannot read {name}"))?;
    let mut roots = RootCertStore::empty();
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.with_context(|| format!("cannot use {name}"))?;
        let added = roots.add(certificate.clone());
        added.with_context(|| format!("cannot use {name}"))?;
        certificates.push(certificate);
    }
    ensure!(
        !roots.is_empty(),
        "cannot use {name}: it contains no certificate in PEM"
    );
    Ok((certificates, roots))
}

fn config(cert: &[u8], key: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let chain = chain.context("the certificate is not valid PEM")?;
    if chain.is_empty() {
        bail!("the first file contains no certificate (-----BEGIN CERTIFICATE-----)");
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        anyhow::anyhow!("the second file contains no private key that is not encrypted (-----BEGIN PRIVATE KEY-----)")
    })?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            anyhow::anyhow!("the key does not belong to the first certificate")
        }
        error => error.into(),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
pub(super) mod tests;
