//! TLS of a client that knows the consumer's own certificate, or its CA.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use herald_runtime::http::trusted;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// `address` is `host:port`.
pub async fn connect(
    address: &str,
    ca: &Path,
    socket: TcpStream,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let trusted = Trusted::read(ca)?;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trusted))
        .with_no_client_auth();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host)?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, socket);
    handshake.await.with_context(|| {
        format!(
            "cannot connect to {address} by TLS with the certificates of {}",
            ca.display()
        )
    })
}

/// Accepts what the CAs have signed for the host. Besides, the consumer's own certificate, whatever its names, because the file
/// says that it is the right one; webpki alone would reject a self-signed one that may sign others too.
#[derive(Debug)]
struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
    cas: Arc<WebPkiServerVerifier>,
}

impl Trusted {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let (certificates, roots) = trusted(file)?;
        let provider = Arc::new(default_provider());
        let cas = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { certificates, cas })
    }
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let signed = self
            .cas
            .verify_server_cert(certificate, intermediates, name, ocsp, now);
        match signed {
            Err(Error::InvalidCertificate(
                Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
            )) => signed,
            Err(_) if self.certificates.iter().any(|own| own == certificate) => {
                Ok(ServerCertVerified::assertion())
            }
            _ => signed,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.cas
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.cas
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.cas.supported_verify_schemes()
    }
}
