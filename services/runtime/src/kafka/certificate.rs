//! Why a broker's certificate is not trusted: librdkafka does not tell.

use std::net::{IpAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use openssl::ssl::{HandshakeError, SslConnector, SslMethod, SslVerifyMode};
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::{X509VerifyFlags, X509VerifyParam};
use openssl::x509::{X509, X509StoreContext, X509VerifyResult};

/// The longest that connecting, and each answer, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether librdkafka's `reason` is a certificate that it does not trust.
pub fn is_rejected(reason: &str) -> bool {
    reason.contains("certificate verify failed")
}

/// What is wrong with the certificate of the broker in such a reason, and what to do. Connects to it once more, and blocks.
pub fn problem(reason: &str) -> String {
    let Some((host, port)) = address(reason) else {
        return UNKNOWN.to_owned();
    };
    match verify(host, port) {
        Ok(Some(X509VerifyResult::OK)) => {
            "no CA in ssl.ca.location has signed the broker's certificate; add its CA to that file, and restart"
                .to_owned()
        }
        Ok(Some(result)) if result.error_string().contains("mismatch") => format!(
            "the broker's certificate is not for \"{host}\"; connect by a name in the certificate, or add this one to it"
        ),
        Ok(Some(result)) => format!(
            "the broker's certificate is not valid ({}); renew it",
            result.error_string()
        ),
        Ok(None) | Err(_) => UNKNOWN.to_owned(),
    }
}

/// What is known without looking.
pub const UNKNOWN: &str = "the broker's certificate is not trusted: its CA is not in ssl.ca.location, or it is not for this host name, or it has \
                       expired";

/// Host and port of a reason that begins with `ssl://host:port/` or `sasl_ssl://host:port/`.
fn address(reason: &str) -> Option<(&str, u16)> {
    let (_, rest) = reason.split_once("ssl://")?;
    let (host, port) = rest.split('/').next()?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host, port.parse().ok()?))
}

/// Verifies everything about the certificate of a server but its CA, as if that were trusted. `None` if it shows none.
fn verify(host: &str, port: u16) -> anyhow::Result<Option<X509VerifyResult>> {
    let Some(certificate) = certificate(host, port)? else {
        return Ok(None);
    };
    let mut expected = X509VerifyParam::new()?;
    expected.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    match host.parse::<IpAddr>() {
        Ok(ip) => expected.set_ip(ip)?,
        Err(_) => expected.set_host(host)?,
    }
    let mut trusted = X509StoreBuilder::new()?;
    trusted.add_cert(certificate.clone())?;
    trusted.set_param(&expected)?;
    let (trusted, chain) = (trusted.build(), Stack::new()?);
    let result = X509StoreContext::new()?.init(&trusted, &certificate, &chain, |context| {
        context.verify_cert()?;
        Ok(context.error())
    })?;
    Ok(Some(result))
}

fn certificate(host: &str, port: u16) -> anyhow::Result<Option<X509>> {
    let mut stream = Err(std::io::ErrorKind::NotFound.into());
    for address in (host, port).to_socket_addrs()? {
        stream = TcpStream::connect_timeout(&address, TIMEOUT);
        if stream.is_ok() {
            break;
        }
    }
    let stream = stream?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    // Nothing is sent: it is only looked at.
    connector.set_verify(SslVerifyMode::NONE);
    let client = connector.build().configure()?.verify_hostname(false);
    let certificate = match client.connect(host, stream) {
        Ok(stream) => stream.ssl().peer_certificate(),
        // With TLS 1.2, a server that demands a certificate of ours shows its own first.
        Err(HandshakeError::Failure(stream)) => stream.ssl().peer_certificate(),
        Err(error) => return Err(error.into()),
    };
    Ok(certificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_the_reasons_of_librdkafka() {
        let failed = "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed";
        for (broker, expected) in [
            ("ssl://kafka:9093/bootstrap", ("kafka", 9093)),
            ("sasl_ssl://10.0.0.1:9094/1", ("10.0.0.1", 9094)),
            ("ssl://[::1]:9093/bootstrap", ("::1", 9093)),
        ] {
            let reason = format!("{broker}: {failed}");
            assert!(is_rejected(&reason));
            assert_eq!(address(&reason), Some(expected));
        }
        assert_eq!(problem(failed), UNKNOWN);
    }
}
