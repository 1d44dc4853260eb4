//! TLS and logins of PostgreSQL: what cannot work is rejected at start, and what the server rejects is explained.

use std::fs;

use sqlx::any::AnyConnectOptions;
use sqlx::error::{DatabaseError, Error};

/// A file that a parameter of the address names.
struct File {
    /// The parameter's names; the first one is PostgreSQL's own.
    names: &'static [&'static str],
    content: &'static str,
    has_content: fn(&str) -> bool,
}

const CA: File = File {
    names: &["sslrootcert", "ssl-root-cert", "ssl-ca"],
    content: "the CA certificate of the server, in PEM",
    has_content: |text| text.contains(CERTIFICATE_BEGINS),
};

const CERTIFICATE: File = File {
    names: &["sslcert", "ssl-cert"],
    content: "a client certificate in PEM",
    has_content: |text| text.contains(CERTIFICATE_BEGINS),
};

const KEY: File = File {
    names: &["sslkey", "ssl-key"],
    content: "a key in PKCS#8 PEM without a password, as `openssl pkcs8 -topk8 -nocrypt` writes it",
    // The driver accepts nothing before it.
    has_content: |text| text.starts_with("-----BEGIN PRIVATE KEY-----"),
};

const CERTIFICATE_BEGINS: &str = "-----BEGIN CERTIFICATE-----";

/// Rejects parameters of an address of PostgreSQL that would fail at each connection, or encrypt without verifying although a CA
/// is given. An error is for the user, and contains no password.
pub(crate) fn check(address: &AnyConnectOptions) -> Result<(), String> {
    for (key, _) in address.database_url.query_pairs() {
        // The driver would log its value as that of an unknown parameter.
        if key.contains("pass") && key != "password" {
            return Err(format!("the address has no parameter \"{key}\""));
        }
    }
    for file in [CA, CERTIFICATE, KEY] {
        file.check(address)?;
    }
    let mode = parameter(address, &["sslmode", "ssl-mode"]).unwrap_or_default();
    if CA.value(address).is_some() && !mode.to_ascii_lowercase().starts_with("verify-") {
        return Err(
            "sslrootcert needs sslmode=verify-full (or verify-ca), or the server's certificate is not verified"
                .to_owned(),
        );
    }
    if CERTIFICATE.value(address).is_some() != KEY.value(address).is_some() {
        return Err("give both sslcert and sslkey, or neither".to_owned());
    }
    Ok(())
}

/// What is wrong with a connection, and what to do: a clause about the server, if the error is one of TLS or of the login.
pub(crate) fn explain(error: &Error, address: &AnyConnectOptions) -> Option<String> {
    match error {
        Error::Database(error) => explain_login(error.as_ref()).map(str::to_owned),
        Error::Tls(_) | Error::Io(_) => {
            let explained = explain_handshake(&error.to_string(), address);
            explained.or_else(|| explain_end(error, address))
        }
        _ => None,
    }
}

/// The codes are those of PostgreSQL (appendix A), the messages those of its `auth.c`.
fn explain_login(error: &dyn DatabaseError) -> Option<&'static str> {
    let says = |text| error.message().contains(text);
    match error.code().as_deref() {
        // invalid_password
        Some("28P01") => Some(
            "it rejects the user or the password; correct them in the address, with special characters encoded as in a URL",
        ),
        // invalid_authorization_specification
        Some("28000") if says("no encryption") => Some(
            "it admits this user only over TLS, if at all; add sslmode=verify-full&sslrootcert=FILE to the address, with its CA certificate",
        ),
        Some("28000") if says("valid client certificate") => Some(
            "it demands a client certificate; add sslcert=FILE&sslkey=FILE to the address, signed by a CA of its ssl_ca_file",
        ),
        Some("28000") if says("certificate authentication failed") => {
            Some("the client certificate of sslcert is not for this user; give one with its name")
        }
        _ => None,
    }
}

/// The texts are those of OpenSSL: `X509_verify_cert_error_string`, and its names of TLS alerts.
fn explain_handshake(text: &str, address: &AnyConnectOptions) -> Option<String> {
    let says = |texts: &[&str]| texts.iter().any(|known| text.contains(known));
    let host = address.database_url.host_str().unwrap_or_default();
    let explained = if says(&["hostname mismatch", "IP address mismatch"]) {
        format!(
            "its certificate is not for \"{host}\"; connect by a name in the certificate, or add this one to it"
        )
    } else if says(&["(certificate has expired)"]) {
        "its certificate, or that of its CA, has expired; renew it".to_owned()
    } else if says(&["certificate is not yet valid"]) {
        "its certificate is not valid yet; check the clocks".to_owned()
    } else if says(&["certificate verify failed"]) {
        match CA.value(address) {
            None => "no known CA has signed its certificate; add sslrootcert=FILE to the address, with its CA certificate"
                .to_owned(),
            Some(file) => format!(
                "its certificate is not signed by the CA in {file}; put its CA certificate there{}",
                only_the_first(&file)
            ),
        }
    } else if says(&["does not support TLS"]) {
        "it does not offer TLS; set ssl = on in its configuration".to_owned()
    } else if says(&["alert certificate expired"]) {
        "it rejects the client certificate of sslcert, which has expired; renew it".to_owned()
    } else if says(&["alert unknown ca"]) {
        "it rejects the client certificate of sslcert; it must be signed by a CA of its ssl_ca_file"
            .to_owned()
    } else if says(&["alert certificate required"]) {
        "it demands a client certificate; add sslcert=FILE&sslkey=FILE to the address".to_owned()
    } else {
        return None;
    };
    Some(explained)
}

/// With TLS 1.3, a server rejects a client certificate after the handshake, and its alert may be lost when it closes the connection.
fn explain_end(error: &Error, address: &AnyConnectOptions) -> Option<String> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let Error::Io(error) = error else { return None };
    let ended = matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
    let certificate = CERTIFICATE.value(address).filter(|_| ended)?;
    Some(format!(
        "it closed the connection, as it does when it rejects a client certificate; its log has the reason: renew {certificate} if it \
         has expired, and sign it with a CA of its ssl_ca_file"
    ))
}

/// A note for a file with several certificates, of which the driver reads one.
fn only_the_first(file: &str) -> &'static str {
    let text = fs::read_to_string(file).unwrap_or_default();
    match text.matches(CERTIFICATE_BEGINS).count() {
        0 | 1 => "",
        _ => ", before all others, because only the first one in it counts",
    }
}

impl File {
    /// As in the address.
    fn value(&self, address: &AnyConnectOptions) -> Option<String> {
        parameter(address, self.names)
    }

    fn check(&self, address: &AnyConnectOptions) -> Result<(), String> {
        let Some(path) = self.value(address) else {
            return Ok(());
        };
        let name = self.names[0];
        // The driver also takes the content itself.
        if path.trim_start().starts_with("-----BEGIN") {
            return Ok(());
        }
        let text = fs::read_to_string(&path).map_err(|error| format!("{name}: {path}: {error}"))?;
        match (self.has_content)(&text) {
            true => Ok(()),
            false => Err(format!("{name}: {path} must contain {}", self.content)),
        }
    }
}

/// The value of a parameter under one of its names; the last one wins.
fn parameter(address: &AnyConnectOptions, names: &[&str]) -> Option<String> {
    let pairs = address.database_url.query_pairs();
    let found = pairs.filter(|(key, _)| names.contains(&key.as_ref()));
    found.last().map(|(_, value)| value.into_owned())
}
